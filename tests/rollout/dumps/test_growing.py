"""Dumps that are still being written: steps come as they are complete, and nothing half-written."""

import json
import logging

import made_dumps as made
import pytest

from opdprobe import RolloutError
from opdprobe.rollout.dumps.growing import GrowingDump


def read(path, *acts, format=None):
    """Read a dump in whose pauses a part of the world happens.

    Each act happens in one pause; in the pause after the last one the dump ends.
    """
    pauses, left = [], list(acts)
    found = []

    def wait(what):
        pauses.append(what)
        found.append("pause")
        if not left:
            return False
        left.pop(0)()
        return True

    dump = GrowingDump(path, format, wait=wait)
    for rollout in dump:
        found.append("complete" if rollout is None else rollout.step)
    return found, pauses, dump


def appending(path, text):
    def act():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(text)

    return act


def verl(step):
    row = {"input": "7 8", "output": "9", "gts": "9", "score": 1.0, "step": step}
    return json.dumps(row) + "\n"


def swift(step, completion="9"):
    row = {"step": [step], "prompt": ["7 8"], "completion": [completion], "Acc": [1.0]}
    return json.dumps(row) + "\n"


def test_a_file_of_a_step_is_read_once_there_is_a_later_one(tmp_path):
    dump = tmp_path / "dump"
    found, pauses, _ = read(
        dump,
        dump.mkdir,
        appending(dump / "1.jsonl", verl(1) + verl(1)[:9]),  # half a line, too
        appending(dump / "1.jsonl", verl(1)[9:]),
        appending(dump / "2.jsonl", verl(2)),
        appending(dump / "10.jsonl", verl(10)),
        appending(dump / "10.jsonl", verl(10)),
    )
    waiting = ["pause"] * 4
    assert found == [
        *(*waiting, 1, 1, "complete", "pause"),
        *(2, "complete", "pause", "pause", 10, 10, "complete"),
    ]
    assert pauses[0] == f"{dump}: waiting for a step to be complete"
    assert pauses[4:6] == [f"{dump}, read up to step {n}: waiting for more" for n in (1, 2)]


def test_a_file_of_many_steps_is_read_line_by_line(tmp_path):
    file = tmp_path / "completions.jsonl"
    line = swift("2")
    found, _, _ = read(
        file,
        appending(file, swift("1")[:5]),
        appending(file, swift("1")[5:] + line[:20]),
        appending(file, line[20:-1]),
        appending(file, line[-1]),
        appending(file, swift("3") + swift("3", "10") + swift("3", "10")),
    )
    # The last line says what the one before it does: the batch was logged once more at the end.
    assert found == ["pause"] * 2 + [1, "pause", "pause", 2, "pause", 3, 3, "pause"]


@pytest.mark.parametrize(("cut", "steps"), [(0, [1]), (-1, [1, 2]), (-9, [1])])
def test_a_last_line_without_its_end_is_read_if_it_is_whole(tmp_path, caplog, cut, steps):
    file = tmp_path / "completions.jsonl"
    file.write_text(swift("1") + swift("2")[:cut])
    with caplog.at_level(logging.WARNING, "opdprobe"):
        found, _, _ = read(file)
    assert [one for one in found if one != "pause"] == steps
    said = f"{file}: its last line is half-written ({len(swift('2')) - 9} bytes), and is left out."
    assert [record.message for record in caplog.records] == ([said] if cut == -9 else [])


def test_a_file_is_complete_once_another_follows_it(tmp_path):
    first, second = (tmp_path / f"r_rollouts_00000{i}.jsonl" for i in (1, 2))
    rows = made.open_instruct(tmp_path / "made")
    text = next(rows.rglob("*.jsonl")).read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in text]
    change = next(i for i, step in enumerate(steps) if step != steps[0])
    found, _, _ = read(
        str(tmp_path / "*.jsonl"),
        appending(first, "".join(text[:change])),
        appending(second, "".join(text[change:]) + "\n"),
    )
    assert [one for one in found if one not in ("pause", "complete")] == steps
    assert found[-1] == "pause"  # the second may still grow


def test_files_of_other_formats_end_nothing(tmp_path):
    file = tmp_path / "completions.jsonl"
    file.write_text(swift("1"))
    found, _, dump = read(
        tmp_path,
        appending(tmp_path / "trainer.jsonl", '{"loss": 1}\n'),
        appending(tmp_path / "z.json", '{"loss": 1}'),
        appending(file, swift("2")),
    )
    assert found == [1, "pause", "pause", "pause", 2, "pause"]
    assert (
        sorted(line.split(": ")[1] for line in dump.left_out) == ["not of the format ms-swift"] * 2
    )


def test_a_half_written_table_is_not_touched(tmp_path):
    folder = made.trl(tmp_path / "dump") / "completions"
    second = folder / "completions_00002.parquet"
    whole = second.read_bytes()
    second.write_bytes(whole[:50])
    third = folder / "completions_00003.parquet"
    found, _, _ = read(
        folder,
        lambda: None,
        lambda: (second.write_bytes(whole), third.write_bytes(whole[:60])),
        lambda: third.unlink(),
    )
    # The first is complete once the second can be read: until then it may be anything.
    assert found == [
        *("pause", "pause", 1, 1, "complete"),
        *("pause", "pause", 2, 2, "complete"),
    ]


def test_a_file_without_a_row_ends_nothing(tmp_path):
    file = tmp_path / "completions.jsonl"
    file.write_text(swift("1"))
    other = tmp_path / "trainer.jsonl"
    found, _, _ = read(tmp_path, other.touch, lambda: other.write_text('{"loss": 1}\n'),
                       appending(file, swift("2")))  # fmt: skip
    assert found == [1, "pause", "pause", "pause", 2, "pause"]


def test_what_stays_torn_is_named_at_the_end(tmp_path):
    folder = made.trl(tmp_path / "dump") / "completions"
    (folder / "completions_00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(RolloutError, match=r"completions_00002\.parquet: not a readable parquet"):
        read(folder)


def test_a_file_named_by_its_task_says_nothing_of_its_step(tmp_path):
    source = (made.areal(tmp_path / "made") / "rollout" / "1" / "7.jsonl").read_text()
    row = json.loads(source.splitlines()[0])
    dump = tmp_path / "dump"

    def task(version, number):
        line = json.dumps({**row, "tail_version": version}) + "\n"
        return appending(dump / "rollout" / f"{version}" / f"{number}.jsonl", line)

    # Task 9 belongs to the first version, although its number is higher than that of the second's.
    found, _, _ = read(dump, task(1, 9), task(1, 1), task(2, 5), task(3, 2))
    steps = [one for one in found if one != "pause"]
    assert steps == [1, 1, "complete", 2, "complete", 3, "complete"]


def test_a_file_that_is_shortened_is_refused(tmp_path):
    file = tmp_path / "completions.jsonl"
    file.write_text(swift("1") * 2)
    with pytest.raises(RolloutError, match=r"completions\.jsonl: was shortened while it was read"):
        read(file, lambda: file.write_text(swift("1")))


def test_without_any_file_the_end_names_what_is_missing(tmp_path):
    with pytest.raises(RolloutError, match="no such file or directory"):
        read(tmp_path / "none", lambda: None)


def test_an_unknown_kind_of_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(RolloutError, match=r"a file of kind '\.txt'"):
        read(tmp_path / "a.txt", lambda: pytest.fail("waited"))
