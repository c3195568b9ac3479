"""Log-probabilities and the supervised loss, against log-softmax token by token."""

from __future__ import annotations

import pytest
import torch

from hlscore.objectives import likelihood
from hlscore.objectives.likelihood import IGNORED, LossInputs, probe_loss, token_log_probs
from hlscore.settings import ObjectiveSettings

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


def slow_log_probs(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """One token after the other; place t predicts t + 1."""
    rows = []
    for row, targets in zip(logits.double(), labels, strict=True):
        found = [torch.zeros((), dtype=torch.float64)] * (len(targets) - 1)
        for place in range(len(targets) - 1):
            if targets[place + 1] != IGNORED:
                found[place] = (row[place] / temperature).log_softmax(-1)[targets[place + 1]]
        rows.append(torch.stack(found))
    return torch.stack(rows)


# Numbers per part: everything at once, several rows, one row, less than a row.
@pytest.mark.parametrize("chunk", [2**26, 4 * VOCABULARY, VOCABULARY, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_gradients_are_those_of_every_token(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", chunk)
    logits, labels = problem()
    found = token_log_probs(logits, labels, temperature=temperature)
    expected = slow_log_probs(logits, labels, temperature)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    (slow,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, slow, rtol=1e-11, atol=1e-14)


def test_the_likelihood_loss_weighs_sequences() -> None:
    logits, labels = problem()
    coefficients = torch.tensor([2.0, 5.0, -0.5], dtype=torch.float64)
    log_probs = token_log_probs(logits, labels)
    given = LossInputs(
        log_probs=log_probs, counted=labels[:, 1:] != IGNORED, old_log_probs=log_probs,
        coefficients=coefficients,
    )  # fmt: skip
    loss = probe_loss(ObjectiveSettings(), given)
    rows = slow_log_probs(logits, labels).sum(-1).tolist()
    expected = -sum(c * row for c, row in zip(coefficients.tolist(), rows, strict=True))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [2**26, 3 * VOCABULARY])
def test_narrow_logits_are_computed_with_in_float32(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", chunk)
    logits, labels = problem(dtype)
    found = token_log_probs(logits, labels)
    assert found.dtype == torch.float32
    expected = slow_log_probs(logits, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.dtype == dtype


def test_parts_are_turned_to_float32_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watched(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        rows.append(len(logits))
        return real(logits, targets, temperature)

    real = likelihood._log_probs
    monkeypatch.setattr(likelihood, "_log_probs", watched)
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", 4 * VOCABULARY)
    logits, labels = problem(counted=1.0)
    found = token_log_probs(logits, labels)
    assert int((found != 0).sum()) == 12
    forward = len(rows)
    assert max(rows) == 4
    # The example of nothing but padding is left out, but for places that share a part with others.
    assert sum(rows) < labels.numel()
    found.sum().backward()
    assert rows[forward:] == rows[:forward][::-1]


@pytest.mark.parametrize("chunk", [1, 2**26])
def test_nothing_counted_is_zero(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK_NUMBERS", chunk)
    logits, labels = problem()
    assert not token_log_probs(logits, torch.full_like(labels, IGNORED)).any()
