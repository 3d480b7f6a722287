"""Names and definitions of a run's quantities in other projects' logs and in the paper's code.

One table, `KEYS`. Where another project logs the same quantity under another name, its key maps to
ours; where it logs something else under a similar name, the key maps to a separate name, so that
two definitions never end up in one column, and `as_logged` computes theirs from a recorded step.
Needs no torch.

Definitions were read in the projects' code at these commits; that code was not run: verl 1dda039,
thunlp/OPD 0a44395, TRL f2cd577 (asynchronous trainer: 07fb78f), ms-swift 3602360 and its pull
request 10026, slime 624b824, miles 31f1ca9, NeMo-RL 7ea279a, tinker-cookbook 9dfcc3a, prime-rl
559b447, AReaL 4aef98d.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

import opdprobe.probes.accessor  # noqa: F401  # registers ds.opd
from opdprobe.errors import ConfigError

SOURCES = (
    "verl",
    "thunlp",
    "trl",
    "ms-swift",
    "slime",
    "miles",
    "nemo-rl",
    "tinker",
    "prime-rl",
    "areal",
)
"""Projects whose names `KEYS` has; ``thunlp`` is the paper's code, a fork of verl."""

Compute = Callable[[xr.Dataset], float]


@dataclass(frozen=True)
class Key:
    """One name in another project's log.

    Parameters
    ----------
    source
        One of `SOURCES`.
    key
        Its name in the log, without the ``actor/`` that verl puts before its actor's metrics.
    metric
        Our name for it, as in ``Run.metrics``. A quantity with another definition has a name
        that none of our metrics has.
    same
        Whether it is the same quantity as our metric of that name (or the name without its suffix).
    note
        How it differs, or how it is measured.
    compute
        Computes their number from a step of ours; None if a step does not hold it.
    """

    source: str
    key: str
    metric: str
    same: bool
    note: str = ""
    compute: Compute | None = None


def _mean(name: str, *arguments: str) -> Compute:
    """Average a ``ds.opd`` method over all states that have a value."""
    return lambda ds: float(getattr(ds.opd, name)(*arguments).mean())


def _verl_advantage(ds: xr.Dataset) -> float:
    advantage = ds.opd.overlap_token_advantage("verl").values
    known = advantage[~np.isnan(advantage)]
    return float(known.mean()) if known.size else 0.0


def _thunlp_advantage(ds: xr.Dataset) -> float:
    """Average over states *and* tokens: a state counts as often as it has shared tokens."""
    shared = ds.opd.overlap_mask().sum("rank").values
    advantage = ds.opd.overlap_token_advantage("thunlp").values
    return float(np.average(np.nan_to_num(advantage), weights=shared)) if shared.any() else np.nan


def _thunlp_mass(model: str) -> Compute:
    def compute(ds: xr.Dataset) -> float:
        some = ds.opd.overlap_mask().any("rank")
        return float(ds.opd.overlap_mass(model).where(some).mean())

    return compute


def _bucket_entropy(ds: xr.Dataset) -> float:
    """Compute the entropy of the teacher's top-k with the tail as one more token."""
    logp = ds["logp"].sel(model="teacher", support="teacher").values.astype(np.float64)
    p = np.exp(logp)
    tail = np.clip(1 - p.sum(-1), 0, None)
    log_tail = np.log(np.where(tail > 0, tail, 1.0))
    inside = np.where(p > 0, p * np.where(p > 0, logp, 0.0), 0.0).sum(-1)
    return float((-inside - tail * log_tail).mean())


def _minus_reward(ds: xr.Dataset) -> float:
    return -float(ds.opd.sampled_reward().mean())


def _sampled_reward(ds: xr.Dataset) -> float:
    return float(ds.opd.sampled_reward().mean())


def _minus_student_logp(ds: xr.Dataset) -> float:
    """Estimate the student's entropy by the log-probabilities of the tokens that it drew."""
    return -float(ds["sampled_logp"].sel(model="student").mean())


def _by_rollout(values: Callable[[xr.Dataset], xr.DataArray]) -> Compute:
    """Average over each rollout's states, then over the rollouts that have some."""

    def compute(ds: xr.Dataset) -> float:
        rollout = ds["rollout"].values
        counts = np.bincount(rollout)
        sums = np.bincount(rollout, values(ds).values.astype(np.float64))
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    return compute


def _truncated(ds: xr.Dataset) -> float:
    return 1 - float(ds["finished"].mean())


def _length(ds: xr.Dataset) -> float:
    return float(ds["length"].mean())


_STUDENT, _TEACHER = _mean("entropy", "student"), _mean("entropy", "teacher")
_OVERLAP = _mean("overlap_ratio")
_OBJECTIVE = "the value of their objective: a reverse KL of Eq. 5 only if so configured"
_TEACHER_WEIGHTED = (
    "teacher-weighted and of the forward divergence, Σ_I q (log p - log q) / |I|, nothing "
    "renormalised; 0 if no state has an overlap; after log_prob_min_clamp where that is set"
)
_ON_T = "on the teacher's top-k, not on the overlap; Megatron takes it after the clamp"
_POOLED = (
    "weights renormalised on the student's whole top-k, log-ratio not renormalised, and the mean "
    "taken over states and tokens together, so that a state counts |I| times"
)
_EACH_RESPONSE = "each response counts once, whatever its length, unless the loss is per token"
_NON_EMPTY = "states with an empty overlap are left out; Eq. 9 and 10 count them as 0"

KEYS: tuple[Key, ...] = (
    Key("verl", "distillation/overlap_ratio", "overlap_ratio", True, "Eq. 6", _OVERLAP),
    Key(
        "verl",
        "distillation/overlap_token_advantage",
        "overlap_token_advantage_verl",
        False,
        _TEACHER_WEIGHTED,
        _verl_advantage,
    ),
    Key(
        "verl",
        "distillation/student_mass",
        "student_mass_on_teacher_topk",
        False,
        _ON_T,
        _mean("topk_mass", "student", "teacher"),
    ),
    Key(
        "verl",
        "distillation/teacher_mass",
        "teacher_mass_on_teacher_topk",
        False,
        _ON_T,
        _mean("topk_mass", "teacher", "teacher"),
    ),
    Key("verl", "distillation/loss", "loss_verl", False, _OBJECTIVE),
    Key("verl", "entropy", "student_entropy", True, "full vocabulary", _STUDENT),
    Key("verl", "grad_norm", "grad_norm", True, "before clipping"),
    Key("verl", "lr", "learning_rate", True),
    Key("verl", "response_length/mean", "completion_length", True, "tokens", _length),
    Key("thunlp", "val-topk/overlap_ratio", "overlap_ratio", True, "Eq. 6", _OVERLAP),
    Key(
        "thunlp",
        "val-topk/adv_intersection",
        "overlap_token_advantage_thunlp",
        False,
        _POOLED,
        _thunlp_advantage,
    ),
    Key(
        "thunlp",
        "val-topk/student_p_sum_intersection",
        "student_overlap_mass_thunlp",
        False,
        _NON_EMPTY,
        _thunlp_mass("student"),
    ),
    Key(
        "thunlp",
        "val-topk/teacher_p_sum_intersection",
        "teacher_overlap_mass_thunlp",
        False,
        _NON_EMPTY,
        _thunlp_mass("teacher"),
    ),
    Key(
        "thunlp",
        "entropy",
        "student_entropy",
        True,
        "the gap of the two means, entropy_gap_of_means, is not Eq. 8",
        _STUDENT,
    ),
    Key("thunlp", "teacher/entropy", "teacher_entropy", True, "full vocabulary", _TEACHER),
    Key("thunlp", "pg_loss", "loss_thunlp", False, "a policy-gradient surrogate, not a divergence"),
    Key("thunlp", "grad_norm", "grad_norm", True, "before clipping"),
    Key("thunlp", "lr", "learning_rate", True),
    Key("thunlp", "response_length/mean", "completion_length", True, "tokens", _length),
    Key("trl", "loss", "loss_trl", False, _OBJECTIVE),
    Key("trl", "grad_norm", "grad_norm", True, "before clipping"),
    Key("trl", "learning_rate", "learning_rate", True),
    Key("trl", "entropy", "student_entropy", True, "full vocabulary", _STUDENT),
    Key(
        "trl",
        "teacher_entropy",
        "teacher_entropy_trl",
        False,
        "of the teacher's top-k with the tail as one more token, at most the full entropy",
        _bucket_entropy,
    ),
    Key("trl", "completions/mean_length", "completion_length", True, "tokens", _length),
    Key("ms-swift", "loss", "loss_ms-swift", False, _OBJECTIVE),
    Key("ms-swift", "grad_norm", "grad_norm", True, "before clipping"),
    Key("ms-swift", "learning_rate", "learning_rate", True),
    Key(
        "ms-swift",
        "teacher_kl",
        "sampled_kl",
        False,
        "mean of log p(y) - log q(y) at the sampled token: minus our sampled_reward",
        _minus_reward,
    ),
    Key(
        "ms-swift",
        "gkd/topk_overlap",
        "overlap_ratio",
        True,
        "Eq. 6, by an open pull request (10026)",
        _OVERLAP,
    ),
    Key("ms-swift", "completions/mean_length", "completion_length", True, "tokens", _length),
)
KEYS += tuple(
    key
    for source in ("slime", "miles")
    for key in (
        Key(source, "train/loss", f"loss_{source}", False, _OBJECTIVE),
        Key(source, "train/grad_norm", "grad_norm", True, "before clipping"),
        Key(source, "train/lr-pg_0", "learning_rate", True, "of the first group of parameters"),
        Key(
            source,
            "train/entropy_loss",
            f"student_entropy_{source}",
            False,
            f"full vocabulary; {_EACH_RESPONSE}",
            _by_rollout(lambda ds: ds.opd.entropy("student")),
        ),
        Key(
            source,
            "train/opd_reverse_kl",
            f"sampled_kl_{source}",
            False,
            f"mean of log p(y) - log q(y) at the sampled token; {_EACH_RESPONSE}"
            + ("; with --opd-log-prob-top-k, a weighted sum over lists" * (source == "miles")),
            _by_rollout(lambda ds: -ds.opd.sampled_reward()),
        ),
        Key(
            source,
            "train/train_rollout_logprob_abs_diff",
            f"sampler_difference_{source}",
            False,
            f"mean of |log p(y) - the sampler's log p(y)|; {_EACH_RESPONSE}",
        ),
        Key(
            source,
            "rollout/response_len/mean",
            "completion_length",
            True,
            "tokens, without those that the student did not draw",
            _length,
        ),
        Key(
            source,
            "rollout/truncated_ratio",
            f"truncated_{source}",
            False,
            "share of responses that reached the limit: 1 - finished, but for aborted ones",
            _truncated,
        ),
    )
)
KEYS += (
    Key("nemo-rl", "train/loss", "loss_nemo-rl", False, _OBJECTIVE),
    Key("nemo-rl", "train/grad_norm", "grad_norm", True, "before clipping"),
    Key("nemo-rl", "train/lr", "learning_rate", True),
    Key(
        "nemo-rl", "train/mean_gen_tokens_per_sample", "completion_length", True, "tokens", _length
    ),
    Key(
        "nemo-rl",
        "train/approx_entropy",
        "student_entropy_nemo-rl",
        False,
        "-log p(y) at the sampled token, weighted by p(y) over the sampler's p(y): an estimate",
        _minus_student_logp,
    ),
    Key(
        "nemo-rl",
        "train/gen_kl_error",
        "sampler_kl_nemo-rl",
        False,
        "an estimate of the divergence of the sampler from the trained student",
    ),
    Key("tinker", "optim/lr", "learning_rate", True),
    Key(
        "tinker",
        "teacher_kl",
        "sampled_kl",
        False,
        "mean of the sampler's log p(y) - log q(y): minus our sampled_reward, where sampler and "
        "student agree",
        _minus_reward,
    ),
    Key(
        "tinker",
        "optim/entropy",
        "student_entropy_tinker",
        False,
        "mean of the sampler's -log p(y) at the sampled token: an estimate",
        _minus_student_logp,
    ),
    Key(
        "tinker",
        "optim/kl_sample_train_v1",
        "sampler_kl_tinker",
        False,
        "mean of the sampler's log p(y) - the trained student's (k1)",
    ),
    Key(
        "tinker",
        "env/all/ac_tokens_per_turn",
        "tokens_per_turn_tinker",
        False,
        "of a turn, not of a rollout",
    ),
    Key("prime-rl", "loss/mean", "loss_prime-rl", False, _OBJECTIVE),
    Key("prime-rl", "optim/grad_norm", "grad_norm", True, "before clipping"),
    Key("prime-rl", "optim/lr", "learning_rate", True),
    Key("prime-rl", "entropy/all/mean", "student_entropy", True, "full vocabulary", _STUDENT),
    Key(
        "prime-rl",
        "ref_kl/mean",
        "sampled_reward_prime-rl",
        False,
        "log q(y) - log p(y) at the sampled token, and so minus a divergence, averaged by "
        "micro-batch: a micro-batch counts once, whatever its length",
        _sampled_reward,
    ),
    Key(
        "prime-rl",
        "mismatch_kl/all/mean",
        "sampler_kl_prime-rl",
        False,
        "an estimate (k3) of the divergence of the sampler from the trained student",
    ),
    Key(
        "areal",
        "ppo_actor/update/entropy/avg",
        "student_entropy",
        True,
        "full vocabulary",
        _STUDENT,
    ),
    Key(
        "areal",
        "ppo_actor/update/rkl_loss/avg",
        "sampled_kl_areal",
        False,
        "mean of log p(y) - log q(y) at the sampled token; without RL, weighted by p(y) over the "
        "p(y) before the step's updates",
        _minus_reward,
    ),
    Key("areal", "ppo_actor/update/grad_norm", "grad_norm", True, "before clipping"),
    Key("areal", "ppo_actor/update/lr", "learning_rate", True),
)


def find(key: str, source: str) -> Key | None:
    """Look up another project's key.

    Parameters
    ----------
    key
        As in the log, with or without verl's ``actor/``.
    source
        One of `SOURCES`.

    Returns
    -------
    Key or None
        None for a key that has no counterpart.

    Raises
    ------
    ConfigError
        If `source` is not one of `SOURCES`.

    Examples
    --------
    >>> find("actor/distillation/overlap_ratio", "verl").metric
    'overlap_ratio'
    >>> found = find("distillation/overlap_token_advantage", "verl")
    >>> found.metric, found.same
    ('overlap_token_advantage_verl', False)
    >>> find("perf/mfu/actor", "verl") is None
    True
    """
    key = key.removeprefix("actor/") if check_source(source) in ("verl", "thunlp") else key
    return next((k for k in KEYS if (k.source, k.key) == (source, key)), None)


def names_of(metric: str, source: str) -> list[Key]:
    """List what another project logs under, or near, a metric of ours.

    Parameters
    ----------
    metric
        Our name, as in ``Run.metrics``.
    source
        One of `SOURCES`.

    Returns
    -------
    list of Key
        The same quantity first, then those of another definition whose names begin with ours.

    Raises
    ------
    ConfigError
        If `source` is not one of `SOURCES`.

    Examples
    --------
    >>> [(k.key, k.same) for k in names_of("overlap_token_advantage", "thunlp")]
    [('val-topk/adv_intersection', False)]
    >>> names_of("extreme_advantage_gap", "trl")
    []
    """
    suffixed = f"{metric}_{check_source(source)}"
    found = [k for k in KEYS if k.source == source and k.metric in (metric, suffixed)]
    return sorted(found, key=lambda k: not k.same)


def as_logged(step: xr.Dataset, source: str) -> dict[str, float]:
    """Compute what another project would have logged for a step, by its own definitions.

    Parameters
    ----------
    step : Dataset
        A step in the store's schema, with all states: states left out are not averaged.
    source
        One of `SOURCES`.

    Returns
    -------
    dict
        Their numbers by their keys, without those that a step does not hold (losses, gradient
        norms).

    Raises
    ------
    ConfigError
        If `source` is not one of `SOURCES`.
    StoreError
        If the step lacks a variable that a number is computed from.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> same = as_logged(synthetic_step(agreement=1.0), "verl")
    >>> same["distillation/overlap_ratio"], abs(same["distillation/overlap_token_advantage"])
    (1.0, 0.0)
    """
    check_source(source)
    return {k.key: k.compute(step) for k in KEYS if k.source == source and k.compute is not None}


def renamed(metrics: xr.Dataset, source: str) -> xr.Dataset:
    """Give another project's metrics our names.

    Parameters
    ----------
    metrics : Dataset
        Scalars over ``step``, under their keys.
    source
        One of `SOURCES`.

    Returns
    -------
    Dataset
        The same numbers. A variable with a counterpart gets our name, and its attributes say what
        it was logged as and how it differs; any other keeps its name. If two keys stand for one
        metric, only the first is renamed.

    Raises
    ------
    ConfigError
        If `source` is not one of `SOURCES`.
    """
    out = metrics.copy()
    taken = {str(name) for name in metrics.variables}
    for name in map(str, metrics.data_vars):
        key = find(name, source)
        # A key that is also our name is in `taken` already, and stays.
        if key is None or (key.metric in taken and key.metric != name):
            continue
        taken.add(key.metric)
        out[name].attrs = {"logged_as": name, "logged_by": source} | (
            {} if key.same else {"differs": key.note}
        )
        if key.metric != name:
            out = out.rename({name: key.metric})
    return out


def check_source(source: str) -> str:
    """Return a source if it is one of `SOURCES`; raise ConfigError otherwise."""
    if source not in SOURCES:
        raise ConfigError(f"source = {source!r}; expected one of {', '.join(SOURCES)}.")
    return source
