"""One run by itself: how do the paper's quantities move while it trains?"""

from analyses.evidence import axis_label, curve_series
from analyses.results import Panel, Series
from opdprobe.schema import MODELS
from opdprobe.store import Run


def panels(run: Run) -> list[Panel]:
    """Overlap ratio, overlap masses, entropies and reverse KL of a run by step.

    Parameters
    ----------
    run
        A recorded run.

    Returns
    -------
    list of Panel
        Four panels of lines, each with a 95 % bootstrap interval over rollouts.
    """

    def one(probe: str, role: str, label: str, **arguments: str) -> Series:
        return curve_series([run], probe, role=role, label=label, **arguments)

    both = {
        probe: [one(probe, model, model, model=model) for model in MODELS]
        for probe in ("overlap_mass", "entropy")
    }
    series = {
        "overlap_ratio": ("Overlap ratio", [one("overlap_ratio", "overlap", "overlap ratio")]),
        "overlap_mass": ("Mass on the overlap", both["overlap_mass"]),
        "entropy": ("Entropy", both["entropy"]),
        "reverse_kl": ("Reverse KL", [one("reverse_kl", "success", "KL(student‖teacher)")]),
    }
    units = {"entropy": "nats", "reverse_kl": "nats"}
    return [
        Panel(
            name=name,
            title=title,
            x_label="training step",
            y_label=axis_label(title.lower().replace("kl", "KL"), units.get(name, "1")),
            kind="line",
            series=lines,
        )
        for name, (title, lines) in series.items()
    ]
