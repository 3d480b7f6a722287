"""Models that a server holds: rollouts and scores over the OpenAI-compatible protocol of vLLM.

A server tells the top-k of its model and the log-probability of the token that was drawn, which is
all that overlap, its masses and its advantages need. What it does not tell is NaN in the record.
"""

from opdprobe.hooks.served.connection import Connection
from opdprobe.hooks.served.model import ServedModel
from opdprobe.hooks.served.run import probe_served

__all__ = ["Connection", "ServedModel", "probe_served"]
