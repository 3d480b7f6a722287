"""The benchmark for a GPU: it runs, with tiny models on the CPU, and reports what fails."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module, beside the scripts that it imports."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


# Torch and transformers are imported twice, in processes of their own, and TRL once.
@pytest.mark.slow
def test_every_part_runs_on_the_cpu(gpu, tmp_path, capfd):
    pytest.importorskip("trl")
    # A busy machine may take long: no part is to be cut or killed here.
    assert gpu.main(["--smoke", "--minutes", "60", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["failures"]
    results = found["results"]
    rows = {part: results[part]["rows"] for part in gpu.RUN if part != "training"}
    assert {row["quantity"] for row in rows["scores"]} > {"top-k lists", "entropy", "reverse KL"}
    assert all(row["of_bound"] <= 1 for row in rows["scores"])  # the device is the CPU itself
    for who in ("ours", "trl"):
        (measured,) = results["training"][who]
        assert measured["tokens"] > 0
        assert measured["steps"] == gpu.SMOKE.steps
    assert [row["who"] for row in rows["sampling"]] == ["ours", "generate"]
    assert [row["recorded"] for row in rows["recording"]] == ["nothing", "a tenth", "everything"]
    nothing, _, everything = rows["recording"]
    assert nothing["bytes"] is None
    assert everything["bytes"] > 100
    *steps, whole = rows["long"]
    assert whole["seconds"] == pytest.approx(sum(row["seconds"] for row in steps))
    assert "cut" not in results["long"]
    shown = capfd.readouterr().out
    assert shown.count("\n### ") == 5
    tables = [block.splitlines() for block in shown.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


FAKE = """
import json, os, sys, time
jobs = sys.argv[1].split(",")
if "sampling" in jobs:
    sys.exit("RuntimeError: out of memory\\nsomething else that is printed at the end")
if "long" in jobs:
    time.sleep(60)
row = {"quantity": "entropy", "dtype": "float32", "largest": 1.0, "of_bound": OF_BOUND}
found = {"rows": [row], "tokens": 10.0, "steps": 6, "peak": 1.0}
machine = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "gib": "1 GiB", "driver": "1"}
machine |= {"torch": "2", "transformers": "5", "trl": "1", "parameters": 1}
print(json.dumps({"jobs": dict.fromkeys(jobs, found), "machine": machine}))
"""


@pytest.fixture
def jobs(gpu, monkeypatch, tmp_path):
    """Jobs whose measurements come from a script that imports nothing."""

    def make(parts, *, of_bound="0.5", minutes=1.0, **settings):
        script = tmp_path / "parts.py"
        script.write_text(FAKE.replace("OF_BOUND", of_bound))
        monkeypatch.setattr(gpu, "PARTS", script)
        return gpu.Jobs(replace(gpu.SMOKE, **settings), minutes, parts)

    return make


def run(gpu, jobs, parts):
    found = {}
    for part in parts:
        jobs.begin(part)
        found[part] = gpu.RUN[part](jobs)
    return found


def test_a_part_that_fails_gives_its_reason_and_the_others_go_on(gpu, jobs):
    parts = ["scores", "training", "sampling"]
    own = jobs(parts, rounds=2, steps=6)
    found = run(gpu, own, parts)
    assert own.failures == ["sampling: RuntimeError: out of memory"]
    assert found["sampling"] == {"rows": []}
    assert len(found["training"]["ours"]) == 2
    shown = gpu.markdown(found, own)
    assert "| float32 | entropy | 1.0e+00 | 0.50 |" in shown
    assert "| ours, recording everything | 10 (10–10) |" in shown
    assert shown.endswith("### Failed\n\n- sampling: RuntimeError: out of memory")


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [("cpu", "3,4", ""), ("cuda", "3,4", "3"), ("cuda", None, "0")],
)
def test_a_process_sees_one_gpu_at_most(gpu, jobs, monkeypatch, device, visible, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    own = jobs(["scores"], device=device)
    run(gpu, own, ["scores"])
    assert own.machine["gpu"] == seen


def test_a_part_that_hangs_is_killed_at_the_end_of_its_time(gpu, jobs):
    own = jobs(["long"], minutes=0.02)
    run(gpu, own, ["long"])
    assert own.failures == ["long: killed after 1 seconds"]


@pytest.mark.parametrize("of_bound", ["1.5", "float('nan')"])
def test_scores_out_of_their_bound_are_a_failure(gpu, jobs, of_bound):
    own = jobs(["scores"], of_bound=of_bound)
    run(gpu, own, ["scores"])
    (failure,) = own.failures
    assert failure.startswith("scores: entropy in float32 is ")


def test_rounds_that_do_not_fit_are_left_out(gpu, jobs, monkeypatch):
    now = 0.0
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now))
    own = jobs(["training"], rounds=10**6, minutes=1.0, steps=6)

    def takes_ten_seconds(job, seconds):
        nonlocal now
        now += 10
        return {"tokens": 10.0, "steps": 6}

    monkeypatch.setattr(own, "run", takes_ten_seconds)
    found = run(gpu, own, ["training"])["training"]
    assert len(found["ours"]) == len(found["trl"]) == 3  # two jobs a round, 60 seconds
    assert found["cut"] == "3 of 1000000 rounds"


def test_time_that_a_part_leaves_goes_to_the_next(gpu):
    own = gpu.Jobs(gpu.SMOKE, gpu.MINUTES, list(gpu.RUN))
    own.begin("scores")
    kept = sum(gpu.SECONDS.values()) - gpu.SECONDS["scores"]
    assert own.left == pytest.approx(60 * gpu.MINUTES - kept, abs=1)
    for part in list(gpu.RUN)[1:]:
        own.begin(part)
    assert own.left == pytest.approx(60 * gpu.MINUTES, abs=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main([])
    assert error.value.code == 2
    assert "torch finds no GPU; expected one, or --smoke" in capsys.readouterr().err


class TestCompareScores:
    """What the comparison with the CPU lets pass."""

    @pytest.fixture
    def parts(self, gpu):
        import gpu_parts

        return gpu_parts

    @pytest.fixture
    def computed(self):
        """Scores of random hidden states and heads, and their logits."""
        from torch import nn

        from opdprobe.models.head import Head
        from opdprobe.rollout.score import score

        draw = torch.Generator().manual_seed(0)
        heads, hidden = [], []
        for _ in range(2):
            layer = nn.Linear(16, 500, bias=False).requires_grad_(False)
            layer.weight.copy_(torch.randn(500, 16, generator=draw))
            heads.append(Head(layer, 500))
            hidden.append(torch.randn(20, 16, generator=draw))
        sampled = torch.randint(500, (20,), generator=draw)
        logits = torch.stack([head(h) for head, h in zip(heads, hidden, strict=True)])
        return score(*hidden, *heads, sampled, k=16), logits

    def test_equal_scores(self, parts, computed):
        scores, logits = computed
        found = parts.compare_scores(scores, scores, logits, "float32")
        assert [row["largest"] for row in found.values()] == [0.0] * 5
        assert found["top-k lists"]["equal"] == 1.0

    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("logp", "log-probability"),
            ("sampled_logp", "log-probability of the sampled token"),
            ("entropy", "entropy"),
            ("reverse_kl", "reverse KL"),
        ],
    )
    @pytest.mark.parametrize("change", [1e-4, float("nan")])
    def test_one_number_that_is_off(self, parts, computed, name, row, change):
        scores, logits = computed
        values = getattr(scores, name).clone()
        values.view(-1)[7] += change
        found = parts.compare_scores(replace(scores, **{name: values}), scores, logits, "float32")
        assert not found[row]["of_bound"] <= 1
        others = [other for other in found if other != row]
        assert all(found[other]["of_bound"] <= 1 for other in others)
        # In bfloat16 this much is one rounding of a logit, but never NaN.
        coarse = parts.compare_scores(replace(scores, **{name: values}), scores, logits, "bfloat16")
        assert (coarse[row]["of_bound"] <= 1) == (change == 1e-4)

    def test_a_token_that_is_less_probable(self, parts, computed):
        scores, logits = computed
        ids = scores.token_id.clone()
        ids[3, 1, 15] = logits[1, 3].argsort(descending=True)[16]
        found = parts.compare_scores(replace(scores, token_id=ids), scores, logits, "float32")
        assert found["top-k lists"]["of_bound"] > 1
        assert found["top-k lists"]["equal"] == 19 / 20

    def test_equally_probable_tokens_may_change_places(self, parts, computed):
        scores, logits = computed
        logits = logits.clone()
        last, next_one = logits[1, 3].argsort(descending=True)[15:17]
        logits[1, 3, next_one] = logits[1, 3, last]
        ids = scores.token_id.clone()
        ids[3, 1, 15] = next_one
        found = parts.compare_scores(replace(scores, token_id=ids), scores, logits, "float32")
        assert found["top-k lists"] == {"largest": 0.0, "of_bound": 0.0, "equal": 19 / 20}
        assert found["log-probability"]["of_bound"] <= 1

    def test_another_order_of_the_same_list(self, parts, computed):
        scores, logits = computed
        turned = replace(scores, token_id=scores.token_id.flip(-1), logp=scores.logp.flip(-1))
        found = parts.compare_scores(turned, scores, logits, "float32")
        assert all(row["largest"] == 0 for row in found.values())
        mixed = replace(scores, token_id=scores.token_id.flip(-1))
        found = parts.compare_scores(mixed, scores, logits, "float32")
        assert found["log-probability"]["of_bound"] > 1


def test_the_bounds_are_those_of_the_page(gpu, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "tests/numerics")
    import error_bounds
    import gpu_parts

    large, single = error_bounds.LARGE_VOCABULARY, error_bounds.SCORES["`score`, float32"]
    for quantity, absolute in gpu_parts.ABSOLUTE.items():
        (page,) = (
            bound
            for what, bound in large.items()
            if what.startswith("`score`") and quantity in what
        )
        assert absolute == page
        assert gpu_parts.RELATIVE[quantity] == pytest.approx(single[quantity].relative, rel=0.01)
    for dtype, rounding in gpu_parts.ROUNDING.items():
        assert rounding == error_bounds.ROUNDING[dtype]
