"""Probe sets and runs for tests."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from families import FAMILIES
from tokens import byte_tokenizer
from transformers import PreTrainedModel

from hlscore.flow.rank import rank_model
from hlscore.inputs.formats import ExampleSet
from hlscore.inputs.identity import identify
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.records import ModuleRow, ScoreReport
from hlscore.settings import CaptureSettings, ModelSettings, PlanSettings, RankSettings
from hlscore.steps import Silent

RANK = 3
# Ways to capture, with sketches so narrow that all weights of the families are compressed.
RUNS: dict[str, dict[str, Any]] = {
    "exact": {"estimator": "exact"},
    "sketch": {"estimator": "sketch", "sketch_size": 8},
}


def completions(count: int = 10, *, seed: int = 0, length: int = 18) -> ExampleSet:
    """Random text with a prompt and a completion each, of differing length."""
    draw = random.Random(seed)

    def words(most: int) -> str:
        return "".join(draw.choice("abcdefgh 0123456789+=") for _ in range(draw.randint(3, most)))

    rows = tuple({"prompt": words(length), "completion": words(length)} for _ in range(count))
    return ExampleSet(source="test", format="prompt_completion", rows=rows)


def settings(**capture: object) -> RankSettings:
    """Settings of a small run."""
    options: dict[str, object] = {"groups": 3, "bootstrap": 0, "batch_size": 4} | capture
    return RankSettings(
        model=ModelSettings(model="test"),
        capture=CaptureSettings(**options),  # type: ignore[arg-type]
        plan=PlanSettings(budget="0.5", rank=RANK),
    )


def probe_set(model: PreTrainedModel, examples: ExampleSet, run: RankSettings) -> ProbeSet:
    """The probe set that a run with these settings uses."""
    groups = run.capture.groups
    return encode(examples, byte_tokenizer(), model, max_length=None, groups=groups, seed=run.seed)


def halves(probes: ProbeSet) -> list[list[ProbeExample]]:
    """The examples of each half."""
    return [[example for group in half for example in group] for half in probes.halves]


def run_report(
    model: PreTrainedModel | str,
    examples: ExampleSet,
    run: RankSettings,
    display: Silent | None = None,
    **options: Any,
) -> ScoreReport:
    """Score a model, or a new one of a family, with further options of `rank_model`."""
    model = FAMILIES[model].build() if isinstance(model, str) else model
    identity = identify(model, "test", None)
    display = display or Silent()
    found = rank_model(model, byte_tokenizer(), identity, examples, run, display, **options)
    assert found is not None
    return found.report


def by_module(rows: Sequence[ModuleRow]) -> Mapping[str, ModuleRow]:
    """Candidate rows by name."""
    return {row.module: row for row in rows if row.is_candidate}


def scored(
    model: PreTrainedModel | str, examples: ExampleSet, run: RankSettings
) -> Mapping[str, ModuleRow]:
    """Candidate rows of a run by name."""
    return by_module(run_report(model, examples, run).rows)


def close(
    found: float | None, expected: float | None, tolerance: float = 1e-4, *, floor: float = 1e-30
) -> bool:
    """Whether two numbers agree relative to the expected one, or within an absolute floor."""
    if found is None or expected is None:
        return found == expected
    return abs(found - expected) <= max(tolerance * abs(expected), floor)


def differing(
    found: Mapping[str, ModuleRow],
    expected: Mapping[str, ModuleRow],
    tolerance: float,
    *columns: str,
    floor: float = 0.0,
) -> list[tuple[Any, ...]]:
    """Columns that differ by more than a share of their value, and of the energy of the gradient.

    Returns:
        Module, column and both values of each; compared are `hls`, `tail_energy` and
        `grad_energy` unless others are named.
    """
    assert found.keys() == expected.keys()
    return [
        (module, column, getattr(row, column), getattr(expected[module], column))
        for module, row in found.items()
        for column in columns or ("hls", "tail_energy", "grad_energy")
        if not close(
            getattr(row, column), getattr(expected[module], column), tolerance,
            floor=floor * (expected[module].grad_energy or 0) + 1e-12,
        )
    ]  # fmt: skip
