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
from opdprobe.probes.mix import standardised
from opdprobe.probes.ngrams import repeated_ngrams, repetition
from opdprobe.probes.ranks import (
    argmax_disagreement,
    drawn_rank,
    jaccard,
    kendall_tau,
    nucleus_overlap,
    rank_biased_overlap,
    top1_acceptance,
)
from opdprobe.probes.recovery import GapRecovery, gap_recovery, gap_recovery_rate
from opdprobe.probes.reward import reward_auroc, sequence_mean_reward
from opdprobe.probes.sampler import (
    SamplerComparison,
    compare_sampler,
    sampler_gap,
    sampler_kl,
)
from opdprobe.probes.selectors import compare_selectors, select_states
from opdprobe.probes.set_sizes import mass_set_summary
from opdprobe.probes.sets import mass_set_size, overlap_mask, overlap_ratio
from opdprobe.probes.signal import reward_signal
from opdprobe.probes.thinning import thinned
from opdprobe.probes.token_groups import answer_noise, calibration, quadrants, rock_tokens
from opdprobe.probes.token_scores import (
    absorption,
    early_weights,
    forking_share,
    informativeness,
    reward_quantiles,
    teachability,
    tip_score,
    variance_ratio,
)
from opdprobe.probes.union import (
    bhattacharyya,
    forward_kl,
    information_to_error,
    jensen_shannon,
)

__all__ = [
    "GapRecovery",
    "SamplerComparison",
    "absorption",
    "answer_noise",
    "argmax_disagreement",
    "bhattacharyya",
    "calibration",
    "compare_sampler",
    "compare_selectors",
    "curve",
    "curves",
    "drawn_rank",
    "early_weights",
    "entropy_gap",
    "entropy_gap_of_means",
    "extreme_advantage_gap",
    "forking_share",
    "forward_kl",
    "from_logits",
    "gap_recovery",
    "gap_recovery_rate",
    "heat_map",
    "information_to_error",
    "informativeness",
    "jaccard",
    "jensen_shannon",
    "kendall_tau",
    "mass_set_size",
    "mass_set_summary",
    "nucleus_overlap",
    "overlap_mask",
    "overlap_mass",
    "overlap_ratio",
    "overlap_token_advantage",
    "quadrants",
    "rank_biased_overlap",
    "repeated_ngrams",
    "repetition",
    "reward_auroc",
    "reward_quantiles",
    "reward_signal",
    "rock_tokens",
    "sampler_gap",
    "sampler_kl",
    "select_states",
    "sequence_mean_reward",
    "standardised",
    "teachability",
    "thinned",
    "tip_score",
    "top1_acceptance",
    "topk_entropy",
    "topk_mass",
    "variance_ratio",
]
