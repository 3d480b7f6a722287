import pytest
import torch

from opdprobe.testing import synthetic_run, synthetic_step, tiny_model, tiny_tokenizer


def test_equal_arguments_give_equal_steps_and_others_do_not():
    assert synthetic_step(3, seed=1).identical(synthetic_step(3, seed=1))
    assert not synthetic_step(3, seed=1).equals(synthetic_step(3, seed=2))
    assert not synthetic_step(3).logp.equals(synthetic_step(4).logp)


def test_a_synthetic_run_has_steps_and_metrics(tmp_path):
    run = synthetic_run(tmp_path / "run", steps=[5, 0], k=4)
    assert run.steps == [0, 5]
    loss = run.metrics["loss"].sel(step=5).item()
    assert loss == pytest.approx(run.load(5)["reverse_kl"].mean().item())


def test_the_tiny_model_is_seeded_and_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    first, again, other = (tiny_model(seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("tie", [False, True])
def test_the_tiny_model_runs(tie):
    model = tiny_model(40, hidden_size=8, layers=1, tie=tie)
    assert model(torch.tensor([[1, 7, 8]])).logits.shape == (1, 3, 40)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie


def test_the_tiny_tokenizer_writes_chats_and_reads_them_back():
    tokenizer, model = tiny_tokenizer(40), tiny_model(40)
    assert len(tokenizer) == 40
    chat = [{"role": "user", "content": "12 3"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<bos> <user> 12 3 <assistant>"
    ids = tokenizer(text)["input_ids"]
    assert ids == [1, 4, 18, 9, 5]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "12 3"
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
