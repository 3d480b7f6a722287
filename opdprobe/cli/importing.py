"""The command that makes a run from a trainer's dumps: ``import DUMP... --run-dir RUN``."""

import argparse
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from opdprobe.cli.runs import console, errors, progress

if TYPE_CHECKING:
    from opdprobe.hooks.dumps import Imported
    from opdprobe.rollout.dumps.text import TextCounts

_LEVELS = {
    "A": "both models' top-k lists",
    "B": "token ids",
    "C": "text, tokenised anew",
    "T": "a cache of the teacher's lists",
}


def import_dumps(arguments: argparse.Namespace) -> None:
    """Read the dumps, print what they told and what they did not."""
    import transformers

    from opdprobe.cli.models import loading
    from opdprobe.cli.names import chat_template_kwargs, resolve_model
    from opdprobe.hooks.dumps import import_rollouts
    from opdprobe.hooks.served import ServedModel
    from opdprobe.models.load import load_tokenizer

    transformers.utils.logging.disable_progress_bar()
    models = [
        name and (ServedModel(name) if "://" in name else resolve_model(name))
        for name in (arguments.student, arguments.teacher)
    ]
    tokenizer = arguments.tokenizer
    with progress() as show, _followed(arguments) as wait:
        found = import_rollouts(
            arguments.dump,
            arguments.run_dir,
            student=models[0],
            teacher=models[1],
            tokenizer=load_tokenizer(resolve_model(tokenizer)) if tokenizer else None,
            format=arguments.format,
            step=arguments.step,
            on_error=arguments.on_error,
            chat_template_kwargs=chat_template_kwargs(arguments.chat_template_kwargs or []),
            k=arguments.k,
            temperature=arguments.temperature,
            limit=arguments.limit,
            on_progress=lambda done, total: show("file", done, total),
            wait=wait,
            **loading(arguments),
        )
    if arguments.json:
        counts = {name: value for name, value in asdict(found).items() if name != "run"}
        print(json.dumps({"run_dir": str(found.run.path), **counts}))
        return
    for line in _summary(found):
        console.print(line, soft_wrap=True)
    for reason in found.files_left_out:
        errors.print(f"left out: {reason}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def _followed(arguments: argparse.Namespace) -> Iterator[Callable[[str], bool] | None]:
    """Yield what waits for more of the dumps until Ctrl-C or SIGTERM; None without --follow.

    The first signal lets the command import the rest and end; the second one ends it at once.
    """
    if not arguments.follow:
        yield None
        return
    ended = threading.Event()
    said = ""

    def wait(what: str) -> bool:
        nonlocal said
        if what != said:
            errors.print(what, markup=False, highlight=False, soft_wrap=True)
        said = what
        if not ended.wait(arguments.interval):
            return True
        errors.print("importing what is left; Ctrl-C again ends at once", soft_wrap=True)
        return False

    if threading.current_thread() is not threading.main_thread():
        yield wait  # signals are not for other threads
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def end(number: int, frame: object) -> None:
        ended.set()
        restore()

    try:
        for number in before:
            signal.signal(number, end)
        yield wait
    finally:
        restore()


def _summary(found: "Imported") -> list[str]:
    """Say what was read, what the dumps did not tell, and what to do next."""
    path = found.run.path
    rows = f"{found.rows} rollouts of {found.steps} steps"
    lines = [f"{rows}, from {found.format} ({_LEVELS[found.level]}), in {path}"]
    if found.steps_before:
        lines.append(f"{found.steps_before} of the steps were in the run already, and stay.")
    if found.rows_left_out:
        lines.append(f"{found.rows_left_out} rows could not be used, and are left out.")
    told = (
        what if n == found.rows else f"{what} ({n} rollouts)" for what, n in found.untold.items()
    )
    if found.untold:
        lines.append(f"not in the dump: {', '.join(told)}")
    if found.text is not None:
        lines += _of_text(found.text)
    lines.append(f"next: opdprobe report {path}; opdprobe view {path}")
    return lines


def _of_text(counts: "TextCounts") -> list[str]:
    """Say what tokenising anew kept, and what became of the end tokens."""
    n = counts.rows
    lines = [
        f"text: {counts.prompts_templated} of {n} prompts were formed by the student's chat "
        f"template, {counts.prompts_as_text} encoded as they stand",
        f"text: {counts.prompts_same} of {n} prompts and {counts.responses_same} of {n} responses "
        "decode to the text in the dump",
    ]
    ends = {
        "have it in the text": counts.ends_in_text,
        "got it, since the dump says that they ended": counts.ends_appended,
        "have none, and the dump does not say whether they ended": counts.ends_unknown,
    }
    told = "; ".join(f"{count} {what}" for what, count in ends.items() if count)
    return [*lines, f"end token, of {n} responses: {told or 'none has one: all were cut off'}"]
