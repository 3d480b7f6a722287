"""The measurements of a preflight, one function each."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.adapters import is_adapted, switched_off
from opdprobe.models.head import evaluating
from opdprobe.models.positions import check_prompts
from opdprobe.models.vocabulary import eos_ids
from opdprobe.preflight.estimates import Number, state_means
from opdprobe.preflight.readout import Readout, States, reading_out
from opdprobe.preflight.workers import Alone
from opdprobe.probes import curves
from opdprobe.probes.quantities import MAIN, QUANTITIES
from opdprobe.rollout import shared_prompts
from opdprobe.rollout.batches import batches
from opdprobe.rollout.continuation import Sampling, token_rows
from opdprobe.rollout.engine import Sampler, sample_with
from opdprobe.rollout.grade import Grader, grade_rollouts
from opdprobe.rollout.memory import halving, sample_in_parts
from opdprobe.rollout.pair import Pair, in_rollout_order
from opdprobe.rollout.prompts import EncodedPrompt, Prompt, has_conversation
from opdprobe.rollout.rows import record_dataset
from opdprobe.rollout.sample import Rollouts, step_generator
from opdprobe.rollout.score import Scores, score
from opdprobe.rollout.teacher_context import teacher_prompts
from opdprobe.store.step import estimate_bytes
from opdprobe.train.recipes.repetition import REPETITIVE, compression

_NOISE_ROLLOUTS = 8

STATE_QUANTITIES = (*MAIN, "student_entropy", "teacher_entropy")
"""Quantities measured at the student's states, by their names in ``Run.metrics``."""


def sampled(
    work: Alone,
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    num_generations: int,
    role: str = "student",
    readout: Readout | None = None,
) -> Callable[[], Rollouts]:
    """Begin to sample a model of the pair on the prompts of its role.

    Prompts of similar length share a batch.

    Parameters
    ----------
    work
        Who samples.
    pair, prompts, sampling, num_generations
        The models, and what is sampled from them.
    role
        ``student`` or ``teacher``.
    readout
        What the student uses instead of its own readout.

    Returns
    -------
    callable
        Returns the rollouts.
    """
    read = {
        "student": [list(prompt.ids) for prompt in prompts],
        "teacher": [list(prompt.teacher_ids or prompt.ids) for prompt in prompts],
    }
    check_prompts(pair.student, read["student"], sampling.max_completion_length)
    check_prompts(pair.teacher, read["teacher"], sampling.max_completion_length)
    asked = read[role]
    order = sorted(range(len(prompts)), key=lambda i: -len(asked[i]))
    conversations = has_conversation(prompts)
    cut, parts, start = [], [], 0
    while start < len(order):
        longest = len(asked[order[start]]) + sampling.max_completion_length
        batch = order[
            start : start + max(1, sampling.micro_batch_tokens // (longest * num_generations))
        ]
        ids = [asked[i] for i in batch]
        parts.append((role, readout, ids, num_generations, start, sampling, conversations))
        cut.append(batch)
        start += len(batch)
    results = work.start(_sampled, parts)

    def rollouts() -> Rollouts:
        found: list[list[tuple[list[int], bool]]] = [[] for _ in prompts]
        for batch, got in zip(cut, results(), strict=True):
            for i, ids, done in zip(got.prompt_index, got.response_ids, got.finished, strict=True):
                found[batch[i]].append((ids, done))
        index = [i for i in range(len(prompts)) for _ in range(num_generations)]
        return Rollouts(
            [asked[i] for i in index],
            [ids for some in found for ids, _ in some],
            [done for some in found for _, done in some],
            index,
            teacher_prompt_ids=teacher_prompts(prompts, index),
        )

    return rollouts


def _sampled(
    pair: Pair,
    role: str,
    readout: Readout | None,
    prompts: Sequence[list[int]],
    num_generations: int,
    number: int,
    sampling: Sampling,
    conversations: bool,
) -> Rollouts:
    """Sample a batch, whose random numbers depend on the seed and its `number`."""
    model = pair.teacher if role == "teacher" else pair.student
    changed = nullcontext() if readout is None else reading_out(pair.student, readout)
    with as_teacher(pair) if role == "teacher" else changed:
        return sample_in_parts(
            model,
            prompts,
            num_generations=num_generations,
            max_completion_length=sampling.max_completion_length,
            eos_ids=eos_ids(model, pair.tokenizer, conversations=conversations),
            pad_id=pair.pad_id,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            generator=step_generator(sampling.seed, number, model.device),
            width=pair.width,
        )


def as_teacher(pair: Pair) -> AbstractContextManager[object]:
    """Switch off the student's adapters if the teacher is the student without them."""
    student = pair.outer_student
    twofold = pair.teacher is pair.student and is_adapted(student)
    return switched_off(student) if twofold else nullcontext()


def sampled_by(
    sampler: Sampler,
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    num_generations: int,
) -> Rollouts:
    """Have an engine sample the student in its place."""
    ids = [list(prompt.ids) for prompt in prompts]
    check_prompts(pair.student, ids, sampling.max_completion_length)
    rollouts = sample_with(
        sampler,
        ids,
        num_generations=num_generations,
        max_completion_length=sampling.max_completion_length,
        seed=(sampling.seed,),
        width=pair.width,
        temperature=sampling.temperature,
    )
    own = teacher_prompts(prompts, rollouts.prompt_index)
    return replace(rollouts, teacher_prompt_ids=own)


def asked_again(
    rollouts: Rollouts, prompts: Sequence[EncodedPrompt], num_generations: int, width: int
) -> Rollouts:
    """Put another teacher's prompts beside the student's rollouts.

    Raises
    ------
    ConfigError
        The rollouts are not of these prompts, there are not `num_generations` of each, or they hold
        a token beyond the `width` of the vocabulary that is shared with this teacher.
    """
    index = [i for i in range(len(prompts)) for _ in range(num_generations)]
    if rollouts.prompt_ids != [list(prompts[i].ids) for i in index]:
        raise ConfigError(
            f"rollouts: {len(rollouts)} rollouts that are not {num_generations} of each of these "
            f"{len(prompts)} prompts; expected those of a preflight with the same settings."
        )
    largest = max((max(ids, default=0) for ids in rollouts.response_ids), default=0)
    if largest >= width:
        raise ConfigError(
            f"rollouts: they hold token {largest}, and this teacher has {width} tokens. Run its "
            "preflight alone."
        )
    return replace(rollouts, teacher_prompt_ids=teacher_prompts(prompts, index))


def recorded(
    work: Alone,
    pair: Pair,
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    grader: Grader | None,
    *,
    k: int,
    temperature: float,
    micro_batch_tokens: int,
    n_hidden: int = 0,
) -> tuple[xr.Dataset, States]:
    """Score rollouts with both models and lay them out as a step.

    Parameters
    ----------
    work
        Who scores.
    n_hidden
        Maximum number of states whose hidden states are kept, drawn at random.

    Returns
    -------
    Dataset
        The step.
    States
        The kept hidden states.
    """
    lengths = [len(response) for response in rollouts.response_ids]
    of_state = np.repeat(rollouts.prompt_index, lengths)
    share = min(1.0, n_hidden / len(of_state))
    kept = np.random.default_rng(0).random(len(of_state)) < share
    place = np.split(np.arange(len(of_state)), np.cumsum(lengths)[:-1])
    asked = rollouts.prompt_ids + rollouts.read_by("teacher").prompt_ids
    longest = max(map(len, asked)) + max(lengths)
    pays = shared_prompts.pays(rollouts, pair.student.device)
    shared = pays and shared_prompts.is_exact(pair, longest)
    cut = [list(range(len(rollouts)))]
    if shared and not work.is_alone:
        cut = shared_prompts.by_prompt(rollouts)
    elif not work.is_alone:
        # Each stays one micro-batch when it is cut again, since that was the cheapest division.
        row_of = np.repeat(np.arange(len(rollouts)), lengths)
        cut = [
            list(dict.fromkeys(row_of[batch.state.numpy()].tolist()))
            for batch in batches(
                rollouts,
                micro_batch_tokens=micro_batch_tokens,
                pad_id=pair.pad_id,
                apart=pair.length_class,
            )
        ]
    places = [np.concatenate([place[row] for row in rows]) for rows in cut]
    settings = shared, k, temperature, micro_batch_tokens
    found = work.start(
        _scored,
        [
            (rollouts.pick(rows), kept[own], *settings)
            for rows, own in zip(cut, places, strict=True)
        ],
    )()
    parts, hidden, teacher_hidden, prompt = [], [], [], []
    for own, (state, scores, chosen, *both) in zip(places, found, strict=True):
        parts.append((torch.as_tensor(own)[state], scores))
        prompt.append(of_state[own[chosen]])
        hidden.append(both[0])
        teacher_hidden.append(both[1])
    scores = in_rollout_order(parts)
    states = States(
        torch.cat(hidden),
        torch.cat(teacher_hidden),
        scores.token_id.unique().to(pair.student.device),
        np.concatenate(prompt),
    )
    correct = graded(pair.tokenizer, rollouts, prompts, grader)
    return record_dataset(0, rollouts, scores, prompts, correct), states


@torch.no_grad()
def _scored(
    pair: Pair,
    rollouts: Rollouts,
    kept: NDArray[np.bool_],
    shared: bool,
    k: int,
    temperature: float,
    micro_batch_tokens: int,
) -> tuple[Tensor, Scores, NDArray[np.intp], Tensor, Tensor]:
    """Score some rollouts: states and scores, kept states, and both models' hidden states there."""

    def passes(tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Scores]]:
        settings = {"k": k, "temperature": temperature, "micro_batch_tokens": tokens}
        if shared:
            yield from shared_prompts.scored(pair, rollouts, **settings)
            return
        for part in pair.scored(rollouts, **settings):
            yield part.batch.state, part.hidden, part.teacher_hidden, part.scores

    def scored(tokens: int) -> list[tuple[Any, ...]]:
        found = []
        for state, hidden, teacher_hidden, scores in passes(tokens):
            rows = torch.as_tensor(kept[state.numpy()]).nonzero()[:, 0]
            there = rows.to(hidden.device)
            both = hidden[there], teacher_hidden[there]
            found.append((state, scores.cpu(), state[rows].numpy(), *both))
        return found

    with evaluating(pair.student), evaluating(pair.teacher):
        found, _ = halving(
            scored,
            rollouts,
            micro_batch_tokens=micro_batch_tokens,
            device=pair.student.device,
            doing="scoring",
        )
    states, scores, chosen, hidden, teacher_hidden = zip(*found, strict=True)
    return (
        torch.cat(states),
        Scores.concatenate(scores),
        np.concatenate(chosen),
        torch.cat(hidden),
        torch.cat(teacher_hidden),
    )


def graded(
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    grader: Grader | None,
) -> list[float] | None:
    """Grade responses, unfinished ones as wrong; None without a grader."""
    if grader is None:
        return None
    return grade_rollouts(
        tokenizer, rollouts.response_ids, prompts, grader, finished=rollouts.finished
    )


def rollout_dataset(
    rollouts: Rollouts, own: Sequence[Prompt], correct: Sequence[float] | None = None
) -> xr.Dataset:
    """Lay out unscored rollouts as the parts of a step that `continued` and `texts` read."""
    tokens = {
        f"{part}_ids": (f"{part}_token", np.concatenate([np.asarray(r, np.int32) for r in rows]))
        for part, rows in (("prompt", rollouts.prompt_ids), ("response", rollouts.response_ids))
    }
    return xr.Dataset(
        {
            "prompt_id": ("rollout", [prompt.id for prompt in own]),
            "prompt_length": ("rollout", [len(r) for r in rollouts.prompt_ids]),
            "length": ("rollout", [len(r) for r in rollouts.response_ids]),
            "finished": ("rollout", rollouts.finished),
            **({} if correct is None else {"correct": ("rollout", list(correct))}),
            **tokens,
        }
    )


def means(step: xr.Dataset) -> dict[str, Number]:
    """Average every quantity of `STATE_QUANTITIES` over the states."""
    return state_means(step, STATE_QUANTITIES)


def by_position(step: xr.Dataset, bins: int = 8) -> list[dict[str, float]]:
    """Average the same quantities by output position: one row per range, ``stop`` exclusive."""
    found = curves(step, STATE_QUANTITIES, by="position", bins=bins)
    first = found.isel(probe=0)
    return [
        {
            "start": int(first["position_start"].values[i]),
            "stop": int(first["position_stop"].values[i]),
            "states": int(first["n"].values[i]),
            **dict(zip(STATE_QUANTITIES, found["value"].values[:, i].tolist(), strict=True)),
        }
        for i in range(first.sizes["position"])
    ]


@torch.no_grad()
def noise_floor(pair: Pair, rollouts: Rollouts, k: int, temperature: float) -> dict[str, float]:
    """Compare the student with itself: once with many rollouts per batch, once with one.

    The two passes differ only by rounding (and by any nondeterminism of the backend). A difference
    between two models means nothing unless it is larger.
    """
    rows = list(range(0, len(rollouts), max(1, len(rollouts) // _NOISE_ROLLOUTS)))
    some = Rollouts(
        [rollouts.prompt_ids[i] for i in rows],
        [rollouts.response_ids[i] for i in rows],
        [rollouts.finished[i] for i in rows],
        rows,
    )

    def hidden_states(tokens: int) -> tuple[list[Any], ...]:
        hidden, ids, order = [], [], []
        for batch in batches(
            some, micro_batch_tokens=tokens, pad_id=pair.pad_id, device=pair.student.device
        ):
            hidden.append(batch.hidden(pair.student_body))
            ids.append(batch.sampled_ids)
            order.append(batch.state)
        return hidden, ids, order

    passes = []
    with evaluating(pair.student):
        for micro_batch_tokens in (16384, 1):
            (hidden, ids, order), _ = halving(
                hidden_states,
                some,
                micro_batch_tokens=micro_batch_tokens,
                device=pair.student.device,
                doing="scoring",
            )
            place = torch.cat(order).argsort().to(hidden[0].device)
            passes.append((torch.cat(hidden)[place], torch.cat(ids)[place]))
    (together, sampled_ids), (alone, _) = passes
    head = pair.student_head
    scores = score(together, alone, head, head, sampled_ids, k=k, temperature=temperature).cpu()
    own = [Prompt(str(i), text="-") for i in rows]
    step = record_dataset(0, some, scores, own)
    wanted = ("overlap_ratio", "overlap_token_advantage", "entropy_gap", "reverse_kl")
    return {name: float(QUANTITIES[name].compute(step).mean()) for name in wanted}


def texts(tokenizer: PreTrainedTokenizerBase, step: xr.Dataset) -> dict[str, float]:
    """Mean length of the responses, and the shares that are cut off or repetitive."""
    responses = tokenizer.batch_decode(token_rows(step, "response"), skip_special_tokens=True)
    ratio = compression(responses)
    return {
        "mean_length": float(step["length"].mean()),
        "truncated": 1 - float(step["finished"].mean()),
        "compression": float(ratio.mean()),
        "repetitive": float((ratio > REPETITIVE).mean()),
    }


def run_cost(
    mean_length: float, k: int, seconds_sample: float, seconds_update: float
) -> dict[str, float]:
    """Estimate what a step of the paper's batch (64 prompts × 4 rollouts) would take here.

    Parameters
    ----------
    mean_length
        Tokens per response.
    k
        Tokens kept per state.
    seconds_sample, seconds_update
        Measured seconds per response token.
    """
    tokens = 64 * 4 * mean_length
    return {
        "tokens_a_step": tokens,
        "bytes_a_step": float(estimate_bytes(round(tokens), k)),
        "seconds_a_step": tokens * (seconds_sample + seconds_update),
    }
