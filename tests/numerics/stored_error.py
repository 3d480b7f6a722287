"""What rounding log-probabilities to 12 bits of mantissa does to the probes."""

import functools

import numpy as np

from opdprobe.probes import from_logits
from opdprobe.probes.accessor import OPDAccessor  # noqa: F401  # registers ds.opd
from opdprobe.store.step import round_mantissa

N_STATES, K, V = 6144, 16, 256
STEP = 2.0**-13  # relative error of a log-probability
DEFINITIONS = ("paper", "sum", "thunlp", "verl")


@functools.cache
def steps():
    """A step as computed and as stored: a third sharp, a third ordinary, a third flat."""
    rng = np.random.default_rng(0)
    scale = np.repeat([6.0, 2.0, 0.5], N_STATES // 3)[:, None]
    student = rng.normal(size=(N_STATES, V)) * scale
    teacher = student + rng.normal(size=(N_STATES, V)) * np.minimum(scale, 1.5)
    ds = from_logits(student, teacher, k=K)
    return ds, ds.assign(logp=ds["logp"].copy(data=round_mantissa(ds["logp"].values)))


def values(ds):
    """Every probe that depends on a rounded number, by its name on the page."""
    return {
        "`overlap_mass`": ds.opd.overlap_mass("teacher"),
        "`topk_mass`": ds.opd.topk_mass("student"),
        "`topk_entropy`": ds.opd.topk_entropy("student"),
        **{
            f"`overlap_token_advantage`, {d}": ds.opd.overlap_token_advantage(d)
            for d in DEFINITIONS
        },
    }


def bounds(ds):
    """What the error of each may be at most, state by state."""
    logp, mask = ds["logp"].values.astype(np.float64), ds["match"].values >= 0
    p, q = logp[:, 0, 0], logp[:, 1, 0]
    # The most of Σ p |log p| for k probabilities, which is where all are 1/k.
    on_masses = np.full(len(p), 1.01 * STEP * np.log(K))
    own = _normal(p, np.ones_like(mask))
    m = (np.exp(own) * np.abs(p)).sum(-1, keepdims=True)
    entropy = (np.exp(own) * (np.abs(p) + m) * (np.abs(own) + 1)).sum(-1)
    found = {
        "`overlap_mass`": on_masses,
        "`topk_mass`": on_masses,
        "`topk_entropy`": 1.05 * STEP * entropy,
    }
    p_in, q_in = _normal(p, mask), _normal(q, mask)
    p_norm, q_norm = (
        np.nansum(np.exp(inside) * np.abs(raw) * mask, -1, keepdims=True)
        for inside, raw in ((p_in, p), (q_in, q))
    )
    with np.errstate(invalid="ignore"):  # off the mask
        log_ratio = q_in - p_in
    # Weights, how far their logarithms may be off, the log-ratio and how far off it may be.
    either = np.abs(p) + np.abs(q)
    of = {
        "sum": (p_in, np.abs(p) + p_norm, log_ratio, either + p_norm + q_norm),
        "thunlp": (own, np.abs(p) + m, q - p, either),
        "verl": (q, np.abs(q), q - p, either),
    }
    shared = np.maximum(mask.sum(-1), 1)
    for definition, (log_weight, off, ratio, ratio_off) in of.items():
        terms = np.where(mask, np.exp(log_weight) * (off * np.abs(ratio) + ratio_off), 0)
        total = 1.05 * STEP * terms.sum(-1)
        found[f"`overlap_token_advantage`, {definition}"] = (
            total if definition == "sum" else total / shared
        )
    total = found["`overlap_token_advantage`, sum"]
    found["`overlap_token_advantage`, paper"] = total / shared
    return found


def _normal(logp, mask):
    marked = np.where(mask, logp, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty set
        return np.where(mask, marked - np.log(np.exp(marked).sum(-1, keepdims=True)), -np.inf)


def errors():
    """Stored minus computed, by probe; states without a value left out."""
    computed, stored = (values(ds) for ds in steps())
    return {name: (stored[name] - computed[name]).values for name in computed}


def largest(error):
    """Largest error of a state, and of the mean over all states."""
    return float(np.nanmax(np.abs(error))), float(abs(np.nanmean(error)))


_FORMULAS = {
    "`overlap_mass`": "2⁻¹³ log k = 3.4e-4",
    "`topk_mass`": "2⁻¹³ log k = 3.4e-4",
    "`topk_entropy`": "2⁻¹³ Σ p̄ (|log p| + m)(|log p̄| + 1)",
    "`overlap_token_advantage`, paper": "that of sum, over n",
    "`overlap_token_advantage`, sum": (
        "2⁻¹³ Σ p̄ [(|log p| + m) |log p̄/q̄| + |log p| + |log q| + 2m]"
    ),
    "`overlap_token_advantage`, thunlp": (
        "2⁻¹³/n Σ p̄ [(|log p| + m) |log p/q| + |log p| + |log q|]"
    ),
    "`overlap_token_advantage`, verl": ("2⁻¹³/n Σ q [|log q| |log p/q| + |log p| + |log q|]"),
}


def table_rows():
    """Name, formula of the bound, and the largest errors seen, rounded up to one digit."""
    return [(name, _FORMULAS[name], *map(_up, largest(error))) for name, error in errors().items()]


def _up(x):
    power = 10.0 ** np.floor(np.log10(x))
    return float(np.ceil(x / power) * power)
