"""A preflight as text for a terminal."""

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from opdprobe.preflight import Preflight, Ranking
from opdprobe.preflight.contexts import Contexts
from opdprobe.preflight.estimates import Number
from opdprobe.preflight.expected import FITS, LEVEL, MATTERS, Expected
from opdprobe.preflight.verdict import HARMFUL, LIKELY, UNLIKELY
from opdprobe.probes.quantities import scalar
from opdprobe.store.prompt_form import prompt_form

_STYLES = {LIKELY: "bold green", UNLIKELY: "bold yellow", HARMFUL: "bold red"}
_POSITIONS = ("overlap_ratio", "overlap_token_advantage", "entropy_gap", "reverse_kl")
_TEMPLATES = ("overlap_ratio", "student_overlap_mass", "reverse_kl", "accuracy", "finished")


def rendered(result: Preflight) -> RenderableType:
    """Lay out a preflight, the verdict last.

    Parameters
    ----------
    result
        Result of `opdprobe.preflight.preflight`.
    """
    s, verdict = result.settings, result.verdict
    title = Text(
        f"{s['student']} from {s['teacher']}: {s['n_prompts']} prompts × "
        f"{s['num_generations']} rollouts, {s['states']} states, "
        f"k = {s['k']} of {s['vocabulary']} tokens; 95 % intervals"
    )
    form = prompt_form(s)
    computed = Text(
        f"computed on {s['device']}: student {s['dtype']['student']} "
        f"({s['attn_implementation']['student']}), teacher {s['dtype']['teacher']} "
        f"({s['attn_implementation']['teacher']})"
    )
    tables = [_states(result), _answers(result), _positions(result)]
    if result.templates:
        tables.append(_templates(result.templates))
    if result.contexts is not None:
        tables += [_contexts(result.contexts), Text(result.contexts.finding)]
    parts: list[RenderableType] = [title, computed, *([Text(f"Prompts: {form}")] if form else [])]
    for table in tables:
        parts += [Text(), table]
    parts += [Text(), *(Text(line) for line in _lines(result))]
    parts += [Text(), Text(verdict.word.upper(), _STYLES.get(verdict.word, "bold"))]
    parts += [Padding(Text(f"- {reason}"), (0, 0, 0, 2)) for reason in verdict.reasons]
    if verdict.advice:
        parts += [Text("To try:"), *(Padding(Text(f"- {a}"), (0, 0, 0, 2)) for a in verdict.advice)]
    if result.expected is not None:
        parts.append(Text(_expected(result.expected)))
    elif result.answers.gain.value == result.answers.gain.value:
        parts.append(Text(f"No gain of training is stated: {_unstated(result)}."))
    return Group(*parts, Text(verdict.validated, "italic"))


def _unstated(result: Preflight) -> str:
    rollouts = result.settings["n_prompts"] * result.settings["num_generations"]
    if rollouts < min(FITS):
        return (
            f"{rollouts} rollouts are too few; expected {min(FITS)} or more, such as --n-prompts "
            f"{min(FITS) // 4} --num-generations 4"
        )
    return "the models are the same"


def _expected(found: Expected) -> str:
    return (
        f"Expected of training: {found.value:+.2f} of accuracy ({LEVEL:.0%} interval "
        f"{found.low:+.2f} to {found.high:+.2f}). By more than {MATTERS}, it rises with a "
        f"probability of {found.helps:.2f} and falls with one of {found.harms:.2f}."
    )


def rendered_ranking(ranking: Ranking) -> RenderableType:
    """Lay out a ranking of teachers, the finding last.

    Parameters
    ----------
    ranking
        Result of `opdprobe.preflight.rank_teachers`.
    """
    s = ranking.found[0].settings
    title = Text(
        f"{s['student']} from {len(ranking.teachers)} teachers: {s['n_prompts']} prompts × "
        f"{s['num_generations']} rollouts, the same for all; 95 % intervals"
    )
    table = _table("teacher", "gain", "interval", "best", "accuracy", "verdict")
    table.columns[0].overflow = "fold"
    for name, best, found in zip(ranking.teachers, ranking.best, ranking.found, strict=True):
        table.add_row(
            name,
            *_cells(found.answers.gain),
            "" if best != best else f"{best:.2f}",
            _cells(found.answers.teacher)[0],
            Text(found.verdict.word, _STYLES.get(found.verdict.word, "bold")),
        )
    finding, validated = Text(ranking.finding, "bold"), Text(ranking.validated, "italic")
    how = Text(
        "gain: of the student's accuracy, with its readout refitted to the teacher. best: the "
        "probability that no other teacher's gain is larger. accuracy: the teacher's. For reasons "
        "and advice, run preflight with one teacher."
    )
    return Group(title, Text(), table, Text(), how, Text(), finding, validated)


def _states(result: Preflight) -> Table:
    table = _table("at the student's states", "mean", "interval", "against itself")
    for name, number in result.states.items():
        noise = result.noise.get(name)
        shown = "" if noise is None else f"{noise:.2g}"
        table.add_row(scalar(name).label, *_cells(number), shown)
    table.add_row("share that a refitted readout removes", *_cells(result.learnt), "")
    return table


def _answers(result: Preflight) -> RenderableType:
    a = result.answers
    if a.student.value != a.student.value:
        return Text("No answers are known: accuracies, AUROC and continuation gain are left out.")
    table = _table("with known answers", "mean", "interval")
    rows = {
        "student's accuracy": a.student,
        "teacher's accuracy": a.teacher,
        "teacher minus student": a.gap,
        "gain of the student with a refitted readout": a.gain,
        "AUROC of the sequence mean reward": a.auroc,
        "the same, pairs within a prompt": a.auroc_within,
        "AUROC of brevity (baseline)": a.auroc_length,
        "AUROC of brevity, pairs within a prompt": a.auroc_length_within,
    }
    reach = a.n_continued or {}
    rows |= {
        f"gain of the teacher after {depth} tokens ({reach[depth]} rollouts)": gain
        for depth, gain in (a.continuation or {}).items()
    }
    for name, number in rows.items():
        table.add_row(name, *_cells(number))
    return table


def _positions(result: Preflight) -> Table:
    table = _table("by output position", *(_heading(name) for name in _POSITIONS))
    for row in result.by_position:
        first, last = row["start"], row["stop"] - 1
        table.add_row(f"{first}–{last}", *(f"{row[name]:.3g}" for name in _POSITIONS))
    return table


def _templates(templates: Mapping[str, Mapping[str, Number]]) -> Table:
    table = _table("prompt template", *(_heading(name) for name in _TEMPLATES))
    for template, numbers in templates.items():
        table.add_row(template, *(_cells(numbers[name])[0] for name in _TEMPLATES))
    return table


def _contexts(found: Contexts) -> Table:
    table = _table("the teacher reads", "the student's\nprompts", "its own", "change", "interval")
    labels = {
        "reverse_kl": "reverse KL [nats]",
        "first_reverse_kl": "… at first tokens",
        "teacher_accuracy": "teacher's accuracy",
    }
    for name, label in labels.items():
        both = (_cells(numbers[name])[0] for numbers in (found.shared, found.own))
        table.add_row(label, *both, *_cells(found.change[name]))
    for row in found.by_position:
        first, last = row["start"], row["stop"] - 1
        shared, own = row["shared"], row["own"]
        table.add_row(
            f"… at {first}–{last}", f"{shared:.3g}", f"{own:.3g}", f"{own - shared:.3g}", ""
        )
    return table


def _heading(name: str) -> str:
    """Name a column, a word per line: the tables have to fit into 80 columns."""
    name = name if name in ("accuracy", "finished") else scalar(name).long_name
    return name.replace(" ", "\n")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _lines(result: Preflight) -> list[str]:
    lines = []
    for who, found in (("Student", result.responses), ("Teacher", result.teacher_responses)):
        if found:
            lines.append(
                f"{who}'s responses: {found['mean_length']:.0f} tokens, {found['truncated']:.0%} "
                f"cut off, {found['repetitive']:.0%} repetitive (zlib ratio "
                f"{found['compression']:.1f} on average)."
            )
    cost = result.cost
    size, seconds = cost["bytes_a_step"] / 1e6, cost["seconds_a_step"]
    time = "" if seconds != seconds else f" and {seconds:.0f} s on this machine"
    lines.append(
        f"A recorded step of 64 prompts × 4 rollouts like these takes about {size:.1f} MB{time}."
    )
    return lines


def _cells(number: Number) -> tuple[str, str]:
    if number.value != number.value:
        return "unknown", ""
    bounds = number.low == number.low
    return f"{number.value:.3g}", f"[{number.low:.3g}, {number.high:.3g}]" if bounds else ""
