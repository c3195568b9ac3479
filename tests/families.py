"""Tiny language models of many architectures, with what is inside each one written down by hand.

Every model is built from a config with seeded random weights: nothing is downloaded. The expected
linear maps are data that was written from the architecture, not read back from the model, so a
test can hold a walk over a model against them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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

VOCAB_SIZE = 300
PAD_ID = 256
BOS_ID = 257
EOS_ID = 258
IMAGE_ID = 290

HIDDEN = 48
INTERMEDIATE = 80
EXPERT_INTERMEDIATE = 40

Kind = Literal["linear", "conv1d", "router", "experts"]


@dataclass(frozen=True)
class MapSpec:
    """One expected linear map, or one stack of them, of a decoder block.

    Attributes:
        kind: `linear` for `nn.Linear`, `conv1d` for the `Conv1D` of GPT-2, `router` for a module
            that is no `nn.Linear` and holds a 2-D `weight`, `experts` for a 3-D parameter.
        n_matrices: How many matrices the parameter stacks; 1 unless `kind` is `experts`.
        out_features: Outputs of each matrix.
        in_features: Inputs of each matrix.
        transposed: Whether the parameter is stored as [..., in, out].
    """

    kind: Kind
    n_matrices: int
    out_features: int
    in_features: int
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (n_matrices, out_features, in_features) of the map."""
        return (self.n_matrices, self.out_features, self.in_features)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the parameter as the model holds it."""
        matrix = (self.out_features, self.in_features)
        if self.transposed:
            matrix = (self.in_features, self.out_features)
        return (self.n_matrices, *matrix) if self.kind == "experts" else matrix

    def parameter(self, name: str) -> str:
        """The name of the parameter behind the map called `name`."""
        return name if self.kind == "experts" else f"{name}.weight"


@dataclass(frozen=True)
class BlockSpec:
    """What one decoder block is expected to hold.

    Attributes:
        maps: The linear maps by name relative to the block. The name is that of the module, or
            that of the parameter for `experts`.
        others: The remaining parameters with two or more dimensions, by full name relative to the
            block, with the shape they are stored in.
    """

    maps: Mapping[str, MapSpec]
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A tiny model of one architecture and what is known about it.

    Attributes:
        name: The key in `FAMILIES`.
        config: Makes a fresh config.
        blocks: What each decoder block holds, in order.
        decoder_path: Where the text decoder is, as a dotted path from the model.
        blocks_path: Where the list of decoder blocks is, as a dotted path from the model.
        auto_class: The auto class that builds the model.
        prepare: Changes the freshly built model in place, in float32.
        tied_head: Whether the output head shares the weight of the input embedding.
        has_experts: Whether the model takes an `experts_implementation`.
        takes_position_ids: Whether `forward` names a `position_ids` argument. The others know no
            positions: they accept it and ignore it.
        unreached: Experts that no token ever reaches: (block, map name) to expert numbers.
    """

    name: str
    config: Callable[[], PreTrainedConfig]
    blocks: tuple[BlockSpec, ...]
    decoder_path: str = "model"
    blocks_path: str = "model.layers"
    auto_class: Any = AutoModelForCausalLM
    prepare: Callable[[PreTrainedModel], None] | None = None
    tied_head: bool = False
    has_experts: bool = False
    takes_position_ids: bool = True
    unreached: Mapping[tuple[int, str], tuple[int, ...]] = field(default_factory=dict)

    def build(
        self,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        attn_implementation: str | None = None,
        experts_implementation: str | None = "eager",
    ) -> PreTrainedModel:
        """Builds the model in eval mode.

        The weights are drawn in float32 whatever `dtype` is, so that the models of one seed hold
        the same numbers up to rounding.

        Args:
            dtype: The floating-point type to build in.
            seed: Seeds the weights; the global random state is left alone.
            attn_implementation: Passed on to the model; None takes its own choice.
            experts_implementation: Passed on to a model with experts. "eager" runs in every dtype.

        Returns:
            The model.
        """
        options: dict[str, Any] = {"dtype": torch.float32}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        if self.has_experts and experts_implementation is not None:
            options["experts_implementation"] = experts_implementation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = self.auto_class.from_config(self.config(), **options)
            _roughen_vectors(model)
        if not self.tied_head:
            _spread_embeddings(model)
        if self.prepare is not None:
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


def left_pad(batch: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Puts `count` padding tokens before every row and adds the matching `position_ids`."""
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    pads = torch.full((input_ids.shape[0], count), PAD_ID)
    mask = torch.cat([torch.zeros_like(pads), mask], dim=1)
    return {
        "input_ids": torch.cat([pads, input_ids], dim=1),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


def strand_expert(weight: torch.Tensor, expert: int) -> None:
    """Rewrites a router in place so that no token ever reaches one expert.

    The other experts become pairs of opposite rows, so half of them always have positive logits
    and the stranded one, with a row of zeros, always has 0. This needs 2 * top_k + 1 experts and a
    router without bias.

    Args:
        weight: The router weight, [experts, hidden], with an odd number of experts.
        expert: The expert to strand.
    """
    others = [row for row in range(weight.shape[0]) if row != expert]
    assert len(others) % 2 == 0
    with torch.no_grad():
        for kept, mirrored in zip(others[::2], others[1::2], strict=True):
            weight[mirrored] = -weight[kept]
        weight[expert] = 0.0


def _roughen_vectors(model: PreTrainedModel) -> None:
    """Adds noise to biases and norm weights, which are otherwise all zeros or all ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def _spread_embeddings(model: PreTrainedModel) -> None:
    """Scales up the input embedding, so that tokens differ enough to reach every expert."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    with torch.no_grad():
        embedding.weight.mul_(6.0)


def _linear(out_features: int, in_features: int) -> MapSpec:
    return MapSpec("linear", 1, out_features, in_features)


def _conv1d(out_features: int, in_features: int) -> MapSpec:
    return MapSpec("conv1d", 1, out_features, in_features, transposed=True)


def _router(experts: int) -> MapSpec:
    return MapSpec("router", 1, experts, HIDDEN)


def _experts(count: int, intermediate: int, transposed: bool = False) -> dict[str, MapSpec]:
    gate_up = MapSpec("experts", count, 2 * intermediate, HIDDEN, transposed)
    down = MapSpec("experts", count, HIDDEN, intermediate, transposed)
    return {"gate_up_proj": gate_up, "down_proj": down}


def _under(prefix: str, maps: Mapping[str, MapSpec]) -> dict[str, MapSpec]:
    return {f"{prefix}.{name}": spec for name, spec in maps.items()}


def _attention(queries: int, keys: int, prefix: str = "self_attn") -> dict[str, MapSpec]:
    maps = {
        "q_proj": _linear(queries, HIDDEN),
        "k_proj": _linear(keys, HIDDEN),
        "v_proj": _linear(keys, HIDDEN),
        "o_proj": _linear(HIDDEN, queries),
    }
    return _under(prefix, maps)


def _mlp(intermediate: int = INTERMEDIATE, prefix: str = "mlp") -> dict[str, MapSpec]:
    maps = {
        "gate_proj": _linear(intermediate, HIDDEN),
        "up_proj": _linear(intermediate, HIDDEN),
        "down_proj": _linear(HIDDEN, intermediate),
    }
    return _under(prefix, maps)


_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}


def _settings(*without: str, **changes: object) -> dict[str, Any]:
    """The settings that most configs share, less some, with others changed or added."""
    return {key: value for key, value in (_BASE | changes).items() if key not in without}


def _llava_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=32,
        initializer_range=0.1,
    )
    text = LlamaConfig(**_settings(head_dim=16))
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=4,
        vision_feature_layer=-1,
    )


def _qwen3_moe_config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        **_settings(
            head_dim=16,
            moe_intermediate_size=EXPERT_INTERMEDIATE,
            num_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        )
    )


def _strand_qwen3_moe(model: PreTrainedModel) -> None:
    weight = model.get_parameter("model.layers.1.mlp.gate.weight")
    strand_expert(weight, expert=3)


_LLAMA_BLOCK = BlockSpec(_attention(64, 32) | _mlp())
_QWEN3_MOE_BLOCK = BlockSpec(
    _attention(64, 32)
    | {"mlp.gate": _router(5)}
    | _under("mlp.experts", _experts(5, EXPERT_INTERMEDIATE))
)

_DENSE = (
    Family(
        "llama",
        lambda: LlamaConfig(**_settings(head_dim=16)),
        (_LLAMA_BLOCK,) * 2,
    ),
    Family(
        "mistral",
        lambda: MistralConfig(**_settings(head_dim=16, sliding_window=16, num_hidden_layers=3)),
        (_LLAMA_BLOCK,) * 3,
    ),
    Family(
        "qwen3",
        lambda: Qwen3Config(**_settings(head_dim=16, tie_word_embeddings=True)),
        (_LLAMA_BLOCK,) * 2,
        tied_head=True,
    ),
    Family(
        "gemma3",
        lambda: Gemma3TextConfig(
            **_settings(
                num_hidden_layers=3,
                num_key_value_heads=1,
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            )
        ),
        (BlockSpec(_attention(64, 16) | _mlp()),) * 3,
        tied_head=True,
    ),
    Family(
        "phi3",
        lambda: Phi3Config(**_settings()),
        (
            BlockSpec(
                {
                    "self_attn.qkv_proj": _linear(96, HIDDEN),
                    "self_attn.o_proj": _linear(HIDDEN, HIDDEN),
                    "mlp.gate_up_proj": _linear(2 * INTERMEDIATE, HIDDEN),
                    "mlp.down_proj": _linear(HIDDEN, INTERMEDIATE),
                }
            ),
        )
        * 2,
    ),
    Family(
        "gpt2",
        lambda: GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=256,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=4,
            n_inner=112,
            initializer_range=0.1,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
        ),
        (
            BlockSpec(
                {
                    "attn.c_attn": _conv1d(3 * HIDDEN, HIDDEN),
                    "attn.c_proj": _conv1d(HIDDEN, HIDDEN),
                    "mlp.c_fc": _conv1d(112, HIDDEN),
                    "mlp.c_proj": _conv1d(HIDDEN, 112),
                }
            ),
        )
        * 2,
        decoder_path="transformer",
        blocks_path="transformer.h",
        tied_head=True,
    ),
    Family(
        "gpt_neox",
        lambda: GPTNeoXConfig(**_settings("num_key_value_heads")),
        (
            BlockSpec(
                {
                    "attention.query_key_value": _linear(3 * HIDDEN, HIDDEN),
                    "attention.dense": _linear(HIDDEN, HIDDEN),
                    "mlp.dense_h_to_4h": _linear(INTERMEDIATE, HIDDEN),
                    "mlp.dense_4h_to_h": _linear(HIDDEN, INTERMEDIATE),
                }
            ),
        )
        * 2,
        decoder_path="gpt_neox",
        blocks_path="gpt_neox.layers",
    ),
    Family(
        "olmo2",
        lambda: Olmo2Config(**_settings()),
        (BlockSpec(_attention(48, 24) | _mlp()),) * 2,
    ),
    Family(
        "llava",
        _llava_config,
        (_LLAMA_BLOCK,) * 2,
        decoder_path="model.language_model",
        blocks_path="model.language_model.layers",
        auto_class=AutoModelForImageTextToText,
    ),
)

_SPARSE = (
    Family(
        "mixtral",
        lambda: MixtralConfig(
            **_settings(
                head_dim=16,
                intermediate_size=EXPERT_INTERMEDIATE,
                num_local_experts=4,
                num_experts_per_tok=2,
            )
        ),
        (
            BlockSpec(
                _attention(64, 32)
                | {"mlp.gate": _router(4)}
                | _under("mlp.experts", _experts(4, EXPERT_INTERMEDIATE))
            ),
        )
        * 2,
        has_experts=True,
    ),
    Family("qwen3_moe", _qwen3_moe_config, (_QWEN3_MOE_BLOCK,) * 2, has_experts=True),
    Family(
        "qwen3_moe_unreached",
        _qwen3_moe_config,
        (_QWEN3_MOE_BLOCK,) * 2,
        prepare=_strand_qwen3_moe,
        has_experts=True,
        unreached={
            (1, "mlp.experts.gate_up_proj"): (3,),
            (1, "mlp.experts.down_proj"): (3,),
        },
    ),
    Family(
        "gpt_oss",
        lambda: GptOssConfig(
            **_settings(
                intermediate_size=EXPERT_INTERMEDIATE,
                head_dim=16,
                sliding_window=16,
                num_local_experts=4,
                num_experts_per_tok=2,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        ),
        (
            BlockSpec(
                _attention(64, 32)
                | {"mlp.router": _router(4)}
                | _under("mlp.experts", _experts(4, EXPERT_INTERMEDIATE, transposed=True)),
                {
                    "mlp.experts.gate_up_proj_bias": (4, 2 * EXPERT_INTERMEDIATE),
                    "mlp.experts.down_proj_bias": (4, HIDDEN),
                },
            ),
        )
        * 2,
        has_experts=True,
    ),
)

_MLA = {
    "self_attn.q_a_proj": _linear(24, HIDDEN),
    "self_attn.q_b_proj": _linear(4 * (12 + 8), 24),
    "self_attn.kv_a_proj_with_mqa": _linear(20 + 8, HIDDEN),
    "self_attn.kv_b_proj": _linear(4 * (12 + 10), 20),
    "self_attn.o_proj": _linear(HIDDEN, 4 * 10),
}

_DEEPSEEK = Family(
    "deepseek_v3",
    lambda: DeepseekV3Config(
        **_settings(
            num_key_value_heads=4,
            moe_intermediate_size=EXPERT_INTERMEDIATE,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=2,
            first_k_dense_replace=1,
            q_lora_rank=24,
            kv_lora_rank=20,
            qk_rope_head_dim=8,
            qk_nope_head_dim=12,
            v_head_dim=10,
            num_mtp_layers=0,
        )
    ),
    (
        BlockSpec(_MLA | _mlp()),
        BlockSpec(
            _MLA
            | {"mlp.gate": _router(4)}
            | _under("mlp.experts", _experts(4, EXPERT_INTERMEDIATE))
            | _mlp(EXPERT_INTERMEDIATE, "mlp.shared_experts")
        ),
    ),
    has_experts=True,
)

_GATED_DELTA = {
    "linear_attn.in_proj_qkvz": _linear(2 * 16 + 2 * 64, HIDDEN),
    "linear_attn.in_proj_ba": _linear(2 * 4, HIDDEN),
    "linear_attn.out_proj": _linear(HIDDEN, 64),
}

_QWEN3_NEXT = Family(
    "qwen3_next",
    lambda: Qwen3NextConfig(
        **_settings(
            head_dim=16,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_num_value_heads=4,
            linear_value_head_dim=16,
            layer_types=["linear_attention", "full_attention"],
            mlp_only_layers=[1],
            moe_intermediate_size=EXPERT_INTERMEDIATE,
            shared_expert_intermediate_size=EXPERT_INTERMEDIATE,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ),
    (
        BlockSpec(
            _GATED_DELTA
            | {"mlp.gate": _router(4), "mlp.shared_expert_gate": _linear(1, HIDDEN)}
            | _under("mlp.experts", _experts(4, EXPERT_INTERMEDIATE))
            | _mlp(EXPERT_INTERMEDIATE, "mlp.shared_expert"),
            {"linear_attn.conv1d.weight": (2 * 16 + 64, 1, 4)},
        ),
        BlockSpec({**_attention(64, 32), "self_attn.q_proj": _linear(2 * 64, HIDDEN)} | _mlp()),
    ),
    has_experts=True,
)

_MAMBA_MAPS = {
    "in_proj": _linear(2 * 96, HIDDEN),
    "x_proj": _linear(3 + 2 * 8, 96),
    "dt_proj": _linear(96, 3),
    "out_proj": _linear(HIDDEN, 96),
}

_STATE_SPACE = (
    Family(
        "mamba",
        lambda: MambaConfig(
            **_settings(
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                state_size=8,
                expand=2,
            )
        ),
        (
            BlockSpec(
                _under("mixer", _MAMBA_MAPS),
                {"mixer.conv1d.weight": (96, 1, 4), "mixer.A_log": (96, 8)},
            ),
        )
        * 2,
        decoder_path="backbone",
        blocks_path="backbone.layers",
        tied_head=True,
        takes_position_ids=False,
    ),
    Family(
        "mamba2",
        lambda: Mamba2Config(
            **_settings(
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                num_heads=6,
                head_dim=16,
                state_size=16,
                expand=2,
                n_groups=2,
                chunk_size=16,
            )
        ),
        (
            BlockSpec(
                {
                    "mixer.in_proj": _linear(2 * 96 + 2 * 2 * 16 + 6, HIDDEN),
                    "mixer.out_proj": _linear(HIDDEN, 96),
                },
                {"mixer.conv1d.weight": (96 + 2 * 2 * 16, 1, 4)},
            ),
        )
        * 2,
        decoder_path="backbone",
        blocks_path="backbone.layers",
        takes_position_ids=False,
    ),
)

_HYBRID = (
    Family(
        "falcon_h1",
        lambda: FalconH1Config(
            **_settings(
                mamba_d_ssm=64,
                mamba_n_heads=4,
                mamba_d_head=16,
                mamba_n_groups=1,
                mamba_d_state=16,
                mamba_chunk_size=16,
            )
        ),
        (
            BlockSpec(
                {
                    "mamba.in_proj": _linear(64 + 64 + 2 * 16 + 4, HIDDEN),
                    "mamba.out_proj": _linear(HIDDEN, 64),
                }
                | _attention(48, 24)
                | _mlp(prefix="feed_forward"),
                {"mamba.conv1d.weight": (64 + 2 * 16, 1, 4)},
            ),
        )
        * 2,
    ),
    Family(
        "jamba",
        lambda: JambaConfig(
            **_settings(
                num_hidden_layers=3,
                attn_layer_period=3,
                attn_layer_offset=1,
                expert_layer_period=2,
                expert_layer_offset=0,
                num_experts=4,
                num_experts_per_tok=2,
                mamba_d_state=8,
            )
        ),
        (
            BlockSpec(
                _under("mamba", _MAMBA_MAPS)
                | {"feed_forward.router": _router(4)}
                | _under("feed_forward.experts", _experts(4, INTERMEDIATE)),
                {"mamba.conv1d.weight": (96, 1, 4), "mamba.A_log": (96, 8)},
            ),
            BlockSpec(_attention(48, 24) | _mlp(prefix="feed_forward")),
            BlockSpec(
                _under("mamba", _MAMBA_MAPS)
                | {"feed_forward.router": _router(4)}
                | _under("feed_forward.experts", _experts(4, INTERMEDIATE)),
                {"mamba.conv1d.weight": (96, 1, 4), "mamba.A_log": (96, 8)},
            ),
        ),
        has_experts=True,
    ),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (*_DENSE, *_SPARSE, _DEEPSEEK, _QWEN3_NEXT, *_STATE_SPACE, *_HYBRID)
}
