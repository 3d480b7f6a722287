"""A run as one file: what pandas reads from it is what the run holds."""

import io

import numpy as np
import pandas as pd
import pytest

from opdprobe import ConfigError
from opdprobe.cli.parser import main
from opdprobe.testing import synthetic_run

READ = {
    "parquet": pd.read_parquet,
    "csv": pd.read_csv,
    "jsonl": lambda path: pd.read_json(
        io.StringIO(path.read_text()), lines=True, precise_float=True
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    return synthetic_run(folder, steps=[0, 5], n_rollouts=3, length=[2, 0, 4], k=4, given=True)


def test_a_row_is_a_token(run):
    got, ds = run.to_dataframe(5), run.load(5)
    assert len(got) == 6
    assert got.position.tolist() == [0, 1, 0, 1, 2, 3]
    assert got.prompt_id.tolist() == ["prompt-0"] * 2 + ["prompt-2"] * 4
    np.testing.assert_array_equal(got.teacher_entropy, ds.entropy.sel(model="teacher"))
    stop = ds.stop_logp.sel(model="teacher", support="teacher")
    np.testing.assert_array_equal(got.teacher_stop_logp, stop)
    np.testing.assert_array_equal(got.sampler_logp, ds.sampler_logp)
    assert set(got.label_domain) == {"mathematics"}
    assert not {"token_id", "logp", "match"} & set(got)


def test_a_row_is_a_rollout(run):
    got = run.to_dataframe(5, by="rollout")
    assert got.length.tolist() == [2, 0, 4]
    assert [list(ids) for ids in got.response_ids] == [list(ids) for ids in run.response_ids(5)]
    assert [list(ids) for ids in got.prompt_ids] == [list(ids) for ids in run.prompt_ids(5)]
    assert got.label_domain.tolist() == ["mathematics", "code", "mathematics"]
    assert got.step.tolist() == [5, 5, 5]
    with pytest.raises(ConfigError, match="by = 'state'; expected 'token' or 'rollout'"):
        run.to_dataframe(5, by="state")


@pytest.mark.parametrize("by", ["token", "rollout"])
@pytest.mark.parametrize("form", READ)
def test_a_file_holds_all_steps(run, form, by, tmp_path, capsys):
    out = tmp_path / "made" / f"out.{form}"
    words = ["export", str(run.path), "--to", form, "--by", by, "--out", str(out)]
    assert main(words) == 0
    assert "2 steps" in capsys.readouterr().out
    want = pd.concat([run.to_dataframe(step, by=by) for step in run.steps], ignore_index=True)
    got = READ[form](out)
    assert list(got) == list(want)
    for name in want.select_dtypes("number"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)
    assert got.prompt_id.tolist() == want.prompt_id.tolist()
    if by == "rollout" and form != "csv":
        assert [list(ids) for ids in got.response_ids] == [list(ids) for ids in want.response_ids]


def test_some_steps_into_the_run(run, capsys):
    assert main(["export", str(run.path), "--steps", "5"]) == 0
    assert set(pd.read_parquet(run.path / "tokens.parquet").step) == {5}
    assert main(["export", str(run.path), "--steps", "6"]) == 1
    assert "has no step 6" in capsys.readouterr().err
