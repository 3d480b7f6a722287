"""Probe saved checkpoints: the result is one run with a step per checkpoint."""

from pathlib import Path

from opdprobe import Callback, OPDConfig, OPDTrainer, curve, probe_checkpoints
from opdprobe.cli.names import resolve_model, resolve_prompts

CHECKPOINTS = Path("out/checkpoints")
student, teacher = resolve_model("zoo:sft-small"), resolve_model("zoo:rl-small")


class Keep(Callback):
    """Save the student every two updates, in place of a training run that leaves checkpoints."""

    def on_step_end(self, trainer, step, metrics, dataset):
        """Save a Hugging Face directory: ``checkpoint-2``, ``checkpoint-4``, …"""
        updates = step + 1
        if updates % 2 == 0:
            trainer.save_student(CHECKPOINTS / f"checkpoint-{updates}")


OPDTrainer(
    student,
    teacher,
    prompts=resolve_prompts("zoo:train", 96)[0],
    config=OPDConfig(
        max_steps=6,
        batch_size=16,
        max_completion_length=64,
        learning_rate=2e-4,
        record_every=0,
    ),
    run_dir="runs/unrecorded",
    callbacks=[Keep()],
).train()

prompts, grader = resolve_prompts("zoo:medium", 16)
run = probe_checkpoints(
    CHECKPOINTS, teacher, prompts, "runs/checkpoints", max_completion_length=64, grader=grader
)
overlap = curve(run, "overlap_ratio")
for step, value, low, high in zip(
    run.steps, overlap.value.values, overlap.low.values, overlap.high.values, strict=True
):
    print(f"step {step}: overlap ratio {value:.3f} [{low:.3f}, {high:.3f}]")
