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


def headline(artifact: Plan | ScoreReport) -> Text:
    """Three lines: the model, what was probed or what the budget allows, and how it was done."""
    if isinstance(artifact, ScoreReport):
        run, name, params = artifact.run, artifact.model.model, artifact.model.n_params
        machine = f" · {visible(run.device)} {visible(run.dtype)}"
        what = visible(probed(artifact.probes))
        how = f"{method(artifact)} · {run.wall_seconds:.1f} s"
    else:
        name, params, machine = artifact.model.name, artifact.model.params, ""
        lora, budget = artifact.lora, artifact.budget
        what = f"budget {budget.asked}: {budget_spent(budget)}"
        baseline = f"as the baseline {artifact.method}"
        made = f"by {artifact.score.name}" if artifact.method == "score" else baseline
        at = f" at rank {lora.rank}" if lora.ranks else ""
        ranks = f"one of {', '.join(map(str, lora.ranks))}" if lora.ranks else f"{lora.rank}"
        version = artifact.provenance.hlscore_version
        how = f"chosen {made} · LoRA rank {ranks}, alpha {lora.alpha}{at} · hlscore {version}"
    first = f" · {artifact.model.architecture} · {short(params)} parameters{machine}"
    return Text.assemble((name, "bold"), f"{first}\n{what}\n{how}")


def method(report: ScoreReport) -> str:
    """What the scores were computed from."""
    run = report.run
    if run.estimator == "none":
        return "singular values of the weights"
    what = "weight updates" if run.scores_updates else "gradients"
    return f"sketches of {what}, k = {run.sketch_size}" if run.sketch_size else f"exact {what}"


def probed(probes: ProbeSummary) -> str:
    """What was probed and where it is from, then the tokens of the loss and its mean if known.

    Beyond SFT the mean is not that of the loss that is trained.
    """
    if probes.format == "update":
        return f"{count(probes.examples, 'finished training')}: {probes.source}"
    if probes.objective == "none":
        return "no probes"
    kind, loss = f"{probes.objective} ({probes.loss_type}): ", "negative log-likelihood"
    parts = []
    if probes.objective == "sft":
        kind, loss, what = "", "loss", count(probes.examples, "probe example")
    elif (drawn := probes.rollouts) is None:
        what = count(probes.examples, "pair")
    else:
        what = f"{count(drawn.completions, 'completion')} of {count(drawn.prompts, 'prompt')}"
        if drawn.mean_reward is not None:
            parts.append(f"mean reward {drawn.mean_reward:.3g}")
        parts.append(f"{count(drawn.carrying, 'prompt')} with rewards that differ")
    where = probes.loss_on and f" ({LOSS_ON[probes.loss_on]})"
    parts.append(f"{probes.counted_tokens:,} counted tokens{where}")
    if probes.mean_loss is not None:
        parts.append(f"mean {loss} {probes.mean_loss:.3f} nats per token")
    return ", ".join((f"{kind}{what} from {probes.source}", *parts))


def run_notes(report: ScoreReport) -> tuple[str, ...]:
    """Remarks on the probes, the model and the run."""
    return (*report.probes.notes, *report.model.notes, *report.run.notes)


def budget_spent(budget: PlanBudget) -> str:
    """What a plan takes of its budget."""
    spent, limit = {
        "bytes": (f"{memory(budget.spent)} of memory", memory(budget.limit)),
        "modules": (count(budget.spent, "module"), f"{budget.limit:,}"),
        "parameters": (f"{short(budget.spent)} parameters", short(budget.limit)),
    }[budget.unit]
    also = ""
    if budget.trained_limit is not None:
        also = f"; at most {short(budget.trained_limit)} parameters trained"
    return f"{spent}{_COUNTED[budget.counts]}, {limit} allowed{also}"


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
