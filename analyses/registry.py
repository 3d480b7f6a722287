"""The analysis and the experiments of every figure.

A new figure needs a row here, the analysis that the row names, and a module of the figure's name in
`figures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from analyses.experiments import EXPERIMENTS, LENGTHS, POINTS, SELECTED, SWEPT, tokens
from opdprobe.errors import OPDProbeError

if TYPE_CHECKING:
    from analyses.evidence import Evidence
    from analyses.results import Results


@dataclass(frozen=True)
class Figure:
    """How a figure is made.

    Parameters
    ----------
    analysis
        Module in `analyses` and function in it, such as ``"alignment.analyse"``; by name, so that
        drawing a figure or planning a run does not import all analyses.
    experiments
        Names of the experiments that the analysis uses, from `analyses.experiments.EXPERIMENTS`.
    measure
        What else is measured on each of their runs, once it is done: a name in
        `opdprobe.cli.measures.MEASURES`.
    measured
        The experiments on whose runs that is done; by default, all of `experiments`.
    """

    analysis: str
    experiments: tuple[str, ...]
    measure: str | None = None
    measured: tuple[str, ...] = ()

    @property
    def measurements(self) -> list[tuple[str, str]]:
        """What is measured on the runs of which experiments."""
        if self.measure is None:
            return []
        return [(self.measure, name) for name in self.measured or self.experiments]

    def analyse(self, evidence: "Evidence") -> "Results":
        """Turn the runs of the experiments into the figure's results."""
        module, function = self.analysis.split(".")
        return getattr(import_module(f"analyses.{module}"), function)(evidence)


FIGURES = {
    "fig01": Figure(
        "overview.analyse",
        ("success", "failure", "large_same", "large_rl", "reverse_small", "reverse_large"),
    ),
    "fig02": Figure("teachers.analyse", ("base_rl", "base_post")),
    "fig03": Figure("teachers.own_accuracy", ("base_rl", "base_post")),
    "fig04": Figure("scale.analyse", ("large_same", "large_rl", "post_same", "post_rl")),
    "fig05": Figure("reverse.analyse", ("reverse_small", "reverse_large")),
    "fig06": Figure("alignment.analyse", ("success", "failure")),
    "fig07": Figure("supports.analyse", ("baseline", "support_overlap", "support_non_overlap")),
    "fig08": Figure("cold_start.analyse", ("cold_start", "no_cold_start", "no_cold_start_long")),
    "fig09": Figure("template.analyse", ("baseline", "template_original")),
    "fig10": Figure("content.analyse", ("base_rl", "content_other")),
    "fig11": Figure("length.analyse", (*LENGTHS, "probe_success")),
    "fig12": Figure("length.dynamics", tuple(LENGTHS)),
    "fig13": Figure("depth.student", ("length_6",)),
    "fig14": Figure("reward.analyse", ("probe_success", "probe_failure")),
    "fig15": Figure(
        "sweep.analyse",
        ("baseline", "sampled", "k1_pg", "k4", "k64", "k4_pg", "k16_pg", "k64_pg"),
    ),
    "fig16": Figure("sweep.dynamics", ("baseline", "sampled", "k1_pg", "k4", "k64", "k16_pg")),
    "fig17": Figure("teachers.by_benchmark", ("base_rl", "base_post")),
    "fig18": Figure("mass.analyse", ("success", "failure")),
    "fig19": Figure("gradients.analyse", ("success", "failure")),
    "fig20": Figure("alignment.larger_student", ("large_success", "large_failure")),
    "fig21": Figure("cold_start.mass", ("cold_start", "no_cold_start")),
    "fig22": Figure("template.by_benchmark", ("baseline", "template_original")),
    "fig23": Figure("depth.teacher", ("length_6",)),
    "fig25": Figure(
        "tokens.analyse",
        (
            "baseline",
            *(tokens(selector) for selector in SELECTED),
            *(tokens(selector, percent) for percent in (10, 50) for selector in SWEPT),
        ),
    ),
    "fig26": Figure(
        "tokens.complements",
        (
            "baseline",
            *(tokens(selector) for selector in SWEPT),
            *(tokens(selector, rest=True) for selector in SWEPT),
        ),
    ),
    "fig27": Figure(
        "cancelling.analyse",
        tuple(dict.fromkeys(name for by_step in POINTS.values() for name, _ in by_step.values())),
        measure="coherence",
    ),
    "fig28": Figure(
        "ideal.analyse",
        ("probe_success", "probe_failure"),
        measure="forced",
        measured=("probe_success",),
    ),
    "selection": Figure(
        "selection.analyse",
        (
            "select_none",
            "select_template",
            "template_original",
            "select_mixed",
            "select_divergence",
            "baseline",
        ),
    ),
    "rates": Figure(
        "rates.analyse",
        (
            *("failure_slow", "large_same", "failure_fast"),
            *("post_same_slow", "post_same", "post_same_fast"),
            *("base_post_slow", "base_post", "base_post_fast", "base_rl"),
            *("non_overlap_slow", "support_non_overlap", "non_overlap_fast", "baseline"),
            *("k1_slow", "k1_pg", "k1_fast", "k16_pg"),
        ),
    ),
    "controls": Figure(
        "controls.analyse",
        (
            "baseline",
            "control_self",
            "control_base_self",
            "control_still",
            "control_permuted",
        ),
    ),
}


def roles_of(figure: str) -> tuple[set[str], set[str]]:
    """Return the roles of the models and of the prompts that a figure needs."""
    experiments = [EXPERIMENTS[name] for name in FIGURES[figure].experiments]
    return (
        {role for e in experiments for role in (e.student, e.teacher)},
        {role for e in experiments for role in e.prompt_roles},
    )


def needed(figures: Sequence[str] | None) -> list[str]:
    """List the experiments that some figures need; all figures by default.

    Raises
    ------
    OPDProbeError
        A figure is unknown; lists the known ones.
    """
    chosen = list(FIGURES) if figures is None else figures
    unknown = sorted(set(chosen) - set(FIGURES))
    if unknown:
        raise OPDProbeError(
            f"no figure {', '.join(unknown)}; expected one of {', '.join(FIGURES)}."
        )
    names = {name for figure in chosen for name in FIGURES[figure].experiments}
    return [name for name in EXPERIMENTS if name in names]
