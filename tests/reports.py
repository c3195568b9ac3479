"""Score reports made up for tests of everything behind the scores."""

from __future__ import annotations

import random

from hlscore.records import (
    Fingerprint,
    ModelDimensions,
    ModelIdentity,
    ModuleRow,
    ProbeSummary,
    RunInfo,
    ScoreReport,
)

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = (0, 2, 4, 8, 16)


def row(index: int, *, resamples: int = 20, seed: int = 0) -> ModuleRow:
    """A plausible row; its scores fall with `index`."""
    draw = random.Random(seed * 1000 + index)
    kind = KINDS[index % len(KINDS)]
    block = "self_attn" if kind[0] in "qkvo" else "mlp"
    energy = 10.0 / (index + 1)
    tails = tuple(energy * share for share in (1.0, 0.5, 0.3, 0.2, 0.1))
    layer = index // len(KINDS)
    module, sides = f"model.layers.{layer}.{block}.{kind}", (64, 48 + 16 * (index % 3))
    return ModuleRow(
        rank=None, module=module, parameter=f"{module}.weight", layer=layer, kind=kind,
        block=block, matrices=1, matrices_reached=1, out_features=sides[0],
        in_features=sides[1], n_params=sides[0] * sides[1], form="linear", storage="out_in",
        # Scores, and their distributions over resamples.
        hls=0.9 * tails[2], hls_stderr=0.1 * energy, hls_ci_low=0.7 * tails[2],
        hls_ci_high=1.1 * tails[2], tail=tails[2], grad_norm=energy, taylor=energy / 2,
        taylor_mean=energy / 100, rgn=energy / 3, l1_adam=30 * tails[2], snr=energy / 4,
        spectral=energy / 5, kappa=0.1 / (index + 1), random=draw.random(),
        # What they are made of.
        grad_energy=energy, head_energy=energy - tails[2], tail_energy=tails[2],
        residual_ratio=tails[2] / energy, stable_rank=3.0, effective_rank=20.5, rank_for_90=12,
        halves_norm=7.0, weight_norm=5.0, condition_number=10.0 * (index + 1),
        # Errors of a sketch.
        hls_error=0.01 * energy, rgn_error=0.02, grad_energy_error=0.03 * energy,
        head_energy_error=0.04 * energy, tail_energy_error=0.05 * energy,
        residual_ratio_error=0.06, stable_rank_error=0.07, rank_for_90_error=1.5,
        # Curves over ranks, and resamples.
        curve_ranks=RANKS, tail_curve=tails,
        tail_curve_errors=tuple(0.1 * value for value in tails),
        hls_curve=tuple(0.9 * value for value in tails),
        hls_curve_errors=tuple(0.2 * value for value in tails),
        l1_adam_curve=tuple(30 * value for value in tails),
        spectral_ranks=RANKS,
        spectral_curve=tuple(energy / 5 + place / 100 for place in (2, 1, 0, -1, -2)),
        hls_replicates=tuple(draw.gauss(0.9 * tails[2], energy / 10) for _ in range(resamples)),
        tail_replicates=tuple(draw.gauss(tails[2], energy / 10) for _ in range(resamples)),
        grad_norm_replicates=tuple(draw.gauss(energy, energy / 10) for _ in range(resamples)),
    )  # fmt: skip


def report(count: int, *, resamples: int = 20) -> ScoreReport:
    """A report with `count` candidates and one skipped row."""
    skipped = ModuleRow(
        rank=None, module="lm_head", parameter="lm_head.weight", layer=None, kind="lm_head",
        block="", matrices=1, matrices_reached=None, out_features=300, in_features=64,
        n_params=300 * 64, form="linear", storage="out_in", status="skipped",
        left_out="output_head", reason="output head: ranked with --head",
    )  # fmt: skip
    rows = tuple(row(index, resamples=resamples) for index in range(count))
    dimensions = ModelDimensions(
        hidden_size=64, blocks=max(1, count // len(KINDS)), vocab_size=300,
        packable_params=64 * 64 * count, packable_rows=64 * count, block_widths=128 * len(KINDS),
    )  # fmt: skip
    return ScoreReport(
        rows=(*rows, skipped),
        model=ModelIdentity(
            model="org/model", revision="0123abc", architecture="LlamaForCausalLM",
            model_type="llama", n_params=10_000_000, dimensions=dimensions,
            fingerprint=Fingerprint(structure="sha256:0", weights="sha256:1"),
        ),
        probes=ProbeSummary(
            source="builtin:new", format="prompt_completion", hash="sha256:2", examples=64,
            groups=16, counted_tokens=5000, total_tokens=9000, truncated=0, dropped=0,
            mean_loss=1.25,
        ),
        run=RunInfo(
            hlscore_version="0.1.0", settings={"seed": 0}, seed=0, score="hls", rank=4,
            estimator="exact", device="cpu", dtype="float32", versions={"torch": "2.13.0"},
            sketch_size=None, wall_seconds=1.5, notes=("exact: asked for.",),
        ),
    )  # fmt: skip
