"""``ds.opd``: every probe as a method of a stored Dataset, lazily, with units and long name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe import probes
from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes import ranks
from opdprobe.probes import union as unions
from opdprobe.probes.divergence import overlap_statistics
from opdprobe.probes.quantities import LIKELY, PER_STATE
from opdprobe.probes.sets import mask_of_match, ratio_of_match
from opdprobe.probes.thinning import thinned
from opdprobe.store.schema import MODELS, TOP_K, match_tokens

_BLOCK = 4096  # states: 16 ranks in float64 take 512 KiB


@xr.register_dataset_accessor("opd")
class OPDAccessor:
    """The probes of `opdprobe.probes` on a Dataset in the store's schema.

    A method returns one value per state unless it says otherwise, as a float64 DataArray with
    ``units`` and ``long_name``; on dask-backed data it is lazy. Methods that compare models on a
    token set use the student's top-k list. For definitions, ranges and NaN, see the function of
    the same name.

    Examples
    --------
    >>> from opdprobe.testing import synthetic_step
    >>> ds = synthetic_step(n_rollouts=2, length=3)
    >>> overlap = ds.opd.overlap_ratio()
    >>> overlap.dims, overlap.attrs
    (('state',), {'units': '1', 'long_name': 'overlap ratio'})
    >>> float(ds.opd.overlap_mass("teacher").max()) <= 1 + 1e-6
    True
    >>> ds.drop_vars("entropy").opd.entropy_gap()
    Traceback (most recent call last):
    ...
    opdprobe.errors.StoreError: the Dataset has no variable 'entropy'; ...
    """

    def __init__(self, ds: xr.Dataset):
        self._ds = ds

    def overlap_mask(self) -> xr.DataArray:
        """Mark the student's top-k tokens that the teacher's top-k shares, over (state, rank).

        A token that either model rules out is not shared, if the Dataset has ``logp``.
        """
        # The axis is called rank in both lists and in the result.
        mask = self._matched(mask_of_match, probes.overlap_mask, output_core=("rank",), dtype=bool)
        return _label(mask, "overlap_mask", "1", "token is in both top-k")

    def overlap_ratio(self, *, min_prob: float = 0.0) -> xr.DataArray:
        """Share of the top-k that both models have in common (Eq. 6)."""
        ratio = self._matched(ratio_of_match, probes.overlap_ratio, kwargs={"min_prob": min_prob})
        ratio = _named(ratio, "overlap_ratio")
        if min_prob:
            ratio.attrs["long_name"] += f" above {min_prob:g}"
        return ratio

    def likely_overlap_ratio(self) -> xr.DataArray:
        """Compute `overlap_ratio` of the tokens with a probability of at least 1e-3."""
        return _named(self.overlap_ratio(min_prob=LIKELY), "likely_overlap_ratio")

    def _matched(
        self, of_match: Callable[..., Any], of_ids: Callable[..., Any], **settings: Any
    ) -> xr.DataArray:
        """Compare both lists, by the stored ``match`` if there is one."""
        logps = [self._logp(m, m) for m in MODELS] if "logp" in self._ds else []
        if "match" in self._ds:
            return _apply(of_match, self._ds["match"], *logps, core=True, **settings)
        ids = self._ids("student"), self._ids("teacher")
        return _apply(of_ids, *ids, *logps, core=True, **settings)

    def overlap_mass(self, model: str = "student") -> xr.DataArray:
        """Raw probability that `model` puts on the shared tokens (Eq. 9, 10)."""
        mass = _apply(probes.overlap_mass, self._logp(model), self.overlap_mask(), core=True)
        return _named(mass, f"{model}_overlap_mass").rename("overlap_mass")

    def topk_mass(self, model: str = "student", support: str = "student") -> xr.DataArray:
        """Raw probability that `model` puts on the top-k list of `support`."""
        mass = _apply(probes.topk_mass, self._logp(model, support), core=True)
        return _label(mass, "topk_mass", "1", f"{model} mass on the {support}'s top-k")

    def mass_set_size(self, model: str = "student", *, mass: float = 0.97) -> xr.DataArray:
        """Count `model`'s most probable tokens that hold `mass`; k + 1 stands for more than k."""
        own = self._logp(model, model)
        size = _apply(probes.mass_set_size, own, core=True, kwargs={"mass": mass})
        k = own.sizes["rank"]
        name = f"{model} tokens holding {100 * mass:g} %, {k + 1} for more than {k}"
        return _label(size, "mass_set_size", "1", name)

    def overlap_token_advantage(self, definition: str = "paper") -> xr.DataArray:
        """How well the teacher agrees with the student on the shared tokens (Eq. 7)."""
        advantage = _apply(
            probes.overlap_token_advantage,
            self._logp("student"),
            self._logp("teacher"),
            self.overlap_mask(),
            core=True,
            kwargs={"definition": definition},
        )
        return self._advantage(advantage, definition)

    def _advantage(self, advantage: xr.DataArray, definition: str = "paper") -> xr.DataArray:
        advantage = _named(advantage, "overlap_token_advantage")
        if definition != "paper":
            advantage.attrs["long_name"] += f" ({definition})"
        return advantage

    def overlap_statistics(self) -> xr.Dataset:
        """Compute both overlap masses and the advantage in one go, three times as fast.

        Returns a Dataset of ``student_overlap_mass``, ``teacher_overlap_mass`` and
        ``overlap_token_advantage``, as `overlap_mass` and `overlap_token_advantage` give them.
        """
        logps = self._logp("student"), self._logp("teacher")
        found = _apply(
            overlap_statistics,
            *logps,
            self.overlap_mask(),
            core=True,
            output_core=("statistic",),
            sizes={"statistic": 3},
        )
        masses = {
            f"{model}_overlap_mass": _named(found.isel(statistic=i), f"{model}_overlap_mass")
            for i, model in enumerate(MODELS)
        }
        advantage = self._advantage(found.isel(statistic=2))
        return xr.Dataset({**masses, "overlap_token_advantage": advantage})

    def extreme_advantage_gap(self) -> xr.DataArray:
        """Difference in probability at the shared token with the largest advantage (App. B.2)."""
        logps = self._logp("student"), self._logp("teacher")
        gap = _apply(probes.extreme_advantage_gap, *logps, self.overlap_mask(), core=True)
        return _named(gap, "extreme_advantage_gap")

    def entropy(self, model: str = "student") -> xr.DataArray:
        """Entropy of `model` over the full vocabulary."""
        return _named(self._entropy(model).astype(float), f"{model}_entropy").rename("entropy")

    def entropy_gap(self) -> xr.DataArray:
        """Absolute difference of the two models' entropies (Eq. 8)."""
        gap = _apply(probes.entropy_gap, self._entropy("student"), self._entropy("teacher"))
        return _named(gap, "entropy_gap")

    def topk_entropy(self, model: str = "student") -> xr.DataArray:
        """Entropy of `model`'s own top-k list renormalised to 1 (not the paper's entropy)."""
        entropy = _apply(probes.topk_entropy, self._logp(model, model), core=True)
        return _label(entropy, "topk_entropy", "nats", f"{model} top-k entropy")

    def reverse_kl(self) -> xr.DataArray:
        """KL(p‖q) of student from teacher over the full vocabulary (Eq. 4), as stored."""
        return _named(self._get("reverse_kl").astype(float), "reverse_kl")

    def sampled_reward(self) -> xr.DataArray:
        """Compute log q(y) - log p(y) at the token the student drew: minus the loss of Eq. 3."""
        student, teacher = self._sampled("student"), self._sampled("teacher")
        reward = teacher.astype(float) - student.astype(float)
        return _named(reward, "sampled_reward")

    def sequence_mean_reward(self) -> xr.DataArray:
        """Mean of `sampled_reward` over each rollout (§6.2), one value per rollout.

        Rollouts without a recorded state are NaN. Loads the sampled log-probabilities. If not all
        positions were recorded, the attribute ``thinned`` says so.
        """
        rollout = self._get("rollout")
        reward = probes.sequence_mean_reward(
            self._sampled("student").values, self._sampled("teacher").values, rollout.values
        )
        n_rollout = self._ds.sizes.get("rollout", reward.size)
        padded = np.full(n_rollout, np.nan)
        padded[: reward.size] = reward
        mean = xr.DataArray(padded, dims="rollout")
        mean = _label(mean, "sequence_mean_reward", "nats", "sequence mean reward")
        text = thinned(self._ds)
        return mean.assign_attrs(thinned=text) if text else mean

    def stop_token_mass(self, model: str = "student", of: str | None = None) -> xr.DataArray:
        """Probability that `model` puts on all tokens together with which `of` ends a response.

        `of` is `model` itself by default. ``stop_token_mass("teacher", of="student")`` is what a
        student can learn to end from: next to 0 where the teacher ends with other tokens.
        """
        of = model if of is None else of
        logp = self._select("stop_logp", model=model, support=of)
        named = _named(_apply(np.exp, logp.astype(float)), f"{model}_stop_token_mass")
        named = named.rename("stop_token_mass")
        if of != model:
            named.attrs["long_name"] += f" (of the {of}'s stop tokens)"
        return named

    def jaccard(self) -> xr.DataArray:
        """Shared tokens over all tokens of both lists."""
        return _named(_apply(ranks.jaccard, self._match(), core=True), "jaccard")

    def argmax_disagreement(self) -> xr.DataArray:
        """1 where the models' most probable tokens differ, else 0."""
        found = _apply(ranks.argmax_disagreement, self._match(), core=True)
        return _named(found, "argmax_disagreement")

    def top1_acceptance(self, *, n: int = 5) -> xr.DataArray:
        """1 where the student's most probable token is among the teacher's first n, else 0."""
        found = _apply(ranks.top1_acceptance, self._match(), core=True, kwargs={"n": n})
        return _label(
            found, "top1_acceptance", "1", f"student's first choice in the teacher's top {n}"
        )

    def kendall_tau(self) -> xr.DataArray:
        """Kendall's τ of the order in which both models rank the shared tokens."""
        return _named(_apply(ranks.kendall_tau, self._match(), core=True), "kendall_tau")

    def rank_biased_overlap(self, *, persistence: float = 0.9) -> xr.DataArray:
        """Overlap of the lists' beginnings, the first ranks with the most weight."""
        settings = {"persistence": persistence}
        found = _apply(ranks.rank_biased_overlap, self._match(), core=True, kwargs=settings)
        return _named(found, "rank_biased_overlap")

    def nucleus_overlap(self, *, mass: float = 0.9) -> xr.DataArray:
        """Jaccard index of the smallest sets that hold a mass; NaN where a list holds less."""
        logps = (self._logp(model, model) for model in MODELS)
        settings = {"mass": mass}
        found = _apply(ranks.nucleus_overlap, *logps, self._match(), core=True, kwargs=settings)
        return _named(found, "nucleus_overlap")

    def drawn_rank(self, model: str = "student") -> xr.DataArray:
        """Place of the drawn token in `model`'s list, from 0; k stands for *not in it*."""
        ids = self._ids(model)
        found = _apply(ranks.drawn_rank, ids, self._get("sampled_id"), cores=[["rank"], []])
        return _named(found, f"{model}_drawn_rank").rename("drawn_rank")

    def effective_support(self, model: str = "student") -> xr.DataArray:
        """exp(entropy): the number of equally likely tokens with the same entropy."""
        found = _apply(np.exp, self._entropy(model).astype(float))
        return _named(found, f"{model}_effective_support").rename("effective_support")

    def teacher_unsure(self, *, nats: float = 0.8) -> xr.DataArray:
        """1 where the teacher's entropy is at least `nats`, else 0: EOPD's gate (2603.07079)."""
        unsure = (self._entropy("teacher") >= nats).astype(float)
        return _label(unsure, "teacher_unsure", "1", f"teacher's entropy of {nats:g} nats or more")

    def forward_kl(self) -> xr.DataArray:
        """KL(q‖p) on the tokens of either list and a bucket for the rest: a lower bound."""
        return _named(self._on_union(unions.forward_kl), "forward_kl")

    def jensen_shannon(self, *, upper: bool = False) -> xr.DataArray:
        """Jensen–Shannon divergence on the tokens of either list: a lower or an upper bound."""
        found = _named(self._on_union(unions.jensen_shannon, upper=upper), "jensen_shannon")
        return _bound(found, upper)

    def bhattacharyya(self, *, upper: bool = False) -> xr.DataArray:
        """Sum of √(p q) over the tokens of either list: a lower or an upper bound."""
        found = _named(self._on_union(unions.bhattacharyya, upper=upper), "bhattacharyya")
        return _bound(found, upper)

    def information_to_error(self) -> xr.DataArray:
        """IER: how much of a state's sampled gradient is signal rather than noise (2609.24432)."""
        found = self._on_union(unions.information_to_error, *self._drawn_alone())
        return _named(found, "information_to_error")

    def union_statistics(self) -> xr.Dataset:
        """Compute forward KL, Jensen–Shannon, Bhattacharyya and IER in one go.

        Returns a Dataset with each as its method gives it, in a third of their time.
        """
        found = self._on_union(
            unions.union_statistics,
            *self._drawn_alone(),
            output_core=("statistic",),
            sizes={"statistic": len(unions.UNION_STATISTICS)},
        )
        named = {
            name: _named(found.isel(statistic=i), name)
            for i, name in enumerate(unions.UNION_STATISTICS)
        }
        return xr.Dataset(named)

    def _drawn_alone(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Return the drawn token's log-probabilities, and whether it is in neither list."""
        alone = (self._get("token_id") != self._get("sampled_id")).all(("support", "rank"))
        return self._get("sampled_logp"), alone

    def positive_reward(self) -> xr.DataArray:
        """1 where the teacher gives the drawn token more probability than the student, else 0."""
        reward = self.sampled_reward()
        return _named((reward > 0).astype(float).where(reward.notnull()), "positive_reward")

    def _match(self) -> xr.DataArray:
        if "match" in self._ds:
            return self._ds["match"]
        ids = (self._ids(support) for support in MODELS)
        return _apply(match_tokens, *ids, core=True, output_core=("rank",), dtype=np.int8)

    def _on_union(
        self,
        function: Callable[..., Any],
        *more: xr.DataArray,
        output_core: tuple[str, ...] = (),
        sizes: dict[str, int] | None = None,
        **kw: Any,
    ) -> xr.DataArray:
        """Apply a function of both models' log-probabilities on both lists, and of `more`."""
        logps = (self._select("logp", model=model) for model in MODELS)
        cores = [["support", "rank"], ["support", "rank"], ["rank"]]
        cores += [["model"] if "model" in array.dims else [] for array in more]
        return _apply(
            function,
            *logps,
            self._match(),
            *more,
            cores=cores,
            output_core=output_core,
            sizes=sizes,
            kwargs=kw,
        )

    def sampler_gap(self) -> xr.DataArray:
        """Difference of the drawn token's log-probability: the student's minus the sampler's."""
        pair = self._sampled("student"), self._get("sampler_logp")
        return _named(_apply(probes.sampler_gap, *pair), "sampler_gap")

    def sampler_kl(self) -> xr.DataArray:
        """Estimate of KL(sampler‖student) at the drawn token (k3)."""
        pair = self._sampled("student"), self._get("sampler_logp")
        return _named(_apply(probes.sampler_kl, *pair), "sampler_kl")

    def _get(self, name: str) -> xr.DataArray:
        if name not in self._ds.variables:
            raise StoreError(
                f"the Dataset has no variable {name!r}; it has "
                f"{', '.join(map(str, self._ds.variables))}: {_cure(name, self._ds)}"
            )
        return self._ds[name]

    def _select(self, name: str, **labels: str) -> xr.DataArray:
        for dim, label in labels.items():
            if label not in MODELS:
                raise ConfigError(f"{dim} = {label!r}; expected one of {MODELS}.")
        return self._get(name).sel(labels, drop=True)

    def _ids(self, support: str) -> xr.DataArray:
        return self._select("token_id", support=support)

    def _logp(self, model: str, support: str = "student") -> xr.DataArray:
        return self._select("logp", model=model, support=support)

    def _entropy(self, model: str) -> xr.DataArray:
        return self._select("entropy", model=model)

    def _sampled(self, model: str) -> xr.DataArray:
        return self._select("sampled_logp", model=model)


def _cure(name: str, ds: xr.Dataset) -> str:
    if name in ("sampler_logp", "reported_logp"):
        return "score rollouts that bring these log-probabilities (opdprobe.score_rollouts)."
    if name == "stop_logp":
        return "use a run that opdprobe 0.2 or newer recorded with local models."
    if name in TOP_K and "sampled_logp" in ds.variables and not set(TOP_K) & set(ds.variables):
        return (
            "it holds the drawn tokens' log-probabilities only, no top-k lists: score the rollouts "
            "with both models (opdprobe.score_rollouts)."
        )
    with_ids = " with sampled_ids" if name == "sampled_logp" else ""
    return f"use a step of a run, or from_logits{with_ids}."


def _apply(
    function: Callable[..., Any],
    *arrays: xr.DataArray,
    core: bool = False,
    cores: list[list[str]] | None = None,
    output_core: tuple[str, ...] = (),
    dtype: type = float,
    sizes: dict[str, int] | None = None,
    kwargs: dict[str, Any] | None = None,
) -> xr.DataArray:
    """Run a probe over states, in blocks.

    `core` puts rank on the last axis of every array; `cores` names the last axes of each.
    """
    inner = cores or [["rank"] if core else []] * len(arrays)
    return xr.apply_ufunc(
        partial(_in_blocks, function, len(inner[0])) if core or cores else function,
        *arrays,
        input_core_dims=inner,
        output_core_dims=[list(output_core)],
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": sizes} if sizes else None,
        kwargs=kwargs,
    )


def _in_blocks(
    function: Callable[..., Any], n_core: int, *arrays: NDArray[Any], **kwargs: Any
) -> NDArray[Any]:
    """Run a probe in blocks whose temporaries fit in the cache, which is twice as fast.

    `n_core` is the number of axes after the states' in the first array.
    """
    shape = arrays[0].shape[: arrays[0].ndim - n_core]
    block = _BLOCK if n_core < 2 else _BLOCK // 4  # on both lists, more is in use at once
    if not shape or shape[0] <= block or any(a.shape[:1] != shape[:1] for a in arrays):
        return function(*arrays, **kwargs)
    blocks = (slice(start, start + block) for start in range(0, shape[0], block))
    return np.concatenate([function(*(a[part] for a in arrays), **kwargs) for part in blocks])


def _bound(array: xr.DataArray, upper: bool) -> xr.DataArray:
    if upper:
        array.attrs["long_name"] = array.attrs["long_name"].replace("lower", "upper")
    return array


def _label(array: xr.DataArray, name: str, units: str, long_name: str) -> xr.DataArray:
    array = array.rename(name)
    array.attrs = {"units": units, "long_name": long_name}
    return array


def _named(array: xr.DataArray, name: str) -> xr.DataArray:
    """Label an array as the table of quantities does."""
    about = PER_STATE[name].name
    return _label(array, name, about.units, about.long_name)
