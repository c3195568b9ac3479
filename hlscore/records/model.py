"""What is known of a model and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from hlscore.reasons import LeftOut, sentence

Storage = Literal["out_in", "in_out"]
Form = Literal["linear", "conv1d", "embedding", "parameter", "experts"]


class Matrix(Protocol):
    """What candidates, rows of a report and modules of a plan all say of a weight."""

    @property
    def module(self) -> str:
        """Full name."""

    @property
    def layer(self) -> int | None:
        """Index of the decoder block."""

    @property
    def kind(self) -> str:
        """Last part of the name."""

    @property
    def block(self) -> str:
        """Path between the decoder block and the kind."""

    @property
    def form(self) -> Form:
        """What holds the weight."""

    @property
    def matrices(self) -> int:
        """1, or the number of fused experts."""

    @property
    def out_features(self) -> int:
        """Output width."""

    @property
    def in_features(self) -> int:
        """Input width."""

    @property
    def n_params(self) -> int:
        """Parameters of weight and bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A weight that LoRA or full fine-tuning could train, or one that was left out and why."""

    module: str  # full name: of a module, or of the parameter of fused expert tensors
    parameter: str  # full name of the weight
    layer: int | None  # index of the decoder block; `None` outside the blocks
    kind: str  # last part of the name, such as `q_proj`
    block: str  # path between the decoder block and `kind`, such as `self_attn`
    matrices: int  # number of matrices in the weight: 1, or the number of experts
    out_features: int  # of each matrix, like `in_features`
    in_features: int
    storage: Storage  # whether the weight is stored `[..., out, in]` or `[..., in, out]`
    # What holds the weight. `parameter`: a module of its own kind, such as a router; `experts`: a
    # 3-D stack.
    form: Form
    n_params: int  # parameters trained when the module is trained in full (weight and bias)
    quantized: bool = False  # whether the weight is packed and can hold no gradient
    left_out: LeftOut = ""  # why it is left out; empty for a candidate
    tied_to: str = ""  # module that comes first and has the same weight; empty where there is none

    @property
    def skipped(self) -> bool:
        """Whether the weight is left out of the ranking."""
        return bool(self.left_out)

    @property
    def reason(self) -> str:
        """Why it is left out, for readers."""
        return sentence(self.left_out, self.tied_to)

    @property
    def max_rank(self) -> int:
        """Largest rank that the matrices can have."""
        return min(self.out_features, self.in_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identity of a model's candidate weights."""

    structure: str  # SHA-256 over the names and shapes of all candidates
    weights: str  # SHA-256 over sampled weights, rounded to bfloat16: the dtype does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDimensions:
    """Sizes that the memory of a training depends on; all are read from the configuration."""

    hidden_size: int  # width of the residual stream
    blocks: int  # decoder blocks
    vocab_size: int  # rows of the input embedding
    # Weights of the linear layers that 4-bit and 8-bit loading packs: all but the output head.
    packable_params: int
    packable_rows: int  # output rows of those layers
    # Inputs and outputs of the linear maps of the widest block, summed, per token; experts count as
    # often as a token uses them.
    block_widths: int
    expert_params: int = 0  # parameters of the fused expert tensors of the block with most of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSize:
    """A parameter, as far as its optimizer state depends on it."""

    shape: tuple[int, ...]  # as the model stores it
    embedding: bool = False  # whether an embedding table holds it
    count: int = 1  # parameters that are alike


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model the numbers belong to."""

    model: str  # name as given
    revision: str | None  # commit hash of a hub model
    architecture: str  # class name
    model_type: str  # of its configuration
    n_params: int  # tied ones counted once
    dimensions: ModelDimensions
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()  # where it differs from what a trainer would load from the files
