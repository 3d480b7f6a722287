"""Small fakes for tests (`opdprobe.testing.fakes`), and the testbed.

The steps and runs need numpy and xarray only; `tiny_model` and `tiny_tokenizer` import torch and
transformers when called.
"""

from opdprobe.testing.fakes import synthetic_run, synthetic_step, tiny_model, tiny_tokenizer

__all__ = ["synthetic_run", "synthetic_step", "tiny_model", "tiny_tokenizer"]
