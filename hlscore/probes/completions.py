"""Rollouts: one sequence per completion, weighed by its advantage."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

from hlscore.errors import DataError
from hlscore.objectives.policy import divisor_share, group_advantages, has_signal, token_share
from hlscore.probes.units import ProbeExample, ProbeUnit, sequence
from hlscore.records import ProbeSummary, RolloutSummary
from hlscore.rollouts.records import RolloutSet
from hlscore.settings import ObjectiveSettings
from hlscore.wording import count

MORE_SIGNAL = (
    "Sample more per prompt (--generations), at a higher --temperature, or use prompts that the "
    "model solves sometimes: neither always nor never."
)
# Below this a weighed loss vanishes in float32.
_NOTHING = 1e-30
_ROUNDING = 1e-9
# Prompts with a gradient below which a note warns.
_FEW = 32


def completion_units(
    rollouts: RolloutSet, objective: ObjectiveSettings, limit: int | None
) -> tuple[list[ProbeUnit], ProbeSummary]:
    """Weigh completions by their advantages; those of one prompt are a unit.

    Completions without advantage have no gradient and are not run; they count in the divisor.
    Halves that share a prompt would not be independent.
    """
    loss_type = objective.loss_type_name
    advantages = group_advantages(
        [[item.reward for item in group.rollouts] for group in rollouts.groups],
        scale=objective.scale_rewards,
    )
    by_prompt: dict[tuple[tuple[int, ...], ...], list[ProbeUnit]] = {}
    carrying = cut = 0
    for group, own in zip(rollouts.groups, advantages, strict=True):
        kept: list[ProbeExample] = []
        divisor = 0
        for item, advantage in zip(group.rollouts, own, strict=True):
            start = len(item.prompt_ids)
            # Nothing predicts the first token of all.
            old = item.log_probs if start else item.log_probs[1:]
            whole = sequence((*item.prompt_ids, *item.completion_ids), start, old)
            example = whole.shortened(limit)
            cut += example is not whole
            masked = objective.mask_truncated and (item.truncated or example is not whole)
            tokens = 0 if masked else example.counted_tokens
            divisor += divisor_share(loss_type, tokens, objective.max_new_tokens)
            coefficient = advantage * token_share(loss_type, tokens)
            if tokens and abs(coefficient) > _NOTHING:
                kept.append(replace(example, coefficient=coefficient))
        # Hash of a group, whatever its name is and in whatever order its completions come.
        content = sorted(
            json.dumps((item.prompt_ids, item.completion_ids, item.reward))
            for item in group.rollouts
        )
        key = hashlib.sha256("\n".join(content).encode()).hexdigest()
        unit = ProbeUnit(_merged(kept), divisor, key=key)
        carrying += bool(unit.sequences)
        prompts = tuple(sorted({item.prompt_ids for item in group.rollouts}))
        by_prompt.setdefault(prompts, []).append(unit)
    every = [item for group in rollouts.groups for item in group.rollouts]
    rewards = [item.reward for item in every if item.reward is not None]
    counts = RolloutSummary(
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
    if not carrying:
        raise _no_gradient(rollouts, counts)
    sizes = {len(group.rollouts) for group in rollouts.groups}
    share = 100 * counts.truncated / counts.completions
    notes = [
        (
            counts.silent,
            f"{counts.silent} of {counts.prompts} prompts carry no gradient: their rewards are "
            "all equal.",
        ),
        (
            carrying < _FEW,
            f"Only {count(carrying, 'prompt')} with a gradient: from fewer than {_FEW}, scores and "
            "errors say little. Use more prompts (--samples), or some that the model solves "
            "sometimes.",
        ),
        (
            counts.unjudged,
            f"{count(counts.unjudged, 'completion')} could not be judged: the advantage is 0.",
        ),
        (
            counts.truncated,
            f"{count(counts.truncated, 'completion')} ({share:.0f} %) cut short at the limit of "
            "length.",
        ),
        (counts.empty, f"{count(counts.empty, 'completion')} without tokens."),
        (cut, f"{count(cut, 'sequence')} cut at {limit} tokens."),
        (len(sizes) > 1, f"Groups differ in size: {min(sizes)} to {max(sizes)} completions."),
    ]
    units = [
        ProbeUnit(
            tuple(item for unit in own for item in unit.sequences),
            sum(unit.count for unit in own),
            key="".join(sorted(unit.key for unit in own)),
        )
        for own in by_prompt.values()
    ]
    return units, ProbeSummary(
        source=rollouts.source,
        format="rollouts",
        objective="grpo",
        loss_type=loss_type,
        examples=len(rollouts.groups),
        truncated=cut,
        dropped=0,
        rollouts=counts,
        notes=(*rollouts.notes, *(note for holds, note in notes if holds)),
    )


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


def _no_gradient(rollouts: RolloutSet, counts: RolloutSummary) -> DataError:
    if counts.unjudged == counts.completions:
        return DataError(
            f"None of the {counts.completions} completions of '{rollouts.source}' has a reward.",
            hint="The reward function could judge none: check its column of answers "
            "(--column answer=NAME).",
        )
    if counts.empty == counts.completions:
        return DataError(f"Every completion of '{rollouts.source}' is empty.")
    if max(len(group.rollouts) for group in rollouts.groups) < 2:
        return DataError(
            f"'{rollouts.source}' has one completion per prompt: an advantage compares several.",
            hint="Name the column that groups completions: --column group=NAME.",
        )
    if counts.silent < counts.prompts:
        return DataError(
            f"No completion of '{rollouts.source}' with a token that counts has an advantage.",
            hint="They are empty, cut away (--max-length), masked (--mask-truncated), or equal "
            "texts whose advantages cancel out.",
        )
    cut = f"{counts.truncated} of {counts.completions} were cut short: raise --max-new-tokens. "
    return DataError(
        f"In each of the {counts.prompts} groups of '{rollouts.source}' all rewards are equal "
        f"(mean {counts.mean_reward:.3g}): no gradient.",
        hint=(cut if 2 * counts.truncated > counts.completions else "") + MORE_SIGNAL,
    )
