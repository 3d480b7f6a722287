"""The scripts of the user guide, as they stand, and the notebook."""

import re
import runpy
from pathlib import Path

import pytest

from opdprobe import load_tokenizer, open_run, validate

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys):
    """Run an example as a user would, in an empty directory; gives its names and its output."""
    monkeypatch.chdir(tmp_path)

    def run(name):
        names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return names, capsys.readouterr().out

    return run


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


def test_probe_logits(run_script):
    names, output = run_script("probe_logits.py")
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"medium-{i}" for i in range(5)]
    for line in lines:
        overlap, mass, advantage, gap = numbers(line)
        assert 0.6 < overlap < 1
        assert 0.8 < mass < 1
        assert -1 < advantage < 0
        assert 0 < gap < 3
    step, length = names["ds"], names["tokens"].shape[1] - names["start"]
    validate(step)
    assert step.sizes["state"] == length
    assert step.sampled_id.values.tolist() == names["tokens"][0, names["start"] :].tolist()
    # What was drawn is likely to who drew it, which it is not to logits of another position.
    assert step.sampled_logp.sel(model="student").mean() > -2


# TRL 1.16 calls what transformers 5.23 has renamed, and pins memory for a GPU that is not there.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory'.*no accelerator is found:UserWarning")
def test_attach_to_trl(run_script):
    pytest.importorskip("trl")
    _, output = run_script("attach_to_trl.py")
    run = open_run("runs/trl")
    assert run.steps == [0, 5, 10]
    for step in run.steps:
        assert run.load(step).sizes["rollout"] == 16 * 4
        validate(run.load(step))
    assert run.metrics.loss.sel(step=10).notnull()
    table = output[output.index("overlap_ratio") :].splitlines()
    shown = [line.split() for line in table if re.match(r"\d+ ", line)]
    assert [int(row[0]) for row in shown] == run.steps
    assert [float(row[3]) for row in shown] == pytest.approx(
        run.metrics.correct.sel(step=run.steps).values, abs=1e-4
    )


def test_probe_checkpoints(run_script):
    names, output = run_script("probe_checkpoints.py")
    run = open_run("runs/checkpoints")
    assert run.steps == [2, 4, 6]
    checkpoints = [run.load(step).attrs["checkpoint"] for step in run.steps]
    assert checkpoints == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert len({run.load(step).attrs["weight_hash"] for step in run.steps}) == 3
    assert open_run("runs/unrecorded").steps == []
    values = names["overlap"].value.values
    lines = [line for line in output.splitlines() if line.startswith("step ")]
    for line, step, value in zip(lines, run.steps, values, strict=True):
        shown, low, high = numbers(line)
        assert line.startswith(f"step {step}:")
        assert shown == pytest.approx(value, abs=1e-3)
        assert low < shown < high


def test_preflight(run_script):
    _, output = run_script("preflight.py")
    assert "sft-small from rl-small: likely to work" in output
    # So few prompts do not always settle that a teacher does not help.
    assert re.search("sft-small from sft-large: (unlikely to help|cannot tell)", output)
    assert output.count("\n  - ") >= 4


def test_compare_runs(run_script):
    names, output = run_script("compare_runs.py")
    assert [run.steps for run in names["runs"]] == [list(range(10))] * 2
    prompts = [run.load(9).prompt_id.values.tolist() for run in names["runs"]]
    assert prompts[0] == prompts[1]  # or resampling in pairs would mean nothing
    differences = dict(
        line.split(": ", 1) for line in output.splitlines() if "rl-small minus sft-large" in line
    )
    assert list(differences) == ["overlap_ratio", "entropy_gap"]
    for text in differences.values():
        difference, low, high = numbers(text)
        assert low < difference < high
    assert numbers(differences["overlap_ratio"])[1] > 0
    first, second = (run.metrics.overlap_ratio.sel(step=slice(5, None)) for run in names["runs"])
    # By step and by state are not quite the same mean.
    difference = numbers(differences["overlap_ratio"])[0]
    assert difference == pytest.approx(float(first.mean() - second.mean()), abs=0.01)
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG")


def test_self_distillation(run_script, monkeypatch):
    """A few steps: whether the solutions teach is a matter of the full script."""
    small = ["--seeds", "1", "--steps", "2", "--reader-steps", "2"]
    monkeypatch.setattr("sys.argv", ["self_distillation.py", *small])
    names, output = run_script("self_distillation.py")
    assert Path("self-distillation.png").read_bytes().startswith(b"\x89PNG")
    right, other, none = (
        open_run(f"runs/self-distillation/{arm}-0")
        for arm in ("right-solution", "solution-of-another-problem", "no-solution")
    )
    # The same first rollouts, of one model; only what the teacher read differs.
    for run in (other, none):
        for ids, same in zip(right.response_ids(0), run.response_ids(0), strict=True):
            assert ids.tolist() == same.tolist()
    read, asked = right.teacher_prompt_ids(0), right.prompt_ids(0)
    tokenizer = load_tokenizer("out/reader")
    for mine, student, wrong in zip(read, asked, other.teacher_prompt_ids(0), strict=True):
        question, text = tokenizer.decode(student), tokenizer.decode(mine)
        total = sum(int(word) for word in question.split() if word.isdigit())
        assert text.endswith(f"answer {total} <assistant>")
        assert text.startswith(question.removesuffix(" <assistant>"))
        assert tokenizer.decode(wrong).startswith(question.removesuffix(" <assistant>"))
    assert "teacher_prompt_ids" not in none.load(0)
    assert none.metrics.reverse_kl.sel(step=0) == 0  # the teacher is the student
    assert len(names["accuracy"]["no solution"]) == 1
    assert output.splitlines()[-1].startswith("right solution minus another's: ")


def test_the_notebook(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    for cell in cells.values():
        assert (cell.outputs, cell.execution_count) == ([], None), "commit it without outputs"

    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    for cell in cells.values():
        for output in cell.outputs:
            # tqdm misses ipywidgets, which would draw its bars.
            assert "Warning" not in output.get("text", "").replace("TqdmWarning", "")

    def shown(name, kind):
        return [o.data[kind] for o in cells[name].outputs if kind in o.get("data", {})]

    for name in ("curves", "heat", "figure"):
        assert shown(name, "image/png"), name
    (table,) = shown("tokens", "text/html")
    assert table.count("<tr") == 11
    run = open_run("runs/tour")
    assert run.steps == list(range(8))
    assert (tmp_path / "tour.png").exists()
    assert f"{float(run.load(0).reverse_kl.max()):.6f}" in table
