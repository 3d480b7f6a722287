"""What the teacher's own prompts change: both records of the same responses, by hand."""

import numpy as np
import pytest

from opdprobe import Prompt, TeacherContext
from opdprobe.preflight import preflight
from opdprobe.preflight.contexts import Contexts, compare_contexts
from opdprobe.preflight.estimates import UNKNOWN, Number
from opdprobe.preflight.show import rendered
from opdprobe.testing import synthetic_step, tiny_model, tiny_tokenizer

N, LENGTH = 80, 5


def test_the_change_is_paired_by_prompt():
    shared = synthetic_step(n_rollouts=N, length=LENGTH)
    rng = np.random.default_rng(0)
    shift = np.where(shared.position == 0, -0.5, 0.25) + rng.normal(0, 0.01, N * LENGTH)
    own = shared.assign(reverse_kl=shared.reverse_kl + 2 + shift)
    rows = [{"start": 0, "stop": 5, "reverse_kl": 1.0}], [{"start": 0, "stop": 5, "reverse_kl": 2}]
    before, after = np.zeros(N), np.ones(N)
    prompt = np.arange(N)
    found = compare_contexts(shared, own, *rows, prompt, (before, after))
    kl, first = found.change["reverse_kl"], found.change["first_reverse_kl"]
    assert kl.value == pytest.approx(2 + shift.mean(), abs=1e-5)
    assert first.value == pytest.approx(2 + shift[shared.position == 0].mean(), abs=1e-5)
    # Narrow, although the divergences themselves differ much between prompts.
    assert kl.high - kl.low < 0.01 < found.own["reverse_kl"].high - found.own["reverse_kl"].low
    assert found.change["teacher_accuracy"].value == 1
    assert found.by_position == [{"start": 0, "stop": 5, "shared": 1.0, "own": 2}]
    unknown = compare_contexts(shared, own, *rows, prompt, None)
    assert np.isnan(unknown.change["teacher_accuracy"].value)


def contexts(**change):
    unknown = {"reverse_kl": UNKNOWN, "first_reverse_kl": UNKNOWN, "teacher_accuracy": UNKNOWN}
    return Contexts(unknown, unknown, {**unknown, **change}, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "do not tell whether"),
        ({"teacher_accuracy": Number(0.2, -0.1, 0.5)}, "do not tell whether"),
        ({"teacher_accuracy": Number(0.2, 0.1, 0.3)}, "student's prompts do not suit the teacher"),
        ({"teacher_accuracy": Number(-0.2, -0.3, -0.1)}, "own prompts do not suit it"),
        ({"reverse_kl": Number(-1, -2, -0.5)}, "Overall, its own prompts bring it closer to"),
        ({"first_reverse_kl": Number(1, 0.5, 2)}, "first token, its own prompts bring it further"),
        ({"reverse_kl": Number(1, -0.5, 2)}, "do not tell whether"),
    ],
)
def test_only_an_interval_that_excludes_nothing_is_a_finding(change, said):
    assert said in contexts(**change).finding


PROMPTS = [Prompt(str(i), text=f"{i} {i + 1}", answer=str(i)) for i in range(20)]
CONTEXT = TeacherContext(prompt="{answer} {question}")


def test_a_preflight_measures_the_teacher_in_its_own_context():
    models = tiny_model(seed=0), tiny_model(seed=1)
    for model in models:
        model.lm_head.weight.data *= 20
    tokenizer = tiny_tokenizer()
    settings = {"tokenizer": tokenizer, "k": 4, "max_completion_length": 5, "num_generations": 2}
    found = preflight(*models, PROMPTS, teacher_context=CONTEXT, **settings)
    shared = preflight(*models, PROMPTS, **settings)
    assert shared.contexts is None
    assert found.contexts is not None
    # The same responses: sampling does not depend on what the teacher reads.
    assert found.contexts.shared["reverse_kl"].value == pytest.approx(
        shared.states["reverse_kl"].value, rel=1e-5
    )
    assert found.contexts.own["reverse_kl"].value == found.states["reverse_kl"].value
    for name in ("reverse_kl", "first_reverse_kl"):
        own, before = found.contexts.own[name].value, found.contexts.shared[name].value
        assert found.contexts.change[name].value == pytest.approx(own - before, rel=1e-6)
        assert own != before
    assert found.to_dict()["contexts"]["change"]["reverse_kl"]["value"] is not None
    assert found.settings["chat_template"]["teacher"]["prompt"] == CONTEXT.prompt
    assert rendered(found) is not None
