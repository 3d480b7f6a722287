"""Attach to another library's trainer: TRL distils, and opdprobe records the run."""

from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer

from opdprobe import ProbeCallback, open_run
from opdprobe.cli.names import resolve_model, resolve_prompts

student, teacher = str(resolve_model("zoo:sft-small")), str(resolve_model("zoo:rl-small"))
prompts, grader = resolve_prompts("zoo:train", 64)
settings = DistillationConfig(
    "out/trl",
    max_steps=10,
    per_device_train_batch_size=8,
    max_completion_length=64,
    learning_rate=2e-4,
    bf16=False,
    report_to="none",
)
dataset = Dataset.from_dict({"prompt": [list(prompt.messages) for prompt in prompts]})

probe = ProbeCallback(
    teacher, prompts[:16], "runs/trl", every=5, max_completion_length=64, grader=grader
)
trainer = DistillationTrainer(
    student, teacher, args=settings, train_dataset=dataset, callbacks=[probe]
)
trainer.train()

run = open_run("runs/trl")
print(run.metrics[["overlap_ratio", "entropy_gap", "correct"]].sel(step=run.steps).to_pandas())
