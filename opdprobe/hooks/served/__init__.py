"""Served models: rollouts and scores over vLLM's protocol, or SGLang's.

A server reports its model's top-k and the log-probability of the token that was drawn, which is all
that overlap, its masses and its advantages need. What it does not report is NaN in the record.
"""

from opdprobe.hooks.served.connection import Connection
from opdprobe.hooks.served.model import ServedModel
from opdprobe.hooks.served.run import probe_served

__all__ = ["Connection", "ServedModel", "probe_served"]
