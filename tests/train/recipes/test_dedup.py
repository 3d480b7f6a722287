"""Duplicates: against pairwise comparison, and on the public files."""

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import ConfigError, NonFiniteError
from opdprobe.models.load import ModelError
from opdprobe.rollout.prompt_files import load_prompts
from opdprobe.rollout.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE, Prompt
from opdprobe.train.recipes import dedup
from opdprobe.train.recipes.dedup import exact_duplicates, semantic_duplicates, sentence_encoder

DATA = Path(os.environ.get("OPDPROBE_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "DeepMath_deduped.parquet").is_file(),
    reason="needs the public prompt files: set OPDPROBE_DATA to their directory",
)
WORDINGS = ["{question}", BOXED_TEMPLATE, DAPO_TEMPLATE, " {question}\n"]


def prompts(*texts):
    return [Prompt(str(i), text=text) for i, text in enumerate(texts)]


def bag_of_words(texts):
    """Count words: questions of the same words in another order have cosine 1."""
    words = {word: i for i, word in enumerate("how many apples pears are there 2 3 ?".split())}
    rows = np.zeros((len(texts), len(words)))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row[words[word]] += 1
    return rows


# exact


@given(
    st.lists(st.sampled_from(["a", "a b", "a  b", "A b", "b\na", "b a"]), max_size=6),
    st.lists(st.sampled_from(["a", "a b", "a\tb ", "b"]), max_size=4),
    st.sampled_from(WORDINGS),
    st.sampled_from(WORDINGS),
)
def test_exact_is_equality_of_the_words(asked, known, one, other):
    got = exact_duplicates(
        prompts(*(one.replace("{question}", text) for text in asked)),
        prompts(*(other.replace("{question}", text) for text in known)),
    )
    assert got == [any(a.split() == b.split() for b in known) for a in asked]


def test_the_question_is_the_last_message():
    system = {"role": "system", "content": "Be brief."}
    talk = Prompt("0", messages=(system, {"role": "user", "content": "Why?"}))
    assert exact_duplicates([talk], prompts("Why?")) == [True]
    assert exact_duplicates([talk], prompts("Be brief.")) == [False]


# semantic


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_the_nearest_is_that_of_all_pairs(n, m, d, seed):
    rng = np.random.default_rng(seed)
    rows = {n: rng.normal(size=(n, d)), m: rng.normal(size=(m, d))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_CHUNK_ELEMENTS", int(rng.integers(1, 20)))
        found = semantic_duplicates(
            prompts(*map(str, range(n))),
            prompts(*map(str, range(m))),
            encode=lambda texts: rows[len(texts)],
            threshold=0.3,
        )
    cosine = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows[m]] for a in rows[n]]
    ).reshape(n, m)
    np.testing.assert_allclose(found.cosine, cosine.max(1), atol=1e-6)
    np.testing.assert_allclose(cosine[range(n), found.index], cosine.max(1), atol=1e-6)
    assert found.duplicate.tolist() == (found.cosine >= 0.3).tolist()


def test_only_the_bare_question_is_embedded():
    asked = prompts(
        BOXED_TEMPLATE.replace("{question}", "how many apples are there ?"),
        "are there 2 pears ?",
        "3",
    )
    known = prompts(
        "are there 3 apples", DAPO_TEMPLATE.replace("{question}", "there are how many apples ?")
    )
    found = semantic_duplicates(asked, known, encode=bag_of_words)
    assert found.index[:1].tolist() == [1]
    assert found.cosine == pytest.approx([1, 3 / 30**0.5, 0.5])
    assert found.duplicate.tolist() == [True, False, False]


def test_an_embedding_of_zeros_has_cosine_0():
    found = semantic_duplicates(
        prompts("a"), prompts("b"), encode=lambda texts: np.zeros((1, 3)), threshold=0.1
    )
    assert found.cosine.tolist() == [0]
    assert not found.duplicate.any()


def test_what_cannot_be_compared_is_an_error():
    def check(error, reason, known=("b",), threshold=0.6, encode=bag_of_words):
        with pytest.raises(error, match=reason):
            semantic_duplicates(
                prompts("a", "c"), prompts(*known), encode=encode, threshold=threshold
            )

    check(ConfigError, r"threshold = 1.5; expected a cosine, in \[-1, 1\]", threshold=1.5)
    check(ConfigError, "there are no prompts to compare with", known=())
    check(
        ConfigError,
        r"encode gave an array of shape \(3,\) for 1 texts; expected one row per text",
        encode=lambda texts: np.ones(3),
    )
    check(
        ConfigError,
        "encode gave 2 numbers per text, then 1",
        encode=lambda texts: np.ones((len(texts), len(texts))),
    )
    check(
        NonFiniteError,
        "the embedding of prompt '1' has NaN",
        encode=lambda texts: np.array([[1.0], [np.nan]])[: len(texts)],
    )


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'opdprobe\[dedup\]'"):
        sentence_encoder()


def test_a_sentence_model_encodes(monkeypatch):
    """Against a stand-in for the library, which tests do not install."""
    loaded = []

    class SentenceTransformer:
        def __init__(self, name, device, model_kwargs):
            if name == "absent":
                raise OSError("no such model")
            loaded.append((name, device, model_kwargs))

        def encode(self, texts, *, show_progress_bar):
            assert isinstance(texts, list)  # the library takes a tuple for a pair
            return np.ones((len(texts), 2), np.float32)

    library = ModuleType("sentence_transformers")
    library.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: library)
    assert np.shape(sentence_encoder()(("a", "b"))) == (2, 2)
    sentence_encoder("mine", device="cpu", dtype="bfloat16")
    assert loaded == [
        ("all-mpnet-base-v2", "cpu", {"use_safetensors": True, "dtype": torch.float32}),
        ("mine", "cpu", {"use_safetensors": True, "dtype": torch.bfloat16}),
    ]
    with pytest.raises(ModelError, match="absent: the sentence model does not load: no such model"):
        sentence_encoder("absent")


# the public files


@needs_data
@pytest.mark.parametrize(
    ("name", "against", "count"),
    [
        ("dapo-math-17k-processed", "dapo-math-17k", 17917),  # two wordings of one set
        ("DeepMath_deduped", "dapo-math-17k", 0),  # published without the other's questions
        ("AMC23", "dapo-math-17k", 5),  # a benchmark that the training set has seen
    ],
)
def test_exact_duplicates_of_the_public_files(name, against, count):
    asked, known = (load_prompts(DATA / f"{file}.parquet") for file in (name, against))
    assert sum(exact_duplicates(asked, known)) == count
