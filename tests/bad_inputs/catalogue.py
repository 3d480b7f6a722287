"""All cases, and the page that shows them.

python tests/bad_inputs/catalogue.py        # writes docs/errors.md
"""

from pathlib import Path

import bad_caches
import bad_commands
import bad_configs
import bad_dumps
import bad_engines
import bad_logits
import bad_models
import bad_prompts
import bad_rollouts
import bad_runs
from case import FOLDER, KINDS, Case, Exit1, Exit2

PAGE = Path(__file__).parents[2] / "docs/errors.md"
_MODULES = (
    *(bad_prompts, bad_configs, bad_models, bad_runs, bad_rollouts, bad_dumps, bad_caches),
    *(bad_logits, bad_engines, bad_commands),
)
CASES: list[Case] = [case for module in _MODULES for case in module.CASES]
_CODES = {Exit1: "exit code 1", Exit2: "exit code 2"}
_HEAD = f"""\
# What goes wrong, and what it says

{len(CASES)} bad inputs and the message that each gives: what came, what was expected, what to do. A
test feeds every one of them, and this page is made from that test
(`python tests/bad_inputs/catalogue.py`).

`{FOLDER}` stands for a folder; `…` for what another library words, or what is left out here. A
`ValueError` comes from a function that takes arrays; everything else is an
[`OPDProbeError`](api/errors.md), which the command line turns into its message and exit code 1.
A message writes out what a terminal would obey, so that a name in a file cannot repaint it.
"""


def rendered() -> str:
    """The page as Markdown: one section a kind, one paragraph a case."""
    parts = [_HEAD]
    for kind in KINDS:
        parts.append(f"\n## {kind}\n")
        for case in CASES:
            if case.kind == kind:
                name = _CODES.get(case.error, f"`{case.error.__name__}`")
                parts.append(f"\n{case.fed[0].upper()}{case.fed[1:]} ({name})\n")
                parts.append(f"\n```text\n{case.message}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
