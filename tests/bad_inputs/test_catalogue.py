"""Every bad input gives its message, and the page lists them all."""

import pytest
from case import KINDS
from catalogue import CASES, PAGE, rendered

from opdprobe.errors import OPDProbeError


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.fed}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*")
def test_a_bad_input_gives_its_message(case, tmp_path):
    with pytest.raises(case.error) as caught:
        case.feed(tmp_path)
    assert type(caught.value) is case.error or isinstance(caught.value, OPDProbeError)
    assert case.matches(caught.value, tmp_path), str(caught.value)


def test_the_catalogue_is_of_every_kind_and_names_none_twice():
    assert {case.kind for case in CASES} == set(KINDS)
    assert len({(case.kind, case.fed) for case in CASES}) == len(CASES) >= 40


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == rendered(), (
        "docs/errors.md is stale: python tests/bad_inputs/catalogue.py"
    )
