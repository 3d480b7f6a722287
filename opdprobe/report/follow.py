"""Follow a run that grows: its course so far, made from what is new since the last look."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.probes.rollout_sums import RolloutSums, join_sums
from opdprobe.report.course import Course, join_scores, planned_steps, sum_quantities
from opdprobe.store import Run, open_run
from opdprobe.store.columns import columns
from opdprobe.store.files import Tail
from opdprobe.store.stream import batches

_Version = tuple[tuple[str, int, int, int], ...]  # of a step's files


class Follower:
    """The course of a run that may still be growing.

    A look reads new and replaced steps, and the new lines of metrics and evaluations. Sums by
    rollout are kept, about 300 bytes a rollout; states are not.

    Parameters
    ----------
    path
        Directory of a run.

    Attributes
    ----------
    run
        The run, as of the last look.
    ended
        Whether the run had ended before the last look. Only `opdprobe.OPDTrainer` with
        ``max_steps`` says so, by its last checkpoint.
    written
        When the run was last written to before the last look, in seconds since 1970; 0 if it holds
        nothing.
    evaluations
        By benchmark and step, the mean score of each problem.

    Raises
    ------
    StoreError
        As `opdprobe.open_run`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.store import RunWriter
    >>> from opdprobe.testing import synthetic_run, synthetic_step
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(folder, steps=[0, 10])
    ...     follower = Follower(run.path)
    ...     first, again = follower.look(), follower.look()
    ...     writer = RunWriter(folder, attrs=run.attrs, config=run.config, resume=True)
    ...     file = writer.write_step(20, synthetic_step(20))
    ...     later = follower.look()
    >>> first, again, later, follower.course().steps
    (True, False, True, [0, 10, 20])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(open_run(path))

    def _begin(self, run: Run) -> None:
        self.run = run
        self.ended = False
        self.written = 0.0
        self.evaluations: dict[str, dict[int, NDArray[np.float64]]] = {}
        self._sums: dict[int, tuple[_Version, RolloutSums]] = {}
        self._unreadable: dict[int, tuple[_Version, str]] = {}
        self._problems: dict[str, list[str]] = {}
        self._metrics: dict[int, dict[str, float]] = {}
        self._metric_lines = Tail(run.path / "metrics.jsonl")
        self._evaluation_lines = Tail(run.path / "evaluations.jsonl")

    def look(self, on_progress: Callable[[int, int], None] | None = None) -> bool:
        """Read what is new.

        Parameters
        ----------
        on_progress
            Called with (new steps read, new steps in total).

        Returns
        -------
        bool
            Whether anything differs from the last look.

        Raises
        ------
        StoreError
            The run cannot be opened any more, or a line of metrics or evaluations is broken. A step
            that cannot be read is no error: see `unreadable`.
        """
        run = open_run(self.path)
        if run.attrs != self.run.attrs:  # another run was begun in this directory
            self._begin(run)
        self.run = run
        self.ended = _ended(run)  # before reading, so that the last look has all
        changed = self._read_lines()
        try:
            versions = {step: _version(files) for step, files in run.files.items()}
            kept = {step: old for step, old in self._sums.items() if versions.get(step) == old[0]}
            changed |= len(kept) < len(self._sums)
            self._sums = kept
            self._unreadable = {
                step: old for step, old in self._unreadable.items() if versions.get(step) == old[0]
            }
            new = versions.keys() - self._sums.keys() - self._unreadable.keys()
            todo = batches(run, steps=new)
        except FileNotFoundError:
            # A file was removed after it was listed, as when a run is rolled back: the next look
            # does not list it.
            return changed
        done = 0
        for batch in todo:
            self._take(batch, versions)
            done += len(batch)
            if on_progress:
                on_progress(done, len(new))
        self.written = max(
            [self.written, *(file[3] / 1e9 for v in versions.values() for file in v)]
        )
        return changed or bool(new & self._sums.keys())

    def _take(self, steps: Sequence[int], versions: dict[int, _Version]) -> None:
        try:
            sums = sum_quantities(self.run, steps)
        except StoreError as error:
            if len(steps) == 1:
                self._unreadable[steps[0]] = versions[steps[0]], str(error)
                return
            for step in steps:  # one of them is torn, or of another form
                self._take([step], versions)
            return
        for place, step in enumerate(steps):
            self._sums[step] = versions[step], sums.at(place)

    def _read_lines(self) -> bool:
        lines, anew = self._metric_lines.read()
        if anew:
            self._metrics = {}
        for line in lines:
            self._metrics.setdefault(line["step"], {}).update(line)
        evaluations, other = self._evaluation_lines.read()
        if other:
            self.evaluations, self._problems = {}, {}
        for line in evaluations:
            name, ids = line["benchmark"], line["prompt_id"]
            if self._problems.setdefault(name, ids) != ids:
                raise StoreError(
                    f"{self.path}: the problems of {name!r} differ between steps; "
                    "expected the same ones at every step."
                )
            scores = np.asarray(line["score"], np.float64)
            self.evaluations.setdefault(name, {})[line["step"]] = scores
        if lines or evaluations:
            paths = (self._metric_lines.path, self._evaluation_lines.path)
            times = [path.stat().st_mtime for path in paths if path.exists()]
            self.written = max([self.written, *times])
        return anew or other or bool(lines or evaluations)

    def unreadable(self) -> dict[int, str]:
        """Return the steps that cannot be read although later ones can, and why.

        A last step that cannot be read is being copied: it is not there yet.
        """
        last = max(self._sums, default=-1)
        return {step: why for step, (_, why) in sorted(self._unreadable.items()) if step < last}

    def readable(self) -> dict[int, _Version]:
        """Return the steps that could be read, each with what identifies its files' content."""
        return {step: version for step, (version, _) in sorted(self._sums.items())}

    def course(self) -> Course:
        """Return the course so far, which may have no step yet.

        It lacks what the rollouts brought (`Course.reported`) and the heavy tail (`Course.tail`),
        for which steps would be read again.
        """
        evaluated, scores = join_scores(self.evaluations)
        return Course(
            label=self.path.resolve().name,
            config=self.run.config,
            sums=join_sums([self._sums[step][1] for step in sorted(self._sums)]),
            metrics=columns(self._metrics, str(self.path / "metrics.jsonl")),
            evaluated=evaluated,
            scores=scores,
        )


def _ended(run: Run) -> bool:
    """Whether the last checkpoint, which is the last thing that a trainer writes, is there."""
    planned = planned_steps(run.config)
    return planned is not None and (run.path / "checkpoints" / f"{planned:06d}").is_dir()


def _version(files: Sequence[Path]) -> _Version:
    found = ((file.name, file.stat()) for file in files)
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found)
