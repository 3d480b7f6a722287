"""Whether an engine can sample a student that is trained."""

from torch import nn

from opdprobe.errors import ConfigError
from opdprobe.models.adapters import is_adapted
from opdprobe.models.processes import Processes
from opdprobe.rollout.engine import TrainedSampler
from opdprobe.train.config import OPDConfig


def check_engine(
    sampler: TrainedSampler, config: OPDConfig, student: nn.Module, processes: Processes
) -> None:
    """Refuse an engine that cannot follow the student, before anything is trained.

    Raises
    ------
    ConfigError
        The engine loads no weights, or a setting does not fit; names it.
    """
    if not sampler.loads_weights:
        raise ConfigError(
            f"{sampler} as sampler: its server does not take a trained student's weights from a "
            "directory; expected an SGLang server, a vLLM server in its development mode "
            "(VLLM_SERVER_DEV_MODE=1), or no sampler."
        )
    if (config.temperature, config.top_p) != (1, 1):
        raise ConfigError(
            f"temperature = {config.temperature} and top_p = {config.top_p} with an engine as "
            "sampler; expected 1 for both: engines report log-probabilities before they are "
            "scaled or cut."
        )
    if processes.size > 1 or is_adapted(student):
        what = f"{processes.size} processes" if processes.size > 1 else "adapters"
        raise ConfigError(
            f"{sampler} as sampler with {what}; expected one process, and a student whose own "
            "weights are trained."
        )
