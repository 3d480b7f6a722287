"""Training with all models sharded: what all processes must run together and equally often."""

from collections.abc import Iterator

import torch

from opdprobe.models.processes import Processes
from opdprobe.models.sharding import as_pass, is_sharded, shard
from opdprobe.rollout.batches import batches
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.sample import Rollouts


def shard_models(pair: Pair, device: torch.device) -> None:
    """Shard all models over the processes, in place, and make the pair run the shards."""
    shard(pair.student, device)
    # Without a separate head, the body is the full model, whose call is a pass already.
    if pair.student_head.projection is not None:
        pair.student_body = as_pass(pair.student, "student_pass", pair.student_body)
    for one in pair.with_each_teacher():
        if not is_sharded(one.teacher):
            shard(one.teacher, device)
        if one.teacher_head.projection is not None:
            one.teacher_body = as_pass(one.teacher, "teacher_pass", one.teacher_body)


def scored_together(
    pair: Pair,
    rollouts: Rollouts,
    processes: Processes,
    *,
    k: int,
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
) -> Iterator[tuple[Scored, bool]]:
    """Score one micro-batch at a time; sharded models run equally many in every process.

    Parameters
    ----------
    pair, rollouts, k, temperature, micro_batch_tokens
        As for `Pair.scored`; at least one rollout.
    processes
        All of them must call this, each with its own rollouts.

    Yields
    ------
    scored : Scored
    counts : bool
        False for a repetition of the shortest rollout, which is scored and back-propagated only to
        keep in step with a process that has more micro-batches.
    """
    missing = 0
    if processes.sharded:
        cut = batches(
            rollouts,
            micro_batch_tokens=micro_batch_tokens,
            pad_id=pair.pad_id,
            device=pair.student.device,
            apart=pair.length_class,
        )
        own = sum(1 for _ in cut)
        missing = max(processes.gather(own)) - own
    for part in pair.scored(
        rollouts, k=k, temperature=temperature, micro_batch_tokens=micro_batch_tokens
    ):
        yield part, True
    for _ in range(missing):
        for part in pair.scored(_shortest(rollouts), k=k, temperature=temperature):
            yield part, False


def _shortest(rollouts: Rollouts) -> Rollouts:
    _, i = min(
        (len(prompt) + len(response), i)
        for i, (prompt, response) in enumerate(
            zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
        )
        if response
    )
    own = rollouts.teacher_prompt_ids
    return Rollouts(
        [rollouts.prompt_ids[i]],
        [rollouts.response_ids[i]],
        [True],
        [0],
        teacher_prompt_ids=None if own is None else [own[i]],
    )
