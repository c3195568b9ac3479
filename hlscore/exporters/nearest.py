"""The nearest plan that a trainer can run, at the same cost."""

from __future__ import annotations

from collections.abc import Mapping

from hlscore.artifacts.plan import Plan
from hlscore.exporters.limits import SHOWN, Fault, FaultKind, Limits, faults, refusal
from hlscore.planning.revision import Change, equal_cost_rank, revise


def nearest(plan: Plan, limits: Limits) -> tuple[Plan, tuple[str, ...]]:
    """The nearest plan that a trainer can run, which costs no more, and a sentence per change.

    The sentences are among the notes of the new plan. Raises ExportError where no plan near it
    can be run, such as for a plan that trains nothing.
    """
    settled: dict[FaultKind, list[Fault]] = {}
    current = plan
    # Every round trains less of some module, or gives all adapters one rank.
    while found := faults(current, limits):
        changes: dict[str, Change] = {}
        for fault in found:
            if any(change.module in changes for change in fault.changes):
                continue  # another fault changes these already; the next round looks again
            changes |= {change.module: change for change in fault.changes}
            if fault.changes:
                settled.setdefault(fault.kind, []).append(fault)
        if not changes:
            raise refusal(found, limits)
        current = revise(current, changes.values())
    if not settled:
        return plan, ()
    adapters = current.lora_modules
    if adapters and not limits.ranks:  # full modules and higher ranks leave room for a higher rank
        rank = equal_cost_rank(current, plan)
        current = revise(
            current, [Change(module=item.module, mode="lora", rank=rank) for item in adapters]
        )
    sentences = _sentences(settled, plan, current)
    notes = [f"Changed for {limits.trainer}: {sentence}" for sentence in sentences]
    return revise(current, (), notes), sentences


def _sentences(
    settled: Mapping[FaultKind, list[Fault]], plan: Plan, changed: Plan
) -> tuple[str, ...]:
    """What became of a plan, a few sentences for each kind of fault."""
    now = {
        item.module: Change(module=item.module, mode=item.mode, rank=item.rank or 0)
        for item in changed.modules
    }
    sentences = []
    for kind, faults_of_kind in settled.items():
        if kind == "ranks":
            continue
        for fault in faults_of_kind[:SHOWN]:
            names = [change.module for change in fault.changes]
            shown = "; ".join(str(now[name]) for name in names[:SHOWN])
            more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            sentences.append(f"{fault.reason} Now {shown}{more}.")
        if len(faults_of_kind) > SHOWN:
            sentences.append(f"And {len(faults_of_kind) - SHOWN:,} more like these.")
    if "ranks" in settled:
        ranks = {item.rank for item in changed.lora_modules}
        sentences.append(
            f"{settled['ranks'][0].reason} Now rank {', '.join(map(str, ranks))} for all "
            f"{len(changed.lora_modules):,} adapters, at equal cost."
        )
    before, after = plan.totals.trained_params, changed.totals.trained_params
    return (*sentences, f"Trained parameters: {before:,} in the plan, {after:,} in the export.")
