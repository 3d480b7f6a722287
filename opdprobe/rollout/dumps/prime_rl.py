"""prime-rl's token export, and verifiers' traces: token ids with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import shown
from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.rollout import Rollout

_LARGEST = 1e300  # an integer of JSON may be more than a float can hold
_CUT = {"max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length"}


def whole_sequence(
    row: Row,
    tokens: Sequence[int],
    drawn: NDArray[np.bool_] | None,
    logps: dict[str, NDArray[np.float32] | None],
    **known: Any,
) -> Rollout:
    """Return the rollout of a sequence of which some tokens were drawn.

    Parameters
    ----------
    row
        Where it comes from.
    tokens
        Prompt and response.
    drawn
        Which of them the student drew; None: all. The first one begins the response.
    logps
        Log-probabilities of all tokens, by their names in `Rollout`; those of tokens that were not
        drawn are left out.
    known
        What else is known of it: the step, the grade, ….
    """
    places = np.arange(len(tokens)) if drawn is None else np.flatnonzero(drawn)
    if not places.size:
        raise row.fault("its mask is zero at every token; expected ones where the student drew.")
    start, stop = int(places[0]), int(places[-1]) + 1
    if start == 0:
        raise row.fault("its first token counts as drawn; expected a prompt before the response.")
    mask = np.zeros(stop - start, bool)
    mask[places - start] = True
    return Rollout(
        prompt_id=prompt_name(tokens[:start]),
        prompt_ids=list(tokens[:start]),
        response_ids=list(tokens[start:stop]),
        mask=None if mask.all() else mask,
        source=row.source,
        **{
            name: None if logp is None else np.where(mask, logp[start:stop], np.float32(np.nan))
            for name, logp in logps.items()
        },
        **known,
    )


def _exported(row: Row) -> Iterator[Rollout]:
    tokens = row.ids("token_ids")
    n = len(tokens)
    row.need("loss_mask")
    logps = {
        "sampler_logp": row.logps("inference_logprobs", n),
        "student_logp": row.logps("trainer_logprobs", n),
    }
    yield whole_sequence(
        row,
        tokens,
        row.mask("loss_mask", n),
        logps,
        step=row.step("step"),
        labels=row.labels(environment="env_name"),
    )


def _traces(row: Row) -> Iterator[Rollout]:
    """An episode: each branch of each of its traces is a rollout."""
    traces = row.need("traces") if "traces" in row.data else [dict(row.data)]
    if not isinstance(traces, list):
        raise row.fault(f"'traces' is {shown(traces)}; expected a list.")
    environment = row.data.get("env")
    name = row.at(environment, "env").labels(environment="id") if environment else {}
    for number, trace in enumerate(traces):
        found = row.at(trace, f"trace {number}")
        nodes = found.need("nodes")
        if not isinstance(nodes, list):
            raise found.fault(f"'nodes' is {shown(nodes)}; expected a list.")
        parts = [found.at(node, f"node {i}") for i, node in enumerate(nodes)]
        parents = [_parent(part, i) for i, part in enumerate(parts)]
        for leaf in sorted(set(range(len(parts))).difference(p for p in parents if p is not None)):
            path: list[int] = []
            node: int | None = leaf
            while node is not None:
                path.append(node)
                node = parents[node]
            branch = [parts[i] for i in reversed(path)]
            if any(part.data.get("token_ids") and part.data.get("mask") for part in branch):
                yield _branch(row, found, branch, name)


def _parent(node: Row, number: int) -> int | None:
    parent = node.whole("parent")
    if parent is not None and parent >= number:
        raise node.fault(f"'parent' is {parent}; expected an earlier node.")
    return parent


def _branch(row: Row, trace: Row, nodes: list[Row], labels: dict[str, str]) -> Rollout:
    tokens: list[int] = []
    masks, sampler, reference = [], [], []
    for node in nodes:
        own = node.ids("token_ids") if node.data.get("token_ids") else []
        drawn = node.mask("mask", len(own)) if node.data.get("mask") else np.zeros(len(own), bool)
        drawn = np.ones(len(own), bool) if drawn is None else drawn
        tokens += own
        masks.append(drawn)
        sampler.append(_spread(node, "logprobs", drawn))
        reference.append(_spread(node, "reference_logprobs", drawn))
    return whole_sequence(
        trace,
        tokens,
        np.concatenate(masks),
        {"sampler_logp": _joined(sampler), "teacher_logp": _joined(reference)},
        step=_dispatched(row),
        finished=_finished(trace),
        correct=_reward(trace),
        labels=labels,
    )


def _spread(node: Row, name: str, drawn: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A node's log-probabilities, which it has for its drawn tokens only, at all its tokens."""
    spread = np.full(len(drawn), np.nan, np.float32)
    if node.data.get(name):
        spread[drawn] = node.as_logps(node.data[name], name, int(drawn.sum()))
    return spread


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    joined = np.concatenate(parts)
    return None if np.isnan(joined).all() else joined


def _dispatched(row: Row) -> int:
    """The step of the folder; else that at which the episode was sent out."""
    run = row.data.get("run")
    work = run.get("work") if isinstance(run, dict) else None
    if row.given_step is not None or not isinstance(work, dict):
        return row.step()
    return row.at(work, "run").step("step")


def _finished(trace: Row) -> bool | None:
    calls = trace.data.get("calls")
    reasons = [
        call.get("finish_reason")
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and call.get("error") is None
    ]
    if str(trace.data.get("stop_condition")) in _CUT or reasons[-1:] == ["length"]:
        return False
    return True if reasons[-1:] == ["stop"] else None


def _reward(trace: Row) -> float:
    """The sum of weighted rewards, if it is a grade."""
    rewards = trace.data.get("rewards")
    if not isinstance(rewards, dict):
        return trace.grade("reward")
    total = 0.0
    for name, reward in rewards.items():
        if reward is not None:
            score, weight = (trace.at(reward, str(name)).data.get(n) for n in ("score", "weight"))
            if not isinstance(score, int | float) or abs(score) > _LARGEST:
                return float("nan")
            if not isinstance(weight, int | float) or abs(weight) > _LARGEST:
                weight = 1
            total += float(score) * weight
    return Row({"reward": total}, trace.source).grade("reward") if rewards else float("nan")


PRIME_RL = Format(
    "prime-rl",
    "B",
    "trainer.enable_token_export: token_exports/step_N/rank_R.jsonl",
    (".jsonl",),
    has("token_ids", "loss_mask", "trainer_logprobs", "inference_logprobs"),
    _exported,
    "grades, the teacher's log-probabilities, and whether a response ended, unless its last token "
    "says so",
)
VERIFIERS = Format(
    "verifiers",
    "B",
    "prime-rl's file monitor: rollouts/step_N/train/effective/traces.jsonl",
    (".jsonl",),
    lambda row, _: "traces" in row or ({"nodes", "rewards"} <= row.keys()),
    _traces,
    "nothing that scoring needs",
)
