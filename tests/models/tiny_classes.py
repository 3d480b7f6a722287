"""A tiny random model of every causal language model class that transformers has.

The classes come from transformers' own mapping, and a class's configuration from its defaults:
names of sizes get small values, and of many layers one of each kind stays.
"""

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, WINDOW = 96, 6
# The first pattern that matches the full name of a setting gives its value.
_SMALL: list[tuple[str, Any]] = [
    (r"encoder_hash_byte_group_vocab", VOCAB),
    (r"(decoder_|unpadded_|pronunciation_|shape_|ngram_)?vocab_size(_per_layer_input)?", VOCAB),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 2),
    (r"\w+_token_(id|index)", VOCAB - 1),
    (r"is_decoder|causal", True),
    (r"initializer_range|init_std|embed_init_std|embedding_initializer_range", 0.3),
    (r"(num_)?(hidden_|encoder_|decoder_)?layers?|n_layers?|num_blocks|depth", 2),
    (r"num_layers_per_stack", 1),
    (r"num_kv_shared_layers|num_nextn_predict_layers|num_mtp_layers", 0),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"hidden_size|d_model|n_embd|emb_dim|(input_|output_)?embedding_(size|dim)|lru_width", 32),
    (r"adapter_(in_dim|out_dim|input_size)", 32),
    (r"word_embed_proj_dim|dim_model_base|attention_hidden_size|hidden_size_global", 32),
    (r"(\w+_)?(intermediate|ffn|feed_forward)_(size|dim)(_mlp)?|dim_ff|dff", 32),
    (r"(\w+_)?ffn_hidden_size", 32),
    (r"zero_expert_num", 2),
    (r"d_inner|n_inner|hidden_size_per_layer_input|router_hidden_size|out_hidden_size", 32),
    (r"index(er)?_n_heads", 16),  # few heads' scores would all be cut to zero, and tie
    (r"(\w+_)?(num_attention_heads|attention_heads|num_heads|n_heads?)", 4),
    (r"(\w+_)?(num_key_value_heads|num_kv_heads|kv_n_heads)", 2),
    (r"(?!qk_)(\w+_)?head_dim|dim_head|d_head|kv_channels|mamba_d_head|attention_head_size", 8),
    (r"(q|kv|o|gated_norm)_(lora_)?rank|time_step_rank|mamba_dt_rank|adapter_rank", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim", 8),
    (r"(mamba_d_|ssm_)?state(_size)?", 8),
    (r"(\w+_)?(num_|n_)(local_|routed_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n(_)?groups", 1),
    (r"sliding_window(_size)?|(attention_)?window_size|attention_window_size", WINDOW),
    (r"attention_chunk_size|local_attention(_window_len)?|index_topk|keep_window_size", WINDOW),
    (r"max_position_embeddings|n_positions|max_(seq_len|target_positions)|n_ctx", 128),
    (r"context_length", 128),
    (r"rotary_dim", 4),
    (r"(mamba_)?chunk_size|block_size|block_multiple_of|index_block_size", 8),
]


# What some configurations leave open, though their models need it.
_NEEDED = re.compile(
    r"head_dim|num_key_value_heads|n_(routed|shared)_experts|num_experts(_per_tok)?|linear_\w+"
)

# What the defaults of a configuration do not show, by model type.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attn_layers": ["local", "lsh"],
    },
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "mamba2": {"num_heads": 8},
    "hrm_text": {"num_hidden_layers": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "deepseek_v4": {
        "head_dim": 8,
        "qk_rope_head_dim": 4,
        "partial_rotary_factor": 0.5,
        "hc_mult": 2,
        "o_groups": 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "dots1": {"n_shared_experts": 1},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {"attention_head_dim": 16, "attention_hidden_size": 64},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "xlstm": {"num_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
}


def small_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Settings that make a configuration of the same class tiny."""
    small: dict[str, Any] = {}
    shown = config.to_dict()
    for name, value in shown.items():
        sub = getattr(config, name, None) if isinstance(value, dict) else None
        if isinstance(sub, PreTrainedConfig):
            small[name] = {"model_type": sub.model_type} | small_settings(sub)
            continue
        if value is None and not _NEEDED.fullmatch(name):
            continue
        if name == "head_dim" and "qk_rope_head_dim" in shown:
            continue  # follows from the parts
        for pattern, tiny in _SMALL:
            if re.fullmatch(pattern, name) and (isinstance(value, bool) == isinstance(tiny, bool)):
                small[name] = tiny
                break
    if shown.get("num_key_value_heads") == shown.get("num_attention_heads") is not None:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | _one_of_each_kind(shown) | _OWN.get(config.model_type, {})


def _one_of_each_kind(shown: dict[str, Any]) -> dict[str, Any]:
    """Settings that keep one layer of each kind, of the lists that have an entry a layer."""
    types = {
        name: value
        for name in ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
        if isinstance(value := shown.get(name), list)
    }
    if not types:
        return {}
    kinds = list(zip(*types.values(), strict=True))
    kept = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())[:4]
    if len(kept) == 1:
        kept *= 2
    lists = {name: [value[i] for i in kept] for name, value in types.items()}
    return lists | {"num_hidden_layers": len(kept)}


def tiny_model(config_class: type[PreTrainedConfig]) -> PreTrainedModel:
    """A tiny random model, in float32 and evaluation mode."""
    config = config_class(**small_settings(config_class()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for weight in model.parameters():  # what begins at 0 or 1 would hide an error
                weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def mapping() -> list[tuple[str, type[PreTrainedConfig], str]]:
    """List every model type that has a causal LM, with its configuration and its class."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [(model_type, CONFIG_MAPPING[model_type], name) for model_type, name in names.items()]
