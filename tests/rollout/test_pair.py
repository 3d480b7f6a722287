"""A pair is the same whether it is given as models, names or paths."""

import pytest
import torch

from opdprobe.errors import ConfigError, ModelError, VocabularyError
from opdprobe.models.load import weight_hash
from opdprobe.rollout.pair import Pair
from opdprobe.testing import tiny_model, tiny_tokenizer


@pytest.fixture
def saved(tmp_path):
    for name, seed, words in (("student", 0, 64), ("teacher", 1, 64), ("other", 1, 60)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer(words).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("as_", ["path", "name"])
def test_names_and_paths_are_loaded_with_their_tokenizers(saved, as_):
    kind = str if as_ == "name" else lambda path: path
    pair = Pair.load(kind(saved / "student"), kind(saved / "teacher"))
    assert weight_hash(pair.student) == weight_hash(tiny_model(seed=0))
    assert weight_hash(pair.teacher) == weight_hash(tiny_model(seed=1))
    assert pair.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert pair.teacher_tokenizer is not None
    with pytest.raises(ModelError):
        Pair.load(kind(saved / "student"), kind(saved / "absent"))


def test_loaded_models_are_used_as_they_are(saved):
    student, teacher, tokenizer = tiny_model(seed=0), tiny_model(seed=1), tiny_tokenizer()
    pair = Pair.load(student, teacher, tokenizer=tokenizer)
    assert pair.student is pair.outer_student is student
    assert pair.teacher is teacher
    assert pair.tokenizer is tokenizer
    assert pair.teacher_tokenizer is None
    with pytest.raises(ConfigError, match="pass tokenizer= along with a student"):
        Pair.load(student, saved / "teacher")


def test_a_given_tokenizer_replaces_the_saved_one(saved):
    with pytest.raises(VocabularyError, match="The tokenizers differ"):
        Pair.load(saved / "student", saved / "other")
    mine = tiny_tokenizer()
    pair = Pair.load(saved / "other", saved / "other", tokenizer=mine, teacher_tokenizer=mine)
    assert pair.tokenizer is pair.teacher_tokenizer is mine


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_moves_to_the_device_unless_it_is_there(monkeypatch, device):
    models, moved = (tiny_model(seed=0), tiny_model(seed=1)), []
    for model in models:
        monkeypatch.setattr(model, "to", moved.append)
    monkeypatch.setattr("opdprobe.models.devices.accelerator", lambda: ("meta", 1))
    Pair.load(*models, tokenizer=tiny_tokenizer(), device=torch.device(device))
    assert moved == ([] if device == "cpu" else [torch.device("meta")] * 2)


def test_tokenizers_are_compared_before_weights_are_read(saved, monkeypatch):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("opdprobe.rollout.pair.load_model", read)
    with pytest.raises(VocabularyError):
        Pair.load(saved / "student", saved / "other")
