"""Architectures write completions of their own and are probed with them."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from tokens import byte_tokenizer

import hlscore

PROMPTS = [{"prompt": text} for text in ("one", "two or three", "x =", "the end of", "a b c")]


def even(completion_ids: list[list[int]], **_: object) -> list[float]:
    """A reward that a random model meets about half of the time."""
    return [float(sum(ids) % 2 == 0) for ids in completion_ids]


# One of each kind: dense, Conv1D, fused projections, images beside text, experts, state space.
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "llava", "gpt_oss", "qwen3_next"])
def test_family(name: str) -> None:
    model = FAMILIES[name].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options: dict[str, object] = {"objective": "grpo", "rank": 2, "budget": 0.5}
    found = hlscore.rank(
        model, byte_tokenizer(), data=PROMPTS, reward=even, max_new_tokens=6, generations=4,
        generate_batch=8, **options,
    )  # fmt: skip
    assert found.rollouts is not None
    assert found.report.probes.rollouts is not None
    assert found.report.probes.rollouts.completions == 20
    lengths = {len(item.completion_ids) for g in found.rollouts.groups for item in g.rollouts}
    assert 1 <= min(lengths) <= max(lengths) <= 6
    assert any(row.grad_energy for row in found.rows if row.status == "scored")
    again = hlscore.rank(model, byte_tokenizer(), rollouts=found.rollouts, **options)
    assert {row.module: row.hls for row in again.rows} == {
        row.module: row.hls for row in found.rows
    }
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
