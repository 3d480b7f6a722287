"""The experiments behind `opdprobe reproduce`, and the roles of their models and prompts.

An experiment names *roles*; a preset assigns a model or a prompt set to each role. So the same code
runs on the testbed (quick, full), on the paper's models (paper) and on the user's own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

MODEL_ROLES = {
    "student": "the student before RL (paper: DeepSeek-R1-Distill-Qwen-1.5B)",
    "rl_student": "the student after RL: teacher of the success, student of the reverse runs "
    "(paper: JustRL-DeepSeek-1.5B)",
    "large": "a larger model of the student's own pipeline (paper: DeepSeek-R1-Distill-Qwen-7B)",
    "rl_large": "the larger model after RL (paper: Skywork-OR1-Math-7B)",
    "extra_large": "a still larger model of that pipeline (paper: DeepSeek-R1-Distill-Qwen-14B)",
    "base": "a small pre-trained model (paper: Qwen3-1.7B-Base)",
    "rl_base_large": "a larger pre-trained model after RL (paper: Qwen3-4B-Base-GRPO)",
    "post": "a small model, post-trained to another pattern (paper: Qwen3-1.7B)",
    "post_large": "a larger model, post-trained to that pattern (paper: Qwen3-4B)",
    "rl_post_large": "the latter after RL (paper: Qwen3-4B-Non-Thinking-RL-Math)",
    "cold_teacher": "what the cold start is sampled from, and its teacher (paper: Qwen3-4B)",
    "cold_start": "the base model after SFT on that teacher's rollouts (§5.1)",
}

PROMPT_ROLES = {
    "train": "what every run uses unless said otherwise: such as the RL teachers were trained on, "
    "in their wording",
    "original": "the same questions in another wording (paper: DAPO's own template)",
    "other": "in-domain prompts that the RL teachers were not trained on, deduplicated against "
    "those (paper: DeepMath)",
    "other_original": "the latter in the other wording",
    "long": "prompts that need long responses",
}

CROSSED = ("other", "original", "other_original")
"""Prompt roles whose held-out problems some runs are tested on besides the preset's benchmarks,
which are like `train`: whether prompts help may depend on what is tested."""


@dataclass(frozen=True)
class Experiment:
    """One OPD run.

    Parameters
    ----------
    student, teacher
        Roles of models.
    prompts
        Role of the training prompts.
    overrides
        Settings that differ from the preset's.
    train
        If False, the untrained student's rollouts are scored once and nothing is trained.
    steps, learning_rate
        Factors on the preset's. Undoing RL takes longer than following it: the student hardly ever
        samples what the teacher would do.
    select
        How prompts are chosen (§5.2): ``mixed`` replaces a share with `other` prompts,
        ``max_divergence`` takes those of both sets on which the two models differ most.
    max_completion_length
        Longest response as a multiple of the preset's.
    crossed
        Whether the run is also tested on problems like those of the other prompt roles.
    permuted
        Whether the teacher's output rows change places: a teacher as sharp as before, whose
        probabilities are those of other tokens.
    """

    student: str
    teacher: str
    prompts: str = "train"
    overrides: dict[str, Any] = field(default_factory=dict)
    train: bool = True
    steps: float = 1.0
    learning_rate: float = 1.0
    select: str | None = None
    max_completion_length: float = 1.0
    crossed: bool = False
    permuted: bool = False

    @property
    def prompt_roles(self) -> tuple[str, ...]:
        """Roles of the prompts that the experiment uses."""
        return (self.prompts, "other") if self.select else (self.prompts,)


LENGTHS = {
    "length_1": 0.03125,
    "length_2": 0.125,
    "length_3": 0.25,
    "length_4": 0.5,
    "length_5": 1.0,
    "length_6": 2.5,
}
"""Maximum response lengths of figure 11, as multiples of the preset's (paper: 0.5K to 15K)."""

_PG = {"estimator": "policy_gradient"}

SELECTED = {
    "entropy": "entropy",
    "reverse_kl": "reverse KL",
    "tip": "TIP",
    "teachability": "TA-OPD",
    "information_to_error": "IER",
    "early": "first positions",
    "early_signal": "IW-OPD",
    "reward": "reward",
    "random": "random",
}
"""Selectors of `opdprobe.probes.SELECTORS` that a run is trained with, each on a fifth of the
tokens, and what they are called in figures. All of them: also `early_signal`, whose scores others
use as weights of all tokens."""

SWEPT = ("entropy", "reverse_kl", "tip", "early", "random")
"""Those of them that a tenth and half of the tokens, and all tokens but that fifth, are tried with,
since others claim something of them; the rest is left out to save runs."""


SELECTION_MATTERS = 0.05
"""Difference of accuracies between choices of tokens that is more than none."""


def tokens(selector: str, percent: int = 20, *, rest: bool = False) -> str:
    """Name the experiment that trains on the tokens that a selector keeps, or on the rest."""
    return f"tokens_{selector}_{percent}" + "_rest" * rest


def _on_tokens(selector: str, percent: int, *, rest: bool = False) -> Experiment:
    chosen = {"token_selector": selector, "token_fraction": percent / 100}
    # The rest of a random choice is a random choice, of four times as many tokens.
    more = {"token_complement": True} if rest else {}
    return Experiment("student", "rl_student", overrides=chosen | more)


POINTS = {
    "success": {0: ("success", "start"), 48: ("baseline", "end"), 192: ("success", "end")},
    "failure": {0: ("failure", "start"), 96: ("large_same", "end"), 192: ("failure", "end")},
    **{
        name: {0: (name, "start"), 96: (name, "end")}
        for name in ("large_rl", "post_same", "post_rl")
    },
}
"""Arms of figure 27: number of steps of the preset *full* to the run at whose start or end the
student is measured. A run that is shorter than another and like it otherwise ends where the other
one passes."""

RATES = {"slow": 0.25, "fast": 4.0}
"""Learning rates of the arms that fail, as multiples of the usual one."""

_FAILING = {
    # `large_same` is the failure at the usual rate.
    "failure": Experiment("student", "large", steps=2.0),
    "post_same": Experiment("post", "post_large", steps=2.0),
    "base_post": Experiment("base", "post_large"),
    "non_overlap": Experiment("student", "rl_student", overrides={"support": "non_overlap"}),
    "k1": Experiment("student", "rl_student", overrides={"k": 1, **_PG}),
}

EXPERIMENTS = {
    # Figures 1, 5, 6, 14, 18, 19: long enough for the curves to level off.
    "success": Experiment("student", "rl_student", steps=4.0),
    "failure": Experiment("student", "large", steps=4.0),
    "reverse_small": Experiment("rl_student", "student", steps=4.0, learning_rate=3.0),
    "reverse_large": Experiment("rl_student", "large", steps=4.0, learning_rate=3.0),
    "probe_success": Experiment("student", "rl_student", train=False),
    "probe_failure": Experiment("student", "large", train=False),
    # The first quarter of the success, to compare its variants with at equal steps.
    "baseline": Experiment("student", "rl_student", crossed=True),
    # Figure 7.
    "support_overlap": Experiment("student", "rl_student", overrides={"support": "overlap"}),
    "support_non_overlap": Experiment(
        "student", "rl_student", overrides={"support": "non_overlap"}
    ),
    # Figures 2, 3, 17: a base student and two teachers.
    "base_rl": Experiment("base", "rl_base_large", crossed=True),
    "base_post": Experiment("base", "post_large"),
    # Figure 4: before and after RL, two families.
    "large_same": Experiment("student", "large", steps=2.0),
    "large_rl": Experiment("student", "rl_large", steps=2.0),
    "post_same": Experiment("post", "post_large", steps=2.0),
    "post_rl": Experiment("post", "rl_post_large", steps=2.0),
    # Figures 8, 21. The cold start was trained on 16,384 rollouts; the long run has as many more.
    "cold_start": Experiment("cold_start", "cold_teacher"),
    "no_cold_start": Experiment("base", "cold_teacher"),
    "no_cold_start_long": Experiment("base", "cold_teacher", steps=1 + 16 / 3),
    # Figures 9, 22.
    "template_original": Experiment("student", "rl_student", prompts="original", crossed=True),
    # Figure 10: against `base_rl`.
    "content_other": Experiment(
        "base", "rl_base_large", prompts="other", max_completion_length=1.5, crossed=True
    ),
    # Figures 11, 12, 13, 23.
    **{
        name: Experiment("student", "rl_student", prompts="long", max_completion_length=length)
        for name, length in LENGTHS.items()
    },
    # Figures 15, 16; k = 16 is `baseline`. A single token, renormalised, has no direct gradient:
    # only the policy gradient can learn from it.
    "sampled": Experiment("student", "rl_student", overrides={"objective": "sampled", **_PG}),
    "k1_pg": Experiment("student", "rl_student", overrides={"k": 1, **_PG}),
    "k4_pg": Experiment("student", "rl_student", overrides={"k": 4, **_PG}),
    "k16_pg": Experiment("student", "rl_student", overrides=_PG),
    "k64_pg": Experiment("student", "rl_student", overrides={"k": 64, **_PG}),
    "k4": Experiment("student", "rl_student", overrides={"k": 4}),
    "k64": Experiment("student", "rl_student", overrides={"k": 64}),
    # Figure 20.
    "large_success": Experiment("large", "rl_large", steps=2.0),
    "large_failure": Experiment("large", "extra_large", steps=2.0),
    # Data selection (§5.2): `template_original` has only the content, `baseline` both.
    "select_none": Experiment(
        "student", "rl_student", prompts="other_original", max_completion_length=1.5, crossed=True
    ),
    "select_template": Experiment(
        "student", "rl_student", prompts="other", max_completion_length=1.5, crossed=True
    ),
    "select_mixed": Experiment(
        "student", "rl_student", select="mixed", max_completion_length=1.5, crossed=True
    ),
    "select_divergence": Experiment(
        "student", "rl_student", select="max_divergence", max_completion_length=1.5, crossed=True
    ),
    # Does an arm that fails do so at other learning rates, too?
    **{
        f"{arm}_{speed}": replace(experiment, learning_rate=rate)
        for arm, experiment in _FAILING.items()
        for speed, rate in RATES.items()
    },
    # Negative controls: nothing to learn, nothing learnt (a rate far below what float32 can add to
    # a weight), and nothing right to learn.
    "control_self": Experiment("student", "student"),
    "control_base_self": Experiment("base", "base"),
    "control_still": Experiment("student", "rl_student", learning_rate=1e-9),
    "control_permuted": Experiment("student", "rl_student", permuted=True),
    # Figures 25, 26: training on a part of the tokens; `baseline` is trained on all of them.
    **{tokens(selector): _on_tokens(selector, 20) for selector in SELECTED},
    **{tokens(selector, rest=True): _on_tokens(selector, 20, rest=True) for selector in SWEPT},
    **{tokens(selector, n): _on_tokens(selector, n) for n in (10, 50) for selector in SWEPT},
}
