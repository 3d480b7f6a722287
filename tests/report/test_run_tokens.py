"""The tokens of a whole run: the tables are those that the definitions give."""

import numpy as np
import pytest

from opdprobe.report.run_tokens import STRINGS, WORST, RunTokens
from opdprobe.report.token_text import TokenText, TokenTexts
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_run, synthetic_step


class Named(TokenTexts):
    """Texts in which several ids may have one string."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def __getitem__(self, token):
        return TokenText("text", self._name(token))


def counted(run, versions=None):
    tokens = RunTokens()
    tokens.update(run, versions)
    return tokens


def all_states(run):
    """Give step, rollout, position, token and reverse KL of every state, one by one."""
    for number in run.steps:
        ds = run.load(number)
        names = ("rollout", "position", "sampled_id", "reverse_kl")
        for row in zip(*(ds[name].values.tolist() for name in names), strict=True):
            yield (number, *row)


def write(folder, *steps):
    writer = RunWriter(folder, attrs={}, config={}, resume=False)
    for number, ds in enumerate(steps):
        writer.write_step(number, ds)
    return open_run(folder)


def test_the_table_by_string(tmp_path):
    run = synthetic_run(tmp_path, steps=[0, 5, 9], n_rollouts=6, length=[8, 0, 3, 5, 1, 40])
    values = {}
    for *_, token, kl in all_states(run):
        values.setdefault(f"={token % 7}", []).append(kl)
    every = sum(map(sum, values.values()))
    rows = counted(run).rows(Named(lambda token: f"={token % 7}"))
    assert {row.token.text: row.n for row in rows} == {name: len(v) for name, v in values.items()}
    for row in rows:
        own = values[row.token.text]
        assert row.mean == pytest.approx(np.mean(own), rel=1e-6)
        assert row.share == pytest.approx(sum(own) / every, rel=1e-6)
    shares = [row.share for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_the_most_divergent_tokens_of_all_steps_in_their_contexts(tmp_path):
    run = synthetic_run(tmp_path, steps=range(12), n_rollouts=6, length=[30, 0, 3, 5, 1, 40])
    want = sorted(all_states(run), key=lambda state: (-state[4], *state[:3]))[:WORST]
    found = counted(run).worst(run)
    assert [(o.step, o.rollout, o.position, o.token_id, o.value) for o in found] == want
    assert len({one.step for one in found}) > 3
    for one in found:
        ds = run.load(one.step)
        prompts = np.split(ds.prompt_ids.values, np.cumsum(ds.prompt_length.values))
        texts = np.split(ds.response_ids.values, np.cumsum(ds.length.values))
        before = [*prompts[one.rollout], *texts[one.rollout][: one.position]]
        assert list(one.before) == before[-16:]
        assert list(one.after) == texts[one.rollout][one.position + 1 :][:8].tolist()


def test_no_more_than_fit_on_a_page(tmp_path):
    run = write(tmp_path, synthetic_step(n_rollouts=8, length=300, vocab_size=600, k=4))
    tokens = counted(run)
    assert tokens.n_tokens > STRINGS == len(tokens.rows(TokenTexts()))
    assert len(tokens.worst(run)) == WORST


def test_an_infinite_divergence_comes_first_and_leaves_the_shares_of_the_others(tmp_path):
    ds = synthetic_step(n_rollouts=2, length=20)
    kl = ds.reverse_kl.values.copy()
    kl[7] = np.inf
    run = write(tmp_path, ds.assign(reverse_kl=("state", kl, ds.reverse_kl.attrs)))
    tokens, ids = counted(run), ds.sampled_id.values
    first, *others = tokens.rows(TokenTexts())
    assert (first.token.text, first.mean, tokens.infinite) == (str(ids[7]), np.inf, 1)
    finite = np.isfinite(kl)
    for row in others:
        own = kl[(ids == int(row.token.text)) & finite]
        assert row.share == pytest.approx(own.sum() / kl[finite].sum(), rel=1e-6)
    worst = tokens.worst(run)[0]
    assert (worst.value, worst.rollout, worst.position) == (np.inf, 0, 7)


def test_what_is_unknown_is_not_counted(tmp_path):
    ds = synthetic_step(n_rollouts=2, length=20).assign_attrs(missing=["teacher"])
    kl = ds.reverse_kl.values.copy()
    kl[::2] = np.nan
    run = write(tmp_path, ds.assign(reverse_kl=("state", kl, ds.reverse_kl.attrs)))
    assert counted(run).n == sum(row.n for row in counted(run).rows(TokenTexts())) == 20


def test_without_the_divergence_the_drawn_tokens_rewards_stand_for_it(tmp_path):
    ds = synthetic_step(n_rollouts=2, length=20).assign_attrs(missing=["student", "teacher"])
    unknown = np.full(40, np.nan, np.float32)
    run = write(tmp_path, ds.assign(reverse_kl=("state", unknown, ds.reverse_kl.attrs)))
    tokens = counted(run)
    rewards = ds.sampled_logp.values[:, 1] - ds.sampled_logp.values[:, 0]
    assert (tokens.by, tokens.n) == ("sampled_reward", 40)
    worst = tokens.worst(run)
    assert [one.value for one in worst] == pytest.approx(np.sort(rewards), rel=1e-6)
    rows = tokens.rows(TokenTexts())
    sums = [row.n * row.mean for row in rows]
    assert sums == sorted(sums)
    assert all(np.isnan(row.share) for row in rows)  # of a sum of both signs there is none
    first = int(rows[0].token.text)
    own = rewards[ds.sampled_id.values == first]
    assert rows[0].mean == pytest.approx(own.mean(), rel=1e-5)


def test_a_run_without_drawn_tokens_has_no_tables(tmp_path):
    ds = synthetic_step().drop_vars(["sampled_id", "sampled_logp"])
    assert counted(write(tmp_path, ds)).n == 0


def test_steps_that_come_are_added_and_replaced_ones_counted_anew(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path, steps=[0, 5, 9])
    whole = counted(run)
    read = []
    add = RunTokens._add
    monkeypatch.setattr(
        RunTokens, "_add", lambda self, run, steps: (read.append(set(steps)), add(self, run, steps))
    )
    tokens = counted(run, {0: "a", 5: "a"})
    assert tokens.n < whole.n
    tokens.update(run, {0: "a", 5: "a", 9: "a"})
    assert tokens.rows(TokenTexts()) == whole.rows(TokenTexts())
    assert tokens.worst(run) == whole.worst(run)
    tokens.update(run, {0: "a", 5: "b", 9: "a"})  # another step 5
    assert tokens.n == whole.n
    tokens.update(run, {0: "a", 5: "b"})  # rolled back
    assert tokens.n == counted(run, {0: "a", 5: "a"}).n
    assert read[:4] == [{0, 5}, {9}, {0, 5, 9}, {0, 5}]


def test_the_sums_of_many_pieces_are_those_of_one(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path, steps=[0, 5], n_rollouts=5, length=[3, 8, 0, 7, 5])
    whole = counted(run)
    monkeypatch.setattr("opdprobe.store.stream.PIECE", 4)
    parts = counted(run)
    assert [row[:2] for row in parts.rows(TokenTexts())] == [
        row[:2] for row in whole.rows(TokenTexts())
    ]
    assert parts.worst(run) == whole.worst(run)
