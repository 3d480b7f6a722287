"""Figure 14 (§6.2): the reward is informative under both teachers.

The sequence mean reward separates correct from incorrect rollouts (AUROC 0.73 and 0.75 in the
paper), even under the teacher that fails: the failure is not due to a lack of signal in the sum.
"""

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    auroc = {claim.id: claim for claim in results.claims}
    titled = []
    for panel in results.panels:
        found = auroc.get("fig14." + panel.name.removeprefix("probe_"))
        line = f"\nAUROC {found.ours:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else ""
        titled.append(replace(panel, title=panel.title + line))
    results = replace(results, panels=titled)
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    counts = "; ".join(
        f"({letter}) " + ", ".join(f"{len(s.values):,} {s.label}" for s in panel.series)
        for letter, panel in zip("ab", results.panels, strict=False)
    )
    reading = (
        "Densities over shared bins; the markers above the axes are medians. Rollouts of the "
        f"student before training, under each teacher: {counts}."
    )
    return panels.caption(results, reading)
