"""Configurations of training, and presets of one's own models."""

from pathlib import Path
from typing import Any

from case import Case

from analyses.presets import PRESETS, own_preset
from opdprobe.cli.names import resolve_teachers
from opdprobe.errors import ConfigError
from opdprobe.store import RunWriter
from opdprobe.train.config import OPDConfig


def _config(fed: str, feed: Any, message: str) -> Case:
    return Case("Configurations", fed, feed, ConfigError, message)


def _setting(fed: str, message: str, **settings: Any) -> Case:
    return _config(fed, lambda _: OPDConfig(**settings), message)


def _yaml(fed: str, text: str | bytes, message: str) -> Case:
    def feed(folder: Path) -> object:
        path = folder / "config.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return OPDConfig.from_yaml(path)

    return _config(fed, feed, message)


def _preset(fed: str, text: str, message: str) -> Case:
    def feed(folder: Path) -> object:
        path = folder / "mine.yaml"
        path.write_text(text)
        return own_preset(path, PRESETS["quick"])

    return _config(fed, feed, message)


# Nine lists of nine of the one before: 387 million entries in 400 bytes.
_BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)

CASES = [
    _setting(
        "a teacher's wording that names no column",
        "teacher_prompt = 'Think.'; expected {question} or another column's name in braces in it: "
        "the same text for all prompts asks nothing.",
        teacher_prompt="Think.",
    ),
    _setting(
        "another teacher's template",
        "teacher_template = 'mine'; expected one of student, own.",
        teacher_template="mine",
    ),
    _config(
        "several teachers, and no column to choose by",
        lambda _: resolve_teachers(["my/math", "my/code"], None),
        "2 teachers; expected one, or --teacher NAME=MODEL for each with --teacher-by COLUMN, the "
        "column of the prompts that names the teacher, or --teacher WEIGHT=MODEL for each of a "
        "mixture, no model twice.",
    ),
    _config(
        "a mixture of teachers with a weight of 0",
        lambda _: resolve_teachers(["1=my/math", "0=my/code"], None),
        "weight 0.0 of teacher 'my/code'; expected a number above 0.",
    ),
    _config(
        "several teachers, one of them without a name",
        lambda _: resolve_teachers(["math=my/math", "my/code"], "domain"),
        "--teacher 'my/code' with --teacher-by domain; expected NAME=MODEL, with a value of this "
        "column as NAME, and each of them once.",
    ),
    _config(
        "a missing file",
        lambda folder: OPDConfig.from_yaml(folder / "absent.yaml"),
        "no configuration file at FOLDER/absent.yaml; expected a YAML file of name: value lines.",
    ),
    _config(
        "a directory",
        OPDConfig.from_yaml,
        "FOLDER cannot be read (Is a directory); expected a YAML file of name: value lines.",
    ),
    _yaml(
        "a list",
        "- k: 16\n",
        "FOLDER/config.yaml holds a list; expected name: value lines.",
    ),
    _yaml("no YAML", "k: [16\n", "FOLDER/config.yaml is not readable as YAML: …."),
    _yaml("no text", b"\xff\xfe\x00k", "FOLDER/config.yaml is not readable as YAML: …."),
    _yaml(
        "a tag that would run a command",
        "k: !!python/object/apply:os.system ['true']\n",
        "FOLDER/config.yaml is not readable as YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system' ….",
    ),
    _yaml(
        "references that stand for gigabytes",
        _BOMB,
        "FOLDER/config.yaml is not readable as YAML: a reference (*name) to a list or mapping; "
        "write it out.",
    ),
    _yaml(
        "a number of base 60",
        "seed: !!int 1:30\n",
        "FOLDER/config.yaml is not readable as YAML: '1:30' is not a number.",
    ),
    _yaml(
        "an unknown setting",
        "learning_rat: 1e-6\n",
        "unknown setting learning_rat for OPDConfig; expected one of batch_size, …, weight_decay.",
    ),
    _setting("a text for a number", "k = '16' is of type str; expected int.", k="16"),
    _setting("a bool for a number", "k = True is of type bool; expected int.", k=True),
    _setting("a negative number", "k = -1; expected a number above 0.", k=-1),
    _setting("NaN", "temperature = nan; expected a number above 0.", temperature=float("nan")),
    _setting(
        "infinity", "learning_rate = inf; expected a finite number.", learning_rate=float("inf")
    ),
    _setting("a share above 1", "top_p = 1.5; expected at most 1.", top_p=1.5),
    _setting(
        "an unknown choice",
        "support = 'both'; expected one of student, teacher, overlap, non_overlap, union.",
        support="both",
    ),
    _setting(
        "one advantage per position for a top-k loss",
        "a top-k KL as one scalar advantage per position has zero expected gradient on-policy: it "
        "does not depend on the sampled token, and E[∇ log p] = 0. Use "
        "estimator='policy_gradient' (one advantage per token) or 'direct'.",
        estimator="scalar_policy_gradient",
    ),
    _setting(
        "the sampled token's loss, differentiated directly",
        "objective='sampled' needs estimator='policy_gradient': the derivative of "
        "log p(y) - log q(y) has no teacher term (paper §2.2, Eq. 3).",
        objective="sampled",
    ),
    _preset(
        "a preset with an unknown role",
        "models: {pupil: zoo:sft-small}\nprompts: {train: zoo:train}\nbenchmarks: {a: zoo:easy}\n",
        "FOLDER/mine.yaml: unknown role in models: pupil; expected one of base, …",
    ),
    _preset(
        "a preset without models",
        "prompts: {train: zoo:train}\n",
        "FOLDER/mine.yaml: models = None; expected a mapping of roles to names.",
    ),
    _preset(
        "a preset with two models for one seed",
        "models: {student: [a, b]}\nprompts: {train: zoo:train}\nbenchmarks: {a: zoo:easy}\n",
        "FOLDER/mine.yaml: student names 2 models; expected one, or one for each of the 1 seeds.",
    ),
    _config(
        "settings that YAML cannot hold, to be recorded",
        lambda folder: RunWriter(folder / "run", attrs={}, config={"k": {1, 2}}, resume=False),
        "the config cannot be written as YAML (Object of type set is not JSON serializable); "
        "expected only str, int, float, bool, None, lists and dicts.",
    ),
]
