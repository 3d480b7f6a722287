"""Record a training run of another trainer or of a plain loop, or one that has finished.

A hook writes the same store as `opdprobe.OPDTrainer`, and does not change the training.

=====================  ========================================================================
`ProbeCallback`        transformers' `Trainer` and every trainer of TRL: every N steps, the
                       student answers fixed prompts
`capture`              a plain torch loop: records what the loop's own forward pass computed
`probe_checkpoints`    saved checkpoints, each answering the same prompts
`import_rollouts`      rollouts that a trainer or an evaluation dumped
`score_rollouts`       rollouts that exist already; `sample` makes some
=====================  ========================================================================
"""

from opdprobe.errors import needs_train_extra

with needs_train_extra("opdprobe.hooks"):
    from opdprobe.hooks.checkpoints import find_checkpoints, probe_checkpoints
    from opdprobe.hooks.dumps import Imported, import_rollouts
    from opdprobe.hooks.given import sample, score_rollouts
    from opdprobe.hooks.plain_loop import Capture, capture
    from opdprobe.hooks.trainer_callback import ProbeCallback

__all__ = [
    "Capture",
    "Imported",
    "ProbeCallback",
    "capture",
    "find_checkpoints",
    "import_rollouts",
    "probe_checkpoints",
    "sample",
    "score_rollouts",
]
