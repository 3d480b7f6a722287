"""Every causal LM class of transformers: exact, slower, or refused; never wrong."""

import re

import pytest
import torch
import transformers
from all_classes import PAGE, WORDS, every_class, rendered
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

pytestmark = [
    pytest.mark.slow,  # about 190 models are built
    pytest.mark.filterwarnings("ignore"),  # of models in transformers, which are not ours
]


@pytest.fixture(scope="module")
def verdicts():
    shown = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    before = torch.get_rng_state()
    found = every_class()
    transformers.logging.set_verbosity(shown)
    assert torch.equal(before, torch.get_rng_state())
    return found


def test_no_class_is_wrong(verdicts):
    assert [v for v in verdicts if v.wrong] == []


def test_every_class_of_the_mapping_is_there_and_most_are_built(verdicts):
    assert {v.model_type for v in verdicts} == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    built = [v for v in verdicts if v.sampled != "not built"]
    assert len(built) > 0.9 * len(verdicts)
    sampled = [v for v in built if v.sampled != "refused"]
    assert {v.sampled for v in sampled} == set(WORDS.values())
    assert len(sampled) > 0.9 * len(built)
    assert sum(v.ends for v in sampled) > 0.9 * len(sampled), "rows seldom end early"
    assert all(v.why for v in verdicts if v.sampled != "fast")


def test_the_page_is_up_to_date(verdicts):
    page = PAGE.read_text(encoding="utf-8")
    version = re.search(r"transformers (\d[\w.]*\w)", page)
    if version is None or version[1] != transformers.__version__:
        pytest.skip("docs/models.md is of another version of transformers")
    assert page == rendered(verdicts), "docs/models.md is stale: python tests/models/all_classes.py"
