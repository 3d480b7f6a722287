"""Which states would a token selector keep, how much of the signal is in them, and do two agree?"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import ratio
from opdprobe.probes.evaluate import by_step, check_steps
from opdprobe.probes.mass import rank_sum
from opdprobe.probes.token_scores import early_weights, teachability, tip_score

if TYPE_CHECKING:
    from opdprobe.store import Run


def _random(ds: xr.Dataset) -> NDArray[np.float64]:
    # Of the step alone, so that two calls select the same states.
    return np.random.default_rng(int(ds["step"].values[0]) if "step" in ds.coords else 0).random(
        ds.sizes["state"]
    )


SELECTORS: Mapping[str, Callable[[xr.Dataset], NDArray[np.float64]]] = {
    "entropy": lambda ds: ds.opd.entropy("student").values,
    "reverse_kl": lambda ds: ds.opd.reverse_kl().values,
    "tip": lambda ds: tip_score(ds.opd.entropy("student").values, ds.opd.reverse_kl().values),
    "teachability": lambda ds: teachability(
        ds.opd.forward_kl().values, ds.opd.topk_mass("teacher").values
    ),
    "information_to_error": lambda ds: ds.opd.information_to_error().values,
    "early": lambda ds: -ds["position"].values.astype(np.float64),
    "early_signal": lambda ds: early_weights(ds.opd.sampled_reward().values, ds["rollout"].values),
    "reward": lambda ds: ds.opd.sampled_reward().values,
    "random": _random,
}
"""Score of every state of a step, by selector: the states with the highest scores are kept.

``entropy``: where the student is unsure (forking tokens). ``reverse_kl``: where the models differ.
``tip``, ``teachability``, ``information_to_error``, ``early_signal``: see `tip_score`,
`teachability`, `information_to_error` and `early_weights`. ``early``: the first positions.
``reward``: where the teacher likes the drawn token better than the student does. ``random``: the
baseline.
"""


def select_states(ds: xr.Dataset, selector: str, fraction: float) -> NDArray[np.bool_]:
    """Mark the states of a step that a selector keeps.

    Parameters
    ----------
    ds : Dataset
        One step in the store's schema.
    selector
        Key of `SELECTORS`.
    fraction
        Share of the step's states to keep, in (0, 1]; rounded up to a whole number of states.

    Returns
    -------
    (state,) ndarray of bool
        True at the states with the highest scores; of equal scores the earlier ones. A state
        without a score (NaN) comes last.

    Raises
    ------
    ConfigError
        The selector is unknown, or `fraction` is not in (0, 1].

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> ds = synthetic_step(n_rollouts=2, length=5)
    >>> select_states(ds, "early", 0.4).astype(int)
    array([1, 1, 0, 0, 0, 1, 1, 0, 0, 0])
    """
    if selector not in SELECTORS:
        raise ConfigError(f"selector = {selector!r}; expected one of {', '.join(SELECTORS)}.")
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction = {fraction!r}; expected more than 0 and at most 1.")
    score = np.nan_to_num(np.asarray(SELECTORS[selector](ds), np.float64), nan=-np.inf)
    # Without the slack, 0.2 of 5 states would be 2: 0.2 × 5 is a little more than 1.
    n = int(np.ceil(fraction * score.size - 1e-9))
    kept = np.zeros(score.size, bool)
    kept[np.argsort(-score, kind="stable")[:n]] = True
    return kept


def compare_selectors(
    run_or_dataset: "Run | xr.Dataset",
    *,
    fraction: float = 0.2,
    selectors: Sequence[str] = tuple(SELECTORS),
    token_classes: Mapping[int, str] | None = None,
) -> xr.Dataset:
    """Measure what each selector keeps of the signal, and how far selectors agree.

    Parameters
    ----------
    run_or_dataset : Run or Dataset
        A run, read one step at a time, or states in the store's schema with top-k lists. Each step
        is selected from by itself, as in training.
    fraction : float, default 0.2
        Share of each step's states that is kept, in (0, 1].
    selectors : sequence of str
        Keys of `SELECTORS`.
    token_classes : mapping of int to str, optional
        Class of each token id, such as number or word. A drawn token that is not in it, or not
        recorded, counts as ``other``.

    Returns
    -------
    Dataset
        Over ``selector`` and ``other``:

        - ``states``: share of the states that is kept;
        - ``reverse_kl``: share of the sum of the reverse KL;
        - ``reward``: share of the sum of the sampled reward's size;
        - ``gradient``: share of the sum of the sizes of the reverse KL's gradient by the logits, as
          far as the student's list shows it;
        - ``position``: mean place of the kept states in their responses, 0 for the first and 1 for
          the last token;
        - ``jaccard`` (selector, other): states that both keep over states that either keeps;
        - with `token_classes`, over ``token_class`` (in the order of the mapping, then ``other``):
          ``class_states``, the class's share of the states by their drawn tokens, and
          ``class_kept`` (selector, token_class), the share of the class's states that is kept;
          NaN of a class without a state.

        A share above ``states`` says that the signal is denser where the selector keeps states. It
        does not say that training on them is better. Of a signal that is infinite at some states,
        it is the share of these.

    Raises
    ------
    ConfigError
        As `select_states`.
    StoreError
        The states have no top-k lists.
    ValueError
        There is no state.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> found = compare_selectors(synthetic_step(length=20), selectors=["reverse_kl", "random"])
    >>> found["reverse_kl"].sel(selector="reverse_kl") > found["reverse_kl"].sel(selector="random")
    <xarray.DataArray 'reverse_kl' ()> Size: 1B
    array(True)
    """
    names = list(selectors)
    signals = ("states", "reverse_kl", "reward", "gradient", "position")
    # Finite values, and the number of infinite ones.
    kept_sum, whole = np.zeros((2, len(signals), len(names))), np.zeros((2, len(signals)))
    both, either = np.zeros((2, len(names), len(names)))
    classes = [*dict.fromkeys([*(token_classes or {}).values(), "other"])]
    by_class, class_states = np.zeros((len(names), len(classes))), np.zeros(len(classes))
    steps = []
    for step, ds in by_step(run_or_dataset):
        steps.append(step)
        kept = np.array([select_states(ds, name, fraction) for name in names], np.float64)
        length = ds["length"].values[ds["rollout"].values]
        values = np.array(
            [
                np.ones(ds.sizes["state"]),
                ds.opd.reverse_kl().values,
                np.abs(ds.opd.sampled_reward().values),
                _gradient_size(ds),
                ds["position"].values / np.maximum(length - 1, 1),
            ]
        )
        infinite = np.isinf(values)
        parts = np.array([np.where(infinite, 0, values), infinite])
        kept_sum += parts @ kept.T
        whole += parts.sum(axis=2)
        shared = kept @ kept.T
        sizes = kept.sum(axis=1)
        both += shared
        either += sizes[:, None] + sizes - shared
        if token_classes is not None:
            member = _classes_of(ds, token_classes, classes)[:, None] == np.arange(len(classes))
            by_class += kept @ member
            class_states += member.sum(axis=0)
    check_steps(steps)
    finite, infinite = ratio(kept_sum, whole[:, :, None])
    shares = np.where(whole[1, :, None] > 0, infinite, finite)
    shares[-1] = ratio(kept_sum[0, -1], kept_sum[0, 0])  # a mean, not a share
    n_states = whole[0, 0]
    found: dict[str, Any] = {
        name: ("selector", row) for name, row in zip(signals, shares, strict=True)
    }
    found["jaccard"] = ("selector", "other"), ratio(both, either)
    places = {"selector": names, "other": names}
    if token_classes is not None:
        places["token_class"] = classes
        found["class_states"] = "token_class", class_states / n_states
        found["class_kept"] = ("selector", "token_class"), ratio(by_class, class_states)
    return xr.Dataset(found, places, {"fraction": fraction, "n_states": int(n_states)})


def _classes_of(
    ds: xr.Dataset, token_classes: Mapping[int, str], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Return the place in `classes` of each state's drawn token."""
    other = classes.index("other")
    if "sampled_id" not in ds:
        return np.full(ds.sizes["state"], other)
    ids, inverse = np.unique(ds["sampled_id"].values, return_inverse=True)
    known = [classes.index(token_classes.get(token, "other")) for token in ids.tolist()]
    return np.array(known, np.int64)[inverse]


def _gradient_size(ds: xr.Dataset) -> NDArray[np.float64]:
    """Size of ∂KL(p‖q)/∂logits at each state: p (log p/q - KL), on the student's list.

    Infinite where the divergence is.
    """
    logp = ds["logp"].sel(support="student").transpose("state", "model", "rank").values
    student, teacher = (logp[:, i].astype(np.float64) for i in (0, 1))
    kl = ds.opd.reverse_kl().values[:, None]
    with np.errstate(invalid="ignore"):
        gradient = np.exp(student) * (student - teacher - kl)
    size = np.sqrt(rank_sum(np.where(np.isfinite(gradient), gradient, 0) ** 2))
    return np.where(np.isinf(kl[:, 0]), np.inf, size)
