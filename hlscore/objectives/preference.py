r"""Pairwise preference losses, and what they come to where the policy is its own reference.

A pairwise loss is a function f of two log-ratios, those of the chosen and of the rejected
completion y: `log p(y) - log p_ref(y)`. Training starts with p = p_ref, so that both are 0, and

    grad f = f_c(0, 0) grad log p(chosen) + f_r(0, 0) grad log p(rejected),

since the reference has no gradient. The slopes f_c and f_r are two numbers: the gradient of the
first step needs neither a second model nor both completions in one batch.

At that point many losses have slopes that differ only by a factor (`sigmoid`, `hinge`,
`nca_pair`, `bco_pair`, `sppo_hard`, `apo_zero`), so that they rank modules alike. `ipo` and
`sigmoid_norm` divide by the length of each completion, `apo_down` moves the rejected one only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

# Chosen and rejected log-ratio, their numbers of tokens, beta.
Size = torch.Tensor | int
PairLoss = Callable[[torch.Tensor, torch.Tensor, Size, Size, float], torch.Tensor]


PAIR_LOSSES: dict[str, PairLoss] = {
    # DPO, https://arxiv.org/abs/2305.18290
    "sigmoid": lambda c, r, _m, _n, beta: -logsigmoid(beta * (c - r)),
    # SLiC, https://arxiv.org/abs/2305.10425; RSO, https://arxiv.org/abs/2309.06657
    "hinge": lambda c, r, _m, _n, beta: torch.relu(1 - beta * (c - r)),
    # IPO per token, https://arxiv.org/abs/2310.12036 (eq. 17); beta is its tau
    "ipo": lambda c, r, m, n, beta: (c / m - r / n - 1 / (2 * beta)) ** 2,
    # Length-normalized DPO, https://arxiv.org/abs/2411.15124
    "sigmoid_norm": lambda c, r, m, n, beta: -logsigmoid(beta * (c / m - r / n)),
    # NCA, https://arxiv.org/abs/2402.05369
    "nca_pair": lambda c, r, _m, _n, beta: (
        -logsigmoid(beta * c) - 0.5 * logsigmoid(-(beta * c)) - 0.5 * logsigmoid(-(beta * r))
    ),
    # BCO, https://arxiv.org/abs/2404.04656
    "bco_pair": lambda c, r, _m, _n, beta: -logsigmoid(beta * c) - logsigmoid(-beta * r),
    # SPPO with a sure winner, https://arxiv.org/abs/2405.00675 (eq. 4.7)
    "sppo_hard": lambda c, r, _m, _n, beta: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
    # APO-zero, https://arxiv.org/abs/2408.06266 (eq. 7)
    "apo_zero": lambda c, r, _m, _n, beta: 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
    # APO-down, https://arxiv.org/abs/2408.06266 (eq. 8)
    "apo_down": lambda c, r, _m, _n, beta: (
        torch.sigmoid(beta * c) + 1 - torch.sigmoid(beta * (c - r))
    ),
}


def slopes(
    loss_type: str, chosen_tokens: int, rejected_tokens: int, beta: float
) -> tuple[float, float]:
    """Slopes of a pairwise loss (a key of `PAIR_LOSSES`) where both log-ratios are 0."""
    chosen, rejected = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in "cr")
    with torch.enable_grad():
        loss = PAIR_LOSSES[loss_type](chosen, rejected, chosen_tokens, rejected_tokens, beta)
    first, second = torch.autograd.grad(loss, (chosen, rejected))
    return float(first), float(second)
