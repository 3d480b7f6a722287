"""The same contexts at every checkpoint, against transformers' own logits."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from opdprobe import Prompt, open_run, probe_checkpoints
from opdprobe.cli.parser import main
from opdprobe.errors import ConfigError, StoreError
from opdprobe.models.processes import Processes
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.rescore import rescore
from opdprobe.store import RunWriter
from opdprobe.store.schema import validate
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12")]
STEPS = (0, 10, 30)
SMALL = {"k": 4, "num_generations": 2, "max_completion_length": 5}


def student(step):
    model = tiny_model(seed=0)
    model.lm_head.weight.data += 0.02 * step * torch.sin(torch.arange(64.0))[:, None]
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints, their probe on their own rollouts, and on those of the first."""
    folder = tmp_path_factory.mktemp("fixed")
    for step in STEPS:
        path = folder / "out" / f"checkpoint-{step}"
        student(step).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    tiny_model(seed=1).save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    grader = lambda text, prompt: float("7" in text)  # noqa: E731
    own = probe_checkpoints(
        folder / "out", folder / "teacher", PROMPTS, folder / "own", grader=grader, **SMALL
    )
    fixed = probe_checkpoints(
        folder / "out", folder / "teacher", None, folder / "fixed", fixed_contexts=own, k=4
    )
    return folder, own, fixed


def test_every_step_has_the_first_steps_rollouts(made):
    _, own, fixed = made
    assert fixed.steps == own.steps == list(STEPS)
    first = own.load(0)
    moved = own.load(30)["response_ids"].values.tolist() != first["response_ids"].values.tolist()
    assert moved  # the students' own rollouts differ
    for step in STEPS:
        ds = fixed.load(step)
        validate(ds)
        assert ds.attrs["checkpoint"] == f"checkpoint-{step}"
        for name in ("response_ids", "prompt_ids", "sampled_id", "position", "rollout"):
            np.testing.assert_array_equal(ds[name], first[name], err_msg=name)
        for name in ("correct", "finished", "prompt_id", "length"):
            np.testing.assert_array_equal(ds[name], first[name], err_msg=name)
    # The first student scores its own rollouts as it did when it sampled them.
    for name in ("logp", "entropy", "reverse_kl", "token_id", "sampled_logp"):
        np.testing.assert_allclose(fixed.load(0)[name], first[name], rtol=1e-3, atol=1e-6)
    assert fixed.attrs["fixed_contexts"] | {"sha256": ""} == {
        "run": "own", "step": 0, "rollouts": 6, "sha256": ""
    }  # fmt: skip
    assert fixed.config == {"k": 4, "temperature": 1.0}


def test_the_scores_are_those_of_the_later_student_at_the_earlier_states(made):
    _, own, fixed = made
    models, ds = (student(30), tiny_model(seed=1)), fixed.load(30)
    start = 0
    for prompt, response in zip(own.prompt_ids(0), own.response_ids(0), strict=True):
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        with torch.no_grad():
            logs = [
                model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for model in models
            ]
        here = slice(start, start := start + len(response))
        kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        np.testing.assert_allclose(ds["reverse_kl"].values[here], kl, rtol=1e-3, atol=1e-5)
        drawn = torch.tensor(response.tolist())[:, None]
        for m in range(2):
            entropy = -(logs[m].exp() * logs[m]).sum(-1)
            np.testing.assert_allclose(ds["entropy"].values[here, m], entropy, rtol=1e-4)
            np.testing.assert_allclose(
                ds["sampled_logp"].values[here, m], logs[m].gather(1, drawn)[:, 0], rtol=1e-3
            )
    assert start == ds.sizes["state"]


def test_it_resumes_and_refuses_other_contexts(made, tmp_path):
    folder, own, fixed = made
    arguments = folder / "teacher", None, tmp_path / "run"
    some = [folder / "out" / f"checkpoint-{step}" for step in (0, 30)]
    probe_checkpoints(some, *arguments, fixed_contexts=own.path, k=4)
    run = probe_checkpoints(folder / "out", *arguments, fixed_contexts=own, k=4)
    assert all(run.load(step).identical(fixed.load(step)) for step in STEPS)
    later = RunWriter(tmp_path / "later", attrs={}, config={}, resume=False)
    later.write_step(30, own.load(30))
    other = open_run(later.path)
    with pytest.raises(
        StoreError, match=r"different run: .*fixed_contexts\.step: 0 before, 30 now"
    ):
        probe_checkpoints(folder / "out", *arguments, fixed_contexts=other, k=4)


def test_processes_share_the_rollouts(made):
    _, own, fixed = made
    pair = Pair(student(10), tiny_model(seed=1), tiny_tokenizer())
    contexts = own.load(0)
    shares = [
        rescore(pair, contexts, k=4, step=10, processes=_process(rank, 2)) for rank in range(2)
    ]
    assert [part.sizes["rollout"] for part in shares] == [3, 3]
    for name in ("reverse_kl", "sampled_id", "response_ids"):
        joined = np.concatenate([part[name] for part in shares])
        np.testing.assert_allclose(joined, fixed.load(10)[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="6 rollouts for 7 processes"):
        rescore(pair, contexts, k=4, processes=_process(0, 7))


def test_what_the_contexts_do_not_say_is_not_made_up(made):
    _, own, _ = made
    pair = Pair(student(10), tiny_model(seed=1), tiny_tokenizer())
    contexts = own.load(0)
    unknown = np.where(np.arange(6) == 0, np.nan, contexts["finished"].values).astype(np.float32)
    found = rescore(pair, contexts.assign(finished=("rollout", unknown)), k=4)
    np.testing.assert_array_equal(found["finished"], unknown)


def test_what_a_tool_wrote_is_read_and_not_scored(made):
    _, own, fixed = made
    pair = Pair(student(10), tiny_model(seed=1), tiny_tokenizer())
    contexts = own.load(0)
    assert (contexts["length"] > 2).any()
    # The second token of each response is not the student's; what follows is.
    drawn = contexts["position"].values != 1
    last = contexts["position"].values == contexts["length"].values[contexts["rollout"].values] - 1
    keep = np.flatnonzero(drawn | last)
    found = rescore(pair, contexts.isel(state=keep), k=4)
    for name in ("rollout", "position", "sampled_id"):
        np.testing.assert_array_equal(found[name], contexts[name].values[keep])
    whole = fixed.load(10)["reverse_kl"].values[keep]
    np.testing.assert_allclose(found["reverse_kl"], whole, rtol=1e-4, atol=1e-6)
    # Of a record of first positions, all are scored.
    first = contexts.isel(state=np.flatnonzero(contexts["position"].values < 2))
    assert rescore(pair, first, k=4).sizes["state"] == contexts.sizes["state"]


def _process(rank, size):
    processes = Processes()
    processes.rank, processes.size = rank, size
    return processes


def test_contexts_that_cannot_be_scored(made, tmp_path):
    folder, own, _ = made
    pair = Pair(student(0), tiny_model(seed=1), tiny_tokenizer())
    step = own.load(0)
    with pytest.raises(StoreError, match="the contexts have no prompt_ids"):
        rescore(pair, step.drop_vars("prompt_ids"))
    foreign = step.assign(response_ids=xr.full_like(step["response_ids"], 64))
    with pytest.raises(ConfigError, match="token 64, the models 64 tokens"):
        rescore(pair, foreign)
    call = folder / "out", folder / "teacher"
    with pytest.raises(ConfigError, match="expected one of the two"):
        probe_checkpoints(*call, PROMPTS, tmp_path / "run", fixed_contexts=own)
    with pytest.raises(ConfigError, match="expected prompts, or a run"):
        probe_checkpoints(*call, None, tmp_path / "run")
    empty = RunWriter(tmp_path / "empty", attrs={}, config={}, resume=False)
    with pytest.raises(StoreError, match="no recorded step to take contexts from"):
        probe_checkpoints(*call, None, tmp_path / "run", fixed_contexts=open_run(empty.path))


def test_the_command(made, tmp_path, capsys):
    folder, own, fixed = made
    command = ["probe", str(folder / "out"), "--teacher", str(folder / "teacher"), "--k", "4"]
    command += ["--run-dir", str(tmp_path / "run"), "--json"]
    assert main([*command, "--fixed-contexts", str(own.path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steps"] == list(STEPS)
    assert answer["reverse_kl"] == pytest.approx(fixed.metrics["reverse_kl"].values[-1])
    assert main(command) == 1
    assert "give either --prompts, or --fixed-contexts" in capsys.readouterr().err
    served = ["probe", "http://localhost:1/v1#x", *command[2:], "--fixed-contexts", str(own.path)]
    assert main(served) == 1
    assert "a server samples itself" in capsys.readouterr().err
