"""ProbeCallback on students that DeepSpeed's ZeRO-3 partitions, with a stand-in for DeepSpeed.

Its parameters are empty outside of a gathering block, and its hooks must not run inside one. The
real DeepSpeed compiles for minutes before it trains; docs/lab-notebook.md says what was measured.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations import deepspeed as integration

from opdprobe import ConfigError
from opdprobe.hooks.shared import loading_whole_models, unwrap
from opdprobe.models.sharding import whole, zero_3_parts
from opdprobe.testing import tiny_model


class Gathered:
    """What `deepspeed.zero.GatheredParameters` does to the parameters."""

    def __init__(self, parameters):
        self.parameters = parameters

    def __enter__(self):
        for parameter in self.parameters:
            parameter.data = parameter.full

    def __exit__(self, *error):
        for parameter in self.parameters:
            parameter.data = torch.empty(0)


@pytest.fixture
def partitioned(monkeypatch):
    """A model as ZeRO-3 leaves it, and the modules whose hooks ran."""
    stand_in: Any = ModuleType("deepspeed")
    stand_in.__spec__ = ModuleSpec("deepspeed", None)
    stand_in.zero = SimpleNamespace(GatheredParameters=Gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", stand_in)
    model, ran = tiny_model(), []
    for number, parameter in enumerate(model.parameters()):
        parameter.full, parameter.ds_numel = parameter.data, parameter.numel()
        parameter.ds_id, parameter.data = number, torch.empty(0)

    def fetch(module, *_):
        ran.append(module)

    fetch.__module__ = "deepspeed.runtime.zero.parameter_offload"
    for module in model.modules():
        module.register_forward_pre_hook(fetch)
        module.register_forward_hook(fetch)
    return model, ran


def test_the_whole_model_runs_without_deepspeed_hooks(partitioned):
    model, ran = partitioned
    others, ids = [], torch.tensor([[1, 7, 8]])
    handle = model.lm_head.register_forward_hook(lambda *_: others.append("lm_head"))
    with pytest.raises(ConfigError, match="sharded over processes"):
        unwrap(model)
    with whole(model), torch.no_grad():
        assert unwrap(model) is model
        got = model(input_ids=ids).logits
    torch.testing.assert_close(got, tiny_model()(input_ids=ids).logits)
    assert not ran
    assert others == ["lm_head"]  # others' hooks stay
    assert all(parameter.numel() == 0 for parameter in zero_3_parts(model))
    assert [len(m._forward_pre_hooks) for m in model.modules()] == [1] * len([*model.modules()])
    handle.remove()
    assert len(model.lm_head._forward_hooks) == 1


def test_an_error_inside_leaves_the_model_as_it_was(partitioned):
    model, _ = partitioned
    with pytest.raises(KeyError), whole(model):
        raise KeyError
    assert all(parameter.numel() == 0 for parameter in zero_3_parts(model))
    assert all(m._forward_hooks for m in model.modules())


def test_models_that_one_process_loads_are_not_partitioned(monkeypatch):
    settings = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(integration, "_hf_deepspeed_config_weak_ref", lambda: settings)
    assert integration.is_deepspeed_zero3_enabled()
    with loading_whole_models():
        assert not integration.is_deepspeed_zero3_enabled()
    assert integration.is_deepspeed_zero3_enabled()
