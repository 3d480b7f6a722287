"""`opdprobe zoo --world real`: the models that are made from a base model of the user's."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from analyses.presets import Preset
from analyses.registry import roles_of
from opdprobe.cli.runs import console, errors, progress
from opdprobe.testing.real import members
from opdprobe.testing.testbed.members import ZooError

WORK_DIR = Path("out/real/zoo")


def zoo(arguments: argparse.Namespace) -> None:
    """List, build or check the models."""
    names = arguments.name or list(members.MEMBERS)
    for name in names:
        members.find_member(name)
    folder = arguments.work_dir or WORK_DIR
    if arguments.action == "build":
        if arguments.base is None:
            raise ZooError(
                "--world real has no base model; expected --base with a model directory, a GGUF "
                "file or a hub id."
            )
        build(names, folder, arguments)
    if arguments.action == "check":
        from opdprobe.testing.real.zoo import check

        for name in names:
            found = check(name, folder, device=arguments.device)
            console.print(f"{name}: accuracy {found['accuracy']:.3f}, weights as recorded")
        return
    console.print(_table(names, folder))


def ready(
    preset: Preset, figures: Sequence[str], folder: Path, arguments: argparse.Namespace
) -> None:
    """Build the models that some figures need; without `--base`, see that they are built."""
    roles = {role for figure in figures for role in roles_of(figure)[0]}
    needed = {Path(preset.model(role, preset.seeds[0])).name for role in roles}
    names = [name for name in members.MEMBERS if name in needed]
    if arguments.base is not None:
        build(names, folder, arguments)
    for name in names:
        members.zoo_path(name, folder)


def build(names: Sequence[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Build models and those that they are made from, with progress on stderr."""
    from opdprobe.models.devices import resolve_device
    from opdprobe.testing.real.zoo import build_all, with_ancestors
    from opdprobe.train.optim import refuse_float16

    device = arguments.device or "auto"
    resolve_device(device)  # before a process per model finds out
    refuse_float16(arguments.dtype)
    errors.print(
        f"{', '.join(with_ancestors(names))}; in {folder}. If interrupted, the same command "
        "resumes.",
        soft_wrap=True,
    )
    with progress(plain=True) as show:
        build_all(
            names,
            folder,
            arguments.base,
            workers=arguments.workers,
            device=device,
            dtype=arguments.dtype,
            on_progress=show,
        )


def _table(names: list[str], folder: Path) -> Table:
    table = Table()
    for column in ("model", "stands for", "made from", "layers", "accuracy", "patterns", "seconds"):
        table.add_column(column)
    built = members.manifest(folder)
    for name in names:
        member, entry = members.MEMBERS[name], built.get(name)
        row = [name, member.analog, member.parent or "--base"]
        if entry is None:
            table.add_row(*row, "", "not built")
            continue
        shares = {name: found["share"] for name, found in entry["patterns"].items()}
        table.add_row(
            *row,
            str(entry["layers"]),
            f"{entry['accuracy']:.3f}",
            ", ".join(f"{name} {share:.2f}" for name, share in shares.items()),
            f"{sum(entry['seconds'].values()):.0f}",
        )
    return table
