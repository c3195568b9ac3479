"""Probe examples: sequences and their weights, in halves, groups and batches, and their losses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from hlscore.inputs.examples import cut
from hlscore.objectives.likelihood import IGNORED, token_log_probs
from hlscore.records import ProbeSummary

# Groups per half below which a standard error is known too badly: with 4 to about 29 % of itself,
# with 8 to 19 % (one over the root of twice the degrees of freedom).
LEAST_GROUPS = 4


@dataclass(frozen=True, slots=True)
class ProbeExample:
    """One tokenized sequence."""

    input_ids: tuple[int, ...]
    # Whether each token carries loss; the first never does, nothing predicts it.
    counted: tuple[bool, ...]
    coefficient: float = 1.0  # what the loss of the sequence is multiplied by
    # Nats of the counted tokens under the policy that sampled them, NaN where not known; empty
    # when none are.
    old_log_probs: tuple[float, ...] = ()

    @property
    def counted_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return sum(self.counted)

    def digest(self, seed: int) -> bytes:
        """Hash what is probed; orders examples independently of how they were listed."""
        content = hashlib.sha256(f"{seed}:".encode())
        content.update(np.asarray(self.input_ids, dtype="<i8").tobytes())
        content.update(np.asarray(self.counted, dtype="u1").tobytes())
        if self.coefficient != 1.0 or self.old_log_probs:
            content.update(np.asarray(self.coefficient, dtype="<f8").tobytes())
            content.update(np.asarray(self.old_log_probs, dtype="<f8").tobytes())
        return content.digest()

    def shortened(self, limit: int | None) -> ProbeExample:
        """The first `limit` tokens; the very same example where it has no more."""
        if limit is None or len(self.input_ids) <= limit:
            return self
        counted = self.counted[:limit]
        return ProbeExample(
            self.input_ids[:limit], counted, self.coefficient, self.old_log_probs[: sum(counted)]
        )


def sequence(
    ids: Sequence[int], prompt_tokens: int, old_log_probs: tuple[float, ...] = ()
) -> ProbeExample:
    """A sequence whose loss begins after its prompt."""
    first = max(1, prompt_tokens)
    counted = tuple(place >= first for place in range(len(ids)))
    return ProbeExample(tuple(ids), counted, old_log_probs=old_log_probs)


@dataclass(frozen=True, slots=True)
class ProbeUnit:
    """Sequences that stand together: an example, a pair, or the completions of a prompt."""

    # Those that carry loss; completions whose gradient is zero are left out.
    sequences: tuple[ProbeExample, ...]
    # What is added to the divisor of the loss: counted tokens, pairs or completions.
    count: int
    key: str = ""  # orders units that every loss weighs differently, or that have no sequences
    # Chosen and rejected sequence of a preference pair, also where the first step of a loss moves
    # only one of them; empty for other objectives.
    pair: tuple[ProbeExample, ...] = ()

    def digest(self, seed: int) -> bytes:
        """Order units independently of how they were listed, and of how they are weighed."""
        if self.key:
            return hashlib.sha256(f"{seed}:{self.key}".encode()).digest()
        return self.sequences[0].digest(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """Tokenized sequences, split into two halves of bootstrap groups."""

    units: tuple[tuple[tuple[ProbeUnit, ...], ...], ...]  # two tuples of groups
    counts: tuple[tuple[int, ...], ...]  # what each group adds to the divisor of the mean
    summary: ProbeSummary
    pad_token_id: int
    temperature: float = 1.0  # of sampling, which logits are divided by in the loss

    @property
    def halves(self) -> tuple[tuple[tuple[ProbeExample, ...], ...], ...]:
        """Two tuples of groups; a group is a tuple of sequences."""
        return tuple(
            tuple(tuple(item for unit in group for item in unit.sequences) for group in half)
            for half in self.units
        )

    @property
    def sequences(self) -> list[ProbeExample]:
        """All sequences, those of the first half first."""
        return [item for half in self.halves for group in half for item in group]

    @property
    def trials(self) -> dict[tuple[int, int], list[ProbeUnit]]:
        """The data of each trial, by half and group: units with a loss."""
        return {
            (half, index): [unit for unit in group if unit.sequences or unit.pair]
            for half, groups in enumerate(self.units)
            for index, group in enumerate(groups)
        }


def split_halves(
    units: Sequence[ProbeUnit], *, groups: int, seed: int
) -> list[list[tuple[ProbeUnit, ...]]]:
    """Two halves of at most so many groups, whatever order the units come in.

    They are ordered by a seeded hash of their content. Copies stay together, so that halves and
    groups stay independent.
    """

    def cut_near(ordered: Sequence[ProbeUnit], wanted: int) -> int:
        """Nearest place to a wanted one that does not part copies of one unit."""
        places = (i for i in range(1, len(ordered)) if ordered[i - 1] != ordered[i])
        return min(places, key=lambda place: abs(place - wanted), default=len(ordered))

    ordered = sorted(units, key=lambda unit: unit.digest(seed))
    middle = cut_near(ordered, (len(ordered) + 1) // 2)
    halves = []
    for half in (ordered[:middle], ordered[middle:]):
        count = min(groups, len(half))
        inner = {cut_near(half, len(half) * i // count) for i in range(1, count)}
        bounds = [0, *sorted(inner - {0, len(half)}), len(half)]
        halves.append([tuple(half[a:b]) for a, b in pairwise(bounds)])
    return halves


def make_probe_set(
    units: Sequence[ProbeUnit],
    *,
    summary: ProbeSummary,
    pad_token_id: int,
    groups: int,
    seed: int,
    batch_size: int | None = None,
    temperature: float = 1.0,
) -> ProbeSet:
    """Split units into halves.

    Args:
        summary: Hash, groups and tokens are filled in here.
        batch_size: Sequences that a group should have at least, as each is run in batches of its
            own: of few sequences there are fewer groups, but no fewer than 4. The halves, and
            with them every score, stay the same; only standard errors are known less well.
            `None` leaves `groups` as it is.
    """
    sequences = [item for unit in units for item in unit.sequences]
    if batch_size is not None:
        groups = min(groups, max(LEAST_GROUPS, len(sequences) // (2 * batch_size)))
    halves, counts = [], []
    for half in split_halves(units, groups=groups, seed=seed):
        joined: list[tuple[ProbeUnit, ...]] = []
        sizes: list[int] = []
        for group in half:
            size = sum(unit.count for unit in group)
            # Groups that count nothing join others: a mean without the others had no divisor.
            if joined and 0 in (size, sizes[-1]):
                joined[-1] += group
                sizes[-1] += size
            else:
                joined.append(group)
                sizes.append(size)
        halves.append(tuple(joined))
        counts.append(tuple(sizes))
    hashes = []
    for unit in units:
        content = hashlib.sha256(f"{unit.key}:{unit.count}".encode())
        for digest in sorted(item.digest(0) for item in unit.sequences):
            content.update(digest)
        hashes.append(content.digest() if unit.key else unit.digest(0))
    return ProbeSet(
        units=tuple(halves),
        counts=tuple(counts),
        pad_token_id=pad_token_id,
        temperature=temperature,
        summary=replace(
            summary,
            hash=f"sha256:{hashlib.sha256(b''.join(sorted(hashes))).hexdigest()}",
            groups=sum(map(len, halves)),
            counted_tokens=sum(item.counted_tokens for item in sequences),
            total_tokens=sum(len(item.input_ids) for item in sequences),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch padded at the end, int64 [examples, length] where nothing else is said."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor  # 1 on tokens, 0 on padding
    labels: torch.Tensor  # token ids where loss is counted, -100 elsewhere
    # What the loss of each sequence is multiplied by, float32 [examples], on the host.
    coefficients: torch.Tensor
    # Nats of the counted tokens under the policy that sampled them, NaN where not known, float32
    # [examples, length - 1]; place t belongs to token t + 1.
    old_log_probs: torch.Tensor


def by_length(group: Sequence[ProbeExample]) -> list[ProbeExample]:
    """Order examples so that those of like length come together, whatever order they are in."""
    return sorted(group, key=lambda item: (len(item.input_ids), item.input_ids))


def collate(
    examples: Sequence[ProbeExample],
    *,
    pad_token_id: int,
    device: torch.device,
) -> Batch:
    """Pad examples to one length."""
    length = max(len(item.input_ids) for item in examples)
    shape = (len(examples), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    old = torch.full(shape, float("nan"))
    for row, item in enumerate(examples):
        size = len(item.input_ids)
        ids = torch.tensor(item.input_ids, dtype=torch.int64)
        input_ids[row, :size] = ids
        labels[row, :size] = torch.where(torch.tensor(item.counted), ids, IGNORED)
        mask[row, :size] = 1
        if item.old_log_probs:
            old[row, labels[row] != IGNORED] = torch.tensor(item.old_log_probs)
    return Batch(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        labels=labels.to(device),
        coefficients=torch.tensor([item.coefficient for item in examples]),
        old_log_probs=old[:, 1:].to(device),
    )


def counted_tokens(examples: Sequence[ProbeExample]) -> int:
    """Tokens of all examples that count in the loss."""
    return sum(item.counted_tokens for item in examples)


@torch.no_grad()
def example_sums(
    model: torch.nn.Module, examples: Sequence[ProbeExample], pad_token_id: int, *, batch_size: int
) -> list[float]:
    """Loss of each example, nats summed over its counted tokens."""
    device = next(model.parameters()).device
    found: dict[ProbeExample, float] = {}
    for part in cut(by_length(examples), batch_size):
        batch = collate(part, pad_token_id=pad_token_id, device=device)
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        sums = -token_log_probs(logits, batch.labels).sum(dim=1)
        found |= dict(zip(part, sums.tolist(), strict=True))
    return [found[item] for item in examples]
