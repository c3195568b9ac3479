"""Frozen records that travel between the rooms. No torch: read-only commands use them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

Storage = Literal["out_in", "in_out"]
Form = Literal["linear", "conv1d", "embedding", "parameter", "experts"]
Status = Literal["scored", "unreached", "skipped"]
LeftOut = Literal[
    "", "tied", "input_embedding", "output_head", "outside_decoder", "outside_blocks",
    "convolution", "embedding_table", "quantized", "not_linear", "custom", "flat_experts",
    "not_included", "excluded", "offloaded", "sharded",
]  # fmt: skip
LossTokens = Literal["", "all", "completion", "assistant"]
# What the tokens that carry loss are called.
LOSS_ON: dict[LossTokens, str] = {
    "all": "all tokens",
    "completion": "completions",
    "assistant": "the assistant's tokens",
}
# Why a weight is left out, as reports and plans say it.
_LEFT_OUT: Mapping[LeftOut, str] = {
    "": "",
    "tied": "tied to {}",
    "input_embedding": "input embedding: ranked with --embeddings",
    "output_head": "output head: ranked with --head",
    "outside_decoder": "outside the language decoder",
    "outside_blocks": "outside the decoder blocks",
    "convolution": "convolution, not a linear map",
    "embedding_table": "embedding table inside a block",
    "quantized": "quantized weight of an unknown layout",
    "not_linear": "state, norm, bias or table, not a linear map",
    "custom": "custom parameter that may not be a linear map",
    "flat_experts": "experts stacked in two dimensions, which LoRA cannot adapt one by one",
    "not_included": "not matched by --include",
    "excluded": "matched by --exclude",
    "offloaded": "its weight is offloaded, and no linear layer computes with it",
    "sharded": "its weight is sharded, and no linear layer computes with it",
}


class Matrix:
    """What candidates, rows of a report and modules of a plan all say of a weight."""

    __slots__ = ()
    if TYPE_CHECKING:
        module: str
        parameter: str
        layer: int | None
        kind: str
        block: str
        form: Form
        matrices: int
        out_features: int
        in_features: int

        @property
        def n_params(self) -> int:
            """Parameters of weight and bias."""

    @property
    def n_weights(self) -> int:
        """Entries of all matrices together, without biases."""
        return self.matrices * self.out_features * self.in_features

    @property
    def max_rank(self) -> int:
        """Largest rank that the matrices can have."""
        return min(self.out_features, self.in_features)

    @property
    def holder(self) -> str:
        """The module that PEFT copies to train the weight in full: of experts, their holder."""
        return self.parameter.rpartition(".")[0] if self.form == "experts" else self.module

    @property
    def size(self) -> str:
        """Sizes of a weight: `256 x 128`, with the number of fused matrices before it."""
        size = f"{self.out_features} x {self.in_features}"
        return size if self.matrices == 1 else f"{self.matrices} x {size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Matrix):
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
        return _LEFT_OUT[self.left_out].format(self.tied_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identity of a model's candidate weights, as SHA-256; reports and plans hold it.

    `structure` is over the names and shapes of all candidates, `weights` over sampled weights,
    rounded to bfloat16: the dtype does not matter.
    """

    structure: str
    weights: str

    __pydantic_config__: ClassVar = {"extra": "forbid"}


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
class ModelShape:
    """A model without weights."""

    n_params: int  # tied ones counted once
    dimensions: ModelDimensions
    modules: tuple[Candidate, ...]  # every weight matrix, those that are no candidates too
    parameters: tuple[ParameterSize, ...]  # tied ones once

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Modules that may be trained."""
        return tuple(item for item in self.modules if not item.skipped)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """What the completions of reinforcement learning were like."""

    prompts: int  # each with a group of completions
    completions: int
    silent: int  # prompts whose rewards are all equal: they carry no gradient
    carrying: int  # prompts whose completions carry one
    unjudged: int  # completions without a reward
    truncated: int  # completions that were cut short at the limit of their length
    empty: int  # completions without a token
    mean_reward: float | None  # of the rewards there are


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """What the gradients come from."""

    source: str  # name of the data as given, or of the built-in probes
    format: str  # data format found, such as `prompt_completion`
    objective: Literal["sft", "dpo", "grpo", "none"] = "sft"  # the loss that was probed
    loss_type: str = ""  # its variant; empty for sft
    # Which tokens carry loss: `all`, those of the `completion`, or those that the chat template
    # marks as the `assistant`'s; empty but for sft.
    loss_on: LossTokens = ""
    hash: str = ""  # SHA-256 over the token ids, loss masks and weights, independent of their order
    examples: int  # examples, pairs or prompts used
    groups: int = 0  # bootstrap groups over both halves
    counted_tokens: int = 0  # tokens that carry loss
    total_tokens: int = 0  # all tokens that are run, padding excluded
    truncated: int  # examples cut at the maximum length
    dropped: int  # examples left out because no token of theirs carries loss
    # Mean negative log-likelihood of the counted tokens, in nats; `None` before the run.
    mean_loss: float | None = None
    rollouts: RolloutSummary | None = None  # `None` but for grpo
    notes: tuple[str, ...] = ()


# What is said of a run that read the weights alone.
NO_PROBES = ProbeSummary(
    source="none",
    format="none",
    objective="none",
    hash="none",
    examples=0,
    truncated=0,
    dropped=0,
    notes=("Nothing was probed: the scores come from the weights alone.",),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and what it may be off by."""

    value: float
    error: float = 0.0  # standard error of a sketch or randomized decomposition; 0 where exact


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStatistics:
    """What the probe run tells about one candidate weight.

    Energies are squared Frobenius norms of the mean gradient over all counted tokens, in
    (nats per unit weight) squared; for fused experts they are summed over the matrices.
    """

    grad_energy: Estimate  # `||G||_F^2`
    top_energy: Estimate  # `s_1^2`, summed over the matrices
    tail_curve: tuple[float, ...]  # tail energy `T_r` at each rank of the run's curve
    tail_errors: tuple[float, ...]  # estimated error of each
    hls_curve: tuple[float, ...]  # cross-fitted tail `S_r` at each rank of the run's curve
    hls_errors: tuple[float, ...]  # estimated error of each
    rank_for_90: Estimate | None  # smallest rank that holds 90 %; `None` beyond the curve
    matrices_reached: int  # with a gradient other than zero
    rank_for_99: int | None = None  # `None` beyond the curve and with sketches
    # `exp(entropy(s / sum s))`, mean over the matrices reached; `None` for inexact spectra.
    effective_rank: float | None = None
    halves_norm: float = 0.0  # `||A||_F ||B||_F` of the two halves
    weight_norm: float | None = None  # `||W||_F`; `None` where the weight cannot be had
    # These three need the whole gradient: `None` and empty where it is not formed.
    taylor: float | None = None  # `||W * G||_F`, elementwise product
    taylor_mean: float | None = None  # mean of `|W * G|`
    l1_adam_curve: tuple[float, ...] = ()  # `||G||_1 - <G, P_r(sign G)>` at each rank
    hls_replicates: tuple[float, ...] = ()  # resampled `hls` at the run's rank
    tail_replicates: tuple[float, ...] = ()  # resampled tail energy at the run's rank
    grad_norm_replicates: tuple[float, ...] = ()  # resampled gradient energy


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStatistics:
    """What the singular values of one candidate weight tell; of experts the mean over matrices."""

    weight_norm: float | None = None  # `||W||_F`; `None` where the weight cannot be had
    snr: float | None = None  # signal-to-noise ratio of Spectrum; `None` where it is not finite
    # 1 / `condition_number`; 0 for a singular matrix, `None` for zeros.
    inverse_condition: float | None = None
    condition_number: float | None = None  # `s_1 / s_min`; `None` where it is not finite
    # Score of spectral hybrid LoRA at each rank of the run; empty for zeros.
    spectral_curve: tuple[float, ...] = ()
    remark: str = ""  # why one of them is missing; mostly empty


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow(Matrix):
    """One row of the report. Fields and their order are the columns of `scores.parquet`."""

    rank: int | None  # position by the run's score, 1 is the first; `None` for skipped rows
    module: str
    parameter: str  # fully qualified name of the weight parameter
    layer: int | None  # index of the decoder block
    kind: str
    block: str  # path between the decoder block and `kind`
    matrices: int
    matrices_reached: int | None  # matrices with a gradient other than zero; `None` without probes
    out_features: int
    in_features: int
    n_params: int  # parameters of weight and bias
    form: Form  # what holds the weight: `linear`, `conv1d`, `embedding`, `parameter`, `experts`
    storage: Storage  # `out_in` or `in_out`, how the weight is stored
    hls: float | None = None  # cross-fitted tail `S_r`, nats per unit learning rate
    hls_stderr: float | None = None  # over probe sets and sketches, from the replicates
    hls_ci_low: float | None = None  # lower end of its 95 % interval
    hls_ci_high: float | None = None  # upper end of its 95 % interval
    hls_share: float | None = None  # `S_r / (||A||_F ||B||_F)` times the number of weights
    hls_error: float | None = None  # estimated error of a sketch or randomized decomposition
    selection_probability: float | None = None  # share of resamples that select the module
    tail: float | None = None  # tail energy of the mean gradient (equals `tail_energy`)
    grad_norm: float | None = None  # energy of the mean gradient (equals `grad_energy`)
    taylor: float | None = None  # `||W * G||_F`
    taylor_mean: float | None = None  # mean of `|W * G|`
    rgn: float | None = None  # `||G||_F / ||W||_F`
    l1_adam: float | None = None  # `||G||_1 - <G, P_r(sign G)>`, nats per unit step of Adam
    snr: float | None = None  # signal-to-noise ratio of the weight (Spectrum)
    spectral: float | None = None  # score of spectral hybrid LoRA (twinkle), from the weight
    kappa: float | None = None  # 1 / condition number of the weight, 0 to 1
    random: float | None = None  # seeded stratified control in (0, 1]
    grad_energy: float | None = None  # `||G||_F^2`
    head_energy: float | None = None  # energy of the best rank-r part of the gradient
    tail_energy: float | None = None  # `grad_energy - head_energy`
    residual_ratio: float | None = None  # `tail_energy / grad_energy`
    stable_rank: float | None = None  # `||G||_F^2 / s_1^2`
    effective_rank: float | None = None  # `exp(entropy(s / sum s))`, where the spectrum is exact
    rank_for_90: int | None = None  # smallest rank that holds 90 % of the energy
    halves_norm: float | None = None  # `||A||_F ||B||_F` of the two halves
    weight_norm: float | None = None  # `||W||_F`
    condition_number: float | None = None  # `s_1 / s_min`; null where it is not finite
    # Estimated errors of the columns before `_error`.
    rgn_error: float | None = None
    grad_energy_error: float | None = None  # also of `grad_norm`
    head_energy_error: float | None = None
    tail_energy_error: float | None = None  # also of `tail`
    residual_ratio_error: float | None = None
    stable_rank_error: float | None = None
    rank_for_90_error: float | None = None
    curve_ranks: tuple[int, ...] = ()  # ranks of the curves of gradients
    tail_curve: tuple[float, ...] = ()  # tail energy at those ranks
    tail_curve_errors: tuple[float, ...] = ()  # estimated error of each
    hls_curve: tuple[float, ...] = ()  # cross-fitted tail at those ranks
    hls_curve_errors: tuple[float, ...] = ()  # estimated error of each
    l1_adam_curve: tuple[float, ...] = ()  # `l1_adam` at those ranks
    spectral_ranks: tuple[int, ...] = ()  # ranks of `spectral_curve`, which needs no gradient
    spectral_curve: tuple[float, ...] = ()  # `spectral` at those ranks
    hls_replicates: tuple[float, ...] = ()  # resampled `hls` at the run's rank
    tail_replicates: tuple[float, ...] = ()  # resampled `tail`
    grad_norm_replicates: tuple[float, ...] = ()  # resampled `grad_norm`
    status: Status = "scored"  # `scored`, `unreached` (its gradient is zero) or `skipped`
    reason: str = ""  # what the status means here, for readers
    left_out: LeftOut = ""  # why a skipped weight is left out
    tied_to: str = ""  # module that comes first and has the same weight; empty where there is none
    # Values, at the run's rank, of scores that have no field above; read and written as columns,
    # and as attributes, like the others.
    more_scores: Mapping[str, float | None] = field(default_factory=dict, hash=False)

    # What pydantic refuses when it reads rows from a file.
    __pydantic_config__: ClassVar = {"allow_inf_nan": False}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> float | None:
            if name == "more_scores" or name not in self.more_scores:
                raise AttributeError(name)
            return self.more_scores[name]

    @property
    def is_candidate(self) -> bool:
        """Whether a plan may train this module."""
        return self.status != "skipped"

    @property
    def unreached(self) -> bool:
        """Whether the probed loss does not depend on it: no training of it would change that."""
        return self.status == "unreached"

    @property
    def curves_fit(self) -> bool:
        """Whether each curve has a value for each of its ranks; `l1_adam_curve` may be empty."""
        curves = (self.tail_curve, self.tail_curve_errors, self.hls_curve, self.hls_curve_errors)
        return (
            {len(self.curve_ranks)} == {len(curve) for curve in curves}
            and len(self.l1_adam_curve) in (0, len(self.curve_ranks))
            and len(self.spectral_curve) == len(self.spectral_ranks)
        )

    def changed(self, **values: object) -> ModuleRow:
        """Copy the row with other values; `dataclasses.replace` takes three times as long."""
        more = {name: value for name, value in values.items() if name not in ModuleRow.__slots__}
        if more:
            values["more_scores"] = {**self.more_scores, **more}
        copy = object.__new__(ModuleRow)
        for name in ModuleRow.__slots__:
            object.__setattr__(copy, name, values[name] if name in values else getattr(self, name))
        return copy


class _Tied(Protocol):
    @property
    def tied_to(self) -> str: ...


def tied_modules(items: Iterable[_Tied]) -> frozenset[str]:
    """Modules whose weight another module shares: LoRA on one of the two merges wrongly."""
    return frozenset(item.tied_to for item in items if item.tied_to)


class Scored:
    """What the settings of a run say of its scores."""

    __slots__ = ()
    if TYPE_CHECKING:
        settings: Mapping[str, object]

    @property
    def movement(self) -> str:
        """What was scored: `gradient`, `trial` or `update`; empty where the settings do not say."""
        capture = self.settings.get("capture")
        return str(capture.get("movement", "")) if isinstance(capture, Mapping) else ""

    @property
    def scores_updates(self) -> bool:
        """Whether A, B and G are weight updates, of trials or finished trainings, not gradients."""
        return self.movement in ("trial", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo(Scored):
    """Where and how a report was made."""

    hlscore_version: str
    settings: Mapping[str, object]  # full settings of the run, as plain data
    seed: int
    score: str  # score that ordered the rows
    rank: int  # LoRA rank compared against
    estimator: str  # how gradients were captured: `exact`, `sketch` or `none`
    device: str
    dtype: str
    sketch_size: int | None = None  # columns of a sketch; `None` with exact gradients
    trial_rate: float | None = None  # learning rate, found or given; `None` without trials
    trial_steps: int | None = None  # that every trial took; `None` without trials
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that computed
    # Of sampling, the probe run and the decompositions, all starts of a resumed run together.
    wall_seconds: float = 0.0
    notes: tuple[str, ...] = ()  # why this estimator, and what had to be changed on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The content of `scores.parquet`."""

    rows: tuple[ModuleRow, ...]  # one row per module, the best first; skipped modules last
    model: ModelIdentity
    probes: ProbeSummary
    run: RunInfo

    @property
    def candidates(self) -> tuple[ModuleRow, ...]:
        """Rows that a plan may train."""
        return tuple(row for row in self.rows if row.is_candidate)
