"""Token-level quantities of on-policy distillation, as pure functions on arrays.

Every function takes numpy arrays (or anything `numpy.asarray` reads) with the top-k list on the
last axis, computes in float64 and runs unchanged under ``xarray.apply_ufunc``. ``ds.opd`` offers
the same quantities on a stored `~xarray.Dataset`.
"""

from opdprobe.probes.averages import curve, curves
from opdprobe.probes.divergence import extreme_advantage_gap, overlap_token_advantage
from opdprobe.probes.entropy import entropy_gap, entropy_gap_of_means, topk_entropy
from opdprobe.probes.logits import from_logits
from opdprobe.probes.maps import heat_map
from opdprobe.probes.mass import overlap_mass, topk_mass
from opdprobe.probes.reward import gap_recovery_rate, reward_auroc, sequence_mean_reward
from opdprobe.probes.sampler import (
    SamplerComparison,
    compare_sampler,
    sampler_gap,
    sampler_kl,
)
from opdprobe.probes.sets import mass_set_size, overlap_mask, overlap_ratio

__all__ = [
    "SamplerComparison",
    "compare_sampler",
    "curve",
    "curves",
    "entropy_gap",
    "entropy_gap_of_means",
    "extreme_advantage_gap",
    "from_logits",
    "gap_recovery_rate",
    "heat_map",
    "mass_set_size",
    "overlap_mask",
    "overlap_mass",
    "overlap_ratio",
    "overlap_token_advantage",
    "reward_auroc",
    "sampler_gap",
    "sampler_kl",
    "sequence_mean_reward",
    "topk_entropy",
    "topk_mass",
]
