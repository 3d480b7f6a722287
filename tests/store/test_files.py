"""Files and directories are written completely or not at all."""

import errno
import os

import pytest

from opdprobe.errors import StoreError
from opdprobe.store.files import (
    Tail,
    open_append,
    read_lines,
    remove_directory,
    remove_files,
    remove_temporaries,
    write_directory,
    write_text,
    write_whole,
)


def names(path):
    return sorted(p.name for p in path.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_replaces_the_one_before(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    write_text(file, "né\n")
    assert file.read_bytes() == "né\n".encode()
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_fails_midway_leaves_the_one_before(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fill(handle):
        handle.write(b"half")
        full()

    with pytest.raises(StoreError, match=r"disk full while writing .*a\.txt .*free some space"):
        write_whole(file, fill)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_does_not_replace_a_directory(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StoreError, match="is a directory; expected the name of a file"):
        write_text(tmp_path / "a", "")


def test_a_directory_replaces_the_one_before(tmp_path):
    path = tmp_path / "above" / "model"
    with write_directory(path) as directory:
        (directory / "old.txt").write_text("whole")
        assert not path.exists()
    with write_directory(path) as directory:
        (directory / "new.txt").write_text("whole")
        assert names(path) == ["old.txt"]
    assert names(path) == ["new.txt"]
    assert names(path.parent) == ["model"]


@pytest.mark.parametrize("fails", ["fill", "fsync", "replace"])
def test_a_directory_that_fails_midway_leaves_the_one_before(tmp_path, monkeypatch, fails):
    path = tmp_path / "model"
    with write_directory(path) as directory:
        (directory / "a.txt").write_text("old")

    def replace_it():
        with write_directory(path) as directory:
            (directory / "a.txt").write_text("new")
            if fails == "fill":
                full()

    with monkeypatch.context() as patch:
        if fails != "fill":
            patch.setattr(os, fails, full)
        with pytest.raises(StoreError, match=r"could not write .*model \(.*No space.*free some"):
            replace_it()
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_another_exception_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), write_directory(tmp_path / "model") as directory:
        (directory / "a.txt").write_text(str(1 / 0))
    assert names(tmp_path) == []


def test_a_directory_is_deleted_under_another_name(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    seen = []
    monkeypatch.setattr("shutil.rmtree", seen.append)
    remove_directory(tmp_path / "model")
    assert names(tmp_path) == [seen[0].name]
    assert seen[0].name.startswith(".tmp-old-model-")


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    file = tmp_path / "report.html"

    def fill(handle):
        write_text(file, "of the other")
        assert file.read_text() == "of the other"
        handle.write(b"own")

    write_whole(file, fill)
    assert file.read_text() == "own"
    assert names(tmp_path) == ["report.html"]


def test_two_writers_of_one_directory_do_not_meet(tmp_path):
    with write_directory(tmp_path / "model") as one, write_directory(tmp_path / "model") as other:
        (one / "a").write_text("1")
        (other / "b").write_text("2")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["a"]


def test_a_directory_that_a_process_left_long_ago_is_removed(tmp_path):
    for name in ("model-01234567", "old-model-01234567", "model-2-01234567", "model"):
        (tmp_path / f".tmp-{name}").mkdir()
        os.utime(tmp_path / f".tmp-{name}", (0, 0))
    (tmp_path / ".tmp-model-89abcdef").mkdir()  # of a process that may be alive
    with write_directory(tmp_path / "model"):
        pass
    assert names(tmp_path) == [
        ".tmp-model",
        ".tmp-model-2-01234567",
        ".tmp-model-89abcdef",
        "model",
    ]


def test_a_file_goes_where_its_directory_was_when_writing_began(tmp_path):
    (tmp_path / "steps").mkdir()
    (tmp_path / "elsewhere").mkdir()

    def swap(handle):
        handle.write(b"whole")
        (tmp_path / "steps").rename(tmp_path / "before")
        (tmp_path / "steps").symlink_to(tmp_path / "elsewhere")

    write_whole(tmp_path / "steps/000001", swap)
    assert names(tmp_path / "before") == ["000001"]
    assert names(tmp_path / "elsewhere") == []
    with pytest.raises(StoreError, match=r"steps is a link to .*elsewhere, which is not followed"):
        write_whole(tmp_path / "steps/000001", lambda handle: handle.write(b""), follow=False)
    with pytest.raises(StoreError, match=r"steps is a link to .*elsewhere, which is not followed"):
        remove_files(tmp_path / "steps", ["000001"])


def test_only_files_of_a_directory_are_removed(tmp_path):
    for name in ("a", "b", "kept"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_files(tmp_path, ["a", "link", "absent"])
    assert names(tmp_path) == ["b", "kept"]


def test_a_file_with_a_second_name_is_copied_before_it_grows(tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("1\n")
    os.link(tmp_path / "kept", tmp_path / "grows")
    with open_append(tmp_path / "grows") as file:
        assert file.tell() == 2
        file.write(b"2\n")
    assert (tmp_path / "kept").read_text() == "1\n"
    assert (tmp_path / "grows").read_text() == "1\n2\n"
    os.link(tmp_path / "kept", tmp_path / "again")
    monkeypatch.setattr("opdprobe.store.files.write_whole", lambda *_: None)
    with pytest.raises(StoreError, match=r"again has a second name \(a hard link\)"):
        open_append(tmp_path / "again")


@pytest.mark.parametrize("target", ["victim", "absent"])
def test_nothing_is_written_or_deleted_through_a_link(tmp_path, target):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.mkdir()
    (victim / "file").write_text("precious")
    link.symlink_to(tmp_path / target, target_is_directory=True)
    with pytest.raises(StoreError, match=f"link is a link to .*{target}, which is not followed"):
        write_text(link, "")
    with (
        pytest.raises(StoreError, match=f"link is a link to .*{target}, which is not followed"),
        write_directory(link),
    ):
        raise AssertionError
    with pytest.raises(StoreError, match=f"link is a link to .*{target}, which is not followed"):
        open_append(link)
    remove_directory(link)
    with write_directory(tmp_path / "model") as directory:
        (directory / "a.txt").write_text("whole")
    assert names(tmp_path) == ["model", "victim"]
    assert names(tmp_path / "model") == ["a.txt"]
    assert (victim / "file").read_text() == "precious"


def test_temporaries_of_either_kind_are_removed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / ".tmp-file").write_text("half")
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / ".tmp-folder" / "file").write_text("half")
    (tmp_path / ".tmp-link").symlink_to(tmp_path / "kept", target_is_directory=True)
    remove_temporaries(tmp_path, "run.json")
    assert len(names(tmp_path)) == 4
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "absent")
    assert names(tmp_path) == ["kept"]


def test_an_incomplete_last_line_is_left_out(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert read_lines(file) == []
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(file) == [{"a": 1}, {"a": 2}]
    file.write_text("[1]\n")
    with pytest.raises(StoreError, match=r"lines\.jsonl, line 1: \[1\] is not an object"):
        read_lines(file)


def test_a_tail_reads_each_line_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert tail.read() == ([], False)
    file.write_text('{"step": 1}\n{"step": 2')
    assert tail.read() == ([{"step": 1}], False)
    assert tail.read() == ([], False)
    with open(file, "a") as more:
        more.write(', "é": 1}\n')
    assert tail.read() == ([{"step": 2, "é": 1}], False)
    with open(file, "a") as more:
        more.write('{"step": "3"}\n')
    for _ in range(2):  # it stays an error
        with pytest.raises(
            StoreError, match=r"metrics\.jsonl, line 3: step = '3'; expected an int"
        ):
            tail.read()


@pytest.mark.parametrize("how", ["shortened", "other lines", "another file"])
def test_a_tail_begins_anew_in_another_file(tmp_path, how):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n')
    tail = Tail(file)
    tail.read()
    if how == "another file":
        other = tmp_path / "other"
        other.write_text('{"step": 1}\n{"step": 2}\n')
        other.replace(file)
        want = [{"step": 1}, {"step": 2}]
    else:  # the same inode
        want = [{"step": 1}] + [{"step": 3}] * (how == "other lines")
        with open(file, "r+") as same:
            same.truncate()
            same.write("".join(f'{{"step": {line["step"]}}}\n' for line in want))
    assert tail.read() == (want, True)
    assert tail.read() == ([], False)
    file.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)
