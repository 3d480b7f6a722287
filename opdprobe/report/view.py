"""The token viewer: one HTML page that shows every token of every rollout of one run or two.

The page holds its data as compressed blocks, one per recorded step, and unpacks a step when the
reader opens it. It loads nothing and runs only its own script. All text from models, prompts and
tokenizers is inside the blocks and is shown as plain text.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes.quantities import QUANTITIES
from opdprobe.probes.thinning import thinned
from opdprobe.report.run_tokens import RunTokens
from opdprobe.report.selection import TITLES
from opdprobe.report.token_text import TokenTexts
from opdprobe.report.view_data import VIEWED, level_bounds, pack_json, pack_step, selectable
from opdprobe.store import Run
from opdprobe.store.files import OddFileError, refuse_links, within, write_text
from opdprobe.store.prompt_form import prompt_form
from opdprobe.store.step import read_counts

_SCRIPTS = ("view_data.js", "view_draw.js", "view_find.js", "view.js")
_FEWEST_STEPS = 12  # a page that is too large drops steps first, down to this number; then rollouts


def write_view(
    path: str | Path,
    runs: Sequence[Run],
    *,
    steps: Sequence[int] | None = None,
    rollouts: int | None = None,
    tokenizer: str | Path | None = None,
    max_mb: float = 20,
    keep: Sequence[Sequence[int]] = (),
    tokens: Sequence[RunTokens] | None = None,
) -> list[str]:
    """Write the viewer's page, which is self-contained; the file appears only when complete.

    Its tables of the whole run count every recorded step, shown or not, one at a time.

    Parameters
    ----------
    path : path-like
        The HTML file, replaced if it exists.
    runs : sequence of Run
        One run, or two to compare.
    steps : sequence of int, optional
        Recorded steps to show. Default: all; with two runs, the steps that both have, or all steps
        of each if they share none.
    rollouts : int, optional
        Show only the first `rollouts` rollouts of each step. Default: all.
    tokenizer : path-like, optional
        A ``tokenizer.json`` or a directory that has one. Default: the tokenizer kept in the run,
        or in its last checkpoint, or that of the student if it is a directory.
    max_mb : float
        Largest size of the page in MB (10⁶ bytes). If the runs need more, steps are left out
        evenly, down to 12, then rollouts from the end.
    keep : sequence of sequence of int, optional
        Per run, steps to show even if others are left out, for example those that a page links to.
    tokens : sequence of RunTokens, optional
        Per run, its tokens as counted already, for a page that is written again. Default: counted
        here.

    Returns
    -------
    list of str
        What the page does not show, and why. The page shows these notices as well.

    Raises
    ------
    ConfigError
        The number of runs is neither one nor two, a number is not positive, or `max_mb` is too
        small for one rollout.
    ModelError
        There is no readable tokenizer at `tokenizer`.
    StoreError
        A run lacks one of `steps`, or has no recorded step; or `path` is a link.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(folder + "/mine", steps=[0, 10])
    ...     write_view(folder + "/view.html", [run])
    ["mine: no tokenizer in the run or at 'synthetic student', so tokens are shown as ids; ..."]
    """
    if len(runs) not in (1, 2):
        raise ConfigError(f"{len(runs)} runs to view; expected one, or two to compare.")
    if rollouts is not None and rollouts < 1:
        raise ConfigError(f"rollouts = {rollouts}; expected at least 1.")
    if not max_mb > 0:
        raise ConfigError(f"max_mb = {max_mb}; expected more than 0.")
    refuse_links(Path(path))  # before the work
    found = [token_texts(run, tokenizer) for run in runs]
    labels = run_labels(runs)
    notices = [f"{label}: {what}" for label, (_, what) in zip(labels, found, strict=True) if what]
    wanted = [_steps(run, runs, steps) for run in runs]
    notices += [
        f"{label}: {text}."
        for run, label, some in zip(runs, labels, wanted, strict=True)
        if (text := thinned(run, steps=some))
    ]
    linked = [sorted(set(some)) for some in keep] or [[] for _ in runs]
    if len(runs) == 2 and steps is None and wanted != [run.steps for run in runs]:
        also = ", and those linked to," if any(linked) else ""
        notices.append(
            f"Only steps that both runs have{also} are shown; both have {len(wanted[0])}."
        )
    offered = [sorted({*some, *more}) for some, more in zip(wanted, linked, strict=True)]
    counts = [
        {step: read_counts(files[step]) for step in some}
        for files, some in zip([run.files for run in runs], offered, strict=True)
    ]
    most = max(n_rollout for some in counts for _, n_rollout in some.values())
    rows = most if rollouts is None else min(rollouts, most)
    middle = runs[0].load(offered[0][len(offered[0]) // 2])
    sample = pack_step(middle, min(rows, 8))
    per_state = len(sample.block) / max(sample.columns["n"], 1)

    tables = [
        _tables(run, texts, counted)
        for run, (texts, _), counted in zip(runs, found, tokens or _counted(runs), strict=True)
    ]
    budget = limit = max_mb * 1e6
    while True:
        kept, kept_rows = _thin(counts, linked, rows, per_state, budget)
        left_out = _left_out(offered, kept, any(linked), rows, kept_rows, max_mb)
        page = _page(
            *(runs, labels, [texts for texts, _ in found]),
            *(tables, kept, kept_rows, left_out + notices),
        )
        size = len(page.encode())
        if size <= limit:
            break
        fewest = [1 + len(some) for some in linked]
        if kept_rows == 1 and all(len(some) <= n for some, n in zip(kept, fewest, strict=True)):
            raise ConfigError(
                f"max_mb = {max_mb:g}; one rollout takes {size / 1e6:.2g} MB: raise max_mb "
                "(--max-mb)."
            )
        budget *= 0.9 * limit / size  # states may exceed the sample's, and texts add to them
    _replace(Path(path), page)
    return left_out + notices


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by their directories, or by their full paths if those names are equal."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def token_texts(run: Run, given: str | Path | None = None) -> tuple[TokenTexts, str | None]:
    """Find the texts of a run's tokens, and describe a problem with them, if any."""
    student = model_name(run, "student")
    if given is None:
        # The run's own copy is the tokenizer it used; the student's directory may have changed.
        # An older trainer's run has it in its checkpoints alone.
        folders = [run.path / "tokenizer", *sorted(run.path.glob("checkpoints/*"), reverse=True)]
        given = next((f for f in folders if (f / "tokenizer.json").is_file()), None)
        if given is not None:
            _check_within(Path(given, "tokenizer.json"), run.path)
        elif student and Path(student, "tokenizer.json").is_file():
            given = student
    if given is None:
        return TokenTexts(), (
            f"no tokenizer in the run or at {student!r}, so tokens are shown as ids; "
            "name a directory that has a tokenizer.json with --tokenizer."
        )
    texts = TokenTexts(given)
    expected = run.attrs.get("vocabulary", texts.size)
    if texts.size == expected:
        return texts, None
    return texts, (
        f"the tokenizer at {given} has {texts.size} tokens and the run's had {expected}, "
        "so the text may be wrong; name the run's own tokenizer with --tokenizer."
    )


def _check_within(file: Path, run_dir: Path) -> None:
    try:
        within(file, run_dir)
    except OddFileError as error:
        raise StoreError(f"{file} cannot be read ({error}): restore the file.") from error


def model_name(run: Run, role: str) -> str | None:
    """Name of a model; another writer of the run may have stored a bare name, or none."""
    model = run.attrs.get(role)
    name = model.get("name") if isinstance(model, dict) else model
    return name if isinstance(name, str) else None


def short_name(name: str | None) -> str | None:
    """Remove the directory of a local model from its name: a page may be passed on."""
    return Path(name).name if name and Path(name).is_absolute() else name


def _steps(run: Run, runs: Sequence[Run], given: Sequence[int] | None) -> list[int]:
    recorded = run.steps
    if not recorded:
        raise StoreError(f"{run.path} has no recorded step to view; record some (record_every).")
    if given is None:
        return sorted(set.intersection(*(set(other.steps) for other in runs))) or recorded
    if missing := sorted(set(given) - set(recorded)):
        raise StoreError(
            f"{run.path} has no step {', '.join(map(str, missing))}; it has {len(recorded)} "
            f"from {recorded[0]} to {recorded[-1]}."
        )
    return sorted(set(given))


def _thin(
    counts: list[dict[int, tuple[int, int]]],
    linked: list[list[int]],
    rows: int,
    per_state: float,
    budget: float,
) -> tuple[list[list[int]], int]:
    """Choose the steps of each run, and the rollouts per step, that should fit into `budget`."""

    def chosen(n: int) -> list[list[int]]:
        return [
            sorted({*_evenly(list(some), n), *more})
            for some, more in zip(counts, linked, strict=True)
        ]

    def size(n: int, rows: int) -> float:
        states = 0.0
        for some, steps in zip(counts, chosen(n), strict=True):
            for n_state, n_rollout in (some[step] for step in steps):
                states += n_state * min(1.0, rows / max(n_rollout, 1))
        return per_state * states

    n = max(map(len, counts))
    while n > _FEWEST_STEPS and size(n, rows) > budget:
        n -= 1
    while rows > 1 and size(n, rows) > budget:
        rows -= 1
    while n > 1 and size(n, rows) > budget:
        n -= 1
    return chosen(n), rows


def _evenly(steps: list[int], n: int) -> list[int]:
    """Take n evenly spread steps, including the first and the last."""
    if n >= len(steps):
        return steps
    return [steps[i] for i in np.linspace(0, len(steps) - 1, n).round().astype(int)]


def _left_out(
    offered: list[list[int]],
    kept: list[list[int]],
    linked: bool,
    rows: int,
    kept_rows: int,
    max_mb: float,
) -> list[str]:
    parts = []
    if kept != offered:
        spread = f"{len(kept[0])} of {len(offered[0])} steps, evenly spread"
        parts.append(spread + (" apart from those linked to" if linked else ""))
    if kept_rows != rows:
        parts.append(f"the first {kept_rows} of {rows} rollouts per step")
    if not parts:
        return []
    return [
        f"The page shows {' and '.join(parts)}, to stay within {max_mb:g} MB; choose with --steps "
        "and --rollouts, or raise --max-mb."
    ]


def _counted(runs: Sequence[Run]) -> list[RunTokens]:
    every = [RunTokens() for _ in runs]
    for run, tokens in zip(runs, every, strict=True):
        tokens.update(run)
    return every


def _tables(run: Run, texts: TokenTexts, tokens: RunTokens) -> dict[str, Any] | None:
    """Lay out a run's tokens for the page's index; None if the run does not know them."""
    if not tokens.n:
        return None
    return {
        "by": tokens.by,
        "long_name": QUANTITIES[tokens.by].name.long_name,
        "n": tokens.n,
        "infinite": tokens.infinite,
        "n_tokens": tokens.n_tokens,
        "rows": [
            [row.token.kind, row.token.text, row.n, _plain(row.mean), _plain(row.share)]
            for row in tokens.rows(texts)
        ],
        "worst": [
            [
                *(_plain(one.value), one.step, one.rollout, one.position),
                [*one.before, one.token_id, *one.after],
                len(one.before),
            ]
            for one in tokens.worst(run)
        ],
    }


def _plain(value: float) -> float | str:
    """Return a number as JSON can hold it, to the digits that are shown."""
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)


def _page(
    runs: Sequence[Run],
    labels: list[str],
    texts: list[TokenTexts],
    tables: list[dict[str, Any] | None],
    kept: list[list[int]],
    rows: int,
    notices: list[str],
) -> str:
    described, blocks, values = [], [], []
    recorded: set[str] = set()
    marked = False
    for run, label, text, table, steps in zip(runs, labels, texts, tables, kept, strict=True):
        packed, used = [], set[int]()
        if table:
            used.update(*(ids for *_, ids, _ in table["worst"]))
        for step in steps:
            ds = run.load(step)
            one = pack_step(ds, rows)
            packed.append({"step": step, "block": f"block-{len(blocks)}", **one.columns})
            blocks.append(one.block)
            values.append(one.values)
            used.update(one.ids.tolist())
            recorded |= {name for name, q in VIEWED.items() if q.needs in ds}
            marked |= selectable(ds)
        shown = {token: text[token] for token in sorted(used)}
        described.append(
            {
                "label": label,
                "student": short_name(model_name(run, "student")),
                "teacher": short_name(model_name(run, "teacher")),
                "prompts": prompt_form(run.attrs),
                "gap": text.gap,
                "tokens": table,
                "token_id": list(shown),
                "token_kind": [token.kind for token in shown.values()],
                "token_text": [token.text for token in shown.values()],
                "steps": packed,
            }
        )
    every = np.concatenate(values, axis=1)
    quantities = [
        {
            "name": name,
            "worse": q.worse,
            "two_sided": q.two_sided,
            "bounds": level_bounds(q, every[row]),
            **(q.name._asdict() if name in recorded else {}),
        }
        for row, (name, q) in enumerate(VIEWED.items())
    ]
    index = {
        "runs": described,
        "quantities": quantities,
        "selectors": list(TITLES.items()) if marked else [],
        "notices": notices,
    }
    return _render(labels, pack_json(index), blocks)


def _render(labels: list[str], index: str, blocks: list[str]) -> str:
    folder = files("opdprobe.report") / "templates"
    script = "".join((folder / name).read_text("utf-8") for name in _SCRIPTS)
    style = (folder / "view.css").read_text("utf-8")
    environment = Environment(
        loader=PackageLoader("opdprobe.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("view.html.jinja").render(
        title=" and ".join(labels),
        index=index,
        blocks=blocks,
        script=Markup(script),
        style=Markup(style),
        script_hash=_csp_hash(script),
        style_hash=_csp_hash(style),
    )


def _csp_hash(text: str) -> str:
    """Hash an inline script or style for the page's security policy, which allows no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _replace(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
