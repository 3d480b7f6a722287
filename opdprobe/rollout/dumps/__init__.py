"""Read rollouts that exist already, from the dumps of trainers and evaluations."""

from opdprobe.rollout.dumps.read import FORMATS, DumpReader, read_dumps, step_in

__all__ = ["FORMATS", "DumpReader", "read_dumps", "step_in"]
