"""Score recorded rollouts with a student that did not sample them: the same contexts again."""

import numpy as np
import torch
import xarray as xr

from opdprobe.errors import ConfigError, StoreError
from opdprobe.models.head import evaluating
from opdprobe.models.positions import check_prompts
from opdprobe.models.processes import Processes
from opdprobe.rollout.continuation import token_rows
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt import Prompt
from opdprobe.rollout.rows import record_dataset
from opdprobe.rollout.sample import Rollouts

_NEEDED = ("prompt_ids", "response_ids", "prompt_length", "length", "prompt_id", "finished")


@torch.no_grad()
def rescore(
    pair: Pair,
    contexts: xr.Dataset,
    *,
    k: int = 16,
    temperature: float = 1.0,
    step: int = 0,
    micro_batch_tokens: int = 16384,
    processes: Processes | None = None,
) -> xr.Dataset:
    """Score both models at every state of recorded rollouts.

    Along checkpoints of one student, the quantities then change with the models alone. Along its
    own rollouts they also change because it visits other states.

    Parameters
    ----------
    pair
        Student and teacher.
    contexts : Dataset
        A recorded step with the texts of its rollouts; all their positions are scored, also those
        that were left out when they were recorded, but not what a tool or a user wrote.
    k, temperature, micro_batch_tokens
        As in `opdprobe.rollout.once.probe`.
    step
        Training step to label the record with.
    processes
        Processes that share the rollouts, each with its own copy of the models.

    Returns
    -------
    Dataset
        One step in the store's schema, with the rollouts, grades and lengths of `contexts`; with
        several processes, this process's part of it. ``sampled_id`` is the token of the context,
        which this student need not have drawn.

    Raises
    ------
    StoreError
        `contexts` lacks the texts, or has no rollouts.
    ConfigError
        There are more processes than rollouts, or an id is outside the models' vocabulary.
    ModelError
        A model's table of positions is too short.
    """
    if missing := [name for name in _NEEDED if name not in contexts]:
        raise StoreError(
            f"the contexts have no {', '.join(missing)}; expected a recorded step with the token "
            "ids of its prompts and responses."
        )
    processes = processes or Processes()
    total = contexts.sizes["rollout"]
    if total < processes.size:
        raise ConfigError(
            f"{total} rollouts for {processes.size} processes; expected at least one rollout per "
            "process: record more, or start fewer processes."
        )
    own = processes.share(total)
    prompts = token_rows(contexts, "prompt")[own]
    responses = token_rows(contexts, "response")[own]
    theirs = None
    if "teacher_prompt_ids" in contexts:
        theirs = token_rows(contexts, "teacher_prompt")[own]
    largest = max(max(ids, default=0) for ids in (*prompts, *(theirs or ()), *responses))
    if largest >= pair.width:
        raise ConfigError(
            f"the contexts have token {largest}, the models {pair.width} tokens; expected contexts "
            "that were recorded with the same tokenizer."
        )
    longest = max(map(len, responses))
    check_prompts(pair.student, prompts, longest)
    check_prompts(pair.teacher, theirs or prompts, longest)
    names = contexts["prompt_id"].values[own].astype(str)
    rollouts = Rollouts(
        prompts,
        responses,
        contexts["finished"].values[own].tolist(),
        np.unique(names, return_inverse=True)[1].tolist(),
        _drawn(contexts, range(total)[own]),
        theirs,
    )
    with evaluating(pair.student), evaluating(pair.teacher):
        scores, _ = pair.all_scores(
            rollouts, k=k, temperature=temperature, micro_batch_tokens=micro_batch_tokens
        )
    correct = contexts["correct"].values[own].tolist() if "correct" in contexts else None
    # Only their names are recorded; the texts are those of the contexts.
    own_prompts = [Prompt(name, text="(recorded)") for name in names.tolist()]
    return record_dataset(step, rollouts, scores, own_prompts, correct)


def _drawn(contexts: xr.Dataset, own: range) -> list[list[int]] | None:
    """Return the places that the student drew, by rollout; None if it drew all.

    A response ends with a drawn token, so one whose last token has a state, but not all tokens
    before it, has gaps; one whose first tokens alone have states was left out in part.
    """
    rollout, position = contexts["rollout"].values, contexts["position"].values
    lengths = contexts["length"].values
    places, gaps = [], False
    for i in own:
        recorded, length = sorted(position[rollout == i].tolist()), int(lengths[i])
        gap = bool(recorded) and recorded[-1] == length - 1 and len(recorded) < length
        places.append(recorded if gap else list(range(length)))
        gaps |= gap
    return places if gaps else None
