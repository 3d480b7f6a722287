"""Two processes train what one does, and record it in parts that read as one run."""

import itertools
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from accelerate import DistributedType
from safetensors.torch import load_file

import opdprobe
from opdprobe import ConfigError, OPDProbeError, open_run
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.processes import Processes
from opdprobe.models.sharding import load_parts, shard
from opdprobe.rollout.rows import step_metrics, thin
from opdprobe.rollout.sample import sample, step_generator
from opdprobe.store.schema import to_step
from opdprobe.testing import synthetic_step
from opdprobe.train.launch import check_launch

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT's
SCRIPT = Path(__file__).with_name("launched.py")
# What `accelerate launch --use_fsdp --fsdp_version 2` sets, which on CPUs starts one process.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


@pytest.fixture(scope="module")
def launched():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def one(tmp_path_factory, launched):
    folder = tmp_path_factory.mktemp("one")
    for name, make in launched["RUNS"].items():
        make(folder / name).train()
    return folder


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


LAUNCHES = {"full models": {}, "sharded": FSDP}


@pytest.fixture(scope="module")
def launches(tmp_path_factory, launched):
    folder = tmp_path_factory.mktemp("two")
    environments = {}
    for name, environment in LAUNCHES.items():
        launched["stop_after_step_1"](folder / name / "begun by one")
        environments[name] = environment | {"MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), json.dumps(environments)],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module", params=list(LAUNCHES))
def two(request, launches):
    return launches / request.param


def noted(folder):
    return [json.loads((folder / f"noted-{rank}.json").read_text()) for rank in (0, 1)]


def assert_close(got: xr.Dataset, want: xr.Dataset):
    """Same rollouts and tokens, and numbers within float error."""
    assert got.attrs == want.attrs
    assert list(got.variables) == list(want.variables)
    for name in want.variables:
        assert got[name].attrs == want[name].attrs
        assert got[name].dtype == want[name].dtype
        if want[name].dtype.kind == "f":
            np.testing.assert_allclose(got[name], want[name], rtol=1e-3, atol=1e-4)
        else:
            np.testing.assert_array_equal(got[name], want[name])


def assert_same_weights(got: Path, want: Path):
    for file in want.glob("*.safetensors"):
        weights, expected = load_file(got / file.name), load_file(file)
        assert weights.keys() == expected.keys()
        for name in expected:
            # AdamW turns rounding into steps where a gradient is nearly zero.
            assert (weights[name] - expected[name]).abs().mean() < 1e-5


@pytest.mark.parametrize("name", ["whole", "thinned", "adapter", "cut_up", "mixed"])
def test_two_processes_train_what_one_does(one, two, name, assert_same_runs):
    got, want = open_run(two / name), open_run(one / name)
    assert_same_runs(got, want, rtol=2e-4)
    for step in want.steps:
        assert_close(got.load(step), want.load(step))
    (checkpoint,) = (want.path / "checkpoints").iterdir()
    assert_same_weights(two / name / "checkpoints" / checkpoint.name, checkpoint)


def test_both_processes_end_with_the_same_weights(two):
    first, second = noted(two)
    for name in ("whole", "thinned", "adapter", "cut_up", "mixed"):
        assert first[name] == second[name]


def test_each_process_writes_its_part_and_readers_see_one_run(one, two):
    got, want = open_run(two / "whole"), open_run(one / "whole")
    names = [file.name for files in got.files.values() for file in files]
    assert names == [f"{step:06d}.{i}-of-2.zarr.zip" for step in range(4) for i in (1, 2)]
    assert_close(got.states().compute(), want.states().compute())
    assert_close(got.rollouts([1, 3]).compute(), want.rollouts([1, 3]).compute())
    for mine, theirs in zip(got.response_ids(2), want.response_ids(2), strict=True):
        assert mine.tolist() == theirs.tolist()
    assert got.evaluation("three").equals(want.evaluation("three"))
    for by in ("step", "position"):
        curves = [opdprobe.curve(run, "overlap_ratio", by=by) for run in (got, want)]
        assert_close(*curves)


def test_a_process_without_a_recorded_rollout_still_writes_its_part(two):
    run = open_run(two / "thinned")
    sizes = [
        [
            xr.open_dataset(f"zip::{file}", engine="zarr", consolidated=False).sizes["rollout"]
            for file in files
        ]
        for files in run.files.values()
    ]
    assert [sorted(some) for some in sizes] == [[0, 1]] * 3


def test_a_run_resumes_with_another_number_of_processes(one, two, launched):
    want = open_run(one / "whole")
    launched["whole"](two / "begun by two").train()
    for name in ("begun by one", "begun by two"):
        got = open_run(two / name)
        assert got.steps == want.steps
        for step in want.steps:
            assert_close(got.load(step), want.load(step))
        np.testing.assert_allclose(got.metrics.loss, want.metrics.loss, rtol=2e-4)


def test_checkpoints_do_not_depend_on_the_number_of_processes(one, two):
    for want in one.glob("*/checkpoints/*"):
        got = two / want.relative_to(one)
        assert {f.name for f in got.iterdir()} == {f.name for f in want.iterdir()}
        for name in ("config.json", "adapter_config.json"):
            if (want / name).exists():
                config, expected = (json.loads((d / name).read_text()) for d in (got, want))
                for adapted in (config, expected):  # PEFT writes a set
                    adapted["target_modules"] = sorted(adapted.get("target_modules", ()))
                assert config == expected
        states = [torch.load(d / "optimizer.pt", weights_only=True) for d in (got, want)]
        assert [shapes(state) for state in states[:1]] == [shapes(state) for state in states[1:]]


def shapes(state):
    """The form of nested dicts and lists of tensors."""
    if isinstance(state, dict):
        return {name: shapes(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [shapes(value) for value in state]
    return (type(state), state.shape, state.dtype) if isinstance(state, torch.Tensor) else state


def test_an_interrupted_run_ends_with_the_same_bits(two):
    straight, resumed = (
        two / name / "checkpoints" / "000003" for name in ("small", "small resumed")
    )
    for file in ("model.safetensors", "optimizer.pt"):
        assert (straight / file).read_bytes() == (resumed / file).read_bytes()
    copies = torch.load(straight / "optimizer.pt", weights_only=True)["optimization"]["float32"]
    assert {copy.dtype for copy in copies} == {torch.float32}


def test_a_callback_has_the_whole_student(one, two, assert_same_runs):
    assert_same_runs(open_run(two / "watched"), open_run(one / "thinned"), rtol=2e-4)
    (last,) = (one / "thinned" / "checkpoints").iterdir()
    kept = two / "kept" / "2"
    assert_same_weights(kept, last)
    load_tokenizer(kept)
    models = [load_model(two / "kept" / str(step)) for step in range(3)]
    said = [model(input_ids=torch.tensor([[7, 8]])).logits.sum().item() for model in models]
    for found in noted(two):
        assert found["said"] == pytest.approx(said, rel=1e-5)


def test_a_step_that_fails_in_one_process_can_be_done_again(one, two, assert_same_runs):
    for found in noted(two):
        assert found["recovered"] == [
            "NonFiniteError",
            "step 0: the teacher gave infinite logits",
        ]
    assert_same_runs(open_run(two / "recovered"), open_run(one / "whole"), rtol=2e-4)


def test_sharded_processes_keep_half_of_everything(two, request):
    share = 1 if "full models" in request.node.callspec.id else 0.5
    for found in noted(two):
        assert found["held"].keys() == {"student", "teacher", "optimizer"}
        for own, everything in found["held"].values():
            assert own == share * everything


def test_two_processes_probe_what_one_does(two, tmp_path, launched, assert_same_runs):
    want = launched["probed"](two / "whole", tmp_path / "run")
    got = open_run(two / "probed")
    assert_same_runs(got, want, rtol=2e-4)
    assert_close(got.load(4), want.load(4))
    assert [len(files) for files in (got.files[4], want.files[4])] == [2, 1]
    assert got.attrs == want.attrs


def test_what_fails_in_one_process_ends_all_with_the_reason(two):
    for found in noted(two):
        assert found["failing"] == ["PromptError", "this one has no answer"]
    # Responses that did not end are not graded: the steps before the first that did are whole.
    steps = open_run(two / "failing").steps
    assert steps == list(range(len(steps)))


def test_processes_that_were_given_different_models_do_not_start(two):
    for found in noted(two):
        kind, message = found["disagreeing"]
        assert kind == "ConfigError"
        assert message.startswith("process 1 and process 0 were given a different student: ")
    assert not (two / "disagreeing").exists()


# Piece by piece, in this process


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_part_of_the_prompts_draws_what_it_would_among_all(sharpened, top_p):
    model, prompts = sharpened(0), [[7, 8], [9], [10, 11, 12], [7, 7], [8]]

    def drawn(share):
        return sample(
            model,
            prompts[share],
            num_generations=3,
            max_completion_length=12,
            eos_ids=[2, 3, 4, 5],
            pad_id=0,
            top_p=top_p,
            generator=step_generator(0, 7, "cpu"),
            part=(share.start, len(prompts)),
        )

    whole = drawn(slice(0, 5)).response_ids
    assert len({len(response) for response in whole}) > 2
    parts = [drawn(Processes(rank, 3).share(5)).response_ids for rank in range(3)]
    assert list(itertools.chain(*parts)) == whole


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_thinned_parts_are_the_parts_of_the_thinned_step(fraction):
    whole = synthetic_step(n_rollouts=7, length=[3, 0, 5, 2, 2, 8, 1])
    whole["prompt_id"] = "rollout", [f"{i}" for i in range(7)]
    settings = {"fraction": fraction, "max_positions": 4, "seed": (0, 3)}
    want = thin(to_step(whole), **settings).variables["prompt_id"].values.tolist()
    kept = []
    for rank in range(3):
        share = Processes(rank, 3).share(7)
        inside = np.isin(whole["rollout"], np.arange(7)[share])
        part = whole.isel(
            rollout=share,
            state=inside,
            prompt_token=slice(3 * share.start, 3 * share.stop),
            response_token=inside,
        )
        part = part.assign_coords(rollout=part["rollout"] - share.start)
        thinned = thin(to_step(part), **settings, part=(share.start, 7)).to_dataset()
        kept += thinned.prompt_id.values.tolist()
        assert thinned.rollout.max(initial=-1) < thinned.sizes["rollout"]
    assert kept == want


class Two(Processes):
    """Two processes; `other` maps this one's value to the other's."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def gather(self, value):
        return [value, self.other(value)]


def test_metrics_are_means_over_all_states_wherever_they_are():
    own, other = synthetic_step(0, length=[2, 9, 0, 4]), synthetic_step(1, length=[7, 1, 3, 3])
    sums = []
    step_metrics(other, Two(lambda value: sums.append(value) or value))
    got = step_metrics(own, Two(lambda value: sums[0]))
    n = np.array([15, 14])
    alone = [step_metrics(ds)["reverse_kl"] for ds in (own, other)]
    assert got["reverse_kl"] == pytest.approx(np.average(alone, weights=n))
    lengths = np.concatenate([own.length, other.length])
    assert got["completion_length"] == pytest.approx(lengths.mean())


@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_shares_cover_everything_once_and_are_nearly_equal(n):
    shares = [Processes(rank, 3).share(n) for rank in range(3)]
    assert [i for share in shares for i in range(n)[share]] == list(range(n))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_exchanges_with_itself():
    alone = Processes()
    assert alone.main_first(lambda: "made") == "made"
    with pytest.raises(OPDProbeError, match="what went wrong"), alone.together():
        raise OPDProbeError("what went wrong")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "launched with FSDP 1, which .* expected version 2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "parameters offloaded to the CPU"),
        (
            {"WORLD_SIZE": "2"},
            "started as one of 2 processes, but accelerate sees 1: on CPUs",
        ),
    ],
)
def test_launches_that_would_train_the_wrong_thing_are_refused(
    tmp_path, monkeypatch, environment, message, trainer_in
):
    trainer_in(tmp_path)  # accelerate reads the environment only once
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        trainer_in(tmp_path)


def test_deepspeed_is_refused():
    launch = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, mixed_precision="no")
    with pytest.raises(ConfigError, match=r"launched with DEEPSPEED; .*--use_fsdp"):
        check_launch(launch)


def test_trained_parameters_of_two_dtypes_are_not_sharded(sharpened):
    model = sharpened(0)
    model.lm_head.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"of torch\.bfloat16 and torch\.float32; "):
        shard(model, torch.device("cpu"))


def test_weights_are_loaded_by_name_and_shape():
    tied = torch.zeros(2, 3)
    state = {"embedding": tied, "head": tied, "bias": torch.zeros(3)}
    load_parts(state, {"head": torch.ones(2, 3), "bias": torch.full((3,), 2.0)})
    assert state["embedding"].sum() == state["bias"].sum() == 6
    for saved, message in [
        ({"head": torch.ones(2, 3)}, "bias is in one of checkpoint and model only"),
        ({"bias": torch.ones(3)}, "embedding is in one of"),
        ({"head": torch.ones(3), "bias": torch.ones(3)}, r"head is \(3,\) .* expected \(2, 3\)"),
        ({"other": tied} | state, "other is in one of checkpoint and model only"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_parts(state, saved)
