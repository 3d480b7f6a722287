"""A cache of a teacher's top-k lists gives the teacher's run, but for what it lacks."""

import json
import warnings

import made_caches as made
import numpy as np
import pytest
import torch
from made_caches import distributions

import opdprobe
from opdprobe import (
    ConfigError,
    ModelError,
    OPDConfig,
    OPDTrainer,
    Rollout,
    RolloutError,
    VocabularyError,
    validate,
)
from opdprobe.cli.parser import main
from opdprobe.rollout.caches import TeacherCache, find_cache
from opdprobe.rollout.caches.distillkit import Compression
from opdprobe.testing import tiny_model, tiny_tokenizer

K, CACHED, VOCABULARY = 4, 12, 64


def peaked(seed):
    model = tiny_model(seed=seed)
    model.lm_head.weight.data *= 20
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def student():
    return peaked(0)


@pytest.fixture(scope="module")
def teacher():
    return peaked(1)


@pytest.fixture(scope="module")
def sampled(teacher, tokenizer):
    """The teacher's answers."""
    asked = [
        opdprobe.Prompt(str(n), messages=({"role": "user", "content": str(n)},)) for n in (5, 7)
    ]
    return opdprobe.sample(
        *(teacher, asked), tokenizer=tokenizer, num_generations=6, max_completion_length=12, seed=3
    )


@pytest.fixture(scope="module")
def texts(sampled):
    return [[*row.prompt_ids, *row.response_ids] for row in sampled]


def rollouts_of(texts, masks=None):
    """Each text is a prompt of one token and a response."""
    for i, ids in enumerate(texts):
        yield Rollout(0, str(i), ids[:1], ids[1:], mask=None if masks is None else masks[i])


def assert_same(got, want, teacher, cached, *, atol=1e-6, logp_atol=None):
    """All that is told equals the teacher's own; NaN stands for exactly what is in no list."""
    validate(got)
    logp_atol = atol if logp_atol is None else logp_atol
    assert got.attrs["missing"] == ["teacher"]
    unequal = {
        name
        for name in want.variables
        if want[name].dtype.kind != "f" and not np.array_equal(got[name], want[name])
    }
    assert unequal <= {"prompt_id"}
    assert got.entropy[:, 1].isnull().all()
    assert got.reverse_kl.isnull().all()
    np.testing.assert_allclose(got.entropy[:, 0], want.entropy[:, 0], atol=atol)
    # The store rounds log-probabilities to 13 bits.
    near = {"rtol": 2**-12, "atol": logp_atol}
    np.testing.assert_allclose(got.logp[:, 0], want.logp[:, 0], **near)
    np.testing.assert_allclose(got.logp[:, 1, 1], want.logp[:, 1, 1], **near)
    on_students, mine = got.logp.values[:, 1, 0], want.logp.values[:, 1, 0]
    unknown = np.isnan(on_students)
    np.testing.assert_allclose(on_students[~unknown], mine[~unknown], **near)
    np.testing.assert_allclose(got.sampled_logp[:, 0], want.sampled_logp[:, 0], atol=atol)
    drawn, mine = got.sampled_logp.values[:, 1], want.sampled_logp.values[:, 1]
    np.testing.assert_allclose(drawn[~np.isnan(drawn)], mine[~np.isnan(drawn)], atol=logp_atol)
    # The lists of the full distributions say which tokens a cache has.
    at = 0
    for text, places in texts_of(want):
        rows = distributions(teacher, text).topk(cached).indices.numpy()[places]
        for row in rows:
            listed = np.isin(got.token_id.values[at, 0], row)
            drawn_here = got.token_id.values[at, 0] == got.sampled_id.values[at]
            np.testing.assert_array_equal(
                ~unknown[at], listed | (drawn_here & ~np.isnan(drawn[at]))
            )
            assert np.isnan(drawn[at]) == (got.sampled_id.values[at] not in row)
            at += 1
    assert at == got.sizes["state"]
    lacks = unknown.any(-1)
    assert lacks.any()
    assert not unknown.all()
    for probe in PROBES:
        ours, theirs = probe(got.opd).values, probe(want.opd).values
        np.testing.assert_allclose(ours, theirs, atol=max(1e-6, 2 * logp_atol), rtol=2**-11)
    mass = got.opd.topk_mass("teacher", "student").values
    np.testing.assert_array_equal(np.isnan(mass), lacks)
    np.testing.assert_allclose(
        mass[~lacks], want.opd.topk_mass("teacher", "student").values[~lacks], rtol=2**-10
    )
    reward = got.opd.sampled_reward().values
    np.testing.assert_array_equal(np.isnan(reward), np.isnan(drawn))


PROBES = (
    lambda opd: opd.overlap_ratio(),
    lambda opd: opd.overlap_mass("student"),
    lambda opd: opd.overlap_mass("teacher"),
    lambda opd: opd.overlap_token_advantage(),
    lambda opd: opd.extreme_advantage_gap(),
    lambda opd: opd.topk_mass("student", "teacher"),
    lambda opd: opd.topk_mass("teacher", "teacher"),
    lambda opd: opd.mass_set_size("teacher", mass=0.3),
)


def texts_of(ds):
    """Each rollout's text, and the places of its states among the tokens after the first."""
    prompts = np.split(ds.prompt_ids.values, np.cumsum(ds.prompt_length.values)[:-1])
    responses = np.split(ds.response_ids.values, np.cumsum(ds.length.values)[:-1])
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        places = ds.position.values[ds.rollout.values == i] + len(prompt) - 1
        yield [*prompt.tolist(), *response.tolist()], places


@pytest.fixture
def compared(student, teacher, tokenizer, tmp_path):
    """Score the student beside a cache, and beside the teacher on the same rollouts."""

    def score(path, rows, **how):
        cache = TeacherCache(path, tokenizer=tokenizer)
        given = {"k": K, "tokenizer": tokenizer}
        got = opdprobe.score_rollouts(student, cache, cache.rollouts(), tmp_path / "got", **given)
        want = opdprobe.score_rollouts(student, teacher, rows, tmp_path / "want", **given)
        assert got.attrs["teacher"]["cache"] == cache.format == find_cache(path)
        for step in want.steps:
            assert_same(got.load(step), want.load(step), teacher, CACHED, **how)
        return got

    return score


@pytest.mark.parametrize("cut", [False, True])
def test_distillkit(compared, teacher, texts, tmp_path, cut):
    made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY, cut=cut)
    rows = [ids[:-1] for ids in texts] if cut else texts
    run = compared(tmp_path / "cache", list(rollouts_of(rows)))
    assert run.load(0).prompt_id.values[[0, -1]].tolist() == ["data_0-0", "data_1-5"]


def test_texts_that_distillkit_packed_are_told_apart_and_labels_are_kept(
    compared, teacher, texts, tmp_path
):
    rows = made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY, cut=True)
    for row in rows:
        row["labels"] = [-100, -100, -100, *row["input_ids"][3:]]
    packed = [
        {
            **{name: first[name] + second[name] for name in first},
            "attention_mask": [1] * len(first["input_ids"]) + [2] * len(second["input_ids"]),
        }
        for first, second in zip(rows[::2], rows[1::2], strict=True)
    ]
    made.write_rows(tmp_path / "cache", packed)
    masks = [np.arange(len(row["input_ids"]) - 1) >= 2 for row in rows]
    run = compared(tmp_path / "cache", list(rollouts_of([ids[:-1] for ids in texts], masks)))
    assert run.load(0).prompt_id.values[1] == "data_0-0.1"


def test_every_part_of_distillkits_compression():
    """A list's bytes are exact numbers, a polynomial's coefficients, scales and residuals."""
    settings = Compression(
        d=1000,
        k=8,
        exact_k=2,
        exact_dtype="bfloat16",
        term_dtype="float32",
        terms=(0, 1, "sqrt"),
        bins=(("float16", 3, 4), ("float32", 1, 2)),
        delta_encoding=False,
        normalize_t=False,
    )
    exact = torch.tensor([-0.5, -1.25], dtype=torch.bfloat16).view(torch.uint8).tolist()
    terms = np.array([-2.0, -0.5, -0.25], "<f4").tobytes()
    three, one = made.packed([0, 3, 4, 7], 3), made.packed([1, 0], 1)
    row = bytes([*exact, *terms, *np.array([0.125], "<f2").tobytes(), *three])
    row += np.array([0.0625], "<f4").tobytes() + bytes(one)
    assert settings.n_bytes == (len(row), 10)
    t = np.arange(6)
    residual = [-4 * 0.125, -1 * 0.125, 0, 3 * 0.125, 0.0625, -0.0625]
    fitted = -2 - 0.5 * t - 0.25 * np.sqrt(t) + residual
    want = np.minimum.accumulate([-0.5, -1.25, *fitted])
    got = settings.logp(np.frombuffer(row, np.uint8)[None])
    np.testing.assert_allclose(got, want[None], atol=1e-12)
    ids = [999, 0, 1, 512, 511, 3, 2, 700]
    packed = np.array([made.packed(ids, 10)], np.uint8)
    assert settings.ids(packed).tolist() == [ids]


@pytest.mark.parametrize("normalize", [False, True])
def test_distillkits_differences_add_up(normalize):
    settings = Compression(
        *(64, 6, 3, "float32", "float64", (0, 1), ()), delta_encoding=True, normalize_t=normalize
    )
    steps = [-0.5, -0.25, -0.125]
    row = np.array(steps, "<f4").tobytes() + np.array([-0.5, -1], "<f8").tobytes()
    t = np.linspace(0, 1, 3) if normalize else np.arange(3)
    want = np.cumsum([*steps, *(-0.5 - t)])
    got = settings.logp(np.frombuffer(row, np.uint8)[None])
    np.testing.assert_allclose(got, want[None], atol=1e-7)


def test_megatron(compared, teacher, texts, tmp_path):
    masks = [np.arange(len(ids) - 1) >= 1 for ids in texts]
    samples = list(zip(texts, masks, strict=True))
    made.megatron(tmp_path / "cache", teacher, samples, CACHED)
    compared(tmp_path / "cache", list(rollouts_of(texts, masks)))


def test_megatrons_files_take_the_memory_of_their_content(texts, teacher, tmp_path, monkeypatch):
    """What a file of a gigabyte may unpack to, no machine has."""
    samples = [(ids, [True] * (len(ids) - 1)) for ids in texts]
    made.megatron(tmp_path / "cache", teacher, samples, CACHED)
    monkeypatch.setattr("opdprobe.rollout.caches.megatron.most_unpacked", lambda size: 2**60)
    assert len(list(TeacherCache(tmp_path / "cache").rollouts())) == len(texts)


def test_megatrons_half_precision(compared, teacher, texts, tmp_path):
    samples = [(ids, np.ones(len(ids) - 1, bool)) for ids in texts]
    made.megatron(tmp_path / "cache", teacher, samples, CACHED, dtype=torch.float16)
    compared(tmp_path / "cache", list(rollouts_of(texts)), logp_atol=2**-8)


def test_megatrons_packed_samples_and_shorter_lists(teacher, texts, student, tokenizer, tmp_path):
    samples = [(ids, np.ones(len(ids) - 1, bool)) for ids in texts[:2]]

    def pack(inputs, targets):
        edges = inputs["sample_offsets"]
        inputs["cu_seqlens"] = [edges.to(torch.int32)]
        inputs["sample_offsets"] = edges[[0, -1]]
        targets["values"][:, 6:] = -1e4  # what top-p leaves out, as index -1 packs
        targets["indices_low"][:, 6:] = 65535
        bits = np.unpackbits(targets["bit_17"].numpy(), count=targets["values"].numel())
        bits.reshape(targets["values"].shape)[:, 6:] = 1
        targets["bit_17"] = torch.from_numpy(np.packbits(bits))

    inputs, targets = made.records(teacher, samples, CACHED, "g:dp0:0-1", torch.float32)
    pack(inputs, targets)
    folder = tmp_path / "cache"
    folder.mkdir()
    for kind, record in (("inputs", inputs), ("targets", targets)):
        members = {"_meta.json": b"{}", f"0-1.{kind}.pt.zst": made.zst(record)}
        made.write_tar(folder / f"dp0__0-1.{kind}.tar", members)
    cache = TeacherCache(folder)
    rows = list(cache.rollouts())
    assert [[*row.prompt_ids, *row.response_ids] for row in rows] == texts[:2]
    for row, ids in zip(rows, texts, strict=False):
        assert (row.teacher_lists.token_id[:, 6:] == -1).all()
        want = distributions(teacher, ids).topk(6)
        np.testing.assert_array_equal(row.teacher_lists.token_id[:, :6], want.indices)
        np.testing.assert_allclose(row.teacher_lists.logp[:, :6], want.values, atol=1e-6)
    with pytest.raises(ConfigError, match=r"has 6 tokens, but k = 7: use k = 6 or less\.$"):
        opdprobe.score_rollouts(student, cache, rows, tmp_path / "x", k=7, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def answers(sampled, tokenizer):
    """Questions and answers with their end token, of tokens that text gives again."""
    numbers = range(6, VOCABULARY)
    return [
        (tokenizer.decode(row.prompt_ids).split()[2], [*ids, tokenizer.eos_token_id])
        for row in sampled
        if len(ids := [token for token in row.response_ids if token in numbers]) > 3
    ]


@pytest.mark.parametrize("newer", [False, True])
def test_axolotl(student, teacher, tokenizer, answers, tmp_path, newer):
    path = tmp_path / "cache.jsonl"
    made.axolotl(path, teacher, tokenizer, answers, CACHED, newer=newer)
    cache = TeacherCache(path, tokenizer=tokenizer)
    assert cache.format == "axolotl"
    given = {"k": K, "tokenizer": tokenizer}
    got = opdprobe.score_rollouts(student, cache, cache.rollouts(), tmp_path / "got", **given)
    rows = [
        Rollout(
            *(0, str(i)),
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True
            )["input_ids"],
            answer,
            finished=True,
        )
        for i, (question, answer) in enumerate(answers)
    ]
    want = opdprobe.score_rollouts(student, teacher, rows, tmp_path / "want", **given).load(0)
    got = got.load(0)
    assert got.finished.values.all()
    # vLLM tells the drawn token, too.
    np.testing.assert_allclose(got.sampled_logp, want.sampled_logp, atol=1e-5)
    for probe in PROBES:
        np.testing.assert_allclose(probe(got.opd), probe(want.opd), atol=1e-6, rtol=2**-11)
    assert got.response_ids.values.tolist() == want.response_ids.values.tolist()
    assert np.isnan(got.logp[:, 1, 0].values).any()


def test_a_run_of_ours(student, teacher, tokenizer, sampled, tmp_path):
    """With the teacher's entropy, and what it gave to the tokens of the student of that run."""
    given = {"tokenizer": tokenizer}
    mask = np.arange(len(sampled[0].response_ids)) % 3 > 0
    labels = {"domain": "numbers"}
    rows = [
        Rollout(step, row.prompt_id, row.prompt_ids, row.response_ids, correct=1.0, labels=labels)
        for step in (3, 5)
        for row in sampled
    ]
    rows[0] = Rollout(**{**vars(rows[0]), "mask": mask})
    other = peaked(2)
    opdprobe.score_rollouts(other, teacher, rows, tmp_path / "cache", k=CACHED, **given)
    cache = TeacherCache(tmp_path / "cache")
    run = opdprobe.score_rollouts(student, cache, cache.rollouts(), tmp_path / "got", k=K, **given)
    want = opdprobe.score_rollouts(student, teacher, rows, tmp_path / "want", k=K, **given)
    assert run.steps == [3, 5]
    for step in run.steps:
        got, exact = run.load(step), want.load(step)
        for name in ("entropy", "sampled_logp"):
            np.testing.assert_allclose(got[name], exact[name], atol=1e-6)
        for name in ("prompt_id", "label", "response_ids", "prompt_ids", "position", "token_id"):
            np.testing.assert_array_equal(got[name], exact[name])
        for probe in (*PROBES, lambda opd: opd.entropy_gap(), lambda opd: opd.sampled_reward()):
            np.testing.assert_allclose(probe(got.opd), probe(exact.opd), atol=1e-6, rtol=2**-11)
        assert got.reverse_kl.isnull().all()
    theirs = tmp_path / "cache"
    there, found = opdprobe.open_run(theirs).load(3), run.load(3)
    both = np.array(
        [
            np.isin(a, b.reshape(-1)).all()
            for a, b in zip(found.token_id[:, 0].values, there.token_id.values, strict=True)
        ]
    )
    np.testing.assert_array_equal(found.opd.topk_mass("teacher", "student").isnull(), ~both)
    with pytest.raises(VocabularyError, match="recorded with a tokenizer of hash"):
        cache.check_tokenizer(tiny_tokenizer(60))


def test_both_models_score_the_texts_of_a_cache(student, teacher, texts, tokenizer, tmp_path):
    made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY)
    cache = TeacherCache(tmp_path / "cache")
    run = opdprobe.score_rollouts(
        student, teacher, cache.rollouts(), tmp_path / "run", k=K, tokenizer=tokenizer
    )
    assert "missing" not in run.load(0).attrs
    assert run.load(0).reverse_kl.notnull().all()


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_command_line(student, teacher, texts, tmp_path, capsys):
    made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY)
    model, run = saved(student, tmp_path / "model"), tmp_path / "run"
    asked = ["import", tmp_path / "cache", "--student", model, "--run-dir", run]
    assert main([str(word) for word in asked]) == 0
    said = capsys.readouterr().out
    assert "12 rollouts of 1 steps, from distillkit (a cache of the teacher's lists)" in said
    assert "not in the dump: grade, whether the response ended by itself" in said
    ds = opdprobe.open_run(run).load(0)
    assert (ds.sizes["rank"], ds.attrs["missing"]) == (CACHED, ["teacher"])
    assert main(["inspect", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "missing entropy, reverse KL, log-probabilities of some tokens of the texts, "
        "log-probabilities of some tokens that it does not list, stop-token mass of cache (cached)"
    ) in said
    assert main(["inspect", str(run), "--verify"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
        curve = opdprobe.curve(opdprobe.open_run(run), lambda ds: ds.opd.sampled_reward())
    assert curve.n_missing.sum() > 0
    assert np.isfinite(curve["value"]).all()
    capsys.readouterr()
    asked[-1] = tmp_path / "few"
    assert main([str(word) for word in [*asked, "--limit", 3, "--k", 2, "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert opdprobe.open_run(tmp_path / "few").load(0).sizes["rollout"] == 3


def test_new_rollouts_are_refused(student, teacher, texts, tokenizer, tmp_path, capsys):
    made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY)
    model = saved(student, tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "5"}\n')
    shared = ["--teacher", tmp_path / "cache", "--prompts", prompts]
    why = "Its texts are fixed, and it says nothing of the new ones that a student writes in"
    for command in (
        ["probe", model, *shared, "--run-dir", tmp_path / "a"],
        ["train", "--student", model, *shared, "--run-dir", tmp_path / "b"],
        ["preflight", "--student", model, *shared],
    ):
        assert main([str(word) for word in command]) == 1
        assert why in " ".join(capsys.readouterr().err.split())
    cache = TeacherCache(tmp_path / "cache")
    asked = [opdprobe.Prompt("a", text="5")]
    with pytest.raises(ModelError, match=r"not a model\. Its texts are fixed"):
        opdprobe.probe_checkpoints(model, cache, asked, tmp_path / "c")
    with pytest.raises(ModelError, match=r"not a model\. Its texts are fixed"):
        OPDTrainer(
            student,
            cache,
            tokenizer=tokenizer,
            prompts=asked,
            config=OPDConfig(k=2, max_steps=1),
            run_dir=tmp_path / "d",
        )


def test_rollouts_of_another_source_are_refused(student, teacher, texts, tokenizer, tmp_path):
    made.distillkit(tmp_path / "cache", teacher, texts, CACHED, VOCABULARY)
    cache, given = TeacherCache(tmp_path / "cache"), {"tokenizer": tokenizer, "k": K}
    bare = [Rollout(0, "a", [5], [7, 2])]
    with pytest.raises(RolloutError, match=r"prompt 'a': it has no lists of the teacher"):
        opdprobe.score_rollouts(student, cache, bare, tmp_path / "run", **given)
    with pytest.raises(ConfigError, match=r"temperature = 0\.5; expected 1"):
        opdprobe.score_rollouts(student, cache, [], tmp_path / "run", temperature=0.5, **given)


@pytest.mark.parametrize("by", [-1, 1])
def test_shifted_lists_are_refused(student, teacher, texts, tokenizer, tmp_path, by):
    rows = made.distillkit(tmp_path / "cache", teacher, texts, 3, VOCABULARY)
    for row in rows:
        for name in ("compressed_logprobs", "bytepacked_indices"):
            row[name] = row[name][-by:] + row[name][:-by]
    made.write_rows(tmp_path / "cache", rows)
    cache = TeacherCache(tmp_path / "cache")
    where = "before" if by < 0 else "after"
    with pytest.raises(RolloutError, match=f"in those of the token {where} them.*are shifted"):
        opdprobe.score_rollouts(
            student, cache, cache.rollouts(), tmp_path / "run", k=2, tokenizer=tokenizer
        )


def test_dumps_of_rollouts_are_no_caches(tmp_path):
    """Their log-probabilities are numbers, one for each token."""
    path = tmp_path / "1.jsonl"
    for row in (
        {"messages": [{"role": "user", "content": "5"}], "logprobs": [-0.5, -1.0]},
        {"input": "2+2=", "output": "4", "gts": "4", "score": 1.0, "step": 1},
    ):
        path.write_text(json.dumps(row) + "\n")
        assert find_cache(path) is None
        assert find_cache(tmp_path) is None
    assert find_cache(tmp_path / "none") is None
