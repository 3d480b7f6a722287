"""The completions that TRL itself logs are read: its trainers run, and write them."""

from pathlib import Path

import pytest

from opdprobe import import_rollouts
from opdprobe.rollout.dumps.read import DumpReader
from opdprobe.testing import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = [
    pytest.mark.slow,
    # TRL 1.16 still calls a function that transformers 5.23 renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def options(config, folder, **more):
    return config(
        str(folder),
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=2,
        max_completion_length=5,
        log_completions=True,
        num_completions_to_print=0,
        disable_tqdm=True,
        **more,
    )


def reinforced(folder, prompts):
    trl.GRPOTrainer(
        tiny_model(seed=0),
        reward_funcs=lambda completions, **_: [float(len(text) % 2) for text in completions],
        args=options(trl.GRPOConfig, folder, num_generations=2),
        train_dataset=prompts,
        processing_class=tiny_tokenizer(),
    ).train()


def distilled(folder, prompts):
    trl.DistillationTrainer(
        tiny_model(seed=0),
        tiny_model(seed=1),
        args=options(trl.DistillationConfig, folder),
        train_dataset=prompts,
        processing_class=tiny_tokenizer(),
    ).train()


@pytest.mark.parametrize("train", [reinforced, distilled])
def test_completions_that_trl_logged_become_a_run(train, tmp_path, capsys):
    prompts = datasets.Dataset.from_dict({"prompt": [f"{i} {i + 1}" for i in range(8)]})
    train(tmp_path / "out", prompts)
    reader = DumpReader(tmp_path / "out" / "completions")
    rollouts = list(reader)
    assert reader.format.name == "trl"
    assert [Path(path).name for path in reader.files] == [
        f"completions_{step:05d}.parquet" for step in (1, 2)
    ]
    assert {rollout.step for rollout in rollouts} == {1, 2}
    assert {rollout.prompt for rollout in rollouts} <= set(prompts["prompt"])
    if train is reinforced:
        assert {rollout.correct for rollout in rollouts} <= {0.0, 1.0}
    found = import_rollouts(
        tmp_path / "out" / "completions",
        tmp_path / "run",
        student=tiny_model(seed=0),
        teacher=tiny_model(seed=1),
        tokenizer=tiny_tokenizer(),
        k=2,
    )
    assert found.run.steps == [1, 2]
    assert found.text is not None
    assert found.text.prompts_same == found.text.rows == len(rollouts)
