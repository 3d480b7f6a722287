"""Record a plain torch loop from what its own forward pass computed.

Shape suffixes: B sequences, T tokens per sequence with padding, N response tokens, D hidden size.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.hooks.loop_passes import (
    Pass,
    Row,
    hidden_states,
    known_prompts,
    read_by_teacher,
    row_of,
    teacher_prompts,
    tokens_of,
    warn_if_mixed,
)
from opdprobe.hooks.shared import (
    make_pair,
    recorded_attrs,
    run_attrs,
    undisturbed,
    unwrap,
)
from opdprobe.models.load import identity
from opdprobe.models.save import keep_tokenizer
from opdprobe.models.vocabulary import eos_ids
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.rows import record_dataset, step_metrics
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores, score
from opdprobe.store import RunWriter


@contextmanager
def capture(
    student: nn.Module,
    teacher: PreTrainedModel,
    run_dir: str | Path,
    *,
    step: int,
    tokenizer: PreTrainedTokenizerBase,
    k: int = 16,
    temperature: float = 1.0,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> "Iterator[Capture]":
    """Record one step of a loop of your own, without a second pass of the student.

    Inside the block, a forward pass of `student` that gets ``labels`` is recorded: the teacher
    runs over the same tokens, and both are scored where a label is not -100. A pass without
    labels is recorded by ``c.record(response_mask)`` right after it; other passes (sampling, say)
    are not. Several passes (micro-batches) make one step. The step is written when the block ends,
    and not at all if the block raises.

    A token is a *response token* where its label is not -100 (or the mask is true); its state is
    the position before it, which predicts it. Labels are those of transformers, not yet shifted.
    In each row, the tokens from the first to the last response token are the response, and those
    before are the prompt; masked positions in between (a tool's output) are not states.

    A teacher that reads something else before the responses (`opdprobe.TeacherContext`) gets it
    from ``c.record(response_mask, teacher_prompt_ids=…)``, after a pass without labels.

    The student's distributions are those of the loop's own pass: with dropout in training mode, in
    its autocast precision, and, with dynamic or long rope, at the length of the longest row (a
    warning says so where it makes a difference). The record describes the student before the update
    of `step`: call the optimiser after the pass, inside the block or after it.

    Parameters
    ----------
    student : torch.nn.Module
        The causal LM that the loop calls, also under DDP or PEFT.
    teacher : PreTrainedModel
        A causal LM of the same vocabulary. Moved to the student's device.
    run_dir : str or Path
        The run, which is created or gets one more step. A step that it already has is replaced.
    step : int
        Number of updates that the student has had.
    tokenizer : PreTrainedTokenizerBase
        The student's.
    k : int
        Tokens kept per model (paper Table 2: 16).
    temperature : float
        Divides both models' logits: the temperature that the responses were sampled at.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer`.

    Yields
    ------
    Capture
        After the block, its `dataset` and `metrics` are the step's. Only the main process records
        anything.

    Raises
    ------
    ConfigError
        No pass was recorded, shapes do not fit, sequences are packed, or the run has other
        settings.
    VocabularyError
        The tokenizers differ.
    StoreError
        `run_dir` holds something else.
    NonFiniteError
        A model's logits are NaN or infinite; names model and step.

    Examples
    --------
    >>> for step, batch in enumerate(loader):                               # doctest: +SKIP
    ...     with capture(student, teacher, "runs/x", step=step, tokenizer=tok) as c:
    ...         student(**batch).loss.backward()      # batch holds labels
    ...     optimizer.step()
    ...     print(c.metrics["overlap_ratio"])
    """
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    if spread and torch.distributed.get_rank() != 0:
        yield Capture(None, step, k, temperature)
        return
    if not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"teacher is a {type(teacher).__name__}; expected one model that is already loaded."
        )
    inner = unwrap(student)
    with undisturbed(inner, teacher):
        pair = make_pair(inner, teacher, tokenizer, teacher_tokenizer)
    run_dir = Path(run_dir)
    recorded = recorded_attrs(run_dir)
    attrs = run_attrs(
        pair,
        # Taken before the block, which may train the student.
        identity(inner, recorded.get("student")),
        identity(teacher, recorded.get("teacher")),
        recorded_by="capture",
        k=k,
        temperature=temperature,
    )
    captured = Capture(pair, step, k, temperature)
    handles = [student.register_forward_hook(captured._after_pass, with_kwargs=True)]
    if pair.student_head.projection is not None:
        handles.append(pair.student_head.projection.register_forward_hook(captured._after_body))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
    captured._close()
    config = {"k": k, "temperature": temperature}
    writer = RunWriter(run_dir, attrs=attrs, config=config, resume=True)
    keep_tokenizer(run_dir, tokenizer)
    writer.write_step(step, captured.dataset)
    writer.log_metrics(step, captured.metrics)


class Capture:
    """The record of one step's forward passes; made by `capture`.

    Attributes
    ----------
    dataset : xarray.Dataset
        The step, after the block.
    metrics : dict of str to float
        The step's means (`opdprobe.rollout.rows.step_metrics`), after the block.
    """

    dataset: xr.Dataset
    metrics: dict[str, float]

    def __init__(self, pair: Pair | None, step: int, k: int, temperature: float):
        self.metrics = {}
        self._pair, self._step, self._k, self._temperature = pair, step, k, temperature
        self._hidden: Tensor | None = None
        self._pass: Pass | None = None
        self._n_passes = 0
        self._rows: list[Row] = []
        self._scores: list[Scores] = []  # one entry per pass that has states

    def record(
        self,
        response_mask: Tensor,
        *,
        correct: Sequence[float] | None = None,
        teacher_prompt_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Record the last forward pass.

        Parameters
        ----------
        response_mask : Tensor (B, T)
            True (or not 0) at the response tokens of that pass's ``input_ids``.
        correct : sequence of float, optional
            A grade in [0, 1] for each of the B sequences.
        teacher_prompt_ids : sequence of sequence of int, optional
            What the teacher reads before the response of each of the B sequences, without padding;
            by default, what the student read. Of a step's passes, all have it, or none.

        Raises
        ------
        ConfigError
            No unrecorded pass is left, or shapes do not fit; a teacher's prompt is empty or holds
            an id that is no token of the vocabulary; or only some of the step's passes have
            teacher's prompts.
        """
        if self._pair is None:
            return
        if self._pass is None:
            raise ConfigError(
                "no forward pass to record: call the student that was given to capture() first. "
                "A pass is recorded once, and automatically if it has labels."
            )
        seen, self._pass = self._pass, None
        ids_BT, real_BT = tokens_of(seen)
        if response_mask.shape != ids_BT.shape:
            raise ConfigError(
                f"response_mask has shape {tuple(response_mask.shape)}; expected that of "
                f"input_ids, {tuple(ids_BT.shape)}."
            )
        if correct is not None and len(correct) != len(ids_BT):
            raise ConfigError(
                f"correct has {len(correct)} grades for {len(ids_BT)} sequences; expected one each."
            )
        chosen_BT = response_mask.to(ids_BT.device).bool() & real_BT
        # Nothing predicts a sequence's first token.
        chosen_BT[:, 1:] &= real_BT[:, :-1]
        chosen_BT[:, 0] = False
        grades = [float("nan")] * len(ids_BT) if correct is None else map(float, correct)
        rows = [
            row_of(*tensors) for tensors in zip(ids_BT, real_BT, chosen_BT, grades, strict=True)
        ]
        if teacher_prompt_ids is not None:
            own = teacher_prompts(teacher_prompt_ids, len(rows), self._pair.width)
            rows = [
                replace(row, teacher_prompt_ids=ids) for row, ids in zip(rows, own, strict=True)
            ]
        if self._rows and (self._rows[0].teacher_prompt_ids is None) != (
            teacher_prompt_ids is None
        ):
            raise ConfigError(
                f"step {self._step}: only some of its passes have teacher_prompt_ids; expected "
                "them with every pass, or with none."
            )
        self._rows += rows
        places = [(b, place - 1) for b, row in enumerate(rows) for place in row.places]
        if places:  # of the states, each one position before its token
            row_N, time_N = torch.tensor(places, device=ids_BT.device).T
            read = read_by_teacher(rows) or (ids_BT, real_BT, row_N, time_N)
            self._scores.append(self._score(seen, ids_BT, row_N, time_N, real_BT, read))

    def _score(
        self,
        seen: Pass,
        ids_BT: Tensor,
        row_N: Tensor,
        time_N: Tensor,
        real_BT: Tensor,
        read: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> Scores:
        """Run the teacher over what it reads, and compare both models at the pass's states.

        This cannot wait for the end of the block: the optimiser may have changed the student's head
        by then.
        """
        pair = self._pair
        assert pair is not None
        assert seen.hidden_BTD is not None
        device = ids_BT.device.type
        warn_if_mixed(pair, real_BT)
        with (
            torch.no_grad(),
            undisturbed(pair.teacher),
            torch.autocast(device, seen.autocast, enabled=seen.autocast is not None),
        ):
            teacher_hidden = hidden_states(
                pair.teacher_body, *(tensor.to(ids_BT.device) for tensor in read)
            )
            try:
                return score(
                    seen.hidden_BTD[row_N, time_N],
                    teacher_hidden,
                    pair.student_head,
                    pair.teacher_head,
                    ids_BT[row_N, time_N + 1],
                    k=self._k,
                    temperature=self._temperature,
                    stop_ids=pair.stop_ids(),
                ).cpu()
            except NonFiniteError as error:
                raise NonFiniteError(f"step {self._step}: {error}") from error

    def _after_body(self, _head: nn.Module, args: tuple[Tensor, ...], _logits: Tensor) -> None:
        self._hidden = args[0].detach()

    def _after_pass(
        self, _model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        assert self._pair is not None
        hidden, self._hidden = self._hidden, None
        if self._pair.student_head.projection is None:  # the slow path of split_head
            hidden = None if output.logits is None else output.logits.detach()
        # input_ids and attention_mask come first in transformers and in PEFT.
        named = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        device = self._pair.student.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self._n_passes += 1
        self._pass = Pass(
            named.get("input_ids"),
            named.get("attention_mask"),
            named.get("position_ids"),
            hidden,
            autocast,
        )
        if named.get("labels") is not None:
            self.record(named["labels"] != -100)

    def _close(self) -> None:
        """Make the step from the recorded rows."""
        pair = self._pair
        assert pair is not None
        if not self._scores:
            raise ConfigError(
                f"capture() saw {self._n_passes} forward passes of the student at step "
                f"{self._step} and no response token: give the student labels=, or call "
                "c.record(response_mask) after the pass."
            )
        enders = set(eos_ids(pair.student, pair.tokenizer))
        rollouts = Rollouts(
            prompt_ids=[row.prompt_ids for row in self._rows],
            response_ids=[row.response_ids for row in self._rows],
            finished=[not enders.isdisjoint(row.response_ids[-1:]) for row in self._rows],
            prompt_index=list(range(len(self._rows))),
            teacher_prompt_ids=known_prompts([row.teacher_prompt_ids for row in self._rows]),
        )
        # The loop does not name its prompts: equal prompts get equal names, at any step.
        names = [
            hashlib.sha256(repr(row.prompt_ids).encode()).hexdigest()[:12] for row in self._rows
        ]
        dataset = record_dataset(
            self._step,
            rollouts,
            Scores.concatenate(self._scores),
            [Prompt(name, text=name) for name in names],
            [row.correct for row in self._rows],
        )
        is_state = torch.cat([row.is_state for row in self._rows])
        self.dataset = dataset.isel(state=np.asarray(is_state))
        self.metrics = step_metrics(self.dataset)
