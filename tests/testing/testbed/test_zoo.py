"""The zoo: shipped models are ordinary directories, and building one is resumable."""

import json
import shutil
import signal
import threading
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opdprobe.testing.testbed import members, world, zoo
from opdprobe.testing.testbed.members import MEMBERS, Member, ZooError, manifest, zoo_path
from opdprobe.testing.testbed.problems import problems
from opdprobe.testing.testbed.tokenizer import build_tokenizer
from opdprobe.train.config import GRPOConfig, SFTConfig

pytestmark = pytest.mark.slow

SHIPPED = members.ZOO
SFT = SFTConfig(learning_rate=1e-2, batch_size=8, max_steps=5, optimizer="muon", save_steps=2)
GRPO = GRPOConfig(
    learning_rate=1e-3,
    batch_size=4,
    num_generations=2,
    max_completion_length=8,
    max_steps=3,
    save_steps=2,
)
TINY = {
    "tiny": Member("a student", SFT, size={"hidden_size": 16, "layers": 1}),
    "tiny-rl": Member("its RL", GRPO, parent="tiny"),
}


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    """A zoo of two tiny members, none of them built."""
    monkeypatch.setattr(members, "MEMBERS", TINY)
    monkeypatch.setattr(members, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(zoo, "measure", partial(zoo.measure, n_problems=4, num_generations=1))
    monkeypatch.setattr(zoo, "problems", lambda n, **split: problems(min(n, 64), **split))
    return tmp_path / "work"


@pytest.mark.parametrize("name", list(MEMBERS))
def test_a_shipped_model_is_an_ordinary_directory(name):
    path = zoo_path(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert model.config.vocab_size == len(tokenizer) == len(world.vocabulary())
    assert model.num_parameters() == manifest()[name]["parameters"]
    (prompt,) = problems(1, split="medium")
    inputs = tokenizer.apply_chat_template(
        list(prompt.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=zoo.MAX_COMPLETION_LENGTH)
    response = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert response[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(response, skip_special_tokens=True)
    assert world.strategy_of(text) in world.STRATEGIES
    assert text.split()[-2] == "answer"


def test_every_member_is_recorded_as_it_is_and_as_it_is_made():
    recorded = manifest()
    assert list(recorded) == list(MEMBERS)
    for name, member in MEMBERS.items():
        assert recorded[name]["sha256"] == zoo._digest(zoo_path(name))
        assert recorded[name]["teacher"] == member.teacher
        recipe = {"type": type(member.recipe).__name__, **member.recipe.to_dict()}
        assert recorded[name]["recipe"] == recipe
        assert recorded[name]["parent"] == member.parent


def test_the_members_stand_to_each_other_as_the_papers_models_do():
    """Larger models and RL'd ones are stronger than what they are larger than or come from."""
    accuracy = {name: entry["accuracy"] for name, entry in manifest().items()}
    assert accuracy["sft-large"] - accuracy["sft-small"] >= 0.15
    assert accuracy["rl-small"] - accuracy["sft-small"] >= 0.15
    assert accuracy["rl-large"] > accuracy["sft-large"]
    assert accuracy["sft-extra-large"] > accuracy["sft-large"]
    assert accuracy["base-large-rl"] > accuracy["base-large"] > accuracy["base-small"]
    assert accuracy["post-large-rl"] > accuracy["post-large"] > accuracy["post-small"]
    assert accuracy["cold-start-small"] > accuracy["base-small"]
    # Figure 3: two teachers, comparable.
    assert abs(accuracy["base-large-rl"] - accuracy["post-large"]) <= 0.05


def test_build_trains_publishes_and_records(tiny_zoo):
    steps = [metrics["step"] for metrics in zoo.build("tiny", tiny_zoo)]
    assert steps == [0, 1, 2, 3, 4]
    steps = [metrics["step"] for metrics in zoo.build("tiny-rl", tiny_zoo)]
    assert steps == [0, 1, 2]
    assert list(manifest()) == ["tiny", "tiny-rl"]
    for name, member in TINY.items():
        entry = manifest()[name]
        model = AutoModelForCausalLM.from_pretrained(zoo_path(name))
        assert model.dtype == torch.bfloat16
        assert entry["parameters"] == model.num_parameters()
        assert entry["parent"] == member.parent
        assert zoo.check(name)["accuracy"] == pytest.approx(entry["accuracy"], abs=1e-4)
    recipe = manifest()["tiny-rl"]["recipe"]
    assert recipe == {"type": "GRPOConfig", **GRPO.to_dict()}


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(tiny_zoo, tmp_path):
    list(zoo.build("tiny", tmp_path / "unbroken"))
    want = manifest()["tiny"]["sha256"]
    broken = zoo.build("tiny", tiny_zoo)
    for _ in range(4):
        next(broken)
    del broken
    assert manifest()["tiny"]["sha256"] == want  # nothing is published before the end
    assert [metrics["step"] for metrics in zoo.build("tiny", tiny_zoo)] == [4]
    assert manifest()["tiny"]["sha256"] == want


class Killed(BaseException):
    pass


def test_killed_while_it_is_published_the_member_before_is_whole(tiny_zoo, tmp_path, monkeypatch):
    list(zoo.build("tiny", tmp_path / "unbroken"))
    want = zoo.check("tiny")

    def die(*args, **kwargs):
        raise Killed

    for broken in ("measure", "_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(zoo, broken, die)
            with pytest.raises(Killed):
                list(zoo.build("tiny", tiny_zoo))
        assert zoo.check("tiny") == want
    shutil.rmtree(members.ZOO / "tiny")
    with pytest.raises(ZooError, match="tiny is not built"):
        zoo_path("tiny")
    list(zoo.build("tiny", tiny_zoo))
    assert zoo.check("tiny") == want
    assert [path.name for path in members.ZOO.iterdir()] == ["tiny"]


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="the signal would kill pytest"
)
@pytest.mark.parametrize("name", list(TINY))
def test_sigterm_stops_a_build_in_good_order(tiny_zoo, tmp_path, monkeypatch, name):
    def send(done, total):
        if done == 1:
            signal.raise_signal(signal.SIGTERM)

    for member in TINY:
        list(zoo.build(member, tmp_path / "unbroken"))
    want = zoo.check(name)
    shutil.rmtree(members.ZOO / name)
    with pytest.raises(SystemExit) as stopped:
        zoo._build(name, tiny_zoo, "cpu", send)
    assert stopped.value.code == 143
    assert not (members.ZOO / name).exists()
    checkpoints = tiny_zoo / name / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["000002"]
    # While it is published: that is finished first.
    with monkeypatch.context() as patch:
        patch.setattr(zoo, "_digest", lambda path, digest=zoo._digest: send(1, 1) or digest(path))
        with pytest.raises(SystemExit):
            zoo._build(name, tiny_zoo, "cpu", lambda done, total: None)
    assert zoo.check(name) == want


def test_a_parent_comes_first(tiny_zoo):
    with pytest.raises(ZooError, match="tiny is not built; run `opdprobe zoo build tiny`"):
        next(zoo.build("tiny-rl", tiny_zoo))


def test_check_finds_other_bytes_and_another_accuracy(tiny_zoo):
    list(zoo.build("tiny", tiny_zoo))
    record = members.ZOO / "tiny" / members.RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), "accuracy": 0.9}))
    with pytest.raises(ZooError, match=r"tiny: accuracy 0\.\d+; expected 0\.900"):
        zoo.check("tiny")
    weights = members.ZOO / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ZooError, match=r"has sha256 .* restore the file or rebuild it"):
        zoo.check("tiny")
    record.unlink()
    with pytest.raises(ZooError, match=r"zoo\.json is missing; run `opdprobe zoo build tiny`"):
        zoo.check("tiny")


def test_unknown_members_list_those_there_are(tiny_zoo):
    for use in (zoo_path, zoo.check, lambda name: next(zoo.build(name, tiny_zoo))):
        with pytest.raises(ZooError, match=r"no zoo model 'huge'; expected one of tiny, tiny-rl\."):
            use("huge")


def test_new_models_are_seeded_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [zoo.new_model(build_tokenizer(), hidden_size=16, layers=1) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    other = zoo.new_model(build_tokenizer(), hidden_size=16, layers=1, seed=1)
    assert not torch.equal(other.lm_head.weight, models[0].lm_head.weight)


def test_members_are_built_after_those_they_are_made_from(monkeypatch):
    seen = []
    monkeypatch.setattr(zoo, "work", lambda tasks, **_: seen.extend(tasks))
    zoo.build_all(list(MEMBERS), members.ZOO)
    after = {task.label: task.after for task in seen}
    assert list(after) == list(MEMBERS)
    assert after["sft-small"] == set()
    assert after["rl-small"] == {"sft-small"}
    assert after["cold-start-small"] == {"base-small", "post-large-rl"}


def test_a_cold_start_learns_from_its_teachers_rollouts(tiny_zoo, monkeypatch):
    two = {
        "rl-small": MEMBERS["rl-small"],
        "cold": Member("after SFT", SFTConfig(batch_size=4), None, "rl-small", "sft", "rl-small"),
    }
    shutil.copytree(SHIPPED / "rl-small", members.ZOO / "rl-small")
    monkeypatch.setattr(members, "MEMBERS", two)
    monkeypatch.setattr(zoo, "problems", lambda n, **split: problems(min(n, 4), **split))
    list(zoo.build("cold", tiny_zoo))
    record = manifest()["cold"]
    assert (record["teacher"], record["corpus"]) == ("rl-small", None)
    # Two rollouts a problem, and all of them end: two steps of four examples each.
    examples = (tiny_zoo / "cold/examples.jsonl").read_text().splitlines()
    assert len(examples) == 8
    assert record["sha256"] != manifest()["rl-small"]["sha256"]
