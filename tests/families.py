"""Tiny language models of many architectures, with what is inside each one written down by hand.

Every model is built from a config with seeded random weights: nothing is downloaded. The expected
linear maps are data that was written from the architecture, not read back from the model, so a
test can hold a walk over a model against them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    LlavaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

VOCAB_SIZE, PAD_ID, BOS_ID, EOS_ID, IMAGE_ID = 300, 256, 257, 258, 290
HIDDEN, INTERMEDIATE, EXPERT_INTERMEDIATE = 48, 80, 40


class MapSpec(NamedTuple):
    """One expected linear map, or one stack of them, of a decoder block.

    `linear` is `nn.Linear`, `conv1d` the `Conv1D` of GPT-2, `router` a module that is no
    `nn.Linear` and holds a 2-D `weight`, `experts` a 3-D parameter.
    """

    kind: Literal["linear", "conv1d", "router", "experts"]
    n_matrices: int
    out_features: int
    in_features: int
    transposed: bool = False  # whether the parameter is stored as [..., in, out]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (n_matrices, out_features, in_features) of the map."""
        return (self.n_matrices, self.out_features, self.in_features)

    def parameter(self, name: str) -> str:
        """The name of the parameter behind the map called `name`."""
        return name if self.kind == "experts" else f"{name}.weight"


@dataclass(frozen=True)
class BlockSpec:
    """What one decoder block is expected to hold, by names relative to the block."""

    # Of modules, or of the parameter for `experts`.
    maps: Mapping[str, MapSpec]
    # The remaining parameters with two or more dimensions, with the shape they are stored in.
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A tiny model of one architecture and what is known about it."""

    name: str
    config: Callable[[], PreTrainedConfig]
    blocks: tuple[BlockSpec, ...]
    blocks_path: str = "model.layers"
    auto_class: Any = AutoModelForCausalLM
    prepare: Callable[[PreTrainedModel], None] = lambda _: None  # changes the float32 model
    tied_head: bool = False  # whether the output head shares the weight of the input embedding
    has_experts: bool = False  # whether the model takes an `experts_implementation`

    def build(
        self,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        experts_implementation: str = "eager",
    ) -> PreTrainedModel:
        """The model in eval mode; one seed draws the same weights, up to rounding, in any dtype."""
        options: dict[str, Any] = {"dtype": torch.float32}
        if self.has_experts:
            options["experts_implementation"] = experts_implementation
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model: PreTrainedModel = self.auto_class.from_config(self.config(), **options)
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and norms would be all zeros or ones
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if not self.tied_head:  # tokens should differ enough to reach every expert
                model.get_input_embeddings().weight.mul_(6.0)  # type: ignore[operator, union-attr]
            self.prepare(model)
        nn.Module.to(model, dtype=dtype)
        nn.Module.train(model, False)
        return model

    def block_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder blocks of a model of this family."""
        blocks = model.get_submodule(self.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def block_prefix(self, index: int) -> str:
        """What precedes the name of a parameter of block `index` in the whole model."""
        return f"{self.blocks_path}.{index}."


def token_batch(rows: int = 4, length: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random byte tokens without padding, as keyword arguments of `forward`."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, 256, (rows, length), generator=generator)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _strand_expert(model: PreTrainedModel) -> None:
    """Rewrite a router so that no token ever reaches expert 3 of 5.

    The others become pairs of opposite rows, so half of them always have positive logits, and the
    stranded one, with a row of zeros, has 0. Two experts are used per token.
    """
    weight = model.get_parameter("model.layers.1.mlp.gate.weight").data
    weight[1], weight[4], weight[3] = -weight[0], -weight[2], 0.0


def _linear(out_features: int, in_features: int) -> MapSpec:
    return MapSpec("linear", 1, out_features, in_features)


def _conv1d(out_features: int, in_features: int) -> MapSpec:
    return MapSpec("conv1d", 1, out_features, in_features, transposed=True)


def _under(prefix: str, maps: Mapping[str, MapSpec]) -> dict[str, MapSpec]:
    return {f"{prefix}.{name}": spec for name, spec in maps.items()}


def _attention(queries: int, keys: int) -> dict[str, MapSpec]:
    return {
        "self_attn.q_proj": _linear(queries, HIDDEN),
        "self_attn.k_proj": _linear(keys, HIDDEN),
        "self_attn.v_proj": _linear(keys, HIDDEN),
        "self_attn.o_proj": _linear(HIDDEN, queries),
    }


def _mlp(intermediate: int = INTERMEDIATE, prefix: str = "mlp") -> dict[str, MapSpec]:
    return {
        f"{prefix}.gate_proj": _linear(intermediate, HIDDEN),
        f"{prefix}.up_proj": _linear(intermediate, HIDDEN),
        f"{prefix}.down_proj": _linear(HIDDEN, intermediate),
    }


def _experts(
    count: int,
    intermediate: int = EXPERT_INTERMEDIATE,
    *,
    prefix: str = "mlp",
    router: str = "gate",
    transposed: bool = False,
) -> dict[str, MapSpec]:
    return {
        f"{prefix}.{router}": MapSpec("router", 1, count, HIDDEN),
        f"{prefix}.experts.gate_up_proj": MapSpec(
            "experts", count, 2 * intermediate, HIDDEN, transposed
        ),
        f"{prefix}.experts.down_proj": MapSpec("experts", count, HIDDEN, intermediate, transposed),
    }


_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.1,
    "pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
}  # fmt: skip
_NO_ATTENTION = (
    "intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip


def make_config(kind: Any, *without: str, **changes: object) -> Callable[[], Any]:
    """Makes configs with the settings that most share, less some, with others changed or added."""
    settings = {key: value for key, value in (_BASE | changes).items() if key not in without}
    return lambda: kind(**settings)


def _llava_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8, projection_dim=32, initializer_range=0.1,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=make_config(LlamaConfig, head_dim=16)(),
        image_token_index=IMAGE_ID, image_seq_length=4, vision_feature_layer=-1,
    )  # fmt: skip


_LLAMA = BlockSpec(_attention(64, 32) | _mlp())
_GPT2 = BlockSpec({
    "attn.c_attn": _conv1d(3 * HIDDEN, HIDDEN),
    "attn.c_proj": _conv1d(HIDDEN, HIDDEN),
    "mlp.c_fc": _conv1d(112, HIDDEN),
    "mlp.c_proj": _conv1d(HIDDEN, 112),
})  # fmt: skip
_PHI3 = BlockSpec({
    "self_attn.qkv_proj": _linear(96, HIDDEN),
    "self_attn.o_proj": _linear(HIDDEN, HIDDEN),
    "mlp.gate_up_proj": _linear(2 * INTERMEDIATE, HIDDEN),
    "mlp.down_proj": _linear(HIDDEN, INTERMEDIATE),
})  # fmt: skip
_NEOX = BlockSpec({
    "attention.query_key_value": _linear(3 * HIDDEN, HIDDEN),
    "attention.dense": _linear(HIDDEN, HIDDEN),
    "mlp.dense_h_to_4h": _linear(INTERMEDIATE, HIDDEN),
    "mlp.dense_4h_to_h": _linear(HIDDEN, INTERMEDIATE),
})  # fmt: skip
_GPT_OSS = BlockSpec(
    _attention(64, 32) | _experts(4, router="router", transposed=True),
    {
        "mlp.experts.gate_up_proj_bias": (4, 2 * EXPERT_INTERMEDIATE),
        "mlp.experts.down_proj_bias": (4, HIDDEN),
    },
)
_MLA = {
    "self_attn.q_a_proj": _linear(24, HIDDEN),
    "self_attn.q_b_proj": _linear(4 * (12 + 8), 24),
    "self_attn.kv_a_proj_with_mqa": _linear(20 + 8, HIDDEN),
    "self_attn.kv_b_proj": _linear(4 * (12 + 10), 20),
    "self_attn.o_proj": _linear(HIDDEN, 4 * 10),
}
_GATED_DELTA = {
    "linear_attn.in_proj_qkvz": _linear(2 * 16 + 2 * 64, HIDDEN),
    "linear_attn.in_proj_ba": _linear(2 * 4, HIDDEN),
    "linear_attn.out_proj": _linear(HIDDEN, 64),
    "mlp.shared_expert_gate": _linear(1, HIDDEN),
}
_MAMBA = {
    "in_proj": _linear(2 * 96, HIDDEN),
    "x_proj": _linear(3 + 2 * 8, 96),
    "dt_proj": _linear(96, 3),
    "out_proj": _linear(HIDDEN, 96),
}
_MAMBA2 = BlockSpec(
    {
        "mixer.in_proj": _linear(2 * 96 + 2 * 2 * 16 + 6, HIDDEN),
        "mixer.out_proj": _linear(HIDDEN, 96),
    },
    {"mixer.conv1d.weight": (96 + 2 * 2 * 16, 1, 4)},
)
_FALCON_H1 = BlockSpec(
    {"mamba.in_proj": _linear(64 + 64 + 2 * 16 + 4, HIDDEN), "mamba.out_proj": _linear(HIDDEN, 64)}
    | _attention(48, 24)
    | _mlp(prefix="feed_forward"),
    {"mamba.conv1d.weight": (64 + 2 * 16, 1, 4)},
)
_JAMBA_SPARSE = BlockSpec(
    _under("mamba", _MAMBA) | _experts(4, INTERMEDIATE, prefix="feed_forward", router="router"),
    {"mamba.conv1d.weight": (96, 1, 4), "mamba.A_log": (96, 8)},
)
_JAMBA_DENSE = BlockSpec(_attention(48, 24) | _mlp(prefix="feed_forward"))
_QWEN3_MOE = Family(
    "qwen3_moe",
    make_config(
        Qwen3MoeConfig, head_dim=16, moe_intermediate_size=EXPERT_INTERMEDIATE, num_experts=5,
        num_experts_per_tok=2, norm_topk_prob=True,
    ),
    (BlockSpec(_attention(64, 32) | _experts(5)),) * 2,
    has_experts=True,
)  # fmt: skip

_ALL = (
    Family("llama", make_config(LlamaConfig, head_dim=16), (_LLAMA,) * 2),
    Family(
        "mistral",
        make_config(MistralConfig, head_dim=16, sliding_window=16, num_hidden_layers=3),
        (_LLAMA,) * 3,
    ),
    Family(
        "qwen3",
        make_config(Qwen3Config, head_dim=16, tie_word_embeddings=True),
        (_LLAMA,) * 2,
        tied_head=True,
    ),
    Family(
        "gemma3",
        make_config(
            Gemma3TextConfig, num_hidden_layers=3, num_key_value_heads=1, head_dim=16,
            query_pre_attn_scalar=16, sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        (BlockSpec(_attention(64, 16) | _mlp()),) * 3,
        tied_head=True,
    ),
    Family("phi3", make_config(Phi3Config), (_PHI3,) * 2),
    Family(
        "gpt2",
        lambda: GPT2Config(
            vocab_size=VOCAB_SIZE, n_positions=256, n_embd=HIDDEN, n_layer=2, n_head=4,
            n_inner=112, initializer_range=0.1,
            pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        ),
        (_GPT2,) * 2,
        blocks_path="transformer.h",
        tied_head=True,
    ),
    Family(
        "gpt_neox",
        make_config(GPTNeoXConfig, "num_key_value_heads"),
        (_NEOX,) * 2,
        blocks_path="gpt_neox.layers",
    ),
    Family("olmo2", make_config(Olmo2Config), (BlockSpec(_attention(48, 24) | _mlp()),) * 2),
    Family(
        "llava",
        _llava_config,
        (_LLAMA,) * 2,
        blocks_path="model.language_model.layers",
        auto_class=AutoModelForImageTextToText,
    ),
    Family(
        "mixtral",
        make_config(
            MixtralConfig, head_dim=16, intermediate_size=EXPERT_INTERMEDIATE,
            num_local_experts=4, num_experts_per_tok=2,
        ),
        (BlockSpec(_attention(64, 32) | _experts(4)),) * 2,
        has_experts=True,
    ),
    _QWEN3_MOE,
    replace(_QWEN3_MOE, name="qwen3_moe_unreached", prepare=_strand_expert),
    Family(
        "gpt_oss",
        make_config(
            GptOssConfig, intermediate_size=EXPERT_INTERMEDIATE, head_dim=16, sliding_window=16,
            num_local_experts=4, num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        (_GPT_OSS,) * 2,
        has_experts=True,
    ),
    Family(
        "deepseek_v3",
        make_config(
            DeepseekV3Config, num_key_value_heads=4, moe_intermediate_size=EXPERT_INTERMEDIATE,
            n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, n_group=2,
            topk_group=2, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=20,
            qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10, num_mtp_layers=0,
        ),
        (
            BlockSpec(_MLA | _mlp()),
            BlockSpec(_MLA | _experts(4) | _mlp(EXPERT_INTERMEDIATE, "mlp.shared_experts")),
        ),
        has_experts=True,
    ),
    Family(
        "qwen3_next",
        make_config(
            Qwen3NextConfig, head_dim=16, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_num_value_heads=4, linear_value_head_dim=16,
            layer_types=["linear_attention", "full_attention"], mlp_only_layers=[1],
            moe_intermediate_size=EXPERT_INTERMEDIATE,
            shared_expert_intermediate_size=EXPERT_INTERMEDIATE,
            num_experts=4, num_experts_per_tok=2,
        ),
        (
            BlockSpec(
                _GATED_DELTA | _experts(4) | _mlp(EXPERT_INTERMEDIATE, "mlp.shared_expert"),
                {"linear_attn.conv1d.weight": (2 * 16 + 64, 1, 4)},
            ),
            BlockSpec(_attention(64, 32) | {"self_attn.q_proj": _linear(2 * 64, HIDDEN)} | _mlp()),
        ),
        has_experts=True,
    ),
    Family(
        "mamba",
        make_config(MambaConfig, *_NO_ATTENTION, state_size=8, expand=2),
        (
            BlockSpec(
                _under("mixer", _MAMBA),
                {"mixer.conv1d.weight": (96, 1, 4), "mixer.A_log": (96, 8)},
            ),
        ) * 2,
        blocks_path="backbone.layers",
        tied_head=True,
    ),
    Family(
        "mamba2",
        make_config(
            Mamba2Config, *_NO_ATTENTION, num_heads=6, head_dim=16, state_size=16, expand=2,
            n_groups=2, chunk_size=16,
        ),
        (_MAMBA2,) * 2,
        blocks_path="backbone.layers",
    ),
    Family(
        "falcon_h1",
        make_config(
            FalconH1Config, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
            mamba_d_state=16, mamba_chunk_size=16,
        ),
        (_FALCON_H1,) * 2,
    ),
    Family(
        "jamba",
        make_config(
            JambaConfig, num_hidden_layers=3, attn_layer_period=3, attn_layer_offset=1,
            expert_layer_period=2, expert_layer_offset=0, num_experts=4, num_experts_per_tok=2,
            mamba_d_state=8,
        ),
        (_JAMBA_SPARSE, _JAMBA_DENSE, _JAMBA_SPARSE),
        has_experts=True,
    ),
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
