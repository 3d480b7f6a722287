"""The on-policy distillation loop: rollout → score → loss → update, writing the store on its way.

    for each step
        sample      the student answers the step's prompts                   opdprobe.rollout.sample
        score       both models' top-k at every student-visited state        opdprobe.rollout.score
        loss        compare them there, backward                               opdprobe.train.losses
        record      the scores become rows of the store, one row per state     opdprobe.rollout.rows
        update      clip, AdamW

A step's record describes the student that sampled it, before its update; step 0 is the untrained
student. Nothing is computed twice for the record: it reuses what the loss needs.

Under `accelerate launch`, each process takes its share of a step's prompts and of an evaluation's
problems; gradients are summed before the update, which every process makes. With FSDP, each process
holds a shard of both models and updates its shard of the student. Sampling gathers the full
student; scoring and the backward pass gather one layer at a time.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr
from accelerate import Accelerator
from torch import autocast, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdprobe.errors import ConfigError, NonFiniteError, StoreError
from opdprobe.models.adapters import (
    base_weights,
    check_trained,
    gathered_weights,
    is_adapted,
    save_weights,
)
from opdprobe.models.devices import (
    is_out_of_memory,
    out_of_memory,
    precision,
    reason_of,
    resolve_device,
    teacher_default,
)
from opdprobe.models.load import identity, weight_hash
from opdprobe.models.processes import Processes
from opdprobe.models.save import keep_tokenizer
from opdprobe.models.sharding import rest, whole
from opdprobe.models.vocabulary import eos_ids, tokenizer_hash
from opdprobe.probes.selectors import select_states
from opdprobe.rollout.engine import TrainedSampler, check_sampler, sample_trained
from opdprobe.rollout.grade import Grader, counted, grade_rollouts
from opdprobe.rollout.memory import halving, sample_in_parts
from opdprobe.rollout.pair import in_rollout_order
from opdprobe.rollout.prompt_attrs import template_attrs
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import (
    EncodedPrompt,
    OnError,
    Prompt,
    encode_prompts,
    has_conversation,
)
from opdprobe.rollout.rows import record_step, step_metrics, thin
from opdprobe.rollout.sample import Rollouts, step_generator
from opdprobe.rollout.score import Scores
from opdprobe.rollout.teacher_context import TeacherContext, teacher_prompts
from opdprobe.rollout.teachers import TeacherPairs, load_pair
from opdprobe.store import Run, RunWriter, estimate_bytes, open_run
from opdprobe.store.files import write_directory
from opdprobe.store.schema import Step
from opdprobe.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from opdprobe.train.config import OPDConfig
from opdprobe.train.engine import check_engine
from opdprobe.train.evaluate import evaluate
from opdprobe.train.launch import check_agreement, check_launch, check_trackers
from opdprobe.train.losses import distillation_loss
from opdprobe.train.optim import Optimization, refuse_float16
from opdprobe.train.sharded import scored_together, shard_models
from opdprobe.train.sigterm import EXIT_CODE, sigterm_noted

logger = logging.getLogger("opdprobe")

T = TypeVar("T")


class Callback:
    """Do something at fixed points of a run; override what you need.

    A callback may read everything on the trainer. One that samples must do so inside
    ``torch.random.fork_rng()`` and leave modes as they were, or it changes the run it watches.
    Every process calls its own callbacks; ``trainer.processes.is_main`` is true in one of them.
    """

    def on_train_begin(self, trainer: "OPDTrainer") -> None:
        """Before the first step, after a checkpoint was loaded."""

    def on_step_end(
        self, trainer: "OPDTrainer", step: int, metrics: dict[str, float], dataset: xr.Dataset
    ) -> None:
        """After each update.

        `dataset` holds all of the step's states for this process's prompts, recorded or not;
        `metrics` cover all processes.
        """

    def on_train_end(self, trainer: "OPDTrainer", run: Run) -> None:
        """After the last evaluation."""


class OPDTrainer:
    """Train a student on its own rollouts towards a teacher, and record both.

    Parameters
    ----------
    student, teacher : PreTrainedModel or peft.PeftModel or str or Path
        Causal LMs with one vocabulary; a name or path is loaded. The student's parameters that
        require gradients are trained in place: under PEFT, its adapters. If the same PEFT model is
        also the teacher, the teacher is the student without its adapters. With
        ``config.teacher_by``, `teacher` is a mapping of names to models, and each prompt names the
        one that scores its rollouts. A `Mixture` of models scores all rollouts.
    tokenizer : PreTrainedTokenizerBase, optional
        The student's. Read from `student` if that is a path.
    prompts : sequence of Prompt
        Training prompts; or what `opdprobe.load_prompts` reads, or rows.
    config : OPDConfig
        What to minimise, how to sample, what to record.
    run_dir : str or Path
        Where the run is kept; see `opdprobe.open_run`.
    grader : callable, optional
        ``grader(response_text, prompt)`` in [0, 1]: grades rollouts and evaluations.
    eval_prompts : mapping of str to sequence of Prompt, optional
        Benchmarks by name, evaluated every ``config.eval_every`` steps.
    callbacks : sequence of Callback
        Called in order.
    report_to : sequence of str
        Trackers of accelerate ("tensorboard", "wandb", ...) that get the scalars.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with `tokenizer` if given; read from `teacher` if that is a path.
    on_error : {"raise", "skip"}
        An unusable prompt (empty or over-long) raises an error, or is skipped with a note in the
        log.
    chat_template_kwargs : mapping, optional
        Variables for the chat template, such as {"enable_thinking": True}; they are added to
        those of `config`, and precede them.
    device : str or torch.device
        Where both models go: ``"auto"`` is the machine's accelerator, or the CPU if there is none;
        a launcher of several processes chooses each one's.
    dtype : str or torch.dtype, optional
        Dtype of models that are given by name. A student in ``"float32"`` (default) is trained as
        it is; launched with ``--mixed_precision bf16``, its passes are computed in bfloat16. One in
        ``"bfloat16"`` is trained as a float32 copy and set to that after each step. One in float16
        is refused: the loss is not scaled, so small gradients would underflow to zero.
    teacher_dtype, attn_implementation : optional
        Dtype of a teacher, and attention of both models, if given by name: see
        `opdprobe.load_model`. By default, a teacher is bfloat16 on an accelerator and float32 on a
        CPU.
    one_teacher_at_a_time : bool
        Of several teachers, keep one in memory, and read the next one's files when its turn comes.
    sampler : ServedModel, optional
        A server of SGLang's, or of vLLM's in its development mode (``VLLM_SERVER_DEV_MODE=1``),
        that samples in the student's place; local models score. Before each step it loads the
        student's weights from ``run_dir/sampler``, which its machine must see, and after each its
        log-probabilities of what it drew are compared with the student's
        (`opdprobe.rollout.engine.check_sampler`). Evaluations are sampled locally.

    Raises
    ------
    OutOfMemoryError
        A model does not fit; when training, a single rollout does not.
    VocabularyError
        The tokenizers differ, or k is larger than the shared vocabulary.
    PromptError
        A prompt is empty or over-long.
    ConfigError
        A setting does not fit the models or the launch (DeepSpeed, for example).

    Examples
    --------
    >>> from opdprobe import OPDConfig, OPDTrainer                          # doctest: +SKIP
    >>> trainer = OPDTrainer("my/student", "my/teacher", prompts=prompts,   # doctest: +SKIP
    ...                      config=OPDConfig(max_steps=100), run_dir="runs/x")
    >>> run = trainer.train(resume=True)                                    # doctest: +SKIP
    """

    def __init__(
        self,
        student: nn.Module | str | Path,
        teacher: nn.Module | str | Path | Mapping[str, nn.Module | str | Path],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompts: Sequence[Prompt],
        config: OPDConfig,
        run_dir: str | Path,
        grader: Grader | None = None,
        eval_prompts: Mapping[str, Sequence[Prompt]] | None = None,
        callbacks: Sequence[Callback] = (),
        report_to: Sequence[str] = (),
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        on_error: OnError = "raise",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        teacher_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        one_teacher_at_a_time: bool = False,
        sampler: TrainedSampler | None = None,
    ):
        if chat_template_kwargs:
            both = {**(config.chat_template_kwargs or {}), **chat_template_kwargs}
            config = replace(config, chat_template_kwargs=both)
        self.config = config
        self.run_dir = Path(run_dir)
        self.callbacks = list(callbacks)
        self._micro_batch_tokens = config.micro_batch_tokens  # less after memory has run out
        self.grader = grader
        check_trackers(report_to)
        self.processes = Processes.launched()
        self.accelerator = Accelerator(log_with=list(report_to) or None, project_dir=self.run_dir)
        check_launch(self.accelerator)
        refuse_float16(dtype)  # before any weights are read
        self.device = device = resolve_device(device, self.processes)
        loading: dict[str, Any] = {
            "tokenizer": tokenizer,
            "teacher_tokenizer": teacher_tokenizer,
            "device": "cpu" if self.processes.sharded else device,  # only shards will go there
            "dtype": dtype,
            "teacher_dtype": teacher_default(device, dtype, teacher_dtype),
            "attn_implementation": attn_implementation,
        }
        self.pair = load_pair(
            student,
            teacher,
            by=config.teacher_by,
            one_at_a_time=one_teacher_at_a_time,
            own_template=config.teacher_template == "own",
            **loading,
        )
        self.sampler = sampler
        self._engine_kl: float | None = None
        if sampler is not None:
            check_engine(sampler, config, self.pair.outer_student, self.processes)
        if isinstance(self.pair, TeacherPairs) and self.processes.sharded:
            raise ConfigError(
                "a teacher by name for each prompt, with sharded models; expected one teacher, a "
                "mixture of several, or processes that hold whole models (without FSDP)."
            )
        self.tokenizer = tokenizer = self.pair.tokenizer
        # Evaluation mode throughout: with dropout, the distribution that is trained would not be
        # the one that sampled.
        self.student = self.pair.outer_student.eval()
        self.pair.teacher.eval()
        if self.pair.teacher is not self.pair.student:
            self.pair.teacher.requires_grad_(False)
        elif not is_adapted(self.student):
            raise ConfigError(
                f"student and teacher are the same {type(self.student).__name__}, so training "
                "would change both: load the teacher separately, or add an adapter to the student "
                "(peft.get_peft_model) and pass that as both; the teacher is then the student "
                "without the adapter."
            )
        check_trained(self.student)
        if config.objective == "sampled" and config.top_p < 1:
            logger.warning(
                "objective='sampled' with top_p = %g: tokens outside the top-p set are never "
                "drawn, so the update is no unbiased estimate of the reverse KL's gradient; "
                "expected top_p = 1.",
                config.top_p,
            )
        if config.k > self.pair.width:
            raise ConfigError(
                f"k = {config.k}; expected at most {self.pair.width}, the size of the shared "
                "vocabulary."
            )

        def encode(
            some: Sequence[Prompt], teacher: TeacherContext | None = None
        ) -> list[EncodedPrompt]:
            return encode_prompts(
                tokenizer,
                some,
                max_prompt_length=config.max_prompt_length,
                chat_template_kwargs=config.chat_template_kwargs,
                system_prompt=config.system_prompt,
                on_error=on_error,
                teacher=teacher,
                teacher_tokenizer=self.pair.teacher_tokenizer,
            )

        prompts = self.pair.taught(as_prompts(prompts, on_error=on_error), on_error)
        self.prompts = encode(prompts, config.teacher_context)
        self.eval_prompts = {name: encode(some) for name, some in (eval_prompts or {}).items()}
        if self.eval_prompts and grader is None:
            raise ConfigError(
                "evaluation needs a grader: pass grader=; on the command line, give problems with "
                "answers."
            )
        self.batch_size = min(config.batch_size, len(self.prompts))
        if self.batch_size < self.processes.size:
            raise ConfigError(
                f"{self.batch_size} prompts per step on {self.processes.size} processes; expected "
                "at least one per process: raise batch_size, or start fewer processes."
            )
        self.n_steps = config.max_steps or (
            config.num_train_epochs * (len(self.prompts) // self.batch_size)
        )
        if config.token_selector is not None and self.processes.size > 1:
            raise ConfigError(
                f"token_selector = {config.token_selector!r} on {self.processes.size} processes; "
                "expected one: the states of a step compete with one another."
            )
        # The run's identity: taken before training changes the student.
        self._attrs = self._identify()
        if self.processes.sharded:
            shard_models(self.pair, device)
        self.optimization = Optimization(
            self.student,
            learning_rate=config.learning_rate,
            total_steps=self.n_steps,
            warmup_steps=config.warmup_steps,
            schedule=config.lr_scheduler_type,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher; of several, one that is in memory."""
        return self.pair.teacher

    def expected_bytes(self) -> int:
        """Upper bound of the store's size in bytes, if every response is as long as allowed."""
        c = self.config
        if c.record_every == 0:
            return 0
        recorded = -(-self.n_steps // c.record_every)
        rollouts = max(1, round(self.batch_size * c.num_generations * c.record_fraction))
        positions = min(c.max_completion_length, c.record_max_positions or c.max_completion_length)
        return recorded * estimate_bytes(rollouts * positions, c.k)

    @contextmanager
    def whole_student(self) -> Iterator[None]:
        """Gather the full student in every process for the block; does nothing without FSDP.

        For a callback that samples or scores; every process must enter. With FSDP, changes made to
        the weights inside are discarded.
        """
        if self.processes.sharded:
            self.processes.wait()  # if one has failed, all raise here
        with whole(self.student):
            yield

    def save_student(self, directory: str | Path) -> None:
        """Write the student, or its adapter, as a Hugging Face directory.

        For a callback; every process must call it, and the main one writes.
        """
        self.processes.wait()
        weights = gathered_weights(self.student)
        if self.processes.is_main:
            save_weights(self.student, Path(directory), weights)
            self.tokenizer.save_pretrained(directory)

    def train(
        self, *, resume: bool = True, on_progress: Callable[[int, int], None] | None = None
    ) -> Run:
        """Run to the last step.

        Parameters
        ----------
        resume
            Continue the run in `run_dir` from its last checkpoint; a finished run is only opened.
            If False, `run_dir` must not hold a run.
        on_progress
            Called with (steps done, steps in total).

        Returns
        -------
        Run
            The recorded run, as `opdprobe.open_run` returns it.

        Raises
        ------
        StoreError, ConfigError
            `run_dir` holds something else, or the same run with other settings.
        NonFiniteError
            A model's logits or a gradient are NaN or infinite; names model and step.
        SystemExit
            SIGTERM came. The step in flight was finished, and a checkpoint written to resume from.
        """
        with self.processes.together():
            return self._run(resume, on_progress if self.processes.is_main else None)

    def _run(self, resume: bool, on_progress: Callable[[int, int], None] | None) -> Run:
        check_agreement(self.processes, self._attrs | {"prompts": [p.ids for p in self.prompts]})
        writer = self.processes.main_first(
            lambda: RunWriter(
                self.run_dir,
                attrs=self._attrs,
                config=self.config.to_dict(),
                defaults=OPDConfig().to_dict(),
                resume=resume,
                part=(self.processes.rank, self.processes.size),
            )
        )
        self.processes.wait()
        rest(self.student)  # a failed step may leave layers gathered
        self._rest_teachers()
        checkpoint = latest_checkpoint(self.run_dir)
        first = 0
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.student, self.optimization)
            first = checkpoint.step
        elif weight_hash(self.pair.student) != self._attrs["student"]["weight_hash"]:
            raise StoreError(
                f"{self.run_dir} has no checkpoint to resume from, and this trainer's student has "
                "been trained since: make a new OPDTrainer with the original student."
            )
        self.optimization.zero_grad()  # an interrupted step leaves a partial gradient
        if first < self.n_steps or checkpoint is None:
            writer.truncate_after(first - 1)
            if self.processes.is_main:
                keep_tokenizer(self.run_dir, self.tokenizer)
            self.processes.wait()
            try:
                with sigterm_noted() as stopping:
                    self._train(writer, first, on_progress, stopping)
            finally:
                writer.flush()  # an interrupted run keeps its finished steps
        self.processes.wait()
        run = open_run(self.run_dir)
        for callback in self.callbacks:
            callback.on_train_end(self, run)
        return run

    def _train(
        self,
        writer: RunWriter,
        first: int,
        on_progress: Callable[[int, int], None] | None,
        stopping: Callable[[], bool],
    ) -> None:
        c = self.config
        self.accelerator.init_trackers("opdprobe", config=c.to_dict())
        logger.info(
            "%s: steps %d to %d; the store will take at most %.1f MB",
            self.run_dir,
            first,
            self.n_steps,
            self.expected_bytes() / 1e6,
        )
        for callback in self.callbacks:
            callback.on_train_begin(self)
        for step in range(first, self.n_steps):
            if on_progress:
                on_progress(step, self.n_steps)
            try:
                metrics, recorded = self._step(step, writer)
            except NonFiniteError as error:
                if str(error).startswith("step "):  # another process's
                    raise
                raise NonFiniteError(f"step {step}: {error}") from error
            writer.submit_metrics(step, metrics)
            self.accelerator.log(metrics, step=step)
            done = step + 1
            stop = any(self.processes.gather(stopping()))
            due = stop or (c.save_steps and done % c.save_steps == 0)
            if due and done < self.n_steps:
                self._save(done, writer)
            for callback in self.callbacks:
                callback.on_step_end(self, step, metrics, recorded.to_dataset())
            if stop and done < self.n_steps:
                logger.warning(
                    "%s: stopped by SIGTERM after %d of %d steps; the same command, or "
                    "train(resume=True), resumes from there.",
                    *(self.run_dir, done, self.n_steps),
                )
                raise SystemExit(EXIT_CODE)
        final = self._evaluate(self.n_steps, writer, last=True)
        if final:
            writer.submit_metrics(self.n_steps, final)
            self.accelerator.log(final, step=self.n_steps)
        # Last of all: whoever finds this checkpoint finds a finished run.
        self._save(self.n_steps, writer)
        # `end_training` would also end the process group, which is not the trainer's.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if on_progress:
            on_progress(self.n_steps, self.n_steps)
        if any(self.processes.gather(stopping())):
            logger.warning("%s: finished; stopped by SIGTERM.", self.run_dir)
            raise SystemExit(EXIT_CODE)

    def _save(self, step: int, writer: RunWriter) -> None:
        writer.flush()  # a resumed run takes all steps before its checkpoint as recorded
        self.processes.wait()
        save_checkpoint(
            *(self.run_dir, step, self.student, self.tokenizer, self.optimization),
            processes=self.processes,
        )
        self.processes.wait()

    def _sample(
        self, step: int, prompts: Sequence[EncodedPrompt], part: tuple[int, int]
    ) -> Rollouts:
        """Sample the student, here or in an engine that first loads its weights."""
        c, ids = self.config, [p.ids for p in prompts]
        sizes: dict[str, Any] = {
            "num_generations": c.num_generations,
            "max_completion_length": c.max_completion_length,
            "width": self.pair.width,
            "temperature": c.temperature,
        }
        if self.sampler is not None:
            with write_directory(self.run_dir / "sampler") as directory:
                self.save_student(directory)
            weights = self.run_dir / "sampler"
            return sample_trained(self.sampler, weights, ids, seed=(c.seed, step), **sizes)
        with self.whole_student(), self._autocast():
            return sample_in_parts(
                self.pair.student,
                ids,
                eos_ids=eos_ids(
                    self.pair.student, self.tokenizer, conversations=has_conversation(prompts)
                ),
                pad_id=self.pair.pad_id,
                top_p=c.top_p,
                generator=step_generator(c.seed, step, self.pair.student.device),
                part=part,
                **sizes,
            )

    def _first_kl(self) -> float | None:
        """KL of the engine from the student in the run's first step; None before it is logged."""
        if self._engine_kl is None:
            logged = open_run(self.run_dir).metrics.get("sampler_kl")
            if logged is not None and logged.size:
                self._engine_kl = float(logged[0])
        return self._engine_kl

    def _step(self, step: int, writer: RunWriter) -> tuple[dict[str, float], Step]:
        """Do one step; metrics are those of the student before its update."""
        c = self.config
        metrics = self._evaluate(step, writer)
        clock = [time.perf_counter()]
        prompts = self._prompts_at(step)
        total, share = len(prompts), self.processes.share(len(prompts))
        prompts = prompts[share]
        self.pair.check_teacher(prompts, c.max_completion_length)
        rollouts = self._sample(step, prompts, (share.start, total))
        rollout_prompts = [prompts[i].prompt for i in rollouts.prompt_index]
        rollouts = replace(
            rollouts,
            teacher_prompt_ids=teacher_prompts(prompts, rollouts.prompt_index),
            teachers=self.pair.teachers_of(rollout_prompts),
        )
        correct = None
        if self.grader is not None:
            correct = grade_rollouts(
                self.tokenizer,
                rollouts.response_ids,
                rollout_prompts,
                self.grader,
                finished=counted(rollouts.finished, c.unfinished),
            )
        clock.append(time.perf_counter())
        rate = self.optimization.learning_rate
        kept = self._kept(step, rollouts, rollout_prompts)
        scores, loss = self._score_and_backward(rollouts, kept)
        if self.sampler is not None:
            own = scores.sampled_logp[:, 0].numpy()
            check_sampler(self.sampler, own, rollouts, first_kl=self._first_kl())
        self.processes.add_gradients(self.optimization.collect())
        norm = self.optimization.step()
        clock.append(time.perf_counter())
        recorded = record_step(step, rollouts, scores, rollout_prompts, correct)
        metrics |= step_metrics(recorded, self.processes)
        if c.record_every and step % c.record_every == 0:
            writer.submit_step(
                step,
                partial(
                    thin,
                    recorded,
                    fraction=c.record_fraction,
                    max_positions=c.record_max_positions,
                    seed=(c.seed, step),
                    part=(share.start * c.num_generations, total * c.num_generations),
                ),
            )
        clock.append(time.perf_counter())
        seconds = np.diff(clock)
        if kept is not None:
            metrics["trained_share"] = float(kept.float().mean())
        metrics |= {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "seconds_sample": seconds[0],
            "seconds_update": seconds[1],
            "seconds_record": seconds[2],
        }
        return {name: float(value) for name, value in metrics.items()}, recorded

    def _kept(
        self, step: int, rollouts: Rollouts, prompts: Sequence[Prompt]
    ) -> torch.Tensor | None:
        """Mark the states that are trained on; None: all."""
        c = self.config
        if c.token_selector is None:
            return None
        with torch.no_grad(), self._autocast():
            scores, self._micro_batch_tokens = self.pair.all_scores(
                rollouts,
                k=c.k,
                temperature=c.temperature,
                micro_batch_tokens=self._micro_batch_tokens,
            )
        dataset = record_step(step, rollouts, scores, prompts).to_dataset()
        kept = select_states(dataset, c.token_selector, c.token_fraction)
        return torch.from_numpy(~kept if c.token_complement else kept)

    def _score_and_backward(
        self, rollouts: Rollouts, kept: torch.Tensor | None = None
    ) -> tuple[Scores, float]:
        """Score every state and add up the gradient of the mean loss, one micro-batch at a time."""
        # The states of the full step, not of the micro-batch or the process, so that the split does
        # not change the loss.
        n_states = sum(self.processes.gather(rollouts.n_tokens))
        if kept is not None:
            n_states = max(int(kept.sum()), 1)

        def work(tokens: int) -> tuple[list[tuple[torch.Tensor, Scores]], float]:
            self.optimization.zero_grad()  # of a call that ran out of memory
            return self._passes(rollouts, n_states, tokens, kept)

        if self.processes.sharded:
            parts, total = self._together(partial(work, self.config.micro_batch_tokens))
        else:  # the processes exchange nothing in between, so each can make its batches smaller
            (parts, total), self._micro_batch_tokens = halving(
                work,
                rollouts,
                micro_batch_tokens=self._micro_batch_tokens,
                device=self.device,
                doing="scoring and training on",
            )
        self._rest_teachers()
        return in_rollout_order(parts), sum(self.processes.gather(total)) / n_states

    def _rest_teachers(self) -> None:
        for one in self.pair.with_each_teacher():
            rest(one.teacher)

    def _together(self, work: Callable[[], T]) -> T:
        """Run passes that gather shards; a process that runs out of memory ends the launch.

        The others wait for it in the middle of a layer, where no message reaches them: it can
        neither take smaller micro-batches alone nor tell them. The launcher stops them.
        """
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        self.processes.leave()
        raise out_of_memory(
            f"process {self.processes.rank}, with sharded models",
            f"lower micro_batch_tokens (now {self.config.micro_batch_tokens}), which processes "
            "with shards cannot do by themselves, or start more processes",
            reason,
        )

    def _passes(
        self,
        rollouts: Rollouts,
        n_states: int,
        micro_batch_tokens: int,
        kept: torch.Tensor | None = None,
    ) -> tuple[list[tuple[torch.Tensor, Scores]], float]:
        """Add up the gradient of this process's share; return its scores and the sum of losses."""
        total, parts = 0.0, []
        with self._autocast():
            for part, counts in scored_together(
                *(self.pair, rollouts, self.processes),
                k=self.config.k,
                temperature=self.config.temperature,
                micro_batch_tokens=micro_batch_tokens,
            ):
                trained = part if kept is None else part.select(kept[part.batch.state])
                if not len(trained.hidden):
                    parts.append((part.batch.state, part.scores.cpu()))
                    continue
                loss = distillation_loss(trained, self.pair, self.config)
                if self.processes.sharded:
                    self.processes.wait()  # if one has failed, none starts the backward pass
                if not counts:
                    loss = 0 * loss
                with autocast(loss.device.type, enabled=False):
                    (loss / n_states).backward()
                self.optimization.collect()
                total += float(loss.detach())
                if counts:
                    parts.append((part.batch.state, part.scores.cpu()))
        return parts, total

    def _autocast(self) -> AbstractContextManager[object]:
        """Compute passes in the precision that the launcher chose, on the device of the models."""
        if self.device.type == self.accelerator.device.type:
            return self.accelerator.autocast()
        # The accelerator's is for its own device, which is not the one that was asked for.
        enabled = self.accelerator.mixed_precision == "bf16"
        return autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _evaluate(self, step: int, writer: RunWriter, *, last: bool = False) -> dict[str, float]:
        c = self.config
        if not (last or (c.eval_every and step % c.eval_every == 0) or step == 0):
            return {}
        metrics = {}
        for name, prompts in self.eval_prompts.items():
            assert self.grader is not None
            with self.whole_student(), self._autocast():
                scores = evaluate(
                    self.pair.student,
                    self.tokenizer,
                    prompts,
                    self.grader,
                    num_generations=c.eval_n,
                    max_completion_length=c.eval_max_completion_length or c.max_completion_length,
                    temperature=c.eval_temperature,
                    top_p=c.eval_top_p,
                    seed=c.seed,
                    benchmark=name,
                    width=self.pair.width,
                    unfinished=c.unfinished,
                    processes=self.processes,
                )
            writer.log_evaluation(
                step,
                name,
                [p.prompt.id for p in prompts],
                scores.mean(1),
                unfinished=c.unfinished,
            )
            metrics[f"accuracy/{name}"] = float(scores.mean())
        return metrics

    def _prompts_at(self, step: int) -> list[EncodedPrompt]:
        """Prompts of a step: a function of the seed and the step, so that a resumed run agrees."""
        per_epoch = len(self.prompts) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.prompts))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [self.prompts[i] for i in chosen]

    def _identify(self) -> dict:
        student, teacher = self.pair.student, self.pair.teacher
        return {
            "student": identity(student),
            "teacher": self.pair.teacher_identity()
            | ({"weight_hash": weight_hash(base_weights(teacher))} if teacher is student else {}),
            "tokenizer_hash": tokenizer_hash(self.tokenizer),
            "vocabulary": self.pair.width,
            "k": self.config.k,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "seed": self.config.seed,
            "chat_template": template_attrs(
                self.tokenizer,
                self.prompts,
                self.config.chat_template_kwargs,
                self.config.system_prompt,
                self.config.teacher_context,
            ),
            **precision({"student": student, "teacher": teacher}, self.accelerator.mixed_precision),
            "device": self.device.type,  # with shards, the models are still on the CPU
            **({} if self.sampler is None else {"sampler": {"name": self.sampler.name}}),
        }
