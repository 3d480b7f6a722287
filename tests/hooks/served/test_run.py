"""Scores and runs with served models: equal to local ones wherever the server reports them."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from opdprobe import (
    ConfigError,
    Prompt,
    Rollout,
    StoreError,
    VocabularyError,
    curve,
    open_run,
    score_rollouts,
    validate,
)
from opdprobe.cli.parser import main
from opdprobe.errors import ModelError, PromptError
from opdprobe.hooks import probe_checkpoints
from opdprobe.hooks.served import Connection, ServedModel, probe_served
from opdprobe.hooks.served.connection import API_KEY
from opdprobe.hooks.served.scores import score_served
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.sample import Rollouts, sample
from opdprobe.store.schema import MODELS
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]
QUICK = Connection(timeout=20, backoff=0.001)


@pytest.fixture(scope="module")
def rollouts():
    return sample(
        tiny_model(seed=0),
        [[7, 8], [9], [10, 11, 12, 13]],
        num_generations=3,
        max_completion_length=8,
        eos_ids=[2],
        pad_id=0,
        generator=torch.Generator().manual_seed(3),
    )


# --- a server's scores are those of a local model ---


@pytest.mark.parametrize("served", [["teacher"], ["student"], ["student", "teacher"]])
def test_scores_are_the_local_ones_where_they_are_known(serve, models, rollouts, served):
    server, local, k = serve(), models, 6
    pair = Pair(local["student"], local["teacher"], tiny_tokenizer())
    parts = [(part.batch.state, part.scores) for part in pair.scored(rollouts, k=k)]
    want = in_rollout_order(parts)
    mixed = {m: ServedModel(server.address(m), QUICK) if m in served else local[m] for m in MODELS}
    got = score_served(mixed, tiny_tokenizer(), rollouts, k=k)

    np.testing.assert_array_equal(got.token_id, want.token_id)
    np.testing.assert_allclose(got.sampled_logp, want.sampled_logp, atol=1e-4)
    known = got.logp.isfinite()
    np.testing.assert_allclose(got.logp[known], want.logp[known], atol=1e-4)
    sampled = [token for row in rollouts.response_ids for token in row]
    for state, drawn in enumerate(sampled):
        for m, model in enumerate(MODELS):
            own = set(want.token_id[state, m].tolist()) | {drawn}
            told = [token in own for token in want.token_id[state, 1 - m].tolist()]
            assert known[state, m, m].all()
            assert known[state, m, 1 - m].tolist() == (told if model in served else [True] * k)
    for m, model in enumerate(MODELS):
        if model in served:
            assert got.entropy[:, m].isnan().all()
        else:
            np.testing.assert_allclose(got.entropy[:, m], want.entropy[:, m], atol=1e-4)
    assert got.reverse_kl.isnan().all()
    assert known[:, 0, 1].any()
    assert not known[:, 1, 0].all() or "teacher" not in served


def test_micro_batches_of_the_local_model_change_nothing(serve, models, rollouts):
    mixed = {"student": models["student"], "teacher": ServedModel(serve().address("teacher"))}
    whole = score_served(mixed, tiny_tokenizer(), rollouts, k=4)
    cut = score_served(mixed, tiny_tokenizer(), rollouts, k=4, micro_batch_tokens=1)
    np.testing.assert_allclose(whole.logp, cut.logp, atol=1e-5)
    np.testing.assert_array_equal(whole.token_id, cut.token_id)


# --- a run ---


def test_a_run_with_a_served_teacher(serve, checkpoint, tmp_path):
    server = serve(tokenizer=tiny_tokenizer())
    settings = {"k": 4, "num_generations": 6, "max_completion_length": 6, "seed": 5}
    local = probe_checkpoints(
        checkpoint["student"], checkpoint["teacher"], PROMPTS, tmp_path / "local", **settings
    )
    progress = []
    run = probe_served(
        checkpoint["student"],
        ServedModel(server.address("teacher"), QUICK),
        PROMPTS,
        tmp_path / "run",
        **settings,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert progress == [(0, 1), (1, 1)]
    assert run.attrs["teacher"] == {"name": "teacher", "served": True}
    got, want = run.load(0), local.load(0)
    validate(got)
    assert got.attrs["missing"] == ["teacher"]
    np.testing.assert_array_equal(got.response_ids, want.response_ids)
    np.testing.assert_array_equal(got.token_id, want.token_id)

    # The entire overlap is known, so everything defined on it is exact.
    for name in ("overlap_ratio", "overlap_token_advantage", "extreme_advantage_gap"):
        a, b = getattr(got.opd, name)(), getattr(want.opd, name)()
        np.testing.assert_allclose(a, b, atol=1e-3)  # the store's rounding
    for definition in ("sum", "thunlp", "verl"):
        a, b = (ds.opd.overlap_token_advantage(definition) for ds in (got, want))
        np.testing.assert_allclose(a, b, atol=1e-3)
    for model in MODELS:
        a, b = (ds.opd.overlap_mass(model) for ds in (got, want))
        np.testing.assert_allclose(a, b, atol=1e-3)
        a, b = (ds.opd.mass_set_size(model, mass=0.5) for ds in (got, want))
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(got.opd.sampled_reward(), want.opd.sampled_reward(), atol=1e-4)
    np.testing.assert_allclose(got.opd.entropy(), want.opd.entropy(), atol=1e-4)

    # The rest is missing, and a curve reports in how many states.
    n = got.sizes["state"]
    for name in ("entropy_gap", "reverse_kl"):
        found = curve(run, name)
        assert (found.n.item(), found.n_missing.item()) == (0, n)
    part = curve(run, lambda ds: ds.opd.topk_mass("teacher", "student"))
    untold = np.isnan(got.logp.sel(model="teacher", support="student")).any("rank")
    assert part.n_missing.item() == int(untold.sum())
    assert 0 < part.n_missing.item() <= n
    assert curve(run, "overlap_ratio").n_missing.item() == 0


def test_a_resumed_run_requests_nothing_that_it_has(serve, checkpoint, tmp_path):
    server = serve()
    teacher = ServedModel(server.address("teacher"), QUICK)
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 4}
    folders = []
    for step in (500, 1000):
        folders.append(tmp_path / f"checkpoint-{step}")
        shutil.copytree(checkpoint["student"], folders[-1])
    probe_served(folders[:1], teacher, PROMPTS, tmp_path / "run", **settings)
    run = probe_served(folders[:1], teacher, PROMPTS, tmp_path / "run", **settings)
    assert run.steps == [500]
    before = len(server.asked)
    run = probe_served(folders, teacher, PROMPTS, tmp_path / "run", **settings)
    assert run.steps == [500, 1000]
    # One request for k, one per text; and four more of each, to see that the answers stay the same.
    asked = [path for path, _ in server.asked[before:] if path == "/v1/completions"]
    assert len(asked) == 1 + 5 * len(PROMPTS)
    assert run.load(1000).attrs["checkpoint"] == "checkpoint-1000"
    with pytest.raises(StoreError, match="k: 4 before, 5 now"):
        probe_served(folders, teacher, PROMPTS, tmp_path / "run", **settings | {"k": 5})


@pytest.mark.parametrize("both", [True, False])
def test_the_command_line_and_what_reads_its_run(serve, checkpoint, tmp_path, capsys, both):
    server = serve(tokenizer=tiny_tokenizer())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p.text}) + "\n" for p in PROMPTS))
    run_dir = str(tmp_path / "run")
    command = ["probe", server.address("student"), "--prompts", str(prompts), "--run-dir", run_dir]
    command += ["--k", "4", "--num-generations", "6", "--max-completion-length", "5", "--json"]
    command += (
        ["--teacher", server.address("teacher"), "--tokenizer", str(checkpoint["teacher"])]
        if both
        else ["--teacher", str(checkpoint["teacher"])]
    )
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["overlap_ratio"] < 1
    assert "reverse_kl" not in found
    assert ("teacher_entropy" in found) is not both
    ds = open_run(run_dir).load(0)
    assert ds.attrs["missing"] == (["student", "teacher"] if both else ["student"])
    assert main(["inspect", run_dir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"]
    assert main(["report" if both else "view", run_dir]) == 0  # a report has a view beside it


def test_a_served_student_is_probed_alone(capsys):
    addresses = ["http://a/v1", "http://b/v1"]
    rest = ["--teacher", "zoo:rl-small", "--prompts", "zoo:train", "--run-dir", "x"]
    assert main(["probe", *addresses, *rest]) == 1
    assert "probed alone" in capsys.readouterr().err


def test_long_prompts_are_refused_left_out_or_allowed(serve, checkpoint, tmp_path):
    server = serve(tokenizer=tiny_tokenizer())
    models = checkpoint["student"], ServedModel(server.address("teacher"), QUICK)
    prompts = [Prompt("short", text="7"), Prompt("long", text="7 8 9")]
    settings = {"k": 4, "num_generations": 1, "max_completion_length": 2}
    with pytest.raises(PromptError, match="3 tokens, more than max_prompt_length 2"):
        probe_served(*models, prompts, tmp_path / "no", **settings, max_prompt_length=2)
    run = probe_served(
        *models, prompts, tmp_path / "run", **settings, max_prompt_length=2, on_error="skip"
    )
    assert run.load(run.steps[0]).prompt_length.values.tolist() == [1]


def test_too_large_a_k_is_reported_before_anything_is_sampled(serve, checkpoint, tmp_path):
    server = serve()
    mixed = {m: ServedModel(server.address(m), QUICK) for m in MODELS}
    settings = {"max_completion_length": 8, "tokenizer": tiny_tokenizer()}
    with pytest.raises(ConfigError, match=r"at most 20 .* k = 21: use k = 20 .* --max-logprobs 21"):
        probe_served(*mixed.values(), PROMPTS, tmp_path / "run", k=21, **settings)
    alone = Rollouts([[7]], [[8]], [True], [0])
    with pytest.raises(ConfigError, match="k = 65; expected at most 64, the size"):
        score_served(mixed, tiny_tokenizer(), alone, k=65)
    assert not any(body and body.get("n") for _, body in server.asked)
    assert not (tmp_path / "run").exists()


def test_too_short_a_context_is_reported_before_anything_is_sampled(serve, checkpoint, tmp_path):
    server = serve()
    teacher = ServedModel(server.address("teacher"), QUICK)
    settings = {"k": 2, "num_generations": 1}
    with pytest.raises(ModelError, match=r"context of 100 tokens, but .* needs 101 .one extra"):
        probe_served(
            checkpoint["student"],
            teacher,
            PROMPTS,
            tmp_path / "run",
            **settings,
            max_completion_length=96,
        )
    assert not (tmp_path / "run").exists()
    assert [path for path, _ in server.asked] == ["/v1/models"]


def test_a_key_goes_with_every_request_and_nowhere_else(serve, monkeypatch, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=f"holds a user name; .* {API_KEY}") as caught:
        ServedModel("http://me:secret@host/v1")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv(API_KEY, "a-key")
    server = serve()
    teacher = ServedModel(server.address("teacher"), QUICK)
    probe_served(
        checkpoint["student"],
        teacher,
        PROMPTS[:1],
        tmp_path / "run",
        k=2,
        num_generations=1,
        max_completion_length=2,
    )
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer a-key"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not any(b"a-key" in path.read_bytes() for path in files)


def test_another_vocabulary(serve, checkpoint, tmp_path, caplog):
    other = tiny_tokenizer(12)  # knows the numbers to 5
    server = serve(tokenizer=other)
    arguments = (checkpoint["student"], ServedModel(server.address("teacher"), QUICK), PROMPTS)
    settings = {"k": 2, "num_generations": 1, "max_completion_length": 2}
    with pytest.raises(VocabularyError, match=r"token 0 is \[3\] there and \[13\] here"):
        probe_served(*arguments, tmp_path / "run", **settings)
    server.tokenizer = None
    with caplog.at_level(logging.WARNING, "opdprobe"):
        probe_served(*arguments, tmp_path / "run", **settings)
    assert "has no /tokenize, so its vocabulary is not compared" in caplog.text


def test_required_arguments(serve, checkpoint, tmp_path):
    served = ServedModel(serve().address("student"), QUICK)
    with pytest.raises(ConfigError, match="neither model is served"):
        probe_served(checkpoint["student"], checkpoint["teacher"], PROMPTS, tmp_path)
    with pytest.raises(ConfigError, match=r"no tokenizer: .* --tokenizer DIR"):
        probe_served(served, served, PROMPTS, tmp_path)


def test_a_local_teachers_table_of_positions_counts_beside_a_served_student(serve, tmp_path):
    teacher = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=4, n_layer=1, n_head=1, n_positions=8)
    )
    student = ServedModel(serve().address("student"), QUICK)
    with pytest.raises(ModelError, match="GPT2LMHeadModel has a table of 8 positions"):
        probe_served(
            student,
            teacher,
            PROMPTS,
            tmp_path / "run",
            tokenizer=tiny_tokenizer(),
            max_completion_length=8,
            k=4,
        )
    assert not (tmp_path / "run").exists()


# --- rollouts that exist already ---


@pytest.mark.parametrize("served", [["teacher"], ["student", "teacher"]])
def test_rollouts_are_scored_by_a_server_as_locally(serve, models, rollouts, served, tmp_path):
    server = serve()
    mixed = [ServedModel(server.address(m), QUICK) if m in served else models[m] for m in MODELS]
    texts = zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
    rows = [Rollout(0, "a", *both, mask=np.arange(len(both[1])) != 1) for both in texts]
    settings = {"tokenizer": tiny_tokenizer(), "k": 6}
    got = score_rollouts(*mixed, rows, tmp_path / "served", **settings).load(0)
    want = score_rollouts(*models.values(), rows, tmp_path / "local", **settings).load(0)
    validate(got)
    assert got.attrs["missing"] == served
    assert ("stop_logp" in got) is (served == ["teacher"])
    for name in ("token_id", "position", "sampled_id", "response_ids", "length"):
        np.testing.assert_array_equal(got[name], want[name])
    np.testing.assert_allclose(got.sampled_logp, want.sampled_logp, atol=1e-4)
    known = np.isfinite(got.logp.values)
    np.testing.assert_allclose(got.logp.values[known], want.logp.values[known], atol=1e-3)
    with pytest.raises(ConfigError, match="servers do not scale log-probabilities"):
        score_rollouts(*mixed, rows, tmp_path / "hot", temperature=0.7, **settings)
