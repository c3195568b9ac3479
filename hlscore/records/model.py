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
    """A weight that LoRA or full fine-tuning could train, or one that was left out and why.

    Attributes:
        module: Fully qualified name: a module for plain linear maps, a parameter for fused
            expert tensors.
        parameter: Fully qualified name of the weight parameter.
        layer: Index of the decoder block; `None` outside the blocks.
        kind: Last part of the name, such as `q_proj`.
        block: Path between the decoder block and `kind`, such as `self_attn`.
        matrices: Number of matrices in the weight: 1, or the number of experts.
        out_features: Output width of each matrix.
        in_features: Input width of each matrix.
        storage: Whether the weight is stored `[..., out, in]` or `[..., in, out]`.
        form: What holds the weight: a linear layer, a `Conv1D`, an embedding, a module of its
            own kind with a matrix (`parameter`, such as a router), or a 3-D stack of `experts`.
        quantized: Whether the weight is packed and can hold no gradient.
        n_params: Parameters trained when the module is trained in full (weight and bias).
        left_out: Why it is left out; empty for a candidate.
        tied_to: Module that comes first and has the same weight; empty where there is none.
    """

    module: str
    parameter: str
    layer: int | None
    kind: str
    block: str
    matrices: int
    out_features: int
    in_features: int
    storage: Storage
    form: Form
    n_params: int
    quantized: bool = False
    left_out: LeftOut = ""
    tied_to: str = ""

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
    """Identity of a model's candidate weights.

    Attributes:
        structure: SHA-256 over the names and shapes of all candidates.
        weights: SHA-256 over sampled weights, rounded to bfloat16 so that the dtype in which
            the model was loaded does not matter.
    """

    structure: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDimensions:
    """Sizes that the memory of a training depends on; all are read from the configuration.

    Attributes:
        hidden_size: Width of the residual stream.
        blocks: Number of decoder blocks.
        vocab_size: Rows of the input embedding.
        packable_params: Weights of the linear layers that 4-bit and 8-bit loading packs: all but
            the output head.
        packable_rows: Output rows of those layers.
        block_widths: Inputs and outputs of the linear maps of the widest block, summed, per
            token; experts count as often as a token uses them.
        expert_params: Parameters of the fused expert tensors of the block with most of them.
    """

    hidden_size: int
    blocks: int
    vocab_size: int
    packable_params: int
    packable_rows: int
    block_widths: int
    expert_params: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSize:
    """A parameter, as far as its optimizer state depends on it.

    Attributes:
        shape: As the model stores it.
        embedding: Whether an embedding table holds it.
        count: Parameters that are alike.
    """

    shape: tuple[int, ...]
    embedding: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model the numbers belong to.

    Attributes:
        model: Name as given.
        revision: Commit hash of a hub model, else `None`.
        architecture: Class name of the model.
        model_type: `model_type` of its configuration.
        n_params: All parameters, tied ones counted once.
        dimensions: Sizes that the memory of a training depends on.
        fingerprint: Identity of the candidate weights.
        notes: Where it differs from what a trainer would load from the same files.
    """

    model: str
    revision: str | None
    architecture: str
    model_type: str
    n_params: int
    dimensions: ModelDimensions
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
