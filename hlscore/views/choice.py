"""A plan as a table, a map and a few sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from hlscore.artifacts.plan import Plan, PlanCoverage, PlanModule
from hlscore.planning.coverage import rank_counts
from hlscore.views.heatmap import Cell, print_heat_map
from hlscore.views.module_table import ModuleTable
from hlscore.views.wording import count, measure, memory, near_whole, percent, shape, short


def print_choice(
    console: Console,
    plan: Plan,
    modules: Sequence[PlanModule],
    *,
    top: int | None,
    stderrs: Mapping[str, float | None] | None = None,
) -> None:
    """Print what a plan does with its modules, and what it comes to.

    Args:
        top: Most modules of the table; `None` for all.
        stderrs: Standard error of the score by module; `None` leaves the column out.
    """
    console.print()
    _table(plan, modules, top, stderrs).print(console)
    cells = [Cell(at=item, score=item.score, marked=item.mode == "full") for item in modules]
    print_heat_map(console, cells, score=plan.score.name)
    console.print()
    for text in summary(plan):
        console.print(text, soft_wrap=True)


def training(item: PlanModule) -> str:
    """How a module is trained, in a word or two."""
    return f"LoRA {item.rank}" if item.mode == "lora" else item.mode


def chosen_in(share: float | None) -> str:
    """A selection probability, a dash where there is none."""
    return "-" if share is None else f"{100 * share:.0f} %"


def _table(
    plan: Plan,
    modules: Sequence[PlanModule],
    top: int | None,
    stderrs: Mapping[str, float | None] | None,
) -> ModuleTable:
    errors = () if stderrs is None else ("± se",)
    table = ModuleTable((plan.score.name, *errors, "chosen in", "out x in"), ("train",))
    shown = modules[:top]
    for item in shown:
        table.add_row(
            str(item.position),
            item.module,
            measure(item.score),
            *(() if stderrs is None else (measure(stderrs[item.module]),)),
            chosen_in(item.selection_probability),
            shape(item.matrices, item.out_features, item.in_features),
            training(item),
            style=None if item.mode == "full" else "dim",
        )
    table.leave_out(len(modules) - len(shown))
    return table


def summary(plan: Plan) -> list[Text]:
    """Say in sentences what a plan trains, what that takes, and how stable the choice is."""
    totals, budget = plan.totals, plan.budget
    times_lora = totals.trained_params / max(1, totals.plain_lora_params)
    sentences = {}
    if plan.coverage is not None:
        sentences["reach"] = _reach(plan.coverage, plan.lora.rank)
    sentences |= {
        "full": f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} "
        f"({percent(budget.realized_module_share)}), {short(totals.full_params)} of "
        f"{short(totals.candidate_params)} candidate parameters "
        f"({percent(budget.realized_parameter_share)})",
        "trained": f"{short(totals.trained_params)} parameters in all: "
        f"{times_lora:.2f} x plain LoRA of rank {plan.lora.rank}, "
        f"{percent(totals.trained_params / max(1, totals.model_params))} of full fine-tuning",
    }
    if plan.lora.ranks and plan.lora_modules:
        ranks = rank_counts(item.rank for item in plan.lora_modules if item.rank is not None)
        sentences["ranks"] = f"adapters: {ranks}"
    sentences["memory"] = _memory(plan)
    if plan.solver.name == "HiGHS":
        sentences["solver"] = f"HiGHS, at most {plan.solver.gap:.1e} of the best value away"
    stability = plan.stability
    if stability.mean_reselection is not None and stability.borderline_modules is not None:
        sentences["stable"] = (
            f"{100 * stability.mean_reselection:.0f} % of the resamples of these probes "
            "choose a chosen module again; new probes agree less"
        )
        sentences["doubt"] = _doubt(plan, stability.borderline_modules)
    return [Text.assemble((f"{name:<8}", "bold"), said) for name, said in sentences.items()]


def _reach(found: PlanCoverage, rank: int) -> str:
    """What LoRA of a rank and the plan follow of what was measured."""
    text = f"LoRA {rank} follows {near_whole(found.lora)} of this {found.of}"
    return text if found.plan is None else f"{text}, the plan {near_whole(found.plan)}"


def _memory(plan: Plan) -> str:
    use = plan.memory
    weights = use.frozen_bytes + use.copy_bytes + use.full_bytes + use.adapter_bytes
    parts = (
        f"weights {memory(weights)}",
        f"gradients {memory(use.gradient_bytes)}",
        f"{use.optimizer} {memory(use.optimizer_bytes)}",
        f"activations about {memory(use.activation_bytes)}",
    )
    return (
        f"{memory(use.total_bytes)} to train: {', '.join(parts)}\n"
        f"        ({use.base_bits}-bit base, {use.master} masters, "
        f"{use.train_batch} x {use.train_length} tokens)"
    )


def _doubt(plan: Plan, borderline: int) -> str:
    clear = plan.stability.clear_modules
    if clear is None:
        return (
            f"{count(borderline, 'module')} chosen in more than 10 % and less than "
            "90 % of the resamples"
        )
    candidates = count(plan.totals.candidate_modules, "module")
    text = f"{clear:,} of {candidates} score above zero with 95 % confidence"
    if clear >= plan.totals.full_modules:
        return text
    return f"{text}\n        warning: the order is mostly noise; take more probes (--samples)"
