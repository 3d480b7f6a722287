"""Accuracy of a model: avg@n over problems (paper: n = 16, T 0.7, top-p 0.95)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.models.processes import Processes
from opdprobe.models.vocabulary import eos_ids, padding_id
from opdprobe.rollout.grade import Grader, counted, grade_rollouts
from opdprobe.rollout.memory import sample_in_parts
from opdprobe.rollout.prompts import EncodedPrompt, has_conversation
from opdprobe.rollout.sample import step_generator

# Rollouts sampled at once during evaluation: bounds the memory of the cache.
_EVAL_ROWS = 2048


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    grader: Grader,
    *,
    num_generations: int = 16,
    max_completion_length: int,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    benchmark: str = "",
    width: int | None = None,
    unfinished: str = "wrong",
    processes: Processes | None = None,
) -> NDArray[np.float64]:
    """Sample answers to every problem and grade them.

    Parameters
    ----------
    model, tokenizer
        The model and its tokenizer.
    prompts
        Encoded problems with answers.
    grader
        Maps response text and prompt to a score in [0, 1].
    num_generations, temperature, top_p
        The paper's avg@16 at 0.7 and 0.95.
    max_completion_length
        Longest response.
    seed, benchmark
        The same seed gives the same random numbers for every model and at every step, and other
        numbers for another benchmark: otherwise answers to problems of the same index would be
        correlated.
    width
        Sample from the first `width` ids only: a padded model has logits without a token.
    unfinished : {"wrong", "graded"}
        What a response counts as that reached the length limit: wrong, or graded by what it says so
        far, which for `opdprobe.rollout.grade.grade_math` is its last number. Accuracy at a short
        limit then measures what the grader makes of fragments.
    processes
        They share the problems; each runs the full model on its own and gets all scores.

    Returns
    -------
    ndarray (problems, num_generations)
        Scores in [0, 1]; the mean is avg@n.

    Raises
    ------
    ConfigError
        `unfinished` is neither.
    """
    processes = processes or Processes()
    scores: list[float] = []
    per_call = max(1, _EVAL_ROWS // num_generations)
    for start in range(0, len(prompts), per_call):
        chunk = prompts[start : start + per_call]
        share = processes.share(len(chunk))
        own = chunk[share]
        graded: list[float] = []
        if own:
            rollouts = sample_in_parts(
                model,
                [p.ids for p in own],
                num_generations=num_generations,
                max_completion_length=max_completion_length,
                eos_ids=eos_ids(model, tokenizer, conversations=has_conversation(own)),
                pad_id=padding_id(tokenizer),
                temperature=temperature,
                top_p=top_p,
                generator=step_generator(seed, start, model.device, name=benchmark),
                width=width,
                part=(share.start, len(chunk)),
            )
            answered = [own[i].prompt for i in rollouts.prompt_index]
            graded = grade_rollouts(
                tokenizer,
                rollouts.response_ids,
                answered,
                grader,
                finished=counted(rollouts.finished, unfinished),
            )
        for part in processes.gather(graded):
            scores += part
    return np.array(scores).reshape(len(prompts), num_generations)
