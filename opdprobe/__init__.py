"""opdprobe: token-level analysis of on-policy distillation.

``pip install opdprobe`` is enough to read, analyse and draw a recorded run. Sampling and training
need ``opdprobe[train]``; their names are imported on first use.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opdprobe.errors import (
    ConfigError,
    MissingExtraError,
    ModelError,
    NonFiniteError,
    OPDProbeError,
    PromptError,
    RolloutError,
    StoreError,
    VocabularyError,
    needs_train_extra,
)
from opdprobe.probes import (
    accessor,  # noqa: F401  # registers ds.opd
    curve,
    curves,
    entropy_gap,
    extreme_advantage_gap,
    from_logits,
    gap_recovery,
    gap_recovery_rate,
    heat_map,
    keys,  # opdprobe.keys
    mass_set_size,
    mass_set_summary,
    overlap_mask,
    overlap_mass,
    overlap_ratio,
    overlap_token_advantage,
    reward_auroc,
    reward_signal,
    sequence_mean_reward,
    standardised,
)
from opdprobe.store import Run, RunWriter, open_run
from opdprobe.store.schema import SCHEMA_VERSION, validate

if TYPE_CHECKING:
    from opdprobe.hooks import (
        ProbeCallback,
        capture,
        import_rollouts,
        probe_checkpoints,
        sample,
        score_rollouts,
    )
    from opdprobe.models.load import drop_layers, load_model, load_tokenizer
    from opdprobe.rollout.prompt_files import Prompt, load_prompts
    from opdprobe.rollout.rollout import Rollout, TopLists
    from opdprobe.rollout.teacher_context import TeacherContext
    from opdprobe.train.coherence import coherence
    from opdprobe.train.config import OPDConfig
    from opdprobe.train.trainer import Callback, OPDTrainer

__version__ = version("opdprobe")

sys.modules["opdprobe.keys"] = keys  # makes `import opdprobe.keys` work

_LAZY = {
    "Callback": "opdprobe.train.trainer",
    "OPDConfig": "opdprobe.train.config",
    "OPDTrainer": "opdprobe.train.trainer",
    "ProbeCallback": "opdprobe.hooks",
    "Prompt": "opdprobe.rollout.prompt_files",
    "Rollout": "opdprobe.rollout.rollout",
    "TeacherContext": "opdprobe.rollout.teacher_context",
    "TopLists": "opdprobe.rollout.rollout",
    "capture": "opdprobe.hooks",
    "coherence": "opdprobe.train.coherence",
    "drop_layers": "opdprobe.models.load",
    "import_rollouts": "opdprobe.hooks",
    "load_model": "opdprobe.models.load",
    "load_prompts": "opdprobe.rollout.prompt_files",
    "load_tokenizer": "opdprobe.models.load",
    "probe_checkpoints": "opdprobe.hooks",
    "sample": "opdprobe.hooks",
    "score_rollouts": "opdprobe.hooks",
}

__all__ = [
    "SCHEMA_VERSION",
    "Callback",
    "ConfigError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "OPDConfig",
    "OPDProbeError",
    "OPDTrainer",
    "ProbeCallback",
    "Prompt",
    "PromptError",
    "Rollout",
    "RolloutError",
    "Run",
    "RunWriter",
    "StoreError",
    "TeacherContext",
    "TopLists",
    "VocabularyError",
    "capture",
    "coherence",
    "curve",
    "curves",
    "drop_layers",
    "entropy_gap",
    "extreme_advantage_gap",
    "from_logits",
    "gap_recovery",
    "gap_recovery_rate",
    "heat_map",
    "import_rollouts",
    "load_model",
    "load_prompts",
    "load_tokenizer",
    "mass_set_size",
    "mass_set_summary",
    "open_run",
    "overlap_mask",
    "overlap_mass",
    "overlap_ratio",
    "overlap_token_advantage",
    "probe_checkpoints",
    "reward_auroc",
    "reward_signal",
    "sample",
    "score_rollouts",
    "sequence_mean_reward",
    "standardised",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with needs_train_extra(f"opdprobe.{name}"):
            return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'opdprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
