"""Settings: what is refused, and the way to YAML and back."""

import dataclasses

import pytest
import yaml

from opdprobe import ConfigError, OPDConfig
from opdprobe.train.config import GRPOConfig, SFTConfig

CONFIGS = [OPDConfig, SFTConfig, GRPOConfig]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "topK"}, "objective = 'topK'; expected one of topk, full, sampled"),
        ({"support": "both"}, "support = 'both'; expected one of student, teacher"),
        ({"divergence": "kl"}, "divergence = 'kl'; expected one of reverse_kl"),
        ({"tail": "keep"}, "tail = 'keep'; expected one of renormalise"),
        ({"estimator": "reinforce"}, "estimator = 'reinforce'; expected one of direct"),
        ({"lr_scheduler_type": "sawtooth"}, "lr_scheduler_type = 'sawtooth'; expected one of"),
        ({"k": 0}, "k = 0; expected a number above 0"),
        ({"temperature": 0.0}, "temperature = 0.0; expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan; expected a number above 0"),
        ({"max_steps": 0}, "max_steps = 0; expected a number above 0"),
        ({"record_every": -1}, "record_every = -1; expected 0 or more"),
        ({"seed": -1}, "seed = -1; expected 0 or more"),
        ({"top_p": 1.5}, "top_p = 1.5; expected at most 1"),
        ({"record_fraction": 2}, "record_fraction = 2; expected at most 1"),
        ({"eval_top_p": 1.01}, "eval_top_p = 1.01; expected at most 1"),
        ({"k": "16"}, "k = '16' is of type str; expected int"),
        ({"k": 16.0}, "k = 16.0 is of type float; expected int"),
        ({"batch_size": True}, "batch_size = True is of type bool; expected int"),
        ({"max_steps": "9"}, "max_steps = '9' is of type str; expected int | None"),
        ({"estimator": "scalar_policy_gradient"}, "zero expected gradient"),
        ({"objective": "full", "estimator": "scalar_policy_gradient"}, "zero expected gradient"),
        ({"objective": "sampled"}, "needs estimator='policy_gradient'"),
        (
            {"objective": "sampled", "estimator": "scalar_policy_gradient"},
            "needs estimator='policy_gradient'",
        ),
        ({"objective": "full", "estimator": "policy_gradient"}, "use estimator='direct'"),
        (
            {"estimator": "policy_gradient", "divergence": "jsd"},
            "defined for divergence='reverse_kl' only, not 'jsd'",
        ),
        ({"estimator": "policy_gradient", "tail": "bucket"}, "no token to weight in the tail"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        OPDConfig(**settings)
    assert message in str(caught.value)


def test_defaults_are_the_papers():
    c = OPDConfig()
    assert (c.objective, c.support, c.k, c.divergence, c.tail) == (
        "topk",
        "student",
        16,
        "reverse_kl",
        "renormalise",
    )
    assert (c.temperature, c.top_p, c.batch_size, c.num_generations) == (1.0, 1.0, 64, 4)
    assert (c.max_prompt_length, c.max_completion_length) == (1024, 7168)
    assert (c.learning_rate, c.num_train_epochs) == (1e-6, 1)
    assert (c.eval_n, c.eval_temperature, c.eval_top_p) == (16, 0.7, 0.95)


@pytest.mark.parametrize("kind", CONFIGS)
def test_yaml_and_back(kind, tmp_path):
    config = kind(learning_rate=3e-7, seed=5)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert kind.from_yaml(path) == config
    assert kind.from_dict(config.to_dict()) == config


def test_yaml_numbers_with_a_bare_exponent(tmp_path):
    """YAML 1.1 reads 1e-6 as text."""
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 1e-6\nk: 4\n")
    assert OPDConfig.from_yaml(path) == OPDConfig(learning_rate=1e-6, k=4)
    path.write_text("learning_rate: fast\n")
    with pytest.raises(ConfigError, match="learning_rate = 'fast' is of type str; expected float"):
        OPDConfig.from_yaml(path)


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    assert OPDConfig.from_yaml(path) == OPDConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- k\n", "holds a list; expected name: value lines"),
        ("k: [1\n", "not readable as YAML"),
        ("top_k: 16\n", "unknown setting top_k for OPDConfig; expected one of batch_size"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        OPDConfig.from_yaml(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at"):
        OPDConfig.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_number_is_checked(kind):
    """No number may be negative, whichever it is."""
    for field in dataclasses.fields(kind):
        if field.type is not str:
            with pytest.raises(ConfigError, match=f"{field.name} = -1"):
                kind(**{field.name: -1})
