"""Compare two runs of one student with two teachers: curves, a figure, and differences."""

import numpy as np
from matplotlib.figure import Figure

from opdprobe import OPDConfig, OPDTrainer, curve
from opdprobe.cli.names import resolve_model, resolve_prompts
from opdprobe.probes.quantities import scalar
from opdprobe.probes.rollout_sums import rollout_sums
from opdprobe.report.estimate import combine

TEACHERS = ("rl-small", "sft-large")
PROBES = ("overlap_ratio", "entropy_gap")
prompts, grader = resolve_prompts("zoo:train", 512)
config = OPDConfig(
    max_steps=10, batch_size=8, max_completion_length=64, learning_rate=2e-4, warmup_steps=2
)
# A run that exists already is opened, not trained again.
runs = [
    OPDTrainer(
        resolve_model("zoo:sft-small"),
        resolve_model(f"zoo:{name}"),
        prompts=prompts,
        config=config,
        run_dir=f"runs/to-{name}",
        grader=grader,
    ).train()
    for name in TEACHERS
]

figure = Figure(figsize=(6.75, 2.6), layout="constrained")
for ax, probe in zip(figure.subplots(1, 2), PROBES, strict=True):
    # Over the last five steps. Both runs had the same prompts, so these are resampled in pairs.
    first, second = (
        rollout_sums([run], {probe: probe}).mean(probe, slice(-5, None)) for run in runs
    )
    difference, low, high = combine([first.map(second, by=np.subtract)])
    print(f"{probe}: {TEACHERS[0]} minus {TEACHERS[1]} {difference:+.3f} [{low:+.3f}, {high:+.3f}]")
    for name, run in zip(TEACHERS, runs, strict=True):
        found = curve(run, probe)
        ax.plot(found.step, found.value, label=f"towards {name}")
        ax.fill_between(found.step, found.low, found.high, alpha=0.2, linewidth=0)
    ax.set(xlabel="training step", ylabel=scalar(probe).label)
    ax.legend()
figure.savefig("compare.png", dpi=200)
