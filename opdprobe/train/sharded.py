"""Training with both models spread over the processes: what they must do together, and as often."""

from collections.abc import Iterator

import torch

from opdprobe.models.processes import Processes
from opdprobe.models.sharding import as_pass, shard
from opdprobe.rollout.batches import batches
from opdprobe.rollout.pair import Pair, Scored
from opdprobe.rollout.sample import Rollouts


def shard_models(pair: Pair, device: torch.device) -> None:
    """Spread both models over the processes, in place, and have the pair run them so."""
    shard(pair.student, device)
    if pair.teacher is not pair.student:
        shard(pair.teacher, device)
    # Without a head of its own, the whole model is the body, which is a pass already.
    if pair.student_head.projection is not None:
        pair.student_body = as_pass(pair.student, "student_pass", pair.student_body)
    if pair.teacher_head.projection is not None:
        pair.teacher_body = as_pass(pair.teacher, "teacher_pass", pair.teacher_body)


def scored_together(
    pair: Pair,
    rollouts: Rollouts,
    processes: Processes,
    *,
    k: int,
    temperature: float = 1.0,
    micro_batch_tokens: int = 16384,
) -> Iterator[tuple[Scored, bool]]:
    """Score micro-batch by micro-batch, of sharded models as many in each process.

    Parameters
    ----------
    pair, rollouts, k, temperature, micro_batch_tokens
        As for `Pair.scored`; at least one rollout.
    processes
        They all do it, each with its rollouts.

    Yields
    ------
    scored : Scored
    counts : bool
        False if this is the shortest rollout again, scored and to be passed back through only to
        keep in step with a process that has more micro-batches.
    """
    missing = 0
    if processes.sharded:
        cut = batches(
            rollouts,
            micro_batch_tokens=micro_batch_tokens,
            pad_id=pair.pad_id,
            device=pair.student.device,
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
    return Rollouts([rollouts.prompt_ids[i]], [rollouts.response_ids[i]], [True], [0])
