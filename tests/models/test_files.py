"""Checkpoints in the forms in which trainers leave them."""

import json
import shutil
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from opdprobe.errors import ModelError
from opdprobe.models.head import split_head
from opdprobe.models.load import drop_layers, load_model, load_tokenizer, weight_hash
from opdprobe.testing import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
IDS = torch.tensor([[7, 8, 9, 10, 11, 12]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def configured(path, name="config.json", **changes):
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(path, change, file="model.safetensors"):
    """Write the weights again, changed."""
    weights = load_file(path / file)
    save_file(change(weights), path / file, {"format": "pt"})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


# --- weights without a place -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "cause"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "config.json describes another model"),
        ("model.layers.2.mlp.up_proj.weight", "config.json describes another model"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "lacks its quantization_config"),
    ],
)
def test_weights_without_a_place_are_refused_by_name(saved, extra, cause):
    rewrite(saved, lambda weights: weights | {extra: torch.zeros(3)})
    with pytest.raises(
        ModelError, match=f"1 of the weights in the checkpoint .* {extra}: .*{cause}"
    ):
        load_model(saved)


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.masked_bias",
        "model.mtp.layers.0.norm.weight",
        "mtp.fc.weight",
        "v_head.summary.weight",
    ],
)
def test_weights_that_no_logit_depends_on_are_ignored(saved, extra):
    before = weight_hash(load_model(saved))
    rewrite(saved, lambda weights: weights | {extra: torch.zeros(3)})
    assert weight_hash(load_model(saved)) == before


def test_layers_that_predict_further_tokens_are_ignored_where_config_names_them(saved):
    count = tiny_model().config.num_hidden_layers
    extra = {f"model.layers.{count}.eh_proj.weight": torch.zeros(3)}
    rewrite(saved, lambda weights: weights | extra)
    with pytest.raises(ModelError, match=f"the first is model.layers.{count}.eh_proj.weight"):
        load_model(saved)
    configured(saved, num_nextn_predict_layers=1)
    torch.testing.assert_close(logits(load_model(saved)), logits(tiny_model()))
    extra = {f"model.layers.{count + 1}.eh_proj.weight": torch.zeros(3)}
    rewrite(saved, lambda weights: weights | extra)
    with pytest.raises(ModelError, match=f"the first is model.layers.{count + 1}."):
        load_model(saved)


# --- wrapped models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "cause", "advice"),
    [
        ("base_model.model.", "PEFT", "merge_and_unload"),
        ("_fsdp_wrapped_module.", "FSDP", "get_state_dict"),
        ("_orig_mod.", "torch.compile", "save model._orig_mod"),
        ("module.", "DistributedDataParallel", "save model.module"),
        ("pretrained_model.", "value head", "save model.pretrained_model"),
        ("module._fsdp_wrapped_module.", "FSDP", "get_state_dict"),
    ],
)
def test_a_wrapped_models_weights_name_the_wrapper(saved, prefix, cause, advice):
    rewrite(saved, lambda weights: {prefix + name: t for name, t in weights.items()})
    with pytest.raises(ModelError, match=f"names are those of a model .*{cause}.*{advice}"):
        load_model(saved)


def test_a_wrapper_inside_the_layers_is_found(saved):
    def wrapped(weights):
        return {
            name.replace(".mlp.", "._fsdp_wrapped_module.mlp."): t for name, t in weights.items()
        }

    rewrite(saved, wrapped)
    with pytest.raises(ModelError, match="wrapped by FSDP"):
        load_model(saved)


# --- adapters ----------------------------------------------------------------------------------


def adapter(base, path, **options):
    """Save a random adapter on a saved model; return the logits with it."""
    torch.manual_seed(3)
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"]} | options
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    with warnings.catch_warnings():  # PEFT's about tied embeddings
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(load_model(base), config)
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:  # a copy trained in full, which begins as the base's
                parameter.data += torch.randn_like(parameter)
        model.save_pretrained(path)
    return logits(model.eval())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
@pytest.mark.slow
def test_an_adapter_is_merged_into_its_base(tmp_path, saved, tied, options):
    if tied:
        configured(saved, tie_word_embeddings=True)
        rewrite(saved, lambda w: {k: t for k, t in w.items() if k != "lm_head.weight"})
    want = adapter(saved, tmp_path / "checkpoint-5", **options)
    loaded = load_model(tmp_path / "checkpoint-5")
    assert (want - logits(load_model(saved))).abs().max() > 0.01
    torch.testing.assert_close(logits(loaded), want, rtol=1e-4, atol=1e-5)
    assert type(loaded) is type(tiny_model())
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.name_or_path == str(tmp_path / "checkpoint-5")
    assert split_head(loaded)[1].projection is not None
    drop_layers(loaded, [0]).save_pretrained(tmp_path / "smaller")
    loaded.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), logits(loaded))


def test_an_adapter_in_bfloat16(tmp_path, saved):
    want = adapter(saved, tmp_path / "checkpoint-5")
    loaded = load_model(tmp_path / "checkpoint-5", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(loaded).float(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("where", ["absolute", "beside the adapter", "in the working directory"])
def test_the_base_is_found_by_its_path(tmp_path, saved, where, monkeypatch):
    path = tmp_path / "out/checkpoint-5"
    want = adapter(saved, path)
    named = {"absolute": str(saved), "beside the adapter": "../../model"}.get(where, "model")
    configured(path, "adapter_config.json", base_model_name_or_path=named)
    monkeypatch.chdir(tmp_path if where == "in the working directory" else tmp_path / "out")
    torch.testing.assert_close(logits(load_model(path)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["argument", "one name"])
def test_an_adapters_base_can_be_named(tmp_path, saved, how):
    path = tmp_path / "checkpoint-5"
    want = adapter(saved, path)
    configured(path, "adapter_config.json", base_model_name_or_path="/data/gone")
    name, base = (path, {"base": saved}) if how == "argument" else (f"{path}@{saved}", {})
    torch.testing.assert_close(load_model(name, **base)(IDS).logits, want)
    assert load_tokenizer(name, **base).get_vocab() == load_tokenizer(saved).get_vocab()
    assert load_model(name, **base).name_or_path == str(name)


def test_a_base_of_what_is_no_adapter_is_refused(saved):
    with pytest.raises(ModelError, match="not an adapter, so it has no base model"):
        load_model(saved, base=saved)


def test_an_at_sign_may_be_part_of_a_name(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "model@v2")
    assert weight_hash(load_model(str(tmp_path / "model@v2"))) == weight_hash(load_model(saved))


def test_only_our_message_says_what_does_not_fit(saved, capfd):
    rewrite(saved, lambda weights: dict(list(weights.items())[1:]))
    with pytest.raises(ModelError, match="1 of the weights"):
        load_model(saved)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_an_adapters_tokenizer_is_its_own_or_its_bases(tmp_path, saved):
    path = tmp_path / "checkpoint-5"
    adapter(saved, path)
    assert load_tokenizer(path).get_vocab() == tiny_tokenizer().get_vocab()
    tiny_tokenizer(60).save_pretrained(path)
    assert load_tokenizer(path).get_vocab() == tiny_tokenizer(60).get_vocab()


def test_what_an_adapter_lacks_is_named(tmp_path, saved, monkeypatch):
    path = tmp_path / "checkpoint-5"
    adapter(saved, path)
    complete = load_file(path / "adapter_model.safetensors")
    for change, message in (
        (lambda w: dict(list(w.items())[1:]), "1 of the adapter's weights are not in .*lora_A"),
        (
            lambda w: w | {"base_model.model.model.layers.9.q.lora_A.weight": torch.zeros(2)},
            "no place for base_model.model.model.layers.9.q.lora_A.weight",
        ),
        (
            lambda w: {k: t[:1] for k, t in w.items()},
            "does not fit its base .*size mismatch",
        ),
    ):
        save_file(change(complete), path / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=message):
            load_model(path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"without adapter_model\.safetensors"):
        load_model(path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="needs the peft package: pip install peft"):
        load_model(path)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("/data/base", "/data/base: no such file .* elsewhere, name it: .*checkpoint-5@BASE"),
        (None, "names no base model"),
        ("", "names no base model"),
        (".", "names itself"),
    ],
)
def test_a_base_that_is_not_here(tmp_path, saved, named, message):
    adapter(saved, tmp_path / "checkpoint-5")
    configured(tmp_path / "checkpoint-5", "adapter_config.json", base_model_name_or_path=named)
    with pytest.raises(ModelError, match=f"an adapter.*{message}"):
        load_model(tmp_path / "checkpoint-5")


def test_a_model_beside_an_adapter_is_ambiguous(tmp_path, saved):
    adapter(saved, tmp_path / "checkpoint-5")
    shutil.copy(tmp_path / "checkpoint-5/adapter_config.json", saved)
    with pytest.raises(ModelError, match=r"both a model .* and an adapter"):
        load_model(saved)


def test_a_learned_prompt_is_refused(tmp_path, saved):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load_model(saved), config).save_pretrained(tmp_path / "checkpoint-5")
    with pytest.raises(ModelError, match=r"a learned prompt \(PROMPT_TUNING\)"):
        load_model(tmp_path / "checkpoint-5")


# --- verl, DeepSpeed, FSDP ---------------------------------------------------------------------


def test_verls_directories_hold_a_model(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "global_step_20/actor/huggingface")
    for inside in (".", "actor", "actor/huggingface"):
        path = tmp_path / "global_step_20" / inside
        assert weight_hash(load_model(path)) == weight_hash(load_model(saved))
        assert load_tokenizer(path).get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(
    ("file", "command"),
    [
        (
            "model_world_size_2_rank_0.pt",
            "python -m verl.model_merger merge --backend fsdp --local_dir PATH --target_dir "
            "PATH/huggingface",
        ),
        ("dist_ckpt/common.pt", "python -m verl.model_merger merge --backend megatron"),
        ("zero_to_fp32.py", "python PATH/zero_to_fp32.py PATH PATH --safe_serialization"),
        (
            "pytorch_model_fsdp_0/__0_0.distcp",
            "accelerate merge-weights PATH/pytorch_model_fsdp_0 PATH",
        ),
    ],
)
@pytest.mark.parametrize("inside", ["", "huggingface"])
def test_shards_name_the_command_that_merges_them(tmp_path, saved, file, command, inside):
    actor = tmp_path / "actor"
    (actor / file).parent.mkdir(parents=True)
    (actor / file).write_bytes(b"")
    (actor / "huggingface").mkdir()
    shutil.copy(saved / "config.json", actor / "huggingface")
    with pytest.raises(ModelError) as caught:
        load_model(actor / inside)
    assert command.replace("PATH", str(actor)) in str(caught.value)


# --- vision-language, quantised ----------------------------------------------------------------


def test_a_vision_language_model_reads_text(tmp_path):
    torch.manual_seed(0)
    text = {"model_type": "mistral", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    pixels = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16}
    model = Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config=text | heads | {"num_key_value_heads": 2, "head_dim": 8},
            vision_config=pixels | heads | {"image_size": 28, "patch_size": 14},
            image_token_index=60,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    body, head = split_head(loaded)
    got = head(body(input_ids=IDS, use_cache=False).last_hidden_state)
    torch.testing.assert_close(got, logits(model))
    assert head.projection is not None


def test_a_quantised_model_names_its_package(saved, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Loading an AWQ quantized model requires gptqmodel.\nSee the docs.")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    with pytest.raises(ModelError, match=r"quantised weights: .* requires gptqmodel\. Install it"):
        load_model(saved)
