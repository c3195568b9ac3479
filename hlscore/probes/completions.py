"""Rollouts: one sequence per completion, weighed by its advantage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hlscore.errors import DataError
from hlscore.objectives.policy import divisor_share, group_advantages, has_signal, token_share
from hlscore.probes.encoding import Encoding, shortened
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.records import ProbeSummary, RolloutSummary
from hlscore.rollouts.records import Rollout, RolloutGroup, RolloutSet
from hlscore.settings import ObjectiveSettings

_MORE_SIGNAL = (
    "Sample more per prompt (--generations), at a higher --temperature, or use prompts that the "
    "model solves sometimes: neither always nor never."
)
# Below this a weighed loss vanishes in float32.
_NOTHING = 1e-30
_ROUNDING = 1e-9
# Prompts with a gradient below which a note warns.
_FEW = 32


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A completion after its prompt, ready to be weighed."""

    example: ProbeExample
    truncated: bool
    cut: bool


def encode_completions(rollouts: RolloutSet, how: Encoding) -> ProbeSet:
    """Weigh completions; see `encode`.

    Completions without advantage have no gradient and are not run; they count in the divisor.
    """
    objective, limit = how.objective, how.limit()
    advantages = group_advantages(
        [[item.reward for item in group.rollouts] for group in rollouts.groups],
        scale=objective.scale_rewards,
    )
    units, cut = [], 0
    for group, own in zip(rollouts.groups, advantages, strict=True):
        sequences = [_sequence(item, limit) for item in group.rollouts]
        cut += sum(item.cut for item in sequences)
        units.append(_unit(group, sequences, own, objective))
    counts = _summarize(rollouts, sum(bool(unit.sequences) for unit in units))
    _check_signal(rollouts, counts)
    found = how.probe_set(
        _by_prompt(rollouts, units),
        ProbeSummary(
            source=rollouts.source,
            format="rollouts",
            objective="grpo",
            loss_type=objective.loss_type_name,
            examples=len(units),
            truncated=cut,
            dropped=0,
            rollouts=counts,
            notes=(*rollouts.notes, *_notes(rollouts, counts, cut, limit)),
        ),
        temperature=objective.temperature or rollouts.temperature or 1.0,
    )
    _check_halves(found, counts)
    return found


def _sequence(item: Rollout, limit: int | None) -> _Sequence:
    start, ids = len(item.prompt_ids), (*item.prompt_ids, *item.completion_ids)
    # Nothing predicts the first token of all.
    counted = tuple(place >= max(1, start) for place in range(len(ids)))
    old = item.log_probs if start else item.log_probs[1:]
    whole = ProbeExample(ids, counted, 1.0, old)
    example = shortened(whole, limit)
    cut = len(example.input_ids) < len(ids)
    return _Sequence(example, truncated=item.truncated or cut, cut=cut)


def _unit(
    group: RolloutGroup,
    sequences: list[_Sequence],
    advantages: list[float],
    objective: ObjectiveSettings,
) -> ProbeUnit:
    loss_type, count = objective.loss_type_name, 0
    kept: list[ProbeExample] = []
    for item, advantage in zip(sequences, advantages, strict=True):
        masked = objective.mask_truncated and item.truncated
        tokens = 0 if masked else item.example.counted_tokens
        count += divisor_share(loss_type, tokens, objective.max_new_tokens)
        coefficient = advantage * token_share(loss_type, tokens)
        if tokens and abs(coefficient) > _NOTHING:
            kept.append(replace(item.example, coefficient=coefficient))
    return ProbeUnit(_merged(kept), count, key=_content(group))


def _by_prompt(rollouts: RolloutSet, units: Sequence[ProbeUnit]) -> list[ProbeUnit]:
    """Groups of one prompt stand together: halves that share a prompt are not independent."""
    found: dict[tuple[tuple[int, ...], ...], list[ProbeUnit]] = {}
    for group, unit in zip(rollouts.groups, units, strict=True):
        prompts = tuple(sorted({item.prompt_ids for item in group.rollouts}))
        found.setdefault(prompts, []).append(unit)
    return [
        ProbeUnit(
            tuple(item for unit in own for item in unit.sequences),
            sum(unit.count for unit in own),
            key="".join(sorted(unit.key for unit in own)),
        )
        for own in found.values()
    ]


def _merged(sequences: list[ProbeExample]) -> tuple[ProbeExample, ...]:
    """Run equal completions once: at ratio 1 the loss is linear in the coefficient."""
    found: dict[tuple[tuple[int, ...], tuple[bool, ...]], list[ProbeExample]] = {}
    others = []
    for item in sequences:
        if item.old_log_probs:
            others.append(item)
        else:
            found.setdefault((item.input_ids, item.counted), []).append(item)
    merged = []
    for copies in found.values():
        parts = [item.coefficient for item in copies]
        total = math.fsum(parts)
        # Advantages of a group add up to 0, but for rounding.
        if abs(total) > _ROUNDING * math.fsum(map(abs, parts)):
            merged.append(replace(copies[0], coefficient=total))
    return (*merged, *others)


def _content(group: RolloutGroup) -> str:
    """Hash of a group, whatever its name is and in whatever order its completions come."""
    every = sorted(
        json.dumps((item.prompt_ids, item.completion_ids, item.reward)) for item in group.rollouts
    )
    return hashlib.sha256("\n".join(every).encode()).hexdigest()


def _summarize(rollouts: RolloutSet, carrying: int) -> RolloutSummary:
    every = [item for group in rollouts.groups for item in group.rollouts]
    rewards = [item.reward for item in every if item.reward is not None]
    return RolloutSummary(
        prompts=len(rollouts.groups),
        completions=len(every),
        silent=sum(
            not has_signal([item.reward for item in group.rollouts]) for group in rollouts.groups
        ),
        carrying=carrying,
        unjudged=len(every) - len(rewards),
        truncated=sum(item.truncated for item in every),
        empty=sum(not item.completion_ids for item in every),
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
    )


def _check_signal(rollouts: RolloutSet, counts: RolloutSummary) -> None:
    if counts.carrying:
        return
    if counts.unjudged == counts.completions:
        raise DataError(
            f"None of the {counts.completions} completions of '{rollouts.source}' has a reward.",
            hint="The reward function could judge none: check its column of answers "
            "(--column answer=NAME).",
        )
    if counts.empty == counts.completions:
        raise DataError(f"Every completion of '{rollouts.source}' is empty.")
    if max(len(group.rollouts) for group in rollouts.groups) < 2:
        raise DataError(
            f"'{rollouts.source}' has one completion per prompt: an advantage compares several.",
            hint="Name the column that groups completions: --column group=NAME.",
        )
    if counts.silent < counts.prompts:
        raise DataError(
            f"No completion of '{rollouts.source}' with a token that counts has an advantage.",
            hint="They are empty, cut away (--max-length), masked (--mask-truncated), or equal "
            "texts whose advantages cancel out.",
        )
    cut = f"{counts.truncated} of {counts.completions} were cut short: raise --max-new-tokens. "
    raise DataError(
        f"In each of the {counts.prompts} groups of '{rollouts.source}' all rewards are equal "
        f"(mean {counts.mean_reward:.3g}): no gradient.",
        hint=(cut if 2 * counts.truncated > counts.completions else "") + _MORE_SIGNAL,
    )


def _check_halves(found: ProbeSet, counts: RolloutSummary) -> None:
    if all(any(half) for half in found.halves):
        return
    source = found.summary.source
    if found.summary.examples == 1 or not all(found.counts[1:]):
        raise DataError(
            f"All completions of '{source}' continue one prompt.",
            hint="The score compares two halves of the prompts: give at least 2, better 64.",
        )
    raise DataError(
        f"Only {counts.carrying} of {counts.prompts} groups of '{source}' carry a gradient, and "
        "all fell into one half of the probes: the score compares two halves.",
        hint=f"Use more prompts (--samples). {_MORE_SIGNAL}",
    )


def _notes(
    rollouts: RolloutSet, counts: RolloutSummary, cut: int, limit: int | None
) -> tuple[str, ...]:
    notes = []
    sizes = {len(group.rollouts) for group in rollouts.groups}
    if counts.silent:
        notes.append(
            f"{counts.silent} of {counts.prompts} prompts carry no gradient: their rewards are all "
            "equal."
        )
    if counts.carrying < _FEW:
        notes.append(
            f"Only {counts.carrying} prompts carry a gradient: from fewer than {_FEW}, scores and "
            "their errors say little. More prompts help (--samples), or such as are solved "
            "sometimes."
        )
    if counts.unjudged:
        notes.append(f"{counts.unjudged} completions could not be judged: their advantage is 0.")
    if counts.truncated:
        share = 100 * counts.truncated / counts.completions
        notes.append(
            f"{counts.truncated} completions ({share:.0f} %) were cut short at the limit of their "
            "length."
        )
    if counts.empty:
        notes.append(f"{counts.empty} completions are empty.")
    if cut:
        notes.append(f"{cut} sequences were cut at {limit} tokens.")
    if len(sizes) > 1:
        notes.append(f"Groups differ in size: {min(sizes)} to {max(sizes)} completions.")
    return tuple(notes)
