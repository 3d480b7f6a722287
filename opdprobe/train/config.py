"""Settings of the trainers, one frozen dataclass each; YAML in, YAML stored with the run.

Training options have the names that transformers and TRL give them. Every default of `OPDConfig` is
the paper's, with its place there; a field that the paper does not state says so.
"""

import contextlib
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Self

from opdprobe.errors import ConfigError, shown
from opdprobe.probes.selectors import SELECTORS
from opdprobe.rollout.teacher_context import TEMPLATES, TeacherContext
from opdprobe.store.safe_text import is_number, parse_yaml

# The schedules of transformers' `get_scheduler` that need only warm-up and the number of steps.
_SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
)


@dataclass(frozen=True)
class Config:
    """What the configurations share: checks of type, range and choice, and reading of YAML."""

    _choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    _positive: ClassVar[tuple[str, ...]] = ()
    _not_negative: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            kind: Any = float | int if f.type is float else f.type
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                expected = kind.__name__ if isinstance(kind, type) else kind
                raise ConfigError(
                    f"{f.name} = {shown(value)} is of type {type(value).__name__}; "
                    f"expected {expected}."
                )
        for name, allowed in self._choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} = {shown(value)}; expected one of {', '.join(allowed)}.")
        for name in self._positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {shown(value)}; expected a number above 0.")
        for name in self._not_negative:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {shown(getattr(self, name))}; expected 0 or more.")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float) and not (is_number(value) and isfinite(value)):
                raise ConfigError(f"{f.name} = {shown(value)}; expected a finite number.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping, refusing unknown names."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(shown(name).strip("'") for name in set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown setting {', '.join(unknown)} for {cls.__name__}; "
                f"expected one of {', '.join(sorted(known))}."
            )
        # YAML 1.1 reads 1e-6 as text; only 1.0e-6 is a number.
        return cls(
            **{
                name: _number(value) if known[name].type is float else value
                for name, value in values.items()
            }
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file of settings."""
        try:
            values = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"no configuration file at {path}; expected a YAML file of name: value lines."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}); expected a YAML file of name: value "
                "lines."
            ) from error
        except ValueError as error:
            raise ConfigError(f"{path} is not readable as YAML: {error}.") from error
        if values is not None and not isinstance(values, dict):
            raise ConfigError(
                f"{path} holds a {type(values).__name__}; expected name: value lines."
            )
        return cls.from_dict(values or {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON."""
        return asdict(self)


def _number(value: Any) -> Any:
    """Read a number that came as text; leave anything else to the checks."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


@dataclass(frozen=True)
class OPDConfig(Config):
    """On-policy distillation: what is minimised, how it is sampled, what is recorded.

    Parameters
    ----------
    objective
        ``topk`` (Eq. 5), ``full`` vocabulary (Eq. 4) or the ``sampled`` token (Eq. 3).
    support
        For ``topk``: ``student`` (§2.2), ``overlap`` or ``non_overlap`` (§4.2), ``teacher`` or
        ``union`` (reference code).
    k
        Size of the top-k sets, for the loss and for the record (Table 2: 16).
    estimator
        ``direct`` differentiates the divergence (Eq. 5); ``policy_gradient`` is the reference
        code's update, one detached advantage per token. See `opdprobe.train.losses`.
    divergence
        ``reverse_kl`` (the paper), ``forward_kl`` or ``jsd``.
    tail
        Mass outside the support: ``renormalise`` (the paper), ``bucket`` or ``drop``.
    token_selector, token_fraction, token_complement
        Train on a part of the tokens: the `token_fraction` of each step's states on which a
        selector of `opdprobe.probes.SELECTORS` puts the highest scores, or with `token_complement`
        on all the others. The loss is the mean over the states that are trained on. None: all
        states. All states are recorded either way. Costs one more pass of both models, and takes
        one process.
    temperature, top_p
        Sampling of rollouts (Table 2: 1.0 and 1.0). The temperature also divides the logits that
        are scored: p and q are the distributions at that temperature.
    batch_size
        Prompts per step (Table 2: 64), which is one optimiser step (mini-batch 64).
    num_generations
        Rollouts per prompt (Table 2: 4).
    max_prompt_length, max_completion_length
        Longest prompt and longest response, in tokens (Table 2: 1024 and 7168).
    chat_template_kwargs
        Variables for the chat template, as in TRL, such as {"enable_thinking": True}; a prompt's
        own precede them. ``enable_thinking`` is False where nothing names it (§4). For training
        prompts and benchmarks alike.
    system_prompt
        First message of every conversation, in training and in benchmarks, that has no system
        message of its own; None: none. The paper has none.
    teacher_prompt, teacher_system_prompt, teacher_chat_template_kwargs, teacher_template
        What the teacher reads before a response, where it is not what the student reads: see
        `opdprobe.TeacherContext`.
    teacher_by
        With several teachers by name: the column of the prompts that names the teacher of each,
        such as ``domain`` or ``data_source``.
    learning_rate
        AdamW's (Table 2: 1e-6), after `warmup_steps` of linear warm-up. The paper does not state
        the schedule, weight decay, betas and clipping.
    num_train_epochs
        Passes over the prompts (Table 2: 1), unless `max_steps` is set.
    max_steps
        Optimiser steps; None: as many as `num_train_epochs` take.
    lr_scheduler_type
        One of transformers' schedules; ``constant`` also warms up if `warmup_steps` is above 0.
    max_grad_norm
        Clipping threshold of the global gradient norm, which is logged before clipping.
    micro_batch_tokens
        Most tokens, padding included, in one forward and backward pass. Changes memory and
        speed; results change only by rounding.
    record_every, record_fraction, record_max_positions
        What the store keeps: every `record_every`-th step (0: nothing), a fraction of a step's
        rollouts, and the first `record_max_positions` positions of each (None: all).
    eval_every, eval_n, eval_temperature, eval_top_p
        In-training evaluation every `eval_every` steps, avg@n (paper: n = 16, T 0.7, top-p 0.95).
        The first and the last step are always evaluated (0: only these).
    eval_max_completion_length
        Longest response in evaluation; None: `max_completion_length`.
    unfinished
        What responses count as that reached the length limit, in evaluation and in the record
        (`correct`): ``wrong``, or ``graded`` by what they say so far.
    save_steps
        Steps between two checkpoints (0: one checkpoint, at the end).
    seed
        Seed of prompt order, rollouts and evaluation.

    Raises
    ------
    ConfigError
        A value is out of range, or a combination cannot train (see the examples).

    Examples
    --------
    >>> OPDConfig().k
    16
    >>> OPDConfig(objective="sampled", estimator="direct")
    Traceback (most recent call last):
        ...
    opdprobe.errors.ConfigError: objective='sampled' needs estimator='policy_gradient': ...
    >>> OPDConfig(objective="topk", estimator="scalar_policy_gradient")
    Traceback (most recent call last):
        ...
    opdprobe.errors.ConfigError: a top-k KL as one scalar advantage per position has zero ...
    """

    objective: str = "topk"
    support: str = "student"
    k: int = 16
    estimator: str = "direct"
    divergence: str = "reverse_kl"
    tail: str = "renormalise"
    token_selector: str | None = None
    token_fraction: float = 1.0
    token_complement: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64
    num_generations: int = 4
    max_prompt_length: int = 1024
    chat_template_kwargs: dict | None = None
    system_prompt: str | None = None
    teacher_prompt: str | None = None
    teacher_system_prompt: str | None = None
    teacher_chat_template_kwargs: dict | None = None
    teacher_template: str = "student"
    teacher_by: str | None = None
    max_completion_length: int = 7168
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    num_train_epochs: int = 1
    max_steps: int | None = None
    micro_batch_tokens: int = 16384
    record_every: int = 1
    record_fraction: float = 1.0
    record_max_positions: int | None = None
    eval_every: int = 0
    eval_n: int = 16
    eval_temperature: float = 0.7
    eval_top_p: float = 0.95
    eval_max_completion_length: int | None = None
    unfinished: str = "wrong"
    save_steps: int = 0
    seed: int = 0

    _choices: ClassVar = {
        "objective": ("topk", "full", "sampled"),
        "support": ("student", "teacher", "overlap", "non_overlap", "union"),
        "estimator": ("direct", "policy_gradient", "scalar_policy_gradient"),
        "divergence": ("reverse_kl", "forward_kl", "jsd"),
        "tail": ("renormalise", "bucket", "drop"),
        "unfinished": ("wrong", "graded"),
        "teacher_template": TEMPLATES,
        "lr_scheduler_type": _SCHEDULES,
    }
    _positive = (
        "k",
        "temperature",
        "top_p",
        "batch_size",
        "num_generations",
        "max_prompt_length",
        "max_completion_length",
        "learning_rate",
        "max_grad_norm",
        "num_train_epochs",
        "max_steps",
        "micro_batch_tokens",
        "token_fraction",
        "record_fraction",
        "record_max_positions",
        "eval_n",
        "eval_top_p",
        "eval_max_completion_length",
    )
    _not_negative = (
        "warmup_steps",
        "weight_decay",
        "record_every",
        "eval_every",
        "eval_temperature",
        "save_steps",
        "seed",
    )

    @property
    def teacher_context(self) -> TeacherContext:
        """How the teacher's prompts differ from the student's."""
        return TeacherContext(
            self.teacher_prompt,
            self.teacher_system_prompt,
            self.teacher_chat_template_kwargs,
            self.teacher_template,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.teacher_context  # refuses what it cannot be
        for name in ("top_p", "token_fraction", "record_fraction", "eval_top_p"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; expected at most 1.")
        if self.token_selector is not None and self.token_selector not in SELECTORS:
            raise ConfigError(
                f"token_selector = {self.token_selector!r}; expected one of "
                f"{', '.join(SELECTORS)}, or None."
            )
        if self.token_selector is None and (self.token_fraction < 1 or self.token_complement):
            raise ConfigError(
                "token_fraction and token_complement need a token_selector; expected one of "
                f"{', '.join(SELECTORS)}."
            )
        if self.token_complement and self.token_fraction == 1:
            raise ConfigError("token_complement leaves nothing of token_fraction = 1.")
        if self.estimator == "scalar_policy_gradient" and self.objective != "sampled":
            raise ConfigError(
                "a top-k KL as one scalar advantage per position has zero expected gradient "
                "on-policy: it does not depend on the sampled token, and E[∇ log p] = 0. Use "
                "estimator='policy_gradient' (one advantage per token) or 'direct'."
            )
        if self.objective == "sampled" and self.estimator != "policy_gradient":
            raise ConfigError(
                "objective='sampled' needs estimator='policy_gradient': the derivative of "
                "log p(y) - log q(y) has no teacher term (paper §2.2, Eq. 3)."
            )
        if self.objective == "full" and self.estimator == "policy_gradient":
            raise ConfigError(
                "objective='full' with estimator='policy_gradient' is the direct gradient "
                "computed with more noise; use estimator='direct'."
            )
        if self.estimator == "policy_gradient" and self.divergence != "reverse_kl":
            raise ConfigError(
                f"estimator='policy_gradient' is defined for divergence='reverse_kl' only, "
                f"not {self.divergence!r}."
            )
        if self.estimator == "policy_gradient" and self.tail == "bucket":
            raise ConfigError(
                "estimator='policy_gradient' has no token to weight in the tail bucket; use "
                "tail='renormalise' or 'drop'."
            )


@dataclass(frozen=True)
class SFTConfig(Config):
    """Supervised fine-tuning on (prompt, response) pairs.

    Parameters
    ----------
    learning_rate, warmup_ratio, lr_scheduler_type, batch_size, num_train_epochs
        Table 3: 1e-5, 0.05, cosine, 8 per device, 1 epoch, full parameters.
    max_steps
        Optimiser steps; None: as many as `num_train_epochs` take.
    optimizer
        ``adamw``, or ``muon`` for the body's matrices with AdamW for the rest: small models then
        learn arithmetic from scratch in a third of the steps.
    muon_learning_rate
        Learning rate of the Muon part.
    """

    learning_rate: float = 1e-5
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "cosine"
    batch_size: int = 8
    num_train_epochs: int = 1
    max_steps: int | None = None
    optimizer: str = "adamw"
    muon_learning_rate: float = 2e-2
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384
    save_steps: int = 0
    seed: int = 0

    _choices: ClassVar = {"optimizer": ("adamw", "muon"), "lr_scheduler_type": _SCHEDULES}
    _positive = (
        "learning_rate",
        "batch_size",
        "num_train_epochs",
        "max_steps",
        "muon_learning_rate",
        "max_grad_norm",
        "micro_batch_tokens",
    )
    _not_negative = ("warmup_ratio", "weight_decay", "save_steps", "seed")


@dataclass(frozen=True)
class GRPOConfig(Config):
    """Reinforcement learning from verifiable rewards, group-relative advantages.

    Parameters
    ----------
    learning_rate, temperature, batch_size, num_generations
        Table 1: 1e-6, 1.0, 64 prompts, 8 rollouts; no KL term, token-mean loss.
    max_steps
        Optimiser steps, one per batch: purely on-policy, so the importance ratio is 1 and nothing
        is clipped.
    """

    learning_rate: float = 1e-6
    temperature: float = 1.0
    batch_size: int = 64
    num_generations: int = 8
    max_completion_length: int = 7168
    max_steps: int = 100
    warmup_steps: int = 0
    lr_scheduler_type: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384
    save_steps: int = 0
    seed: int = 0

    _choices: ClassVar = {"lr_scheduler_type": _SCHEDULES}
    _positive = (
        "learning_rate",
        "temperature",
        "batch_size",
        "num_generations",
        "max_completion_length",
        "max_steps",
        "max_grad_norm",
        "micro_batch_tokens",
    )
    _not_negative = ("warmup_steps", "weight_decay", "save_steps", "seed")
