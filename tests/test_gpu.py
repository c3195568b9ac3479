"""The same numbers on a GPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from problems import RUNS, by_module, completions, differing, run_report, scored, settings
from tokens import byte_tokenizer

import hlscore
from hlscore.gradients.trials import TrialRun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

EXAMPLES = completions(24)
ON_HOST = {"estimator": "exact", "accumulate_on": "host"}
NAMES = ["llama", "gpt2", "qwen3_moe", "gpt_oss", "mamba2"]


def on_gpu(name: str, **given: Any) -> Any:
    return FAMILIES[name].build(**given).to("cuda")


@pytest.mark.parametrize("run", [*RUNS.values(), ON_HOST], ids=[*RUNS, "host"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_agree_with_the_cpu(name: str, run: dict[str, Any]) -> None:
    options = settings(bootstrap=20, groups=4, **run)
    expected = scored(name, EXAMPLES, options)
    found = scored(on_gpu(name), EXAMPLES, options)
    assert not differing(found, expected, 1e-3, floor=1e-5)
    assert not differing(found, expected, 0.05, "hls_stderr", floor=1e-5)


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_trials_agree_with_the_cpu_and_put_weights_back(name: str, estimator: str) -> None:
    options = settings(
        movement="trial", trial_rate=1e-3, trial_steps=3, groups=2, estimator=estimator,
        trial_optimizer="rms", sketch_size=8,
    )  # fmt: skip
    expected = scored(name, EXAMPLES, options)
    model = on_gpu(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = scored(model, EXAMPLES, options)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    largest = max(row.hls or 0 for row in expected.values())
    for module, row in found.items():
        assert row.hls == pytest.approx(expected[module].hls, rel=2e-2, abs=5e-3 * largest)


@pytest.mark.parametrize("compensated", [True, False])
def test_bfloat16_trials_are_near_float32(
    compensated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialRun, "_kept_bytes", lambda *_: 0 if compensated else 2**60)
    options = settings(movement="trial", trial_rate=2e-3, trial_steps=3, groups=2)
    examples = completions(64)
    expected = scored("llama", examples, options)
    found = scored(on_gpu("llama", dtype=torch.bfloat16), examples, options)
    total = sum(row.hls or 0 for row in expected.values())
    assert sum(found[name].hls or 0 for name in expected) == pytest.approx(total, rel=0.3)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_sketches_of_bfloat16_are_near_float32(name: str, run: str) -> None:
    """16-bit products and grouped matrix products of experts run on a GPU only."""
    options = settings(**RUNS[run])
    expected = scored(name, EXAMPLES, options)
    found = scored(on_gpu(name, dtype=torch.bfloat16), EXAMPLES, options)
    # A router flips a few choices in 16 bits.
    assert not differing(found, expected, 0.3 if name == "qwen3_moe" else 0.1, "grad_energy")


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_completions_written_on_the_gpu_score_like_on_the_cpu(name: str, estimator: str) -> None:
    def even(completion_ids: list[list[int]], **_: object) -> list[float]:
        return [float(sum(ids) % 2 == 0) for ids in completion_ids]

    options: dict[str, Any] = {"budget": 0.5, "rank": 2, "estimator": estimator, "sketch_size": 8}
    prompts = [{"prompt": text} for text in ("one", "two or three", "x =", "the end of", "a b c")]
    found = hlscore.rank(
        on_gpu(name), byte_tokenizer(), data=prompts, objective="grpo", max_new_tokens=8,
        reward=even, **options,
    )  # fmt: skip
    assert found.rollouts is not None
    fields = ("prompt_ids", "completion_ids", "reward")
    rows = [
        {"group": group.name, **{field: getattr(item, field) for field in fields}}
        for group in found.rollouts.groups
        for item in group.rollouts
    ]
    again = hlscore.rank(
        FAMILIES[name].build(), byte_tokenizer(), objective="grpo", rollouts=rows, **options
    )
    rows = (by_module(found.rows), by_module(again.rows))
    assert not differing(*rows, 1e-3, "grad_energy")


@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_memory_that_runs_out_halves_the_batch(estimator: str) -> None:
    def limit(module: Any, args: Any, output: torch.Tensor) -> None:
        if len(output) > 2:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")

    plain, model = (on_gpu("llama") for _ in range(2))
    options = settings(batch_size=8, groups=2, estimator=estimator, sketch_size=8)
    expected = scored(plain, EXAMPLES, options)
    model.model.layers[1].mlp.up_proj.register_forward_hook(limit)
    report = run_report(model, EXAMPLES, options)
    assert any("halved" in note for note in report.run.notes)
    assert not differing(by_module(report.rows), expected, 1e-4, "grad_energy")
