"""Jobs of a reproduction: models by seed, measured once each, and a teacher of permuted tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.experiments import EXPERIMENTS
from analyses.presets import PRESETS
from opdprobe.cli import jobs
from opdprobe.cli.reproduce import plan
from opdprobe.models.load import load_model
from opdprobe.testing import tiny_model, tiny_tokenizer

QUICK = PRESETS["quick"]
SEVERAL = replace(
    QUICK, seeds=(7, 8), models={**QUICK.models, "rl_student": ("zoo:rl-small", "zoo:sft-small")}
)


def measured(preset, *figures):
    """Name, role and seed of each measurement of a plan."""
    tasks = plan(preset, Path("out"), list(figures))
    return {task.label: task.arguments[:2] for task in tasks if task.function == jobs.score}


def test_a_model_is_measured_once_whatever_the_number_of_seeds():
    assert measured(replace(QUICK, seeds=(7, 8)), "fig05", "fig07") == {
        "accuracy of large": ("large", 7),
        "accuracy of rl_student": ("rl_student", 7),
        "accuracy of student": ("student", 7),
    }


def test_the_models_of_a_role_are_measured_once_per_seed():
    assert measured(SEVERAL, "fig05", "fig07") == {
        "accuracy of large": ("large", 7),
        "accuracy of rl_student-s7": ("rl_student", 7),
        "accuracy of rl_student-s8": ("rl_student", 8),
        "accuracy of student": ("student", 7),
    }


def test_an_analysis_waits_for_every_measurement():
    *before, last = plan(SEVERAL, Path("out"), ["fig07"])
    assert last.after == {task.label for task in before}
    assert "accuracy of rl_student-s8" in last.after


def test_accuracies_are_kept_by_model_and_read_by_seed(tmp_path):
    def path(role, seed):
        return jobs.scores_path(tmp_path, role, seed, SEVERAL)

    assert path("student", 7) == path("student", 8) == tmp_path / "scores/student.json"
    assert path("rl_student", 8) == tmp_path / "scores/rl_student-s8.json"
    (tmp_path / "scores").mkdir()
    for score, at in enumerate(
        [path("student", 7), path("rl_student", 7), path("rl_student", 8)], start=1
    ):
        at.write_text(f'{{"settings": {{}}, "scores": {{"easy": [{score}, 0]}}}}')
    read = {
        role: [jobs._read_scores(path(role, seed))["easy"].tolist() for seed in SEVERAL.seeds]
        for role in ("student", "rl_student")
    }
    assert read == {"student": [[1, 0], [1, 0]], "rl_student": [[2, 0], [3, 0]]}


def test_roles_that_are_measured_are_those_of_runs_that_train():
    assert jobs.trained_roles("success") == ("student", "rl_student")
    assert jobs.trained_roles("probe_success") == ()
    assert {name for name, e in EXPERIMENTS.items() if e.permuted} == {"control_permuted"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_permuted_teacher_gives_other_tokens_the_same_probabilities(tied, tmp_path):
    tiny_model(seed=3, tie=tied).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    before = load_model(str(tmp_path), device="cpu")
    after = jobs._permuted(str(tmp_path), replace(QUICK, device="cpu"))
    rows, moved = (m.get_output_embeddings().weight.detach().numpy() for m in (before, after))
    shared = before.get_output_embeddings().weight is before.get_input_embeddings().weight
    assert shared == tied
    # The same rows in another order, and input embeddings as they were.
    assert sorted(map(tuple, moved.tolist())) == sorted(map(tuple, rows.tolist()))
    assert np.mean((moved == rows).all(axis=1)) < 0.2
    for a, b in zip(
        before.get_input_embeddings().parameters(),
        after.get_input_embeddings().parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        logits, other = before(ids).logits, after(ids).logits
    torch.testing.assert_close(logits.sort(-1).values, other.sort(-1).values)
    assert not torch.allclose(logits, other)
    # The next one is permuted alike: a run that is resumed has the same teacher.
    again = jobs._permuted(str(tmp_path), replace(QUICK, device="cpu"))
    assert torch.equal(again.get_output_embeddings().weight, after.get_output_embeddings().weight)
