"""Read rollouts that exist already, from the dumps of trainers and evaluations."""

from opdprobe.rollout.dumps.read import FORMATS, read_dumps

__all__ = ["FORMATS", "read_dumps"]
