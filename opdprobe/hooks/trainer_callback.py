"""A callback for transformers' Trainer and every trainer of TRL."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from opdprobe.errors import ConfigError, NonFiniteError
from opdprobe.hooks.shared import (
    ProbeConfig,
    encode,
    innermost,
    loading_whole_models,
    make_pair,
    recorded_attrs,
    run_attrs,
    undisturbed,
    unwrap,
)
from opdprobe.models.load import identity, weight_hash
from opdprobe.models.save import keep_tokenizer
from opdprobe.models.sharding import is_sharded, named_as_whole, whole, zero_3_parts
from opdprobe.rollout.grade import Grader
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import EncodedPrompt, OnError, Prompt
from opdprobe.rollout.rows import step_metrics
from opdprobe.rollout.teacher_context import TeacherContext
from opdprobe.store import RunWriter, open_run

logger = logging.getLogger("opdprobe")

# Logged by the trainer under the names of `OPDTrainer`'s metrics; a run's figures read them.
_TAKEN_OVER = ("loss", "grad_norm", "learning_rate")


class ProbeCallback(TrainerCallback):
    """Probe a trainer's student as it learns, and record the run.

    Before the first step, every `every` steps and at the end, the student answers a fixed set of
    prompts, both models are scored at every state it visits, and the record goes into the same
    store that `opdprobe.OPDTrainer` writes. The record of step s describes the student after s
    updates. The tokenizer is kept beside it, so that the run can be read without the models.

    Training runs as if the callback were not there: global random states (Python, numpy,
    torch), every module's mode, gradients, generation settings and tokenizer are what they were.
    It costs time: `num_generations` rollouts per prompt of up to `max_completion_length` tokens,
    and one pass of both models over them. On several processes the main one probes and the others
    wait. A model that FSDP 2 or DeepSpeed ZeRO-3 shards over them is gathered in every process for
    the probe, in the precision that its forward pass has.

    The step's means (`opdprobe.rollout.rows.step_metrics`) go, under ``opd/``, to the trainer's
    ``state.log_history``; with `attach` they reach its trackers and progress bar too. The run's
    own metrics hold them without the prefix, and the trainer's loss, gradient norm and learning
    rate at the steps where it logs them: there, the loss of step s is that of the updates up to s.

    A trainer that resumes from a checkpoint continues the run: records after the checkpoint's
    step are dropped. A trainer that starts at step 0 needs a new directory.

    Parameters
    ----------
    teacher : PreTrainedModel or str or Path or mapping of them
        A causal LM of the student's vocabulary; a name is loaded when training begins. It is moved
        to the student's device. A `opdprobe.rollout.mixture.Mixture` of several scores as one; with
        `teacher_by`, a mapping of names to models has one for each prompt.
    prompts : sequence of Prompt or str or Path
        The same prompts for every probe; or a file, directory or data set of them for
        `opdprobe.load_prompts`, which is read when training begins; or rows. Both models see them
        in the student's chat template, unless `teacher_context` or a row says otherwise.
    run_dir : str or Path
        Where the run is kept; see `opdprobe.open_run`.
    k : int
        Tokens kept per model (paper Table 2: 16).
    every : int
        Steps between two probes.
    num_generations : int
        Rollouts per prompt.
    max_completion_length : int
        Longest response, in tokens.
    max_prompt_length : int
        Longest prompt, in tokens.
    on_error : {"raise", "skip"}
        Whether a prompt that cannot be used raises an error, or is left out and logged.
    chat_template_kwargs : mapping, optional
        Variables for the chat template, such as {"enable_thinking": True}; see `encode_prompts`.
    system_prompt : str, optional
        First message of every conversation that has no system message of its own.
    teacher_context : TeacherContext, optional
        How the teacher's prompts differ from the student's.
    grader : callable, optional
        ``grader(response_text, prompt)`` in [0, 1]; without one, `correct` is NaN.
    tokenizer : PreTrainedTokenizerBase, optional
        The student's; the trainer's processing class by default.
    teacher_tokenizer : PreTrainedTokenizerBase, optional
        Compared with the student's; loaded with the teacher if that is a name or path.
    seed : int
        Seed of the rollouts.
    temperature : float
        Temperature of sampling and of the recorded distributions.
    teacher_dtype : str or torch.dtype, optional
        Dtype of a teacher that is given by name; by default bfloat16 on an accelerator and float32
        on a CPU.
    attn_implementation : str, optional
        How such a teacher computes attention; see `opdprobe.load_model`.
    teacher_by : str, optional
        Column of the prompts that names the teacher of each.
    one_teacher_at_a_time : bool
        Of several teachers, keep one in memory, and read the next one's files when its turn comes.

    Raises
    ------
    ConfigError
        A setting is out of range. When training begins: there is no tokenizer, the student is
        sharded otherwise (FSDP 1, tensor parallelism), or the run in `run_dir` has other settings.
    VocabularyError
        When training begins: the tokenizers differ.
    StoreError
        When training begins: `run_dir` holds something else, or already holds a run although
        training starts at step 0.
    NonFiniteError
        A model's logits are NaN or infinite; names model and step.

    References
    ----------
    Paper, sect. 2.3 and App. B, for the quantities.

    Examples
    --------
    >>> from trl import DistillationConfig, DistillationTrainer          # doctest: +SKIP
    >>> from opdprobe import ProbeCallback, load_prompts, open_run       # doctest: +SKIP
    >>> trainer = DistillationTrainer(                                   # doctest: +SKIP
    ...     model="my/student", teacher_model="my/teacher", train_dataset=dataset,
    ...     args=DistillationConfig("out", max_steps=200),
    ...     callbacks=[ProbeCallback("my/teacher", load_prompts("probe.jsonl"), "runs/x")],
    ... )
    >>> trainer.train()                                                  # doctest: +SKIP
    >>> open_run("runs/x").metrics.overlap_ratio.plot()                  # doctest: +SKIP

    >>> ProbeCallback("my/teacher", [], "runs/x", every=0)
    Traceback (most recent call last):
    ...
    opdprobe.errors.ConfigError: every = 0; expected a number above 0.
    """

    def __init__(
        self,
        teacher: PreTrainedModel | str | Path | Mapping[str, PreTrainedModel | str | Path],
        prompts: Sequence[Prompt] | str | Path,
        run_dir: str | Path,
        k: int = 16,
        every: int = 10,
        *,
        num_generations: int = 4,
        max_completion_length: int = 512,
        max_prompt_length: int = 1024,
        on_error: OnError = "raise",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        teacher_context: TeacherContext | None = None,
        grader: Grader | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        teacher_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        teacher_by: str | None = None,
        one_teacher_at_a_time: bool = False,
    ):
        self.config = ProbeConfig(
            k=k,
            every=every,
            num_generations=num_generations,
            max_completion_length=max_completion_length,
            seed=seed,
            temperature=float(temperature),
        )
        self.every = every
        self.teacher = teacher
        self._loading: dict[str, Any] = {
            "teacher_dtype": teacher_dtype,
            "attn_implementation": attn_implementation,
            "teacher_by": teacher_by,
            "one_teacher_at_a_time": one_teacher_at_a_time,
            "own_template": teacher_context is not None and teacher_context.template == "own",
        }
        self.prompts = prompts
        self.max_prompt_length = max_prompt_length
        self.on_error: OnError = on_error
        self.chat_template_kwargs = chat_template_kwargs
        self.system_prompt = system_prompt
        self.teacher_context = teacher_context
        self.run_dir = Path(run_dir)
        self.grader = grader
        self.tokenizer = tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self._trainer: Trainer | None = None
        # Set on the main process when training begins.
        self._writer: RunWriter | None = None
        self._pair: Pair
        self._encoded: list[EncodedPrompt]
        # Models of which each process holds a part, and the step that was probed last: the same in
        # every process, since all must gather the weights together.
        self._sharded: list[nn.Module] = []
        self._probed: int | None = None

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to a trainer, and send the scalars to its trackers and progress bar.

        transformers gives a callback access to neither the trainer nor the other callbacks, and
        runs the trackers first: a callback that is only passed in ``callbacks=[…]`` can write the
        log history but cannot reach the trackers.

        Parameters
        ----------
        trainer : transformers.Trainer
            The trainer, before `train` is called.
        """
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run and probe the student as it is."""
        given = self.teacher
        models = [kwargs["model"], *(given.values() if isinstance(given, Mapping) else [given])]
        # By the model inside, since a student may be its own teacher.
        loaded = {innermost(model): model for model in models if isinstance(model, nn.Module)}
        # Every process takes part: the weights come one at a time, from the shards.
        hashes = {id(inner): weight_hash(inner) for inner in loaded if is_sharded(inner)}
        self._sharded = [m for m in loaded.values() if is_sharded(m) or zero_3_parts(m)]
        self._probed = None
        with self._gathered():
            student = unwrap(kwargs["model"])
            if state.is_world_process_zero:
                self._open(args, state, student, kwargs.get("processing_class"), hashes)
        self._probe(args, state, control)

    def _open(
        self,
        args: TrainingArguments,
        state: TrainerState,
        student: PreTrainedModel,
        given: Any,
        hashes: Mapping[int, str],
    ) -> None:
        """Make the pair, encode the prompts and open the run.

        `given` is the trainer's processing class, `hashes` has the weight hashes of sharded models
        by id.
        """
        # A multimodal processor holds the tokenizer.
        tokenizer = self.tokenizer or getattr(given, "tokenizer", given)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(
                f"the trainer's processing_class is {type(tokenizer).__name__}; expected a "
                "tokenizer: pass ProbeCallback(…, tokenizer=) or the trainer's processing_class=."
            )
        if args.report_to and self._trainer is None:
            logger.warning(
                "The scalars under opd/ go to state.log_history but not to %s: add the callback "
                "by ProbeCallback(…).attach(trainer) instead of callbacks=[…].",
                ", ".join(args.report_to),
            )
        with undisturbed(student), _precision(args, student), loading_whole_models():
            pair = make_pair(
                student, self.teacher, tokenizer, self.teacher_tokenizer, **self._loading
            )
        self._pair = pair
        prompts = self.prompts
        if self._loading["teacher_by"] is not None:
            prompts = pair.taught(as_prompts(prompts, on_error=self.on_error), self.on_error)
        self._encoded, described = encode(
            tokenizer,
            prompts,
            self.max_prompt_length,
            self.on_error,
            self.chat_template_kwargs,
            self.system_prompt,
            self.teacher_context,
            pair.teacher_tokenizer,
        )
        resumed = state.global_step > 0
        recorded = recorded_attrs(self.run_dir) if resumed else {}
        self._writer = RunWriter(
            self.run_dir,
            attrs=run_attrs(
                pair,
                _identity(student, hashes, recorded.get("student")),
                _identity(pair.teacher, hashes)
                if id(pair.teacher) in hashes
                else pair.teacher_identity(),
                recorded_by="ProbeCallback",
                k=self.config.k,
                temperature=self.config.temperature,
                mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no",
                top_p=1.0,
                seed=self.config.seed,
                **described,
            ),
            config=self.config.to_dict(),
            resume=resumed,
        )
        keep_tokenizer(self.run_dir, pair.tokenizer)
        self._writer.truncate_after(state.global_step)

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Make sharded models full and plain ones in every process inside the block."""
        with ExitStack() as stack:
            for model in self._sharded:
                stack.enter_context(whole(model))
                stack.enter_context(named_as_whole(model))
            yield

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe every `every` steps and at the last one."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or state.global_step % self.every == 0:
            self._probe(args, state, control)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy loss, gradient norm and learning rate into the run's metrics."""
        logs = kwargs["logs"]
        taken = {name: logs[name] for name in _TAKEN_OVER if name in logs}
        if self._writer is not None and taken:
            self._writer.log_metrics(state.global_step, taken)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probe a student whose training was stopped between two probes."""
        # The best model, loaded by now, is not that of the last step.
        if not args.load_best_model_at_end:
            self._probe(args, state, control)

    def _probe(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        step = state.global_step
        if self._writer is None and not self._sharded:
            return  # the main process has the full models, and probes alone
        if step == self._probed:
            return
        self._probed = step
        with self._gathered():
            if self._writer is not None and step not in open_run(self.run_dir).steps:
                self._record(self._writer, args, state, control)

    def _record(
        self,
        writer: RunWriter,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        step, pair = state.global_step, self._pair
        try:
            with undisturbed(pair.student, pair.teacher), _precision(args, pair.student):
                dataset = probe(
                    pair, self._encoded, step=step, grader=self.grader, **self.config.sampling()
                )
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}") from error
        writer.write_step(step, dataset)
        metrics = step_metrics(dataset)
        writer.log_metrics(step, metrics)
        # NaN means that there is nothing to average (nothing graded, say); trackers that write
        # JSON cannot represent it.
        self._log(
            {f"opd/{name}": x for name, x in metrics.items() if not math.isnan(x)}, state, control
        )

    def _log(self, logs: dict[str, float], state: TrainerState, control: TrainerControl) -> None:
        if self._trainer is None:
            # What Trainer.log does, without the callbacks.
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**logs, **epoch, "step": state.global_step})
            return
        # Not the trainer's own `log`: TRL's would reset the averages that it gathers for the next
        # regular log. A log also clears should_log, which would cancel that one.
        due = control.should_log
        Trainer.log(self._trainer, logs)
        control.should_log = due


def _identity(
    model: PreTrainedModel, hashes: Mapping[int, str], recorded: Any = None
) -> dict[str, Any]:
    return identity(model, recorded or {"weight_hash": hashes.get(id(model))})


def _precision(args: TrainingArguments, model: PreTrainedModel) -> AbstractContextManager:
    """Run both models in the precision that the trainer's forward pass has."""
    if not (args.bf16 or args.fp16):
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16 if args.bf16 else torch.float16)
