"""The lines that every view of a run begins with."""

from __future__ import annotations

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanBudget
from hlscore.records import LOSS_ON, ProbeSummary, ScoreReport
from hlscore.views.wording import count, memory, short, visible

_COUNTED = {"full": "in full", "trained": "trained", "memory": "of memory"}


def report_headline(report: ScoreReport) -> Text:
    """Say in a few lines what was probed, on what, and how."""
    model, probes, run = report.model, report.probes, report.run
    what = "weight updates" if run.scores_updates else "gradients"
    how = f"sketches of {what}, k = {run.sketch_size}" if run.sketch_size else f"exact {what}"
    if probes.objective == "none" and probes.format != "update":
        how = "singular values of the weights"
    return Text.assemble(
        (model.model, "bold"),
        f" · {model.architecture} · {short(model.n_params)} parameters · "
        f"{visible(run.device)} {visible(run.dtype)}\n",
        f"{_probed(probes)}\n{how} · {run.wall_seconds:.1f} s",
    )


def _probed(probes: ProbeSummary) -> str:
    """What the gradients come from, in a sentence or two."""
    loss = "" if probes.mean_loss is None else f"{probes.mean_loss:.3f} nats"
    tokens, source = f"{probes.counted_tokens:,} counted tokens", visible(probes.source)
    if probes.format == "update":
        return f"{count(probes.examples, 'finished training')}: {source}"
    if probes.objective == "none":
        return "nothing probed"
    if probes.objective == "sft":
        mean = loss and f", mean loss {loss}"
        where = probes.loss_on and f" ({LOSS_ON[probes.loss_on]})"
        return f"{count(probes.examples, 'probe example')} from {source}, {tokens}{where}{mean}"
    mean = loss and f", {loss} each"
    name = f"{probes.objective} ({visible(probes.loss_type)})"
    drawn = probes.rollouts
    if drawn is None:
        return f"{name}: {count(probes.examples, 'pair')} from {source}, {tokens}{mean}"
    reward = "" if drawn.mean_reward is None else f", mean reward {drawn.mean_reward:.3g}"
    return (
        f"{name}: {count(drawn.completions, 'completion')} of {count(drawn.prompts, 'prompt')} "
        f"from {source}{reward}\n"
        f"{count(drawn.carrying, 'prompt')} with rewards that differ carry the gradient: "
        f"{tokens}{mean}"
    )


def run_notes(report: ScoreReport) -> tuple[str, ...]:
    """Remarks on a model and a run; that the exact estimator fits is what one expects."""
    notes = (note for note in report.run.notes if not note.startswith("exact:"))
    return (*report.model.notes, *notes)


def plan_headline(plan: Plan) -> Text:
    """Say in a few lines what a plan is for, what it was allowed, and how it was made."""
    model, budget, lora = plan.model, plan.budget, plan.lora
    made = f"by {plan.score.name}" if plan.method == "score" else f"as the baseline {plan.method}"
    at = f" at rank {lora.rank}" if lora.ranks else ""
    ranks = f"one of {', '.join(map(str, lora.ranks))}" if lora.ranks else f"{lora.rank}"
    return Text.assemble(
        (model.name, "bold"),
        f" · {model.architecture} · {short(model.params)} parameters\n",
        f"budget {budget.asked}: {_spent(budget)}\n",
        f"chosen {made} · LoRA rank {ranks}, alpha {lora.alpha}{at} · hlscore "
        f"{plan.provenance.hlscore_version}",
    )


def _spent(budget: PlanBudget) -> str:
    counted, spent, limit = _COUNTED[budget.counts], budget.spent, budget.limit
    if budget.unit == "bytes":
        return f"{memory(spent)} of {memory(limit)} {counted}"
    if budget.unit == "modules":
        return f"{spent:,} of {count(limit, 'module')} {counted}"
    return f"{short(spent)} of {short(limit)} parameters {counted}"
