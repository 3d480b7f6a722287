"""SGLang, and newer vLLM: they score the tokens that they are given, so little is missing."""

import base64
import io

import numpy as np
import pytest
import torch

from opdprobe import VocabularyError, validate
from opdprobe.errors import ModelError
from opdprobe.hooks import probe_checkpoints
from opdprobe.hooks.served import Connection, ServedModel, probe_served
from opdprobe.hooks.served import sglang as sglang_module
from opdprobe.hooks.served.scores import score_served
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.prompt import Prompt
from opdprobe.rollout.sample import Rollouts, sample
from opdprobe.store.schema import MODELS
from opdprobe.testing import tiny_model, tiny_tokenizer

EOS, WIDTH, CAP = 2, 64, 20
QUICK = Connection(timeout=20, backoff=0.001)
ENGINES = ["vllm", "sglang"]


@pytest.fixture
def engine(serve):
    """Start a server of one model that scores given tokens, and return it with its client."""

    def start(kind, model, **settings):
        server = serve({"served": model}, engine=kind, **settings)
        server.scores_given = True
        return server, ServedModel(server.address(), QUICK)

    return start


@pytest.fixture(scope="module")
def rollouts():
    return sample(
        tiny_model(seed=0),
        [[7, 8], [9], [10, 11, 12, 13]],
        num_generations=2,
        max_completion_length=8,
        eos_ids=[EOS],
        pad_id=0,
        generator=torch.Generator().manual_seed(3),
    )


# --- what is known ---


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("role", MODELS)
def test_all_but_entropy_and_divergence_is_known(engine, models, rollouts, kind, role):
    k = 6
    pair = Pair(models["student"], models["teacher"], tiny_tokenizer())
    parts = [(part.batch.state, part.scores) for part in pair.scored(rollouts, k=k)]
    want = in_rollout_order(parts)
    mixed = {**models, role: engine(kind, models[role])[1]}
    got = score_served(mixed, tiny_tokenizer(), rollouts, k=k)

    np.testing.assert_array_equal(got.token_id, want.token_id)
    for name in ("logp", "sampled_logp"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-4)
    m = MODELS.index(role)
    assert got.entropy[:, m].isnan().all()
    assert got.reverse_kl.isnan().all()
    np.testing.assert_allclose(got.entropy[:, 1 - m], want.entropy[:, 1 - m], atol=1e-4)
    # What both give to the local model's stop tokens is known; the server's are not.
    np.testing.assert_allclose(got.stop_logp[:, :, 1 - m], want.stop_logp[:, :, 1 - m], atol=1e-4)
    assert got.stop_logp[:, :, m].isnan().all()


@pytest.mark.parametrize("given", [False, None])
def test_a_vllm_leaves_out_what_it_cannot_score(serve, models, rollouts, given, caplog):
    """An older one, and one that was started without --enable-scale-out, which says so."""
    server = serve({"teacher": models["teacher"]})
    server.scores_given = given
    model = ServedModel(server.address(), QUICK)
    assert model.tell_at(rollouts, np.zeros((rollouts.n_tokens, 2), int)) is None
    mixed = {**models, "teacher": model}
    got = score_served(mixed, tiny_tokenizer(), rollouts, k=6)
    assert got.logp[:, 1, 0].isnan().any()
    assert got.stop_logp[:, 0, 0].isfinite().all()
    assert got.stop_logp[:, 1].isnan().all()
    asked = [path for path, _ in server.asked if path.startswith("/inference")]
    assert len(asked) <= len(rollouts)  # once it is known, it is not asked again
    said = [r for r in caplog.messages if "Scale-out endpoints are disabled" in r]
    assert len(said) == (given is None)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_fails_at_given_tokens_cannot_score_them(engine, models, rollouts, status):
    server, model = engine("vllm", models["teacher"])
    server.faults = [(status, b"", {})] * (5 if status == 500 else 1)
    one = rollouts.pick([0])
    ids = np.zeros((one.n_tokens, 2), int)
    assert model.tell_at(one, ids) is None
    before = len(server.asked)
    assert model.tell_at(one, ids) is None  # the run is of one kind from beginning to end
    assert len(server.asked) == before


def test_two_servers_know_each_others_lists(engine, models, rollouts):
    kinds = dict(zip(MODELS, ENGINES, strict=True))
    served = {role: engine(kinds[role], models[role])[1] for role in MODELS}
    got = score_served(served, tiny_tokenizer(), rollouts, k=6)
    assert got.logp.isfinite().all()
    assert got.stop_logp is None


@pytest.mark.parametrize("most", [1, 12, 40])
def test_long_responses_are_asked_for_in_pieces(engine, models, rollouts, monkeypatch, most):
    server, model = engine("sglang", models["teacher"])
    ids = np.random.default_rng(0).integers(0, WIDTH, (rollouts.n_tokens, 4))
    whole = model.tell_at(rollouts, ids)
    before = len(server.asked)
    monkeypatch.setattr(sglang_module, "_MOST_NUMBERS", most)
    np.testing.assert_allclose(model.tell_at(rollouts, ids), whole, atol=1e-5)
    asked = [body for _, body in server.asked[before:]]
    sizes = [
        (len(body["input_ids"]) - 1 - body["logprob_start_len"]) * len(body["token_ids_logprob"])
        for body in asked
    ]
    assert all(size <= most for size in sizes) or most < 4  # one place is the least
    assert len(asked) > len(rollouts)


def test_vllm_is_asked_for_no_more_tokens_than_it_allows(engine, models, rollouts):
    _, model = engine("vllm", models["teacher"])
    ids = np.random.default_rng(0).integers(0, WIDTH, (rollouts.n_tokens, CAP + 5))
    found = model.tell_at(rollouts, ids)
    assert found.shape == ids.shape
    one = model.tell_at(rollouts, ids[:, CAP + 1 : CAP + 2])
    np.testing.assert_allclose(one[:, 0], found[:, CAP + 1], atol=1e-6)


# --- samples ---


@pytest.mark.parametrize("kind", ENGINES)
def test_samples_come_with_the_samplers_log_probabilities(engine, models, kind):
    student = models["student"]
    _, model = engine(kind, student)
    drawn = model.sample([[7, 8], [9]], num_generations=3, max_completion_length=6, seed=[0])
    assert drawn.prompt_index == [0, 0, 0, 1, 1, 1]
    for prompt, response, finished, logp in zip(
        drawn.prompt_ids, drawn.response_ids, drawn.finished, drawn.sampler_logp, strict=True
    ):
        assert finished == (response[-1] == EOS)
        with torch.no_grad():
            full = student(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        own = full[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])[:, 0]
        np.testing.assert_allclose(logp, own, atol=1e-5)


def test_sglang_samples_the_distribution_itself(engine, models):
    student, n = models["student"], 200
    _, model = engine("sglang", student)
    drawn = model.sample([[7, 8]], num_generations=n, max_completion_length=1, seed=[0])
    with torch.no_grad():
        p = student(torch.tensor([[7, 8]])).logits[0, -1].softmax(-1).numpy()
    seen = np.bincount([row[0] for row in drawn.response_ids], minlength=WIDTH)
    error = (seen - n * p) / np.sqrt(n * p * (1 - p))
    assert np.abs(error[n * p > 5]).max() < 4


# --- a run ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_a_run_has_the_same_probes_as_a_local_one(engine, models, checkpoint, tmp_path, kind):
    server, teacher = engine(kind, models["teacher"], tokenizer=tiny_tokenizer())
    prompts = [Prompt("a", text="7 8"), Prompt("b", text="9")]
    settings = {"k": 4, "num_generations": 4, "max_completion_length": 6, "seed": 5}
    local = probe_checkpoints(
        *(checkpoint["student"], checkpoint["teacher"], prompts, tmp_path / "local"), **settings
    )
    run = probe_served(checkpoint["student"], teacher, prompts, tmp_path / "run", **settings)
    got, want = run.load(0), local.load(0)
    validate(got)
    assert got.attrs["missing"] == ["teacher"]
    unknown = {"teacher_entropy", "entropy_gap", "reverse_kl", "teacher_stop_token_mass"}
    numbers, wanted = (dict(one.metrics.isel(step=0).items()) for one in (run, local))
    assert set(wanted) - set(numbers) <= unknown
    for name in set(wanted) - unknown:
        np.testing.assert_allclose(numbers[name], wanted[name], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(
        got.opd.stop_token_mass("teacher", of="student"),
        want.opd.stop_token_mass("teacher", of="student"),
        atol=1e-3,
    )
    assert any(path == "/tokenize" for path, _ in server.asked)


def test_sglang_hides_the_last_token_of_its_vocabulary(engine, models):
    """It reports token 0 in its place; the log-probability is the token's own."""
    server, model = engine("sglang", models["teacher"])
    ids, response = [7, 8], [WIDTH - 1, 9]
    told = model.tell(Rollouts([ids], [response], [False], [0]), k=3, width=WIDTH)
    logp = server.logp(models["teacher"], [*ids, *response])
    want = [logp[1, WIDTH - 1], logp[2, 9]]
    np.testing.assert_allclose(told.sampled_logp, want, atol=1e-5)
    np.testing.assert_array_equal(told.token_id[0], logp[1].topk(3).indices)


# --- answers of another form ---


def meta(change):
    return lambda answer: change(answer["meta_info"])


@pytest.mark.parametrize(
    ("alter", "error", "message"),
    [
        (
            meta(lambda m: m["input_token_logprobs"].pop(1)),
            ModelError,
            "asked for 2 tokens and reports 1: .*--disable-radix-cache",
        ),
        (meta(lambda m: m["input_top_logprobs"].pop()), ModelError, "reports 1: its server cuts"),
        (
            meta(lambda m: m["input_token_logprobs"][1].__setitem__(1, 5)),
            ModelError,
            "reports other tokens than it was sent",
        ),
        (
            meta(lambda m: m["input_top_logprobs"][1].append([-0.1, WIDTH, None])),
            VocabularyError,
            "beyond the tokenizer's 64 tokens 90%",
        ),
        (
            meta(lambda m: m["input_top_logprobs"][1].append([-9, -1, None])),
            ModelError,
            "reports token -1",
        ),
        (
            meta(lambda m: m["input_token_logprobs"][1].__setitem__(0, 0.7)),
            ModelError,
            "a log-probability of 0.7",
        ),
        (
            meta(lambda m: m["input_token_logprobs"][1].__setitem__(0, None)),
            ModelError,
            "does not follow the protocol .TypeError",
        ),
        (
            lambda answer: answer.pop("meta_info"),
            ModelError,
            "does not follow the protocol .KeyError",
        ),
    ],
    ids=["cut", "cut-lists", "changed", "padding", "negative", "positive", "null", "empty"],
)
def test_scores_of_another_form(engine, models, alter, error, message):
    server, model = engine("sglang", models["teacher"])
    server.alter = alter
    with pytest.raises(error, match=message):
        model.tell(Rollouts([[7, 8]], [[9, 10]], [True], [0]), k=4, width=WIDTH)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (
            meta(lambda m: m.update(finish_reason={"type": "abort", "message": "queue"})),
            "1 responses to prompt 0, with finish reasons abort",
        ),
        (
            meta(lambda m: m.update(finish_reason={"type": "length"})),
            "cut a response to prompt 0 after",
        ),
        (meta(lambda m: m.pop("output_token_logprobs")), "follow the protocol .KeyError"),
    ],
    ids=["abort", "cut", "no-tokens"],
)
def test_responses_of_another_form(engine, models, alter, message):
    server, model = engine("sglang", models["student"])
    server.alter = alter
    with pytest.raises(ModelError, match=message):
        model.sample([[7]], num_generations=1, max_completion_length=50, seed=[0])


def npy(array, claimed=None):
    content = io.BytesIO()
    np.save(content, array)
    raw = content.getvalue()
    if claimed:
        raw = raw.replace(b"(2, 1)", claimed)
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("?", "ValueError|Error"),
        (base64.b64encode(b"PK\x03\x04").decode(), "ValueError"),
        (npy(np.full((1, 2), -1, "f4")), r"shape \(1, 2\) and type float32, expected \(2, 1\)"),
        (npy(np.full((2, 1), -1, "f8")), "type float64"),
        (npy(np.full((2, 1), -1, "f4"), b"(9, 9)"), r"shape \(9, 9\)"),
        (npy(np.array([[None], [None]], object)), "type object"),
        (npy(np.full((2, 1), 0.5, "f4")), "no log-probability"),
        (npy(np.full((2, 1), np.nan, "f4")), "no log-probability"),
    ],
    ids=["text", "zip", "turned", "double", "claimed", "pickle", "positive", "nan"],
)
def test_given_tokens_of_another_form(engine, models, scores, message):
    server, model = engine("vllm", models["teacher"])
    server.alter = lambda answer: answer.update(prompt_token_id_logprobs=scores)
    with pytest.raises(ModelError, match=rf"/inference/v1/generate: .*protocol.*({message})"):
        model.tell_at(Rollouts([[7, 8]], [[9, 10]], [True], [0]), np.array([[1], [2]]))


def test_a_server_that_could_score_must_go_on(engine, models):
    server, model = engine("vllm", models["teacher"])
    rollouts = Rollouts([[7, 8]], [[9, 10]], [True], [0])
    ids = np.array([[1], [2]])
    assert model.tell_at(rollouts, ids) is not None
    server.alter = lambda answer: answer.pop("prompt_token_id_logprobs")
    with pytest.raises(ModelError, match="does not follow the protocol"):
        model.tell_at(rollouts, ids)
    server.scores_given = False
    with pytest.raises(ModelError, match="answered 404"):
        model.tell_at(rollouts, ids)
