"""What a run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hlscore.reasons import LeftOut
from hlscore.records.model import Form, ModelIdentity, Storage
from hlscore.records.probes import ProbeSummary

Status = Literal["scored", "unreached", "skipped"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and what it may be off by.

    Attributes:
        value: The number.
        error: Standard error that a sketch or a randomized decomposition adds; 0 where exact.
    """

    value: float
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStatistics:
    """What the probe run tells about one candidate weight.

    Energies are squared Frobenius norms of the mean gradient over all counted tokens, in
    (nats per unit weight) squared; for fused experts they are summed over the matrices.

    Attributes:
        grad_energy: `||G||_F^2`.
        top_energy: `s_1^2`, summed over the matrices.
        tail_curve: Tail energy `T_r` at each rank of the run's curve.
        tail_errors: Estimated error of each.
        hls_curve: Cross-fitted tail `S_r` at each rank of the run's curve.
        hls_errors: Estimated error of each.
        rank_for_90: Smallest rank that holds 90 % of the energy; `None` beyond the curve.
        effective_rank: `exp(entropy(s / sum s))`, mean over matrices that were reached; `None`
            where the spectrum is not exact.
        halves_norm: `||A||_F ||B||_F` of the two halves.
        weight_norm: `||W||_F`; `None` where the weight cannot be had.
        taylor: `||W * G||_F`, elementwise product; `None` where the gradient is not formed.
        taylor_mean: Mean of `|W * G|`; `None` where the gradient is not formed.
        l1_adam_curve: `||G||_1 - <G, P_r(sign G)>` at each rank of the run's curve; empty where
            the gradient is not formed.
        matrices_reached: Matrices with a gradient other than zero.
        rank_for_99: Smallest rank that holds 99 % of the energy; `None` beyond the curve and
            with sketches.
        hls_replicates: Resampled `hls` at the run's rank.
        tail_replicates: Resampled tail energy at the run's rank.
        grad_norm_replicates: Resampled gradient energy.
    """

    grad_energy: Estimate
    top_energy: Estimate
    tail_curve: tuple[float, ...]
    tail_errors: tuple[float, ...]
    hls_curve: tuple[float, ...]
    hls_errors: tuple[float, ...]
    rank_for_90: Estimate | None
    matrices_reached: int
    rank_for_99: int | None = None
    effective_rank: float | None = None
    halves_norm: float = 0.0
    weight_norm: float | None = None
    taylor: float | None = None
    taylor_mean: float | None = None
    l1_adam_curve: tuple[float, ...] = ()
    hls_replicates: tuple[float, ...] = ()
    tail_replicates: tuple[float, ...] = ()
    grad_norm_replicates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStatistics:
    """What the singular values of one candidate weight tell; of experts the mean over matrices.

    Attributes:
        weight_norm: `||W||_F`; `None` where the weight cannot be had.
        snr: Signal-to-noise ratio of Spectrum; `None` where it is not finite.
        inverse_condition: 1 / `condition_number`; 0 for a singular matrix, `None` for zeros.
        condition_number: `s_1 / s_min`; `None` where it is not finite.
        spectral_curve: Score of spectral hybrid LoRA at each rank of the run; empty for zeros.
        remark: Why one of them is missing; mostly empty.
    """

    weight_norm: float | None = None
    snr: float | None = None
    inverse_condition: float | None = None
    condition_number: float | None = None
    spectral_curve: tuple[float, ...] = ()
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One row of the report. Fields and their order are the columns of `scores.parquet`.

    Attributes:
        rank: Position by the run's score, 1 is the first; `None` for skipped rows.
        module: Fully qualified name.
        parameter: Fully qualified name of the weight parameter.
        layer: Index of the decoder block.
        kind: Last part of the name.
        block: Path between the decoder block and `kind`.
        matrices: Number of matrices in the weight.
        matrices_reached: Matrices with a gradient other than zero; `None` without probes.
        out_features: Output width.
        in_features: Input width.
        n_params: Parameters of weight and bias.
        form: What holds the weight: `linear`, `conv1d`, `embedding`, `parameter`, `experts`.
        storage: `out_in` or `in_out`, how the weight is stored.
        hls: Cross-fitted tail `S_r`, nats per unit learning rate.
        hls_stderr: Standard error of `hls` over probe sets and sketches, from its replicates.
        hls_ci_low: Lower end of its 95 % interval.
        hls_ci_high: Upper end of its 95 % interval.
        hls_share: `S_r / (||A||_F ||B||_F)` times the number of weights.
        hls_error: Estimated error of `hls` that a sketch or randomized decomposition adds.
        selection_probability: Share of resamples in which the module makes the budget.
        tail: Tail energy of the mean gradient (equals `tail_energy`).
        grad_norm: Energy of the mean gradient (equals `grad_energy`).
        taylor: `||W * G||_F`.
        taylor_mean: Mean of `|W * G|`.
        rgn: `||G||_F / ||W||_F`.
        l1_adam: `||G||_1 - <G, P_r(sign G)>`, nats per unit step of Adam.
        snr: Signal-to-noise ratio of the weight (Spectrum).
        spectral: Score of spectral hybrid LoRA (twinkle), from the weight.
        kappa: Inverse condition number of the weight, 0 to 1: the smallest number ranks first.
        random: Seeded stratified control in (0, 1].
        grad_energy: `||G||_F^2`.
        head_energy: Energy of the best rank-r part of the gradient.
        tail_energy: `grad_energy - head_energy`.
        residual_ratio: `tail_energy / grad_energy`.
        stable_rank: `||G||_F^2 / s_1^2`.
        effective_rank: `exp(entropy(s / sum s))`, where the spectrum is exact.
        rank_for_90: Smallest rank that holds 90 % of the energy.
        halves_norm: `||A||_F ||B||_F` of the gradients or updates of the two halves.
        weight_norm: `||W||_F`.
        condition_number: `s_1 / s_min` of the weight; null where it is not finite.
        rgn_error: Estimated error of `rgn`, like the following ones of the column before `_error`.
        grad_energy_error: Of `grad_energy` and `grad_norm`.
        head_energy_error: Of `head_energy`.
        tail_energy_error: Of `tail_energy` and `tail`.
        residual_ratio_error: Of `residual_ratio`.
        stable_rank_error: Of `stable_rank`.
        rank_for_90_error: Of `rank_for_90`.
        curve_ranks: Ranks of the curves of gradients.
        tail_curve: Tail energy at those ranks.
        tail_curve_errors: Estimated error of each.
        hls_curve: Cross-fitted tail at those ranks.
        hls_curve_errors: Estimated error of each.
        l1_adam_curve: `l1_adam` at those ranks.
        spectral_ranks: Ranks of `spectral_curve`, which needs no gradient.
        spectral_curve: `spectral` at those ranks.
        hls_replicates: Resampled `hls`.
        tail_replicates: Resampled `tail`.
        grad_norm_replicates: Resampled `grad_norm`.
        status: `scored`, `unreached` (its gradient is zero) or `skipped`.
        reason: What the status means here, for readers.
        left_out: Why a skipped weight is left out.
        tied_to: Module that comes first and has the same weight; empty where there is none.
        more_scores: Values, at the run's rank, of scores that have no field above; read and
            written as columns, and as attributes, like the others.
    """

    rank: int | None
    module: str
    parameter: str
    layer: int | None
    kind: str
    block: str
    matrices: int
    matrices_reached: int | None
    out_features: int
    in_features: int
    n_params: int
    form: Form
    storage: Storage
    hls: float | None = None
    hls_stderr: float | None = None
    hls_ci_low: float | None = None
    hls_ci_high: float | None = None
    hls_share: float | None = None
    hls_error: float | None = None
    selection_probability: float | None = None
    tail: float | None = None
    grad_norm: float | None = None
    taylor: float | None = None
    taylor_mean: float | None = None
    rgn: float | None = None
    l1_adam: float | None = None
    snr: float | None = None
    spectral: float | None = None
    kappa: float | None = None
    random: float | None = None
    grad_energy: float | None = None
    head_energy: float | None = None
    tail_energy: float | None = None
    residual_ratio: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    rank_for_90: int | None = None
    halves_norm: float | None = None
    weight_norm: float | None = None
    condition_number: float | None = None
    rgn_error: float | None = None
    grad_energy_error: float | None = None
    head_energy_error: float | None = None
    tail_energy_error: float | None = None
    residual_ratio_error: float | None = None
    stable_rank_error: float | None = None
    rank_for_90_error: float | None = None
    curve_ranks: tuple[int, ...] = ()
    tail_curve: tuple[float, ...] = ()
    tail_curve_errors: tuple[float, ...] = ()
    hls_curve: tuple[float, ...] = ()
    hls_curve_errors: tuple[float, ...] = ()
    l1_adam_curve: tuple[float, ...] = ()
    spectral_ranks: tuple[int, ...] = ()
    spectral_curve: tuple[float, ...] = ()
    hls_replicates: tuple[float, ...] = ()
    tail_replicates: tuple[float, ...] = ()
    grad_norm_replicates: tuple[float, ...] = ()
    status: Status = "scored"
    reason: str = ""
    left_out: LeftOut = ""
    tied_to: str = ""
    more_scores: Mapping[str, float | None] = field(default_factory=dict, hash=False)

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
    def max_rank(self) -> int:
        """Largest rank that the matrices can have."""
        return min(self.out_features, self.in_features)

    def changed(self, **values: object) -> ModuleRow:
        """Copy the row with other values; `dataclasses.replace` takes three times as long."""
        more = {name: value for name, value in values.items() if name not in ModuleRow.__slots__}
        if more:
            values["more_scores"] = {**self.more_scores, **more}
        copy = object.__new__(ModuleRow)
        for name in ModuleRow.__slots__:
            object.__setattr__(copy, name, values[name] if name in values else getattr(self, name))
        return copy


# Movements whose A, B and G are weight updates, not gradients.
OF_UPDATES = ("trial", "update")


def movement_in(settings: Mapping[str, object]) -> str:
    """What the settings of a run say was scored; empty where they do not say."""
    capture = settings.get("capture")
    return str(capture.get("movement", "")) if isinstance(capture, Mapping) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Where and how a report was made.

    Attributes:
        hlscore_version: Version of hlscore.
        settings: Full settings of the run, as plain data.
        seed: Seed of the run.
        score: Score that ordered the rows.
        rank: LoRA rank compared against.
        estimator: How gradients were captured: `exact`, `sketch` or `none`.
        sketch_size: Columns of a sketch; `None` with exact gradients.
        device: Device that computed.
        dtype: Dtype of the weights.
        trial_rate: Learning rate of the trials, found or given; `None` without trials.
        versions: Versions of the libraries that computed the numbers.
        wall_seconds: Time of sampling, the probe run and the decompositions, all starts of a
            resumed run together.
        notes: Remarks on the run: why this estimator, and what had to be changed on the way.
    """

    hlscore_version: str
    settings: Mapping[str, object]
    seed: int
    score: str
    rank: int
    estimator: str
    device: str
    dtype: str
    sketch_size: int | None = None
    trial_rate: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def movement(self) -> str:
        """What was scored: `gradient`, `trial` or `update`; empty where the report does not say."""
        return movement_in(self.settings)

    @property
    def scores_updates(self) -> bool:
        """Whether A, B and G are weight updates, of trials or finished trainings, not gradients."""
        return self.movement in OF_UPDATES

    @property
    def scores_trainings(self) -> bool:
        """Whether they are the updates of finished trainings."""
        return self.movement == "update"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """The content of `scores.parquet`.

    Attributes:
        rows: One row per module, the best first; skipped modules last.
        model: Which model.
        probes: Which probe examples.
        run: Where and how.
    """

    rows: tuple[ModuleRow, ...]
    model: ModelIdentity
    probes: ProbeSummary
    run: RunInfo

    @property
    def candidates(self) -> tuple[ModuleRow, ...]:
        """Rows that a plan may train."""
        return tuple(row for row in self.rows if row.is_candidate)
