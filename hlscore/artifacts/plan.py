"""The public format of a plan, versioned, with a published JSON Schema."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field

from hlscore.records import Fingerprint, Form, LeftOut, LossTokens, Matrix, Scored, Storage
from hlscore.settings import (
    LARGEST_ALPHA,
    LARGEST_RANK,
    BaseBits,
    Baseline,
    Master,
    Optimizer,
    PlanSettings,
)

SCHEMA_VERSION: Literal[1] = 1

# Whole numbers fit 64 bits with room to add them up.
LARGEST_COUNT = 2**62
_Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
_Place = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
_Size = Annotated[int, Field(ge=1, le=2**48)]
_Alpha = Annotated[int, Field(ge=1, le=LARGEST_ALPHA * LARGEST_RANK)]  # of the highest rank
_Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
_Item = TypeVar("_Item")
# One fault of a list is told: a list may hold a million.
_List = Annotated[list[_Item], FailFast()]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PlanModel(_Strict):
    """The model that the plan is for."""

    name: str = Field(description="Hub id, directory or built-in name, as given.")
    revision: str | None = Field(description="Commit hash of a hub model.")
    architecture: str = Field(description="Class name, such as LlamaForCausalLM.")
    model_type: str = Field(description="model_type of the configuration.")
    params: _Count = Field(description="All parameters, tied ones counted once.")
    fingerprint: Fingerprint


class PlanBudget(_Strict):
    """The budget asked for and what the plan makes of it."""

    asked: str = Field(description="As given, such as 0.1, 0.1p, 500M or 24GiB.")
    unit: Literal["modules", "parameters", "bytes"] = Field(description="What is limited.")
    limit: _Count = Field(description="The most that the budget allows, in its unit.")
    counts: Literal["full", "trained", "memory"] = Field(
        description="What counts towards the limit: what is trained in full, everything that is "
        "trained, or the whole training memory."
    )
    spent: _Count = Field(description="What the plan takes of the limit, in its unit.")
    trained_limit: _Count | None = Field(
        description="Most parameters that may be trained, where ranks are chosen within a budget "
        "of modules; else null."
    )
    realized_module_share: float = Field(
        ge=0, le=1, description="Modules in full / candidate modules."
    )
    realized_parameter_share: float = Field(
        ge=0, le=1, description="Parameters in full / parameters of all candidates."
    )


class PlanSolver(_Strict):
    """How the choice was made, and how far it may be from the best one."""

    name: str = Field(description="`sorted` for the highest scores, or the solver.")
    value: float = Field(
        description="Sum of the selected values: scores in their unit, or with ranks the part of "
        "the score that is captured, to the power of settings.value_power."
    )
    gap: float = Field(
        ge=0, description="(upper bound - value) / value; 0 where the choice is the best one."
    )


class PlanMemory(_Strict):
    """Training memory by the documented model, in bytes; activations are an estimate."""

    optimizer: Optimizer
    master: Master = Field(description="Precision of the trained parameters.")
    base_bits: BaseBits = Field(description="Bits of each frozen weight of a linear layer.")
    train_batch: _Place = Field(description="Sequences per step and device.")
    train_length: _Place = Field(description="Tokens per sequence.")
    frozen_bytes: _Count = Field(description="Weights that are not trained.")
    copy_bytes: _Count = Field(description="Frozen copies that PEFT keeps of full modules.")
    full_bytes: _Count = Field(description="Weights trained in full.")
    adapter_bytes: _Count = Field(description="Weights of the adapters.")
    gradient_bytes: _Count
    optimizer_bytes: _Count = Field(description="State of the optimizer.")
    activation_bytes: _Count = Field(description="Activations and logits, estimated.")
    total_bytes: _Count = Field(description="The sum of the above.")


class PlanScore(_Strict):
    """The score that decided."""

    name: str
    formula: str
    unit: str


class PlanLora(_Strict):
    """LoRA settings of the modules that are not trained in full."""

    rank: _Rank = Field(description="The rank that full fine-tuning is compared against.")
    alpha: int = Field(
        ge=1,
        le=LARGEST_ALPHA,
        description="Alpha at that rank; alpha / rank is the same everywhere.",
    )
    ranks: _List[_Rank] = Field(description="Ranks that the solver chose from; empty for one rank.")

    def alpha_at(self, rank: int) -> int:
        """Alpha of another rank at the same ratio, at least 1."""
        return max(1, round(self.alpha * rank / self.rank))


class PlanTotals(_Strict):
    """What the plan adds up to; parameters unless a name says modules."""

    candidate_modules: _Count
    full_modules: _Count
    lora_modules: _Count
    frozen_modules: _Count = Field(description="Candidates that are not trained.")
    candidate_params: _Count
    full_params: _Count
    lora_params: _Count
    trained_params: _Count
    plain_lora_params: _Count = Field(description="LoRA of the same rank on every candidate.")
    model_params: _Count


class PlanCoverage(_Strict):
    """Shares of the energy (squared Frobenius norm), summed over all candidates."""

    of: Literal["gradient", "update"] = Field(
        description="What was measured: gradients, or the weight updates of short trainings."
    )
    lora: float = Field(
        ge=0, le=1, description="Share within LoRA of the plan's rank on every candidate."
    )
    plan: float | None = Field(
        ge=0,
        le=1,
        description="Share within what the plan trains; null where an export changed the plan.",
    )


class PlanStability(_Strict):
    """How far the choice depends on the probe examples that were drawn."""

    mean_reselection: float | None = Field(
        description="Mean share of bootstrap resamples that select a selected module again."
    )
    borderline_modules: _Count | None = Field(
        description="Modules chosen in more than 10 % and less than 90 % of the resamples."
    )
    clear_modules: _Count | None = Field(
        default=None,
        description="Modules whose score lies above zero with 95 % confidence; null where the plan "
        "has another score or rank than the run.",
    )


class PlanRate(_Strict):
    """A suggested learning rate."""

    value: float = Field(gt=0, le=1000)
    source: str


class PlanRates(_Strict):
    """Suggested learning rates per group, for AdamW."""

    full: PlanRate
    lora: PlanRate


class PlanModule(_Strict, Matrix):
    """What to do with one module. Modules that are not listed stay frozen."""

    position: _Place = Field(description="Place by the plan's score, 1 is the highest.")
    module: str = Field(description="Fully qualified name.")
    parameter: str = Field(description="Fully qualified name of the weight.")
    mode: Literal["full", "lora", "frozen"]
    rank: _Rank | None = Field(description="LoRA rank; null unless mode is lora.")
    alpha: _Alpha | None = Field(description="LoRA alpha; null unless mode is lora.")
    locked: bool = Field(description="Whether the mode was asked for, not chosen.")
    score: float | None = Field(description="Value of the plan's score.")
    stderr: float | None = Field(
        description="Bootstrap standard error of the score; null without resamples at this rank."
    )
    selection_probability: float | None = Field(
        description="Share of bootstrap resamples in which the module is trained in full."
    )
    layer: _Count | None = Field(description="Index of the decoder block.")
    kind: str = Field(description="Last part of the name.")
    block: str = Field(description="Path between the decoder block and the kind.")
    form: Form = Field(description="What holds the weight.")
    storage: Storage = Field(description="Whether the weight is stored [out, in] or [in, out].")
    matrices: _Size = Field(description="1, or the number of fused experts.")
    out_features: _Size
    in_features: _Size
    params: _Place = Field(description="Parameters of weight and bias.")
    trained_params: _Count = Field(description="Parameters that the mode trains.")
    unreached: bool = Field(
        description="Whether its gradient is zero, or no finished training changed it."
    )
    remark: str = Field(description="Anything the reader should know; mostly empty.")

    @property
    def n_params(self) -> int:
        """Parameters of weight and bias, by the name that candidates have for them."""
        return self.params


class PlanSkipped(_Strict):
    """A weight that is no candidate; it stays frozen, but exports must not touch it."""

    module: str
    parameter: str
    left_out: LeftOut
    tied_to: str = Field(description="Module that has the same weight; mostly empty.")
    reason: str = Field(description="The same for readers.")


class PlanProbes(_Strict):
    """The probe examples that the scores come from."""

    source: str
    format: str
    objective: Literal["sft", "dpo", "grpo", "none"] = Field(
        default="sft", description="The loss that was probed; none where nothing was."
    )
    loss_type: str = Field(default="", description="Its variant; empty for sft.")
    loss_on: LossTokens = Field(
        default="",
        description="Which tokens carry loss: all, those of the completion, or those that the "
        "chat template marks as the assistant's; empty but for sft.",
    )
    hash: str
    examples: _Count = Field(description="Examples, pairs or prompts.")
    completions: _Count | None = Field(
        default=None, description="Completions of all prompts; null but for grpo."
    )
    mean_reward: float | None = Field(default=None, description="Of those completions.")
    silent_prompts: _Count | None = Field(
        default=None, description="Prompts whose rewards are all equal: they carry no gradient."
    )
    counted_tokens: _Count
    mean_loss: float | None = Field(description="Negative log-likelihood, nats per counted token.")


class PlanProvenance(_Strict, Scored):
    """Where the numbers come from."""

    hlscore_version: str
    seed: int
    estimator: str
    device: str
    dtype: str
    trial_rate: float | None = Field(
        default=None, description="Learning rate of the trials, found or given; null without."
    )
    trial_steps: _Count | None = Field(
        default=None, description="Optimizer steps that every trial took; null without trials."
    )
    versions: dict[str, str]
    probes: PlanProbes
    settings: dict[str, object] = Field(description="Full settings of the run that scored.")


class Plan(_Strict):
    """A module plan: full fine-tuning for a few modules, LoRA for the others."""

    schema_version: Literal[1]
    model: PlanModel
    method: Literal["score"] | Baseline = Field(
        description="`score`, or the baseline that the plan is."
    )
    budget: PlanBudget
    settings: PlanSettings = Field(description="Settings that make the plan again from scores.")
    solver: PlanSolver
    score: PlanScore
    lora: PlanLora
    totals: PlanTotals
    memory: PlanMemory
    coverage: PlanCoverage | None = Field(
        default=None, description="What LoRA and the plan follow; null without probes."
    )
    stability: PlanStability
    learning_rates: PlanRates
    modules: _List[PlanModule]
    skipped: _List[PlanSkipped]
    notes: _List[str]
    provenance: PlanProvenance

    @property
    def full(self) -> list[PlanModule]:
        """Modules trained in full, the best first."""
        return [item for item in self.modules if item.mode == "full"]

    @property
    def lora_modules(self) -> list[PlanModule]:
        """Modules trained with LoRA, the best first."""
        return [item for item in self.modules if item.mode == "lora"]


def significant(value: float) -> float:
    """Round to six digits: no more than the arithmetic has, so that a plan stays the same."""
    return float(f"{value:.6g}")


def plan_schema() -> dict[str, object]:
    """JSON Schema of `plan.json`, made from the classes above."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hlscore:plan:{SCHEMA_VERSION}",
    }
    return {**schema, **Plan.model_json_schema()}
