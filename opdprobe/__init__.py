"""opdprobe: token-level analysis of on-policy distillation.

Probes, stores and curves need numpy and xarray only; what needs torch is imported when first asked
for, so that a recorded run can be read where torch is not installed.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import opdprobe.accessor  # noqa: F401  # registers ds.opd
from opdprobe.errors import (
    ConfigError,
    NonFiniteError,
    OPDProbeError,
    PromptError,
    StoreError,
    VocabularyError,
)
from opdprobe.probes import (
    curve,
    curves,
    entropy_gap,
    extreme_advantage_gap,
    from_logits,
    gap_recovery_rate,
    heat_map,
    mass_set_size,
    overlap_mask,
    overlap_mass,
    overlap_ratio,
    overlap_token_advantage,
    reward_auroc,
    sequence_mean_reward,
)
from opdprobe.schema import SCHEMA_VERSION, validate
from opdprobe.store import Run, RunWriter, open_run

if TYPE_CHECKING:
    from opdprobe.data import Prompt, load_prompts
    from opdprobe.hooks import ProbeCallback, capture, probe_checkpoints
    from opdprobe.models import drop_layers, load_model, load_tokenizer
    from opdprobe.train.config import OPDConfig
    from opdprobe.train.trainer import Callback, OPDTrainer

__version__ = version("opdprobe")

_NEED_TORCH = {
    "Callback": "opdprobe.train.trainer",
    "OPDConfig": "opdprobe.train.config",
    "OPDTrainer": "opdprobe.train.trainer",
    "ProbeCallback": "opdprobe.hooks",
    "Prompt": "opdprobe.data",
    "capture": "opdprobe.hooks",
    "drop_layers": "opdprobe.models",
    "load_model": "opdprobe.models",
    "load_prompts": "opdprobe.data",
    "load_tokenizer": "opdprobe.models",
    "probe_checkpoints": "opdprobe.hooks",
}

__all__ = [
    "SCHEMA_VERSION",
    "Callback",
    "ConfigError",
    "NonFiniteError",
    "OPDConfig",
    "OPDProbeError",
    "OPDTrainer",
    "ProbeCallback",
    "Prompt",
    "PromptError",
    "Run",
    "RunWriter",
    "StoreError",
    "VocabularyError",
    "capture",
    "curve",
    "curves",
    "drop_layers",
    "entropy_gap",
    "extreme_advantage_gap",
    "from_logits",
    "gap_recovery_rate",
    "heat_map",
    "load_model",
    "load_prompts",
    "load_tokenizer",
    "mass_set_size",
    "open_run",
    "overlap_mask",
    "overlap_mass",
    "overlap_ratio",
    "overlap_token_advantage",
    "probe_checkpoints",
    "reward_auroc",
    "sequence_mean_reward",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'opdprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
