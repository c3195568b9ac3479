"""Tiny random models of the architectures that the installed transformers knows.

The sizes of a configuration class are made small by the names of its settings; families whose
sizes depend on each other have a few settings of their own. No weight is downloaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# Families that read images or sound, too, by the class that their checkpoints name.
MULTIMODAL = dict(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)

VOCABULARY = 768  # that of the built-in tokenizer
LAYERS = 4
# Encoders of images and sound are less deep, so that their blocks are not taken for the decoder's.
OTHER_LAYERS = 3
_LANGUAGE = ("text_config", "language_config", "llm_config", "thinker_config", "decoder_config")

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")

# Sizes by the whole name of a setting; the first pattern that matches counts.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"((audio|decoder|shape|pronunciation)_)?vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (
        r"hidden_size(_global)?|adapter_(in|out)_dim|d_model|n_embd|emb(edding)?_dim|lru_width|word_embed_proj_dim",
        64,
    ),
    (r"attention_hidden_size|((in|out)put_)?embedding_size", 64),
    (r"(moe|shared_experts?|expert|shared|moe_shared_expert)_intermediate_size", 32),
    (r"expert_ffn_hidden_size", 32),
    (r"(\w+_)?(intermediate_size|ffn_dim|ffn_hidden_size)(_mlp)?|d_inner|feed_forward_size", 96),
    (r"dff|dim_ff", 96),
    (r"(num_|n_)?(decoder_|swa_num_)?(attention_)?heads?", 4),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (r"(swa_|linear_(key_|value_)?|index(er)?_|v_)?head_dim|kv_channels|d_head|dim_head", 16),
    (r"attention_head_(dim|size)|qk_nope_head_dim", 16),
    (r"qk_rope_head_dim|rotary_dim|(mamba_|ssm_)?(d_state|state_size)|(mamba_)?chunk_size", 8),
    (r"qk_head_dim", 24),
    (r"linear_num_(key_|value_)?heads|index(er)?_(n|kv)_heads|linear_num_heads", 2),
    (r"\w*_rank|hc_lowrank", 16),
    (r"index(er)?_topk|indexer_budget|keep_window_size", 8),
    (r"\w*max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length", 256),
    (r"max_target_positions", 256),
    (r"((eos|bos|decoder_start|sep|cls|eod|mask)_token_id)|(unk|mask)_index", 0),
    (r"pad_token_id|pad_index", 1),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_(topk|top_k|k)|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|(moe_)?num_shared_experts|n_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"(sliding|local_attention)_window\w*|local_attention|attention_window_size|window_size", 12),
    (r"(out|text|audio|vision|encoder|projector|projection|thinker)_hidden_size", 64),
    (r"projection_dim|output_dim|d_ff", 64),
    (r"(encoder_)?attention_heads|num_sliding_attention_heads", 4),
    (r"encoder_ffn_dim|mlp_dim", 96),
    (r"(num_|codebook_)embeddings|codebook_size|max_patches|max_num_patches", 64),
)
_LAYERS = r"(num_|n_)?(\w+_)?(hidden_)?layers?|depth|n_layer|num_blocks|num_layers_per_stack"

_MIXED = ["sliding_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# What the patterns cannot know: sizes that have to fit each other, and defaults that are missing.
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "layer_types": _MIXED,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE),
    },
    # SparseMixer masks experts whose logit is 2 x jitter below the best; where it masks all but
    # one for every token, which happens at 0.01 with so few tokens, routers have no gradient.
    "phimoe": {"router_jitter_noise": 0.5},
    "dbrx": {
        "attn_config": {"model_type": "", "rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {
            "model_type": "", "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
            "hidden_size": 64,
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "dots3_note_text": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "intermediate_size": 96, "layer_types": _MIXED,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gemma4_text": {"num_kv_shared_layers": 1, "layer_types": _MIXED},
    "gemma4_unified_text": {"num_kv_shared_layers": 1, "layer_types": _MIXED},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hrm_text": {"num_layers_per_stack": None, "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 32]},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_head_dim": 32, "attention_hidden_size": 128, "mamba_dt_rank": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {"attention_head_dim": 32, "attention_hidden_size": 128},
    "zaya": {"num_experts_per_tok": 1},
    # Families that read images or sound.
    "blip-2": {"image_token_index": 900},
    "chameleon": {"vocabulary_map": {"<image>": 700}},
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
    "cosmos3_edge": {"image_token_id": 900, "video_token_id": 901},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense"] + ["sparse"] * 3},
    "diffusion_gemma_text": {
        "layer_types": _MIXED, "per_layer_config": {}, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 64},
    "emu3": {"vocabulary_map": {"<image>": 700}},
    "emu3_vqgan": {
        "codebook_size": 8, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1,
        "attn_resolutions": [], "hidden_size": 32, "num_attention_heads": 1,
    },
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 16]},
    "fast_vlm": {
        "vision_config": {
            "model_type": "timm_wrapper", "architecture": "test_vit", "hidden_size": 64,
        },
    },
    "florence_vision": {
        "depths": [1] * 4, "embed_dim": [16] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4,
    },
    "fun_asr_nano": {"adaptor_config": {
        "hidden_size": 64, "intermediate_size": 16, "num_attention_heads": 4,
        "num_hidden_layers": 2, "projector_hidden_size": 64,
    }},
    "glm5_next_text": {"index_kpool": 4, "head_dim": 0, "qk_rope_head_dim": 0, "qk_head_dim": 16},
    "granite4_vision": {"spatial_target_layers": [0, 1, 2], "deepstack_layer_map": [[0, 1]],
        "downsample_rate": "2/4"},
    "granite_speech_encoder": {"hidden_dim": 64, "dim_head": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
    "kosmos_2_text_model": {"embed_dim": 64},
    "kosmos_2_5_text_model": {"embed_dim": 64},
    "kyutai_speech_to_text": {"audio_bos_token_id": 760, "audio_pad_token_id": 761},
    "mimi": {"num_filters": 4, "upsample_groups": 1, "codebook_dim": 16,
             "vector_quantization_hidden_dimension": 16},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "muse_spark_text": {"moe_hidden_size": 64},
    "muse_spark_audio": {
        "num_hidden_layers": 4, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
    },
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},
    "nemotron3_5_transcribe_word_timestamp": {"blank_token_id": 767, "num_key_value_heads": 4},
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},
    "perception_lm": {
        "vision_config": {
            "model_type": "timm_wrapper", "architecture": "test_vit",
            "model_args": {"embed_dim": 64},
        },
    },
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_omni_moe": {"enable_audio_output": False},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 901},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 901},
    "qwen2_vl_vision": {"embed_dim": 64},
    "radio": {"video_temporal_patch_size": 2},
    "gemma3n_vision": {"architecture": "test_vit"},
    "step3p5": {"sliding_window": 12},
    "vibevoice_acoustic_tokenizer_encoder": {
        "hidden_size": 64, "num_filters": 4, "depths": [1, 1], "downsampling_ratios": [2],
    },
}  # fmt: skip

# Rotary sections of time, height and width; their sum is half of what is rotated.
_SECTIONS = {
    "cosmos3_edge_text": [2, 3, 3],
    "ernie4_5_vl_moe_text": [3, 3, 2],
    "glm4v_moe_text": [2, 1, 1],
    "glm4v_text": [2, 3, 3],
    "glm_ocr_text": [2, 3, 3],
    "hunyuan_vl_text": [2, 3, 3],
    "paddleocr_vl_text": [2, 3, 3],
    "qwen2_5_omni_text": [2, 3, 3],
    "qwen2_5_vl_text": [2, 3, 3],
    "qwen2_vl_text": [2, 3, 3],
}


def tiny_config(model_type: str, layers: int = LAYERS) -> PreTrainedConfig:
    """Make the configuration of a family small."""
    return _tiny(CONFIG_MAPPING[model_type], layers)


def _tiny(family: type[PreTrainedConfig], layers: int) -> PreTrainedConfig:
    model_type = family.model_type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        defaults = family().to_dict()
    depth = next((defaults[key] for key in _DEPTHS if isinstance(defaults.get(key), int)), 0)
    settings = {}
    for name, value in defaults.items():
        small = _small(name, value, layers, depth)
        if small is not None:
            settings[name] = small
        inner = _inner_class(family, name, value)
        if inner is not None:
            deep = LAYERS if name in _LANGUAGE else OTHER_LAYERS
            settings[name] = _tiny(inner, deep).to_dict()
    if "kv_lora_rank" in settings or model_type.startswith("zamba"):
        settings["num_key_value_heads"] = 4
    if "qk_rope_head_dim" in settings and "head_dim" in settings:
        settings["head_dim"] = 8  # there the width of the rotated part
    if model_type in _SECTIONS:
        rope = defaults["rope_parameters"]
        settings["rope_parameters"] = rope | {"mrope_section": _SECTIONS[model_type]}
    return family(**settings | _OWN.get(model_type, {}))


def _inner_class(
    family: type[PreTrainedConfig], name: str, value: Any
) -> type[PreTrainedConfig] | None:
    """Class of a configuration inside another one; `None` where a setting is none."""
    if not isinstance(value, dict):
        return None
    if value.get("model_type") in CONFIG_MAPPING:
        found: type[PreTrainedConfig] = CONFIG_MAPPING[value["model_type"]]
        return found
    named = family.sub_configs.get(name)
    return named if named is not None and issubclass(named, PreTrainedConfig) else None


def _small(name: str, value: Any, layers: int, depth: int) -> Any:
    """A smaller value for a setting; `None` leaves it as it is."""
    if isinstance(value, bool):
        return None
    if isinstance(value, list) and depth > 1 and len(value) == depth:
        # One entry per layer: each kind once, the last one for the rest.
        kinds = list(dict.fromkeys(map(str, value)))
        firsts = [next(item for item in value if str(item) == kind) for kind in kinds]
        return None if len(kinds) > layers else (firsts + firsts[-1:] * layers)[:layers]
    if not isinstance(value, int) or value < 0:  # negative ones count from the end
        return None
    found = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
    return layers if found is None and re.fullmatch(_LAYERS, name) else found


def build(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Build a tiny model of a family, in evaluation mode.

    No weight is zero or one for its own sake: zeros would hide gradients.
    """
    config = tiny_config(model_type)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return _filled(AutoModelForCausalLM.from_config, config, seed)


def build_multimodal(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Build a tiny model of a family that reads images or sound, too, like `build`."""
    named = getattr(transformers, MULTIMODAL[model_type])
    return _filled(named, tiny_config(model_type), seed)


def _filled(make: Callable[[PreTrainedConfig], Any], config: PreTrainedConfig, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif not parameter.any():
                    parameter.normal_(0, 0.05)
    return model.eval()
