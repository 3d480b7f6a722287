"""Rollouts that exist already give the run that sampling them would have given."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import GPT2Config, GPT2LMHeadModel

import opdprobe
from opdprobe import (
    ConfigError,
    OPDConfig,
    OPDTrainer,
    Prompt,
    Rollout,
    RolloutError,
    StoreError,
    TopLists,
    VocabularyError,
    validate,
)
from opdprobe.cli.parser import main
from opdprobe.report import write_run_report
from opdprobe.rollout.mixture import Mixture
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12 13")]


def models():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    for model in (student, teacher):
        model.lm_head.weight.data *= 20
    return student, teacher


def rollouts_of(ds, step):
    """The rows of a recorded step, from its tables alone."""
    ends = np.cumsum(ds.length.values), np.cumsum(ds.prompt_length.values)
    for i in range(ds.sizes["rollout"]):
        yield Rollout(
            step,
            str(ds.prompt_id.values[i]),
            ds.prompt_ids.values[ends[1][i] - ds.prompt_length.values[i] : ends[1][i]],
            ds.response_ids.values[ends[0][i] - ds.length.values[i] : ends[0][i]],
            finished=bool(ds.finished.values[i]),
            correct=float(ds.correct.values[i]),
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three steps that a trainer sampled and scored, with a student that stays as it is."""
    student, teacher = models()
    config = OPDConfig(
        k=4, num_generations=2, max_completion_length=6, max_steps=3, seed=5, learning_rate=1e-30
    )
    trainer = OPDTrainer(
        student,
        teacher,
        tokenizer=tiny_tokenizer(),
        prompts=PROMPTS,
        config=config,
        run_dir=tmp_path_factory.mktemp("trained") / "run",
        grader=lambda response, prompt: float(len(response.split()) % 2),
    )
    return trainer.train()


def scored(rows, run_dir, **settings):
    given = {"tokenizer": tiny_tokenizer(), "k": 4} | settings
    return opdprobe.score_rollouts(*models(), rows, run_dir, **given)


def test_a_trainers_rollouts_give_its_store_bit_for_bit(trained, tmp_path):
    rows = [row for step in trained.steps for row in rollouts_of(trained.load(step), step)]
    run = scored(rows, tmp_path / "run")
    assert run.steps == trained.steps == [0, 1, 2]
    for step in run.steps:
        xr.testing.assert_identical(run.load(step), trained.load(step))
        assert run.files[step][0].read_bytes() == trained.files[step][0].read_bytes()
    names = set(run.metrics.data_vars)
    assert {"overlap_ratio", "student_stop_token_mass", "correct"} <= names
    xr.testing.assert_identical(run.metrics, trained.metrics[sorted(names)][list(run.metrics)])


def test_sampling_and_scoring_is_probing(tmp_path):
    student, teacher = models()
    tokenizer = tiny_tokenizer()
    settings = {"num_generations": 2, "max_completion_length": 5, "temperature": 0.8, "seed": 3}
    rows = opdprobe.sample(student, PROMPTS, step=7, tokenizer=tokenizer, **settings)
    assert [row.prompt_id for row in rows] == ["a", "a", "b", "b", "c", "c"]
    run = scored(rows, tmp_path / "run", temperature=0.8)
    encoded = encode_prompts(tokenizer, PROMPTS)
    want = probe(Pair(student, teacher, tokenizer), encoded, step=7, k=4, **settings)
    got = run.load(7)
    np.testing.assert_allclose(got.logp, want.logp, rtol=2**-13)  # the store's rounding
    assert got.drop_vars("logp").equals(want.drop_vars("logp"))


def given(step=0, prompt="a", prompt_ids=(7, 8), response_ids=(20, 21, 2), **more):
    return Rollout(step, prompt, list(prompt_ids), list(response_ids), **more)


def test_only_drawn_tokens_are_states_and_the_others_are_read(tmp_path):
    """A tool wrote the tokens 30 and 31; 40 was given, and 50 is after the last drawn token."""
    mask = [False, True, True, False, False, True, False]
    response = [40, 20, 21, 30, 31, 22, 50]
    sampler = np.linspace(-3, -1, 7)
    row = given(response_ids=response, mask=np.array(mask), sampler_logp=sampler)
    ds = scored([row, given(prompt="b")], tmp_path / "run").load(0)
    validate(ds)
    assert ds.rollout.values.tolist() == [0, 0, 0, 1, 1, 1]
    assert ds.position.values.tolist() == [0, 1, 4, 0, 1, 2]
    assert ds.sampled_id.values.tolist() == [20, 21, 22, 20, 21, 2]
    assert ds.length.values.tolist() == [5, 3]
    assert ds.prompt_length.values.tolist() == [3, 2]
    np.testing.assert_allclose(ds.sampler_logp[:3], sampler[[1, 2, 5]], rtol=1e-6)
    assert ds.sampler_logp[3:].isnull().all()
    # The same text without a mask: its states are those of all of its tokens.
    whole = scored([given(response_ids=response)], tmp_path / "whole").load(0)
    for name in ("entropy", "reverse_kl", "sampled_logp", "stop_logp"):
        np.testing.assert_allclose(ds[name][:3], whole[name][[1, 2, 5]], atol=1e-5)


def test_labels_unknown_ends_and_empty_responses_are_kept(tmp_path):
    rows = [
        given(labels={"domain": "code", "source": "x"}, finished=True, correct=1.0),
        given(response_ids=[], labels={"domain": "mathematics"}),
        given(step=3, finished=False),
    ]
    run = scored(rows, tmp_path / "run")
    ds = run.load(0)
    assert ds.label_name.values.tolist() == ["domain", "source"]
    assert ds.label.sel(label_name="domain").values.tolist() == ["code", "mathematics"]
    assert ds.label.sel(label_name="source").values.tolist() == ["x", ""]
    assert ds.length.values.tolist() == [3, 0]
    np.testing.assert_array_equal(ds.finished, [1, np.nan])
    assert run.load(3).finished.dtype == bool
    table = run.rollouts().compute()
    np.testing.assert_array_equal(table.finished, [1, np.nan, 0])
    assert table.label.values.tolist() == [["code", "x"], ["mathematics", ""], ["", ""]]
    assert run.metrics.finished.values.tolist() == [1, 0]
    # The whole step may be empty.
    nothing = scored([given(response_ids=[])], tmp_path / "empty").load(0)
    assert (nothing.sizes["state"], nothing.sizes["rollout"]) == (0, 1)


def test_a_grader_grades_what_has_no_grade(tmp_path):
    seen = []

    def grader(response, prompt):
        seen.append((response, prompt.text, prompt.answer))
        return 1.0

    rows = [given(labels={"answer": "x"}), given(correct=0.25)]
    ds = scored(rows, tmp_path / "run", grader=grader).load(0)
    assert ds.correct.values.tolist() == [1, 0.25]
    assert seen == [("14 15", "1 2", "x")]


@pytest.mark.parametrize(("finished", "grade"), [(True, 1), (None, 1), (False, 0)])
def test_a_response_that_is_known_not_to_have_ended_is_wrong(tmp_path, finished, grade):
    ds = scored([given(finished=finished)], tmp_path / "run", grader=lambda *_: 1.0).load(0)
    assert ds.correct.values.tolist() == [grade]


def test_steps_that_the_run_has_are_left_as_they_are(tmp_path):
    done = []
    run = scored([given(0), given(1)], tmp_path / "run", progress=done.append)
    assert done == [1, 2]
    before = run.files[0][0].read_bytes()
    other = given(0, response_ids=[30])
    more = given(2, labels={"new": "left out"}, sampler_logp=np.zeros(3))
    run = scored([other, given(1), more], tmp_path / "run")
    assert run.steps == [0, 1, 2]
    assert run.files[0][0].read_bytes() == before
    assert not {"label", "sampler_logp"} & set(run.load(2).variables)
    with pytest.raises(StoreError, match="holds a different run: k: 4 before, 3 now"):
        scored([given(3)], tmp_path / "run", k=3)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([Rollout(0, "a", source="x.jsonl:3")], RolloutError, "x.jsonl:3: it has no response_ids"),
        ([given(0), given(1), given(0)], RolloutError, "step 0 comes again after another"),
        ([given(step=-1)], RolloutError, "step = -1; expected a whole number"),
        ([given(response_ids=[1.5])], RolloutError, "expected a list of token ids"),
        ([given(response_ids=[-1])], RolloutError, "response_ids has -1 to -1"),
        ([given(mask=[True])], RolloutError, r"mask has shape \(1,\); expected one of each"),
        ([given(sampler_logp=[0.5] * 3)], RolloutError, "sampler_logp has 0.5; expected"),
        ([given(finished=2)], RolloutError, "finished = 2; expected True, False or None"),
        ([given(correct=2)], RolloutError, "correct = 2; expected a number from 0 to 1"),
        ([given(labels={"a": 1})], RolloutError, r"labels has \('a', 1\)"),
        ([given(prompt_ids=[])], RolloutError, "it has no prompt, so nothing predicts"),
        ([given(response_ids=[64])], VocabularyError, "drew token 64, but the models share 64"),
        ([given(prompt_ids=[99])], VocabularyError, "token 99, but the student has embeddings"),
    ],
)
def test_a_bad_rollout_is_named(rows, error, message, tmp_path):
    with pytest.raises(error, match=message):
        scored(rows, tmp_path / "run")


def test_a_text_longer_than_a_models_positions_is_named(tmp_path):
    size = {"vocab_size": 64, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 10}
    config = GPT2Config(**size, bos_token_id=1, eos_token_id=2)
    pair = GPT2LMHeadModel(config).eval(), tiny_model()
    rows = [given(response_ids=[9] * 9), given(response_ids=[9] * 10)]  # the last one is not read
    with pytest.raises(RolloutError, match="12 tokens, but the student reads texts of up to 10"):
        opdprobe.score_rollouts(*pair, rows, tmp_path / "run", tokenizer=tiny_tokenizer(), k=4)
    assert opdprobe.score_rollouts(
        *pair, rows[:1], tmp_path / "run", tokenizer=tiny_tokenizer(), k=4
    ).steps == [0]


def test_one_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="only one model is given"):
        opdprobe.score_rollouts(tiny_model(), None, [], tmp_path / "run")


# ---- without a model


def dumped(trained, step, *, lists):
    """A recorded step as a dump that another trainer wrote: with lists, or drawn tokens only."""
    ds = trained.load(step)
    for i, row in enumerate(rollouts_of(ds, step)):
        states = np.flatnonzero(ds["rollout"].values == i)
        top = TopLists(ds.token_id.values[states], ds.logp.values[states]) if lists else None
        student, teacher = ds.sampled_logp.values[states].T
        yield Rollout(**{**vars(row), "top": top, "student_logp": student, "teacher_logp": teacher})


def test_lists_of_a_dump_are_a_run_without_a_model(trained, tmp_path):
    rows = [row for step in trained.steps for row in dumped(trained, step, lists=True)]
    run = opdprobe.score_rollouts(None, None, rows, tmp_path / "run", k=3)
    for step in run.steps:
        got, want = run.load(step), trained.load(step)
        assert got.attrs["missing"] == ["student", "teacher"]
        np.testing.assert_array_equal(got.token_id, want.token_id[..., :3])
        np.testing.assert_array_equal(got.logp, want.logp[..., :3])
        np.testing.assert_array_equal(got.sampled_logp, want.sampled_logp)
        assert got.entropy.isnull().all()
        assert got.reverse_kl.isnull().all()
        np.testing.assert_array_equal(got.response_ids, want.response_ids)
    with pytest.raises(RolloutError, match=r"its top lists have 4 tokens, but k = 9"):
        opdprobe.score_rollouts(None, None, rows, tmp_path / "other", k=9)


def test_a_drawn_token_is_looked_up_in_the_lists(tmp_path):
    nan = np.nan
    ids = np.array([[[3, 1], [1, 0]], [[3, 1], [1, 0]], [[3, 1], [1, 0]]])
    logp = np.array([[[-0.5, -2], [-2, nan]], [[nan, -1], [-1, -3]]] * 3).reshape(3, 2, 2, 2)
    row = Rollout(0, "a", [7], [3, 1, 5], top=TopLists(ids, logp))
    ds = opdprobe.score_rollouts(None, None, [row], tmp_path / "run", k=2).load(0)
    validate(ds)
    np.testing.assert_allclose(ds.sampled_logp, [[-0.5, nan], [-2, -1], [nan, nan]])


def test_a_wrong_list_names_its_rollout(tmp_path):
    ids, logp = np.array([[[3, 1], [1, 0]]]), np.full((1, 2, 2, 2), -1.0)
    good = Rollout(0, "a", [7], [3], top=TopLists(ids, logp), source="x:1")
    bad = Rollout(0, "a", [7], [3], top=TopLists(ids, logp + np.array([0, 0.5])), source="x:2")
    with pytest.raises(RolloutError, match=r"x:2: logp of support student .* most probable first"):
        opdprobe.score_rollouts(None, None, [good, bad], tmp_path / "run", k=2)


def test_drawn_tokens_alone_are_a_run(trained, tmp_path):
    rows = [row for step in trained.steps for row in dumped(trained, step, lists=False)]
    run = opdprobe.score_rollouts(None, None, rows, tmp_path / "run")
    for step in run.steps:
        got, want = run.load(step), trained.load(step)
        assert "missing" not in got.attrs
        assert not {"token_id", "logp", "entropy", "support", "rank"} & {*got.variables, *got.dims}
        for probe_of in ("sampled_reward", "sequence_mean_reward"):
            xr.testing.assert_equal(
                getattr(got.opd, probe_of)().drop_vars("step", errors="ignore"),
                getattr(want.opd, probe_of)().drop_vars("step", errors="ignore"),
            )
        with pytest.raises(StoreError, match="no top-k lists: score the rollouts"):
            got.opd.overlap_ratio()
    with pytest.raises(RolloutError, match="neither both models' top lists"):
        opdprobe.score_rollouts(None, None, [given()], tmp_path / "other")


@pytest.fixture(scope="module")
def drawn_only(trained, tmp_path_factory):
    """A run of drawn tokens' log-probabilities alone, with a sampler's, without a model."""
    rows = [
        Rollout(**{**vars(row), "sampler_logp": row.student_logp - 0.01})
        for step in trained.steps
        for row in dumped(trained, step, lists=False)
    ]
    return opdprobe.score_rollouts(None, None, rows, tmp_path_factory.mktemp("drawn") / "run")


def test_curves_leave_out_what_a_run_without_lists_does_not_hold(drawn_only, trained, caplog):
    names = ["overlap_ratio", "sampled_reward", "sampler_gap"]
    found = opdprobe.curves(drawn_only, names, n_boot=100)
    want = opdprobe.curves(trained, ["sampled_reward"], n_boot=100)
    assert found.value.sel(probe="overlap_ratio").isnull().all()
    assert (found.n.sel(probe="overlap_ratio") == 0).all()
    np.testing.assert_array_equal(found.value[1], want.value[0])
    np.testing.assert_allclose(found.value[2], 0.01, rtol=1e-4)
    assert "does not hold match, so overlap ratio cannot be computed" in caplog.text
    with pytest.raises(StoreError, match=r"no variable 'token_id'; .* no top-k lists"):
        opdprobe.curve(drawn_only, "overlap_ratio")
    by_position = opdprobe.curve(drawn_only, "sampler_kl", by="position", n_boot=100)
    np.testing.assert_allclose(by_position.value, np.expm1(0.01) - 0.01, rtol=1e-2)
    auroc = opdprobe.reward_auroc(
        drawn_only.load(0).opd.sequence_mean_reward(), drawn_only.load(0).correct
    )
    assert auroc == opdprobe.reward_auroc(
        trained.load(0).opd.sequence_mean_reward(), trained.load(0).correct
    )


def test_a_run_without_lists_has_a_report_and_a_page(drawn_only, tmp_path, capsys):
    draw = lambda panels: [b""] * len(panels)  # noqa: E731
    findings = write_run_report(tmp_path / "report.html", [drawn_only], draw=draw)[0]
    assert {"not_recorded", "sampler_agrees"} <= {finding.name for finding in findings}
    page = (tmp_path / "report.html").read_text()
    assert "Not recorded" in page
    assert "overlap ratio, " in page
    assert (tmp_path / "report-view.html").stat().st_size > 10_000
    assert main(["inspect", str(drawn_only.path)]) == 0
    assert "drawn tokens only" in capsys.readouterr().out


def test_two_runs_of_two_forms_are_compared(drawn_only, trained, tmp_path):
    draw = lambda panels: [b""] * len(panels)  # noqa: E731
    findings = write_run_report(tmp_path / "report.html", [trained, drawn_only], draw=draw)
    assert [some[0].name for some in findings][1] == "not_recorded"


def test_a_mixture_scores_as_one_teacher(tmp_path):
    student, teacher = models()
    mixed = Mixture({"a": teacher, "b": tiny_model(seed=2)}, {"a": 1, "b": 1})
    rows = [Rollout(0, "a", prompt_ids=[5, 6], response_ids=[7, 8, 2])]
    given = {"tokenizer": tiny_tokenizer(), "k": 4}
    run = opdprobe.score_rollouts(student, mixed, rows, tmp_path / "run", **given)
    assert run.attrs["teacher"]["name"] == "0.5 a + 0.5 b"
    ids = torch.tensor([[5, 6, 7, 8, 2]])
    logp, *logq = (m(ids).logits[0, 1:4].log_softmax(-1) for m in (student, *mixed.values()))
    q = torch.stack(logq).exp().mean(0)
    want = (logp.exp() * (logp - q.log())).sum(-1)
    np.testing.assert_allclose(run.load(0).reverse_kl, want.detach(), rtol=1e-4)


def test_teachers_by_name_are_refused(tmp_path):
    student, teacher = models()
    rows = [Rollout(0, "a", prompt_ids=[5, 6], response_ids=[7, 8, 2])]
    with pytest.raises(ConfigError, match="2 teachers by name; expected one, or a Mixture: score"):
        opdprobe.score_rollouts(student, {"a": teacher, "b": teacher}, rows, tmp_path / "run")
