"""`opdprobe reproduce --preset real`: the models come first, and only those that are needed."""

import pytest

from opdprobe.cli import reproduce as reproduction
from opdprobe.cli.parser import main
from opdprobe.errors import OPDProbeError
from opdprobe.testing.real import members, zoo


class Reached(OPDProbeError):
    """The runs would begin here."""


@pytest.fixture
def until_the_runs(monkeypatch):
    """Pretend to build models; stop where their runs would begin. Returns what is built."""
    built = []

    def build_all(names, folder, base, **options):
        built.append((list(names), folder, base, options["workers"], options["dtype"]))
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / members.RECORD).write_text("{}")

    def run(preset, folder, **options):
        raise Reached(", ".join(sorted(set(preset.models.values()))))

    monkeypatch.setattr(zoo, "build_all", build_all)
    monkeypatch.setattr(reproduction, "reproduce", run)
    return built


def test_the_models_that_the_figures_need_are_built_first(until_the_runs, tmp_path, capsys):
    command = ["reproduce", "--preset", "real", "--base", "x/y", "--only", "fig06", "--out"]
    assert main([*command, str(tmp_path), "--workers", "1", "--device", "cpu"]) == 1
    names = ["student-large", "student-small", "rl-small"]
    folder = tmp_path / "real" / "zoo"
    assert until_the_runs == [(names, folder, "x/y", 1, None)]
    error = capsys.readouterr().err
    assert "base, student-large, student-small, rl-small; in " in " ".join(error.split())
    assert str(folder / "rl-small") in error


def test_without_a_base_model_the_models_must_be_there(until_the_runs, tmp_path, capsys):
    command = ["reproduce", "--preset", "real", "--only", "fig07", "--out", str(tmp_path)]
    assert main(command) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "student-small is not built; run `opdprobe zoo build student-small --world" in error
    for name in ("student-small", "rl-small"):
        path = tmp_path / "real/zoo" / name
        path.mkdir(parents=True)
        (path / members.RECORD).write_text("{}")
    assert main(command) == 1
    assert "Reached" in capsys.readouterr().err
    assert until_the_runs == []


@pytest.mark.parametrize("more", [[], ["--preset", "full"]])
def test_other_presets_have_models_of_their_own(more, tmp_path, capsys):
    assert main(["reproduce", "--base", "x/y", "--out", str(tmp_path), *more]) == 1
    assert "--base is for --preset real without --models" in capsys.readouterr().err
