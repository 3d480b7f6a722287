"""Will this teacher teach this student? Measurements that need no training.

`preflight` measures, `opdprobe.preflight.verdict` judges; ``opdprobe preflight`` does both.
"""

from opdprobe.errors import needs_train_extra

with needs_train_extra("opdprobe.preflight"):
    from opdprobe.preflight.procedure import Preflight, preflight
    from opdprobe.preflight.ranking import Ranking, rank_teachers

__all__ = ["Preflight", "Ranking", "preflight", "rank_teachers"]
