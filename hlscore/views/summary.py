"""A run and a plan in sentences that terminal and page share."""

from __future__ import annotations

from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanBudget, PlanMemory, PlanTotals
from hlscore.planning.memory import MemoryUse
from hlscore.planning.notes import rank_counts
from hlscore.records import LOSS_ON, ProbeSummary, ScoreReport
from hlscore.scores.registry import SCORES
from hlscore.wording import count, memory, near_whole, percent, short, visible

_COUNTED = {"full": " in full", "trained": " trained", "memory": ""}


def report_headline(report: ScoreReport) -> Text:
    """What was probed, on what, and how, in a few lines."""
    model, probes, run = report.model, report.probes, report.run
    what, *parts = probed(probes)
    what, losses, drawn = visible(what), ", ".join(parts), probes.rollouts
    if drawn is not None:
        reward = "" if drawn.mean_reward is None else f", mean reward {drawn.mean_reward:.3g}"
        what += f"{reward}\n{count(drawn.carrying, 'prompt')} with rewards that differ carry "
        what += f"the gradient: {losses}"
    elif losses:
        what += f", {losses}"
    return Text.assemble(
        (model.model, "bold"),
        f" · {model.architecture} · {short(model.n_params)} parameters · "
        f"{visible(run.device)} {visible(run.dtype)}\n{what}\n"
        f"{method(report)} · {run.wall_seconds:.1f} s",
    )


def method(report: ScoreReport) -> str:
    """What the scores were computed from."""
    run = report.run
    if run.estimator == "none":
        return "singular values of the weights"
    what = "weight updates" if run.scores_updates else "gradients"
    return f"sketches of {what}, k = {run.sketch_size}" if run.sketch_size else f"exact {what}"


def probed(probes: ProbeSummary) -> list[str]:
    """What was probed and where it is from, then the tokens of the loss and its mean if known.

    Beyond SFT the mean is not that of the loss that is trained.
    """
    if probes.format == "update":
        what = f"{count(probes.examples, 'finished training')}: {probes.source}"
    elif probes.objective == "none":
        what = "no probes"
    elif probes.objective == "sft":
        what = f"{count(probes.examples, 'probe example')} from {probes.source}"
    elif (drawn := probes.rollouts) is None:
        pairs = f"{count(probes.examples, 'pair')} from {probes.source}"
        what = f"{probes.objective} ({probes.loss_type}): {pairs}"
    else:
        of = f"{count(drawn.completions, 'completion')} of {count(drawn.prompts, 'prompt')}"
        what = f"{probes.objective} ({probes.loss_type}): {of} from {probes.source}"
    texts = [what]
    if probes.objective != "none":
        where = probes.loss_on and f" ({LOSS_ON[probes.loss_on]})"
        texts.append(f"{probes.counted_tokens:,} counted tokens{where}")
        if probes.mean_loss is not None:
            kind = "loss" if probes.objective == "sft" else "negative log-likelihood"
            texts.append(f"mean {kind} {probes.mean_loss:.3f} nats per token")
    return texts


def run_notes(report: ScoreReport) -> tuple[str, ...]:
    """Remarks on the probes, the model and the run."""
    return (*report.probes.notes, *report.model.notes, *report.run.notes)


def plan_headline(plan: Plan) -> Text:
    """What a plan is for, what it was allowed, and how it was made, in a few lines."""
    model, lora = plan.model, plan.lora
    made = f"by {plan.score.name}" if plan.method == "score" else f"as the baseline {plan.method}"
    at = f" at rank {lora.rank}" if lora.ranks else ""
    ranks = f"one of {', '.join(map(str, lora.ranks))}" if lora.ranks else f"{lora.rank}"
    return Text.assemble(
        (model.name, "bold"),
        f" · {model.architecture} · {short(model.params)} parameters\n",
        f"budget {plan.budget.asked}: {budget_spent(plan.budget)}\n",
        f"chosen {made} · LoRA rank {ranks}, alpha {lora.alpha}{at} · hlscore "
        f"{plan.provenance.hlscore_version}",
    )


def budget_spent(budget: PlanBudget) -> str:
    """What a plan takes of its budget."""
    spent, limit = {
        "bytes": (f"{memory(budget.spent)} of memory", memory(budget.limit)),
        "modules": (count(budget.spent, "module"), f"{budget.limit:,}"),
        "parameters": (f"{short(budget.spent)} parameters", short(budget.limit)),
    }[budget.unit]
    return f"{spent}{_COUNTED[budget.counts]}, {limit} allowed"


def training(mode: str, rank: int | None) -> str:
    """How a module is trained, in a word or two."""
    return f"LoRA {rank}" if mode == "lora" else mode


def chosen_in(share: float | None) -> str:
    """A selection probability, a dash where there is none."""
    return "-" if share is None else f"{100 * share:.0f} %"


def times_lora(totals: PlanTotals) -> float:
    """Trained parameters over those of plain LoRA of the plan's rank on every module."""
    return totals.trained_params / max(1, totals.plain_lora_params)


def memory_settings(use: PlanMemory) -> str:
    """What the memory of a plan was worked out for."""
    return (
        f"{use.optimizer}, {use.base_bits}-bit base, {use.master} master weights, "
        f"{use.train_batch} x {use.train_length} tokens"
    )


def reselection(plan: Plan) -> str:
    """How often resamples select the same modules; empty without resamples."""
    share = plan.stability.mean_reselection
    if share is None:
        return ""
    again = f"select the same module again in {chosen_in(share)} of cases"
    return f"resamples of the same probes {again}"


def clear_modules(clear: int, modules: int) -> str:
    """How many modules score above zero with confidence."""
    verb = "scores" if clear == 1 else "score"
    return f"{clear:,} of {count(modules, 'module')} {verb} above zero with 95 % confidence"


def weight_bytes(use: MemoryUse | PlanMemory) -> int:
    """Bytes of all weights, trained or not, with the copies that PEFT keeps."""
    return use.frozen_bytes + use.copy_bytes + use.full_bytes + use.adapter_bytes


def summary(plan: Plan) -> dict[str, str]:
    """What a plan trains, what that takes, and how stable the choice is: texts by label."""
    totals, budget, stability, use = plan.totals, plan.budget, plan.stability, plan.memory
    lines: dict[str, str] = {}
    if (found := plan.coverage) is not None:
        hybrid = "" if found.plan is None else f", the plan {near_whole(found.plan)}"
        lines["reach"] = (
            f"LoRA {plan.lora.rank} captures {near_whole(found.lora)} of this {found.of}{hybrid}"
        )
    lines["full"] = (
        f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} "
        f"({percent(budget.realized_module_share)}), {short(totals.full_params)} of "
        f"{short(totals.candidate_params)} candidate parameters "
        f"({percent(budget.realized_parameter_share)})"
    )
    lines["trained"] = (
        f"{short(totals.trained_params)} parameters in all: {times_lora(totals):.2f} x plain "
        f"LoRA of rank {plan.lora.rank}, "
        f"{percent(totals.trained_params / max(1, totals.model_params))} of full fine-tuning"
    )
    if plan.lora.ranks and plan.lora_modules:
        ranks = rank_counts(item.rank for item in plan.lora_modules if item.rank is not None)
        lines["ranks"] = f"adapters: {ranks}"
    lines["memory"] = (
        f"{memory(use.total_bytes)} to train: weights {memory(weight_bytes(use))}, gradients "
        f"{memory(use.gradient_bytes)}, optimizer {memory(use.optimizer_bytes)}, "
        f"activations about {memory(use.activation_bytes)}\n({memory_settings(use)})"
    )
    if plan.solver.name == "HiGHS":
        lines["solver"] = f"HiGHS, {gap_text(plan.solver.gap)}"
    score = SCORES.get(plan.score.name)  # a plan may be of another version
    if score is not None and score.caveat:
        lines["bias"] = score.caveat
    if stability.mean_reselection is None or stability.borderline_modules is None:
        return lines
    lines["stable"] = f"{reselection(plan)}; new probes agree less"
    if stability.clear_modules is None:
        lines["doubt"] = (
            f"{count(stability.borderline_modules, 'module')} selected in more than 10 % and less "
            "than 90 % of the resamples"
        )
    else:
        lines["doubt"] = clear_modules(stability.clear_modules, totals.candidate_modules)
        if stability.clear_modules < totals.full_modules:
            lines["doubt"] += "\nwarning: the order is mostly noise; use more probes (--samples)"
    return lines


def gap_text(gap: float) -> str:
    """How far a choice may be from the best one."""
    return f"within {100 * gap:.2g} % of the best value" if gap else "the best choice"
