"""The same numbers on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from problems import by_module, completions, run_report, settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "mamba2"])
def test_scores_agree_with_the_cpu(name: str) -> None:
    run = settings(bootstrap=20, groups=4)
    examples = completions(24)
    expected = by_module(run_report(FAMILIES[name].build(), examples, run).rows)
    found = by_module(run_report(FAMILIES[name].build().to("cuda"), examples, run).rows)
    for module, row in found.items():
        other = expected[module]
        assert row.grad_energy == pytest.approx(other.grad_energy, rel=1e-3)
        assert row.tail_energy == pytest.approx(other.tail_energy, rel=1e-3, abs=1e-12)
        scale = 1e-5 * (other.grad_energy or 0)
        assert row.hls == pytest.approx(other.hls, rel=1e-3, abs=scale)
