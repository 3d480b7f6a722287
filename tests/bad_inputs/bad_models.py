"""Directories that should hold a model or a tokenizer, and pairs that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from case import Case
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    DogeConfig,
    DogeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opdprobe.errors import ConfigError, ModelError, NonFiniteError, PromptError, VocabularyError
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.preflight import preflight
from opdprobe.rollout.once import probe
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompts import EncodedPrompt, Prompt, encode_prompts
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.testing.testbed.tokenizer import build_tokenizer

_LOADS = "FOLDER/model: the model does not load: "
_SAVED = "; expected a causal language model, as save_pretrained writes it."
_TOKENIZER = "FOLDER/model: the tokenizer does not load: "
_BESIDE = "; expected a tokenizer as save_pretrained writes it, beside the model."


def _saved(folder: Path, model: PreTrainedModel | None = None, **options: Any) -> Path:
    path = folder / "model"
    (model or tiny_model()).save_pretrained(path, **options)
    tiny_tokenizer().save_pretrained(path)
    return path


def _model(fed: str, feed: Any, message: str) -> Case:
    return Case("Models", fed, feed, ModelError, message)


def _damaged(fed: str, file: str, content: bytes | str | None, message: str) -> Case:
    """A model of which one file is something else, or gone."""

    def feed(folder: Path) -> object:
        path = _saved(folder) / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_model(folder / "model")

    return _model(fed, feed, message)


def _configured(fed: str, message: str, **changes: Any) -> Case:
    """A model whose config.json says something else; None takes a field out."""

    def feed(folder: Path) -> object:
        path = _saved(folder) / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return load_model(folder / "model")

    return _model(fed, feed, message)


def _pickled(folder: Path) -> object:
    path = _saved(folder)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    return load_model(path)


def _half(folder: Path) -> object:
    file = _saved(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return load_model(folder / "model")


def _shard_missing(folder: Path) -> object:
    path = _saved(folder, max_shard_size="10KB")
    min(path.glob("model-*.safetensors")).unlink()
    return load_model(path)


def _renamed(prefix: str) -> Callable[[Path], object]:
    """A model whose weights have a wrapper's names."""

    def feed(folder: Path) -> object:
        file = _saved(folder) / "model.safetensors"
        weights = {prefix + name: weight for name, weight in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
        return load_model(folder / "model")

    return feed


def _adapter(folder: Path) -> object:
    path = folder / "checkpoint-5"
    path.mkdir()
    (path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "/data/base"}'
    )
    return load_model(path)


def _shards(folder: Path) -> object:
    actor = folder / "global_step_5/actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_2_rank_0.pt").touch()
    return load_model(folder / "global_step_5")


def _encoder(folder: Path) -> object:
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return load_model(_saved(folder, BertForMaskedLM(config)))


def _probed(_: Path, **weights: float) -> object:
    models = {role: tiny_model(seed=i) for i, role in enumerate(("student", "teacher"))}
    for role, value in weights.items():
        models[role].lm_head.weight.data[5, 0] = value
    pair = Pair(models["student"], models["teacher"], tiny_tokenizer())
    prompt = EncodedPrompt(Prompt("a", text="1 2"), (7, 8))
    return probe(pair, [prompt], num_generations=1, k=2, max_completion_length=2)


def _positions(_: Path) -> object:
    config = GPT2Config(vocab_size=64, n_embd=4, n_layer=1, n_head=1, n_positions=16)
    model = GPT2LMHeadModel(config)
    return sample(model, [[7] * 10], max_completion_length=24, eos_ids=[2], pad_id=0)


def _without_embedding(_: Path) -> object:
    prompts = [[7, 8], [7, 151655]]
    return sample(tiny_model(), prompts, max_completion_length=2, eos_ids=[2], pad_id=0)


def _looks_ahead(_: Path) -> object:
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = BertLMHeadModel(config).eval()
    return Pair(tiny_model(), model, tiny_tokenizer())


def _by_chance(_: Path) -> object:
    config = DogeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        keep_window_size=16,
    )
    model = DogeForCausalLM(config)
    return sample(model, [[7] * 10], max_completion_length=24, eos_ids=[2], pad_id=0)


_MODELS = [
    Case(
        "Models",
        "a device that no machine has",
        lambda folder: load_model(_saved(folder), device="gpu"),
        ConfigError,
        "device = 'gpu': no such device; expected auto, cpu….",
    ),
    Case(
        "Models",
        "a dtype by a short name",
        lambda folder: load_model(_saved(folder), dtype="bf16"),
        ConfigError,
        "dtype = 'bf16': not a dtype of weights; expected auto, float32, bfloat16, float16.",
    ),
    Case(
        "Models",
        "a way of attention that there is not",
        lambda folder: load_model(_saved(folder), attn_implementation="flesh"),
        ConfigError,
        "attn_implementation = 'flesh' cannot be used: …. Expected sdpa or eager, or install what "
        "it needs.",
    ),
    _model(
        "a name of nothing",
        lambda folder: load_model(folder / "absent"),
        "FOLDER/absent: no such file or directory; expected a model directory, a .gguf file or a "
        "hub id (owner/name).",
    ),
    _model(
        "a served model, where one must be loaded",
        lambda folder: load_model("http://gpu:8000/v1#my/teacher"),
        "http://gpu:8000/v1#my/teacher: a served model, which does not report all that is needed "
        "here; expected a model directory, a .gguf file or a hub id (owner/name). probe takes a "
        "served model, and the student's server may sample (--sampler).",
    ),
    _model(
        "an empty directory",
        load_model,
        "FOLDER: no config.json in this directory; expected a saved model.",
    ),
    _damaged(
        "no weights",
        "model.safetensors",
        None,
        "FOLDER/model: no *.safetensors file in this directory: complete the download.",
    ),
    _model(
        "weights in a pickle",
        _pickled,
        "FOLDER/model: only pickled weights (pytorch_model.bin), which can run code when read: "
        "if you trust them, convert them to safetensors (save_pretrained writes it).",
    ),
    _model("weights cut off", _half, _LOADS + "…" + _SAVED),
    _damaged("weights that are none", "model.safetensors", b"\xff" * 64, _LOADS + "…" + _SAVED),
    _model(
        "weights of which a part is missing",
        _shard_missing,
        _LOADS + "…model-00001-of-00003.safetensors…" + _SAVED,
    ),
    _damaged("a config.json that is not JSON", "config.json", "{", _LOADS + "…" + _SAVED),
    _configured(
        "a config.json without an architecture",
        _LOADS + "Unrecognized model in FOLDER/model. …" + _SAVED,
        model_type=None,
        architectures=None,
    ),
    _configured(
        "an architecture that there is not",
        _LOADS + "The checkpoint you are trying to load has model type `llamma` …" + _SAVED,
        model_type="llamma",
    ),
    _configured(
        "more layers than weights",
        "FOLDER/model: 9 of the weights of LlamaForCausalLM are not in the checkpoint; the first "
        "is model.layers.2.input_layernorm.weight. Expected the complete checkpoint of a causal "
        "language model.",
        num_hidden_layers=3,
    ),
    _configured(
        "weights of another shape",
        "FOLDER/model: 2 of the weights do not have the shape that config.json gives them; the "
        "first is lm_head.weight: (64, 16), expected (32, 16). Take both from one checkpoint.",
        vocab_size=32,
    ),
    _configured(
        "fewer layers than weights",
        "FOLDER/model: 9 of the weights in the checkpoint have no place in LlamaForCausalLM; the "
        "first is model.layers.1.input_layernorm.weight: config.json describes another model than "
        "the one saved. Take both from one checkpoint.",
        num_hidden_layers=1,
    ),
    _model(
        "weights of a model under PEFT adapters",
        _renamed("base_model.model."),
        "FOLDER/model: the weights' names are those of a model under PEFT adapters "
        "(base_model.model., base_layer, lora_A): merge them with model.merge_and_unload() before "
        "saving, or save the adapter alone with the PEFT model's save_pretrained.",
    ),
    _model(
        "weights of a model wrapped by FSDP",
        _renamed("_fsdp_wrapped_module."),
        "FOLDER/model: the weights' names are those of a model wrapped by FSDP "
        "(_fsdp_wrapped_module.): gather the full state dict (FullStateDictConfig, or "
        "accelerator.get_state_dict) and pass it to the inner model's save_pretrained.",
    ),
    _model(
        "an adapter whose base is elsewhere",
        _adapter,
        "FOLDER/checkpoint-5: an adapter, and its base model does not load: /data/base: no such "
        "file or directory; expected a model directory, a .gguf file or a hub id (owner/name). If "
        "the base is elsewhere, name it: FOLDER/checkpoint-5@BASE.",
    ),
    _model(
        "verl's shards, not merged",
        _shards,
        "FOLDER/global_step_5: the weights are in verl's FSDP shards (model_world_size_….pt); "
        "merge them first: python -m verl.model_merger merge --backend fsdp --local_dir "
        "FOLDER/global_step_5/actor --target_dir FOLDER/global_step_5/actor/huggingface",
    ),
    _configured(
        "quantised weights without the package that unpacks them",
        "FOLDER/model: the model needs a package that is not installed, such as the one that "
        "unpacks quantised weights: …gptqmodel…. Install it, or take a checkpoint that is not "
        "quantised.",
        quantization_config={"quant_method": "awq", "bits": 4, "group_size": 16},
    ),
    _model(
        "texts longer than the model's table of positions",
        _positions,
        "GPT2LMHeadModel has a table of 16 positions, but a prompt of 10 tokens with a response of "
        "up to 24 needs 33: lower max_completion_length to 7 or less, or leave out long prompts.",
    ),
    Case(
        "Models",
        "a prompt with a token that the model has no embedding for",
        _without_embedding,
        PromptError,
        "prompt 1 has token 151655, but LlamaForCausalLM has embeddings for the ids 0 to 63 only: "
        "give the tokenizer and chat template that belong to the model, or leave the prompt out.",
    ),
    _model(
        "a model that attends to later tokens",
        _looks_ahead,
        "BertLMHeadModel cannot be scored: its logits depend on later tokens, or on other rows "
        "(they differ by … of their spread); expected a causal language model, of the BERT family "
        "one with is_decoder=True in its configuration.",
    ),
    _model(
        "texts in which a model chooses by chance what it attends to",
        _by_chance,
        "DogeForCausalLM chooses the tokens that it attends to by chance in texts of more than 16, "
        "but a prompt of 10 tokens with a response of up to 24 needs 33: lower "
        "max_completion_length, or leave out long prompts.",
    ),
    _configured("no attention head", _LOADS + "…" + _SAVED, num_attention_heads=0),
    _model(
        "an encoder",
        _encoder,
        "FOLDER/model: BertForMaskedLM attends to the full text; expected a causal language "
        "model, which attends only to earlier tokens.",
    ),
    Case(
        "Models",
        "what is not a transformers model",
        lambda _: preflight(
            torch.nn.Linear(2, 2), tiny_model(), [Prompt("a", text="1")], tokenizer=tiny_tokenizer()
        ),
        ConfigError,
        "a Linear is not a transformers model; expected a causal language model, with or without "
        "PEFT adapters.",
    ),
    Case(
        "Models",
        "NaN in the student's weights",
        lambda folder: _probed(folder, student=float("nan")),
        NonFiniteError,
        "LlamaForCausalLM gave NaN or infinite logits while sampling: prompt 0, response position "
        "0. Check the weights and the dtype (float16 overflows).",
    ),
    Case(
        "Models",
        "infinity in the teacher's weights",
        lambda folder: _probed(folder, teacher=float("inf")),
        NonFiniteError,
        "the teacher gave NaN or infinite logits at row …. Check its weights and dtype (float16 "
        "overflows).",
    ),
]


def _tokenizer(fed: str, file: str, content: str | None, message: str) -> Case:
    def feed(folder: Path) -> object:
        path = _saved(folder) / file
        path.unlink() if content is None else path.write_text(content)
        return load_tokenizer(folder / "model")

    return Case("Tokenizers", fed, feed, ModelError, message)


def _encoded(
    fed: str,
    fault: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: str | None = None,
    cure: str = "",
    meta: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """A prompt that cannot be encoded."""

    def feed(_: Path) -> object:
        used = tokenizer or tiny_tokenizer()
        used.chat_template = template or used.chat_template
        asked = {"role": "user", "content": "1 2 3"}
        return encode_prompts(used, [Prompt("a", messages=(asked,), meta=meta or {})], **options)

    message = (
        f"encode_prompts: 1 of 1 rows cannot be used: row 0 (id 'a'): {fault}. Correct them{cure}, "
        'or leave them out with on_error="skip".'
    )
    return Case("Tokenizers", fed, feed, PromptError, message)


def _pair(fed: str, message: str, *, tokens: int = 64, logits: int = 64) -> Case:
    """A teacher that does not fit."""

    def feed(_: Path) -> object:
        tokenizers = tiny_tokenizer(), tiny_tokenizer(tokens)
        with torch.no_grad():
            return Pair(tiny_model(), tiny_model(logits), *tokenizers)

    return Case("Tokenizers", fed, feed, VocabularyError, message)


_TOKENIZERS = [
    _tokenizer(
        "no tokenizer beside the model",
        "tokenizer.json",
        None,
        _TOKENIZER + "no tokenizer.json in this directory" + _BESIDE,
    ),
    _tokenizer("a tokenizer.json of nothing", "tokenizer.json", "{}", _TOKENIZER + "…" + _BESIDE),
    _tokenizer(
        "a tokenizer.json without a vocabulary",
        "tokenizer.json",
        '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": 3}}',
        _TOKENIZER + "…" + _BESIDE,
    ),
    _tokenizer(
        "settings that are a list", "tokenizer_config.json", "[]", _TOKENIZER + "…" + _BESIDE
    ),
    _pair(
        "vocabularies that differ",
        "The tokenizers differ at 4 of 64 ids, first at id 60: the student has '54', the teacher "
        "no token; so per-token distributions cannot be compared: choose a teacher of the "
        "student's tokenizer family.",
        tokens=60,
    ),
    _pair(
        "fewer logits than tokens",
        "The teacher has 60 logits, but the tokenizer has 64 tokens; load the tokenizer that "
        "belongs to it.",
        logits=60,
    ),
    _encoded(
        "a row that would replace the chat template",
        "chat_template_kwargs has 'chat_template'; expected names that the chat template reads, "
        "such as enable_thinking",
        template="{{ messages[0].content }}",
        meta={"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
    ),
    _encoded(
        "a system prompt that the chat template refuses",
        "the chat template fails: System role not supported",
        template="{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}",
        system_prompt="Be brief.",
    ),
    _encoded(
        "a prompt that is too long",
        "6 tokens, more than max_prompt_length 4",
        cure=", raise max_prompt_length (--max-prompt-length)",
        max_prompt_length=4,
    ),
    _encoded(
        "a word that the testbed's tokenizer does not know",
        "the tokenizer has no token for ['What'], and none for unknown words",
        build_tokenizer(),
        "{% for m in messages %}<bos> What {{ m.content }}{% endfor %}",
    ),
    _encoded(
        "a chat template that reaches for Python's classes",
        "the chat template fails: access to attribute '__class__' of 'str' object is unsafe",
        template="{{ ''.__class__.__mro__ }}",
    ),
    _encoded(
        "a chat template that fails",
        "the chat template fails: division by zero",
        template="{{ 1 / 0 }}",
    ),
    _encoded(
        "a chat template that is none",
        "the chat template fails: …",
        template="{% for %}",
    ),
]

CASES = [*_MODELS, *_TOKENIZERS]
