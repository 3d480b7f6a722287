"""What the fuzzers found stays found; and the same readers on inputs that hypothesis makes."""

import json
import random
from importlib import import_module
from pathlib import Path

import fuzz_config
import fuzz_prompts
import fuzz_store
import pytest
import run_fuzzer
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from opdprobe.errors import printable
from opdprobe.store.safe_text import parse_yaml

CORPUS = Path(__file__).parent / "corpus"
FUZZERS = ("answers", "caches", "config", "dumps", "models", "prompts", "reports", "store")
INPUTS = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))

# JSON with the values that break readers: numbers beyond a float or an int64, NaN, halves of
# surrogate pairs, and the names that the readers look for.
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), 1e308]),
    st.sampled_from(["", " ", "2+2=", "\ud800", "\x1b[2J", "np.float64(nan)", "user", "1e-6"]),
    st.text(max_size=5),
)


def documents(*names: str) -> st.SearchStrategy:
    keys = st.sampled_from(names) | st.text(max_size=3)
    return st.recursive(
        _SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


PROMPT = documents(
    *("prompt", "role", "content", "answer", "id", "extra_info", "index", "reward_model"),
    *("ground_truth", "data_source"),
)
LOG = documents("step", "data", "log_history", "loss")
LINE = documents("step", "loss", "benchmark", "prompt_id", "score")
SETTINGS = documents(
    *("k", "learning_rate", "objective", "max_steps", "models", "prompts", "benchmarks", "train"),
    *("student", "config", "seeds", "depths", "n_prompts"),
)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", INPUTS)
def test_the_corpus_gives_opdprobe_errors_only(name):
    import_module(f"fuzz_{name.split('/')[0]}").one_input((CORPUS / name).read_bytes())


def test_the_corpus_is_small_and_of_every_fuzzer():
    assert {name.split("/")[0] for name in INPUTS} <= set(FUZZERS)
    assert sum((CORPUS / name).stat().st_size for name in INPUTS) < 300_000


@pytest.mark.parametrize("name", ["answers", "caches", "dumps"])
def test_mutated_inputs_give_opdprobe_errors_only(name):
    fuzzer, rng = import_module(f"fuzz_{name}"), random.Random(1)
    for seed in fuzzer.seeds():
        for data in (seed, *(run_fuzzer.mutated(seed, rng) for _ in range(5))):
            fuzzer.one_input(data)


@quick
@given(kind=st.integers(4, 5), rows=st.lists(PROMPT, max_size=4))
@pytest.mark.slow
def test_any_json_lines_are_prompts_or_refused(kind, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    fuzz_prompts.one_input(bytes([kind]) + text.encode())


@quick
@given(kind=st.integers(0, 3), log=LOG)
@example(kind=0, log={"step": 1e400, "data": {}})
@example(kind=2, log={"log_history": [{"step": 1, "loss": 10**400}]})
@example(kind=0, log={"step": 1, "data": {"step": 2, "loss": 0.5}})
def test_any_json_is_a_log_or_refused(kind, log):
    fuzz_prompts.one_input(bytes([kind]) + json.dumps(log).encode())


@quick
@given(kind=st.integers(0, 4), values=SETTINGS)
def test_any_yaml_is_a_configuration_or_refused(kind, values):
    text = yaml.safe_dump(values, allow_unicode=True) if values != "\ud800" else ""
    fuzz_config.one_input(bytes([kind]) + text.encode(errors="surrogatepass"))


@quick
@given(kind=st.integers(0, 3), lines=st.lists(LINE, max_size=3))
@example(kind=3, lines=[{"step": 0}])  # a line of metrics among the evaluations
@example(kind=2, lines=[{"step": 0, "benchmark": "a", "prompt_id": [], "score": []}])
@example(kind=2, lines=[{"step": False, "loss": 1.0}])
def test_any_json_is_a_runs_text_or_refused(kind, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    fuzz_store.one_input(bytes([kind]) + text.encode())


@settings(quick, max_examples=40)
@given(
    member=st.integers(0, len(fuzz_store.NAMES) - 1),
    start=st.integers(0, 1000),
    cut=st.integers(0, 255),
    put=st.binary(max_size=12) | st.sampled_from([b"99999999", b"null", b'"object"', b"-1"]),
)
def test_any_change_of_a_step_is_read_or_refused(member, start, cut, put):
    fuzz_store.one_input(bytes([5, member]) + start.to_bytes(2, "big") + bytes([cut]) + put)


@given(st.text())
def test_what_is_printed_moves_no_cursor(text):
    shown = printable(text)
    assert not set(shown) & {*map(chr, range(32)), "\x7f", "\x9b", "\u202e", "\u200b"} - {"\n"}
    assert shown == text or not text.isprintable()


@given(SETTINGS)
def test_yaml_is_read_as_safe_load_reads_it(values):
    text = yaml.safe_dump(values)
    if "&id" not in text:  # a value that comes twice is written as a reference, and refused
        assert repr(parse_yaml(text)) == repr(yaml.safe_load(text))
