"""The loss, against log-softmax over every token and plain autograd."""

from __future__ import annotations

import pytest
import torch

from hlscore.objectives import sft
from hlscore.objectives.sft import IGNORED, sft_loss

VOCABULARY = 11


def problem(
    dtype: torch.dtype = torch.float64, *, counted: float = 0.6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [3, 7, 11] and labels of which some count nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 7, VOCABULARY, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) >= counted] = IGNORED
    labels[1] = IGNORED  # an example of nothing but padding
    return logits.to(dtype).requires_grad_(), labels


def slow_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """One token after the other; place t predicts t + 1."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, targets in zip(logits.double(), labels, strict=True):
        for place in range(len(targets) - 1):
            if targets[place + 1] != IGNORED:
                total = total - row[place].log_softmax(-1)[targets[place + 1]]
                tokens += 1
    return total, tokens


# Numbers per part: everything at once, several rows, one row, less than a row.
@pytest.mark.parametrize("chunk", [2**26, 4 * VOCABULARY, VOCABULARY, 1])
def test_loss_and_gradient_are_those_of_every_token(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHUNK_NUMBERS", chunk)
    logits, labels = problem()
    loss, tokens = sft_loss(logits, labels)
    (found,) = torch.autograd.grad(loss, logits)
    expected, count = slow_loss(logits, labels)
    (gradient,) = torch.autograd.grad(expected, logits)
    assert tokens == count > 0
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [2**26, 2 * VOCABULARY])
def test_places_that_count_nothing_get_no_gradient(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHUNK_NUMBERS", chunk)
    logits, labels = problem()
    loss, _ = sft_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    counted = labels[:, 1:] != IGNORED
    assert not gradient[:, -1].any()
    assert not gradient[:, :-1][~counted].any()
    assert gradient[:, :-1][counted].any(dim=-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [2**26, 3 * VOCABULARY])
def test_narrow_logits_are_summed_in_float32(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "CHUNK_NUMBERS", chunk)
    logits, labels = problem(dtype)
    loss, _ = sft_loss(logits, labels)
    assert loss.dtype == torch.float32
    expected, _ = slow_loss(logits, labels)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == dtype


def test_parts_are_turned_to_float32_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows.append(len(logits))
        return real(logits, targets)

    real = sft._summed_loss
    monkeypatch.setattr(sft, "_summed_loss", watched)
    monkeypatch.setattr(sft, "CHUNK_NUMBERS", 4 * VOCABULARY)
    logits, labels = problem(counted=1.0)
    loss, tokens = sft_loss(logits, labels)
    assert tokens == 12
    forward = len(rows)
    assert max(rows) == 4
    # The example of nothing but padding is left out, but for places that share a part with others.
    assert sum(rows) < labels.numel()
    loss.backward()
    assert rows[forward:] == rows[:forward][::-1]


def test_nothing_counted_is_a_loss_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "CHUNK_NUMBERS", 1)
    logits, labels = problem()
    loss, tokens = sft_loss(logits, torch.full_like(labels, IGNORED))
    assert (float(loss.detach()), tokens) == (0.0, 0)
