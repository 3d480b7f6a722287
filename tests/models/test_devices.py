"""Where models go, in which precision, and what all that loads them asks."""

import ast
from pathlib import Path

import pytest
import torch

import opdprobe
from opdprobe.errors import ConfigError, OutOfMemoryError
from opdprobe.models import devices
from opdprobe.models.devices import (
    free_bytes,
    is_out_of_memory,
    precision,
    reason_of,
    resolve_device,
    resolve_dtype,
    teacher_default,
)
from opdprobe.models.load import load_model
from opdprobe.models.processes import Processes
from opdprobe.rollout.pair import Pair
from opdprobe.testing import tiny_model, tiny_tokenizer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """Give the machine two GPUs, and tell where models are moved instead of moving them."""
    monkeypatch.setattr(devices, "accelerator", lambda: ("cuda", 2))
    moved = []
    move = torch.nn.Module.to

    def to(self, *args, **kwargs):
        if isinstance(args[0], torch.device):
            moved.append(str(args[0]))
            return self
        return move(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return moved


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def test_auto_is_the_accelerator_or_the_cpu(monkeypatch):
    assert resolve_device() == resolve_device("auto") == resolve_device(None) == CPU
    monkeypatch.setattr(devices, "accelerator", lambda: ("cuda", 1))
    assert resolve_device() == GPU
    assert resolve_device("cpu") == CPU
    # Without the processes, one of several must not take the first GPU.
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve_device() == CPU


def test_the_launcher_chooses_a_process_s_device(monkeypatch):
    monkeypatch.setattr(devices, "accelerator", lambda: ("cuda", 2))
    second = Processes(1, 2, torch.device("cuda:1"))
    for device in ("auto", "cuda", "cuda:1"):
        assert resolve_device(device, second) == torch.device("cuda:1")
    for device in ("cpu", "cuda:0"):
        with pytest.raises(ConfigError, match=r"the launcher gave this process cuda:1; leave"):
            resolve_device(device, second)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "xpu", torch.device("cuda", 1), "gpu"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ConfigError, match=rf"device = '{device}': .*no such device.* auto, cpu\."):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda:2", "xpu"])
def test_what_there_is_is_named(monkeypatch, device):
    monkeypatch.setattr(devices, "accelerator", lambda: ("cuda", 2))
    with pytest.raises(ConfigError, match=r"expected auto, cpu or cuda \(cuda:0 to cuda:1\)\."):
        resolve_device(device)


def test_dtypes_by_transformers_names():
    assert resolve_dtype(None) == resolve_dtype("float32") == torch.float32
    assert resolve_dtype("torch.bfloat16") == resolve_dtype(torch.bfloat16) == torch.bfloat16
    assert resolve_dtype("auto") == "auto"
    for wrong in ("bf16", "int8", torch.int8, 16):
        with pytest.raises(ConfigError, match=r"dtype = '.*': not a dtype of weights; expected au"):
            resolve_dtype(wrong)


def test_a_teacher_is_bfloat16_on_an_accelerator_unless_told_otherwise():
    assert teacher_default(CPU) == torch.float32
    assert teacher_default(GPU) == torch.bfloat16
    assert teacher_default(GPU, "float32") == torch.float32
    assert teacher_default(GPU, "float32", "float16") == torch.float16
    with pytest.raises(ConfigError, match=r"^teacher_dtype = 'half'"):
        teacher_default(CPU, None, "half")


@pytest.mark.parametrize(
    ("options", "student", "teacher"),
    [
        ({}, torch.float32, torch.bfloat16),
        ({"device": "cpu"}, torch.float32, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16, torch.bfloat16),
        ({"teacher_dtype": "float32"}, torch.float32, torch.float32),
    ],
)
def test_a_pair_goes_to_the_accelerator(machine, saved, options, student, teacher):
    pair = Pair.load(saved / "student", saved / "teacher", **options)
    assert (pair.student.dtype, pair.teacher.dtype) == (student, teacher)
    assert set(machine) == {options.get("device", "cuda")}


def test_a_name_follows_the_model_that_is_loaded(machine, saved):
    """The machine has a GPU, but the student was put on the CPU."""
    pair = Pair.load(tiny_model(), saved / "teacher", tokenizer=tiny_tokenizer())
    assert set(machine) == {"cpu"}
    assert pair.teacher.dtype == torch.float32


def test_attention_is_passed_on_and_recorded(saved):
    options = {"attn_implementation": "eager", "dtype": "bfloat16"}
    pair = Pair.load(saved / "student", saved / "teacher", **options)
    assert precision({"student": pair.student, "teacher": pair.teacher}, "bf16") == {
        "device": "cpu",
        "dtype": {"student": "bfloat16", "teacher": "bfloat16"},
        "attn_implementation": {"student": "eager", "teacher": "eager"},
        "mixed_precision": "bf16",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flesh", r"'flesh' cannot be used: Specified"),
        ("flash_attention_2", r"'flash_attention_2' cannot be used: FlashAttention2 has been"),
    ],
)
def test_attention_that_cannot_be_used_is_refused(saved, name, reason):
    with pytest.raises(ConfigError, match=f"^attn_implementation = {reason}.* Expected sdpa or"):
        load_model(saved / "student", dtype="bfloat16", attn_implementation=name)
    if name != "flesh":
        with pytest.raises(ConfigError, match=r"computes in 16 bits, but .* float32; expected dty"):
            load_model(saved / "student", attn_implementation=name)


def test_bars_appear_on_terminals_only(saved, monkeypatch, capfd):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # some commands switch it
    load_model(saved / "student")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_model(saved / "student")
    assert "Loading weights" in capfd.readouterr().err


def test_a_model_that_does_not_fit_says_so(monkeypatch, saved):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(OutOfMemoryError, match=r"does not fit into the memory of cpu: memory ran "):
        load_model(saved / "student")


def test_kinds_of_running_out_of_memory():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x")):
        assert not is_out_of_memory(error)
    assert reason_of(RuntimeError("CUDA out of memory. Tried\nmore")) == "CUDA out of memory"
    assert reason_of(MemoryError()) == "MemoryError"


def test_the_cpu_itself_runs_out_of_memory():
    """What torch raises on this machine is one of the kinds."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.int8)
    assert is_out_of_memory(raised.value)


def test_free_memory_respects_a_container(monkeypatch, tmp_path):
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("2000\n")
    paths = (str(tmp_path / "max"), str(tmp_path / "current"))
    monkeypatch.setattr(devices, "_CGROUPS", (paths, ("/absent", "/absent")))
    assert free_bytes(CPU) == 3000
    (tmp_path / "max").write_text("max\n")
    assert free_bytes(CPU) > 1e6


def test_one_function_looks_at_the_hardware():
    """Else a command could put one of two models elsewhere."""
    looks = {"is_available", "current_accelerator", "device_count", "current_device"}
    found = set()
    for path in Path(opdprobe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in looks:
                of = ast.unparse(node.value)
                if of.startswith("torch.") and of not in (
                    "torch.distributed",
                    "torch.backends.mkldnn",
                ):
                    found.add(path.name)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Accelerator":
                assert path.name in ("trainer.py", "trackers.py")  # the latter loads no model
    assert found == {"devices.py"}
