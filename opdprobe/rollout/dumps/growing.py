"""Read dumps that are still being written, as their steps become complete."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from opdprobe.errors import RolloutError
from opdprobe.rollout.dumps.files import PICKLES, kind_of
from opdprobe.rollout.dumps.format import step_in
from opdprobe.rollout.dumps.read import DumpReader, NoDump, first_row, fits, order
from opdprobe.rollout.prompt import OnError
from opdprobe.rollout.rollout import Rollout


class GrowingDump(DumpReader):
    """Dumps that are still being written.

    A step is complete when a later one has begun: a file that names its step is read once a file of
    a later step has its first row (or, being a pickle, exists). A file of JSON lines that names
    none is read line by line as it grows, until such a file follows it; any other file is read
    once one follows it.

    Parameters
    ----------
    paths, format, step, on_error
        As for `DumpReader`; there need not be a file yet.
    wait
        Called with what is waited for, after all that is complete was read. Returns True after a
        while, or False to take the rest as complete and end.

    Raises
    ------
    RolloutError, ConfigError
        As for `DumpReader`; that there is no file only if the waiting has ended.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        format: str | None = None,
        *,
        wait: Callable[[str], bool],
        step: int | None = None,
        on_error: OnError = "raise",
    ):
        self._wait = wait
        self._ended = False
        self._fits: dict[Path, bool] = {}
        self._known_format = False
        super().__init__(paths, format, step=step, on_error=on_error)
        self._known_format = True
        self.files = self._next_files(set())

    def __iter__(self) -> Iterator[Rollout | None]:
        """Yield rollouts, and None where a step is complete before one of a later step comes."""
        read: set[Path] = set()
        new = self.files
        while True:
            ended = self._ended
            for path, following in zip(new, [*new[1:], None], strict=False):
                read.add(path)
                yield from self._rollouts(path, self._at_end(path) if self._grows(path) else None)
                own = self._step_in(path)
                is_last = following is None or self._step_in(following) != own
                if own is not None and own == self._before and is_last:
                    yield None
            new = self._next_files(read)
            if not new and ended:
                return
            if not new:
                self._pause()
                new = self._next_files(read)

    def _next_files(self, read: set[Path]) -> list[Path]:
        new = [path for path in self._complete() if path not in read]
        for path in new:
            if not self._is_one(path):
                read.add(path)
                self.left_out.append(f"{path}: not of the format {self.format.name}")
        return self._in_order(path for path in new if path not in read)

    def _is_one(self, path: Path) -> bool:
        """Whether a file is of the format; before its first row is there, only at the end."""
        if path not in self._fits:
            if kind_of(path) not in self.format.kinds:
                self._fits[path] = False
            elif self.format.kinds == PICKLES:  # they are not loaded to be looked at
                self._fits[path] = fits(self.format, path)
            else:
                try:
                    row = first_row(path)
                except RolloutError:  # half-written; reading it at the end names a fault that stays
                    row = None
                if row is None:
                    return self._ended
                self._fits[path] = self.format.fits(row.data, path)
        return self._fits[path]

    def _found(self, named: Sequence[str | Path]) -> dict[Path, bool]:
        files = super()._found(named)
        self.left_out = list(dict.fromkeys(self.left_out))
        return files

    def _pause(self) -> None:
        until = "" if self._before is None else f", read up to step {self._before}"
        self._ended = self._ended or not self._wait(f"{self._shown()}{until}: waiting for more")

    def _shown(self) -> str:
        return ", ".join(map(str, self._named))

    def _first_files(self) -> dict[Path, bool]:
        while not (files := self._complete()) and not self._ended:
            self._ended = not self._wait(f"{self._shown()}: waiting for a step to be complete")
        return files or self._found(self._named)

    def _complete(self) -> dict[Path, bool]:
        """Find the files that can be read now; at the end, all."""
        try:
            files = self._found(self._named)
        except NoDump:
            return {}
        if self._ended:
            return files
        inside = self._in_order(files)
        if not inside:
            return {}
        last = inside[-1]
        latest = self._step_in(last)
        return {
            path: files[path]
            for path in inside
            if (
                _has_line(path)
                if self._grows(path)
                else path != last and (latest is None or self._step_in(path) != latest)
            )
        }

    def _in_order(self, files: Iterable[Path]) -> list[Path]:
        """Sort files; leave out those of other formats, once the format is known."""
        known = self._known_format
        some = (path for path in files if not known or self._is_one(path))
        return sorted(some, key=lambda path: order(path, self._step_in(path)))

    def _step_in(self, path: Path) -> int | None:
        return self.format.step_in(path) if self._known_format else step_in(path)

    def _grows(self, path: Path) -> bool:
        """Whether a file is read while it grows: plain JSON lines, of several steps."""
        return path.suffix.lower() == ".jsonl" and self._step_in(path) is None

    def _at_end(self, path: Path) -> Callable[[], bool]:
        """Say whether a file that grows is complete; wait if it is not."""
        seen = False

        def at_end() -> bool:
            nonlocal seen
            if self._ended or seen:
                return True
            if self._in_order(self._found(self._named))[-1] != path:
                seen = True  # its last lines may have come since the last look
                return False
            self._pause()
            return False

        return at_end


def _has_line(path: Path) -> bool:
    with open(path, "rb") as file:
        return any(b"\n" in block for block in iter(lambda: file.read(2**16), b""))
