"""What a page says in words: the headline, how certain it is, and how to read each chart."""

from __future__ import annotations

from hlscore.pages.content import INTERVAL, Content
from hlscore.pages.figures import Reach, Way
from hlscore.pages.module_charts import TOP, columns_of, shared_start
from hlscore.pages.plan_charts import points_per_mark
from hlscore.views.wording import count, memory, percent, short, visible

_NO_RESAMPLES = "there are no resamples of this score at this rank"
_METHODS = {
    "lora-matched": "LoRA on every module, with as many trained parameters as the plan of the "
    "score",
    "random": "a random choice, stratified by kind and size",
    "largest": "the largest modules",
    "random-largest": "a random choice among the largest modules",
    "all-lora": "LoRA on every module",
    "all-full": "every module in full",
}


def unproven(content: Content) -> str:
    """What is not proven of the numbers, and what to compare a plan with."""
    says = (
        "come from the weights alone and know nothing of the training to come"
        if content.score.reads_weights
        else "say what the first step of training could gain on the probe examples"
    )
    return (
        "That modules with a high score gain more from full fine-tuning than others is not proven, "
        f"for this score or any other. The numbers {says}. The baseline to beat is a plain LoRA "
        "with as many trained parameters, which hlscore plan writes as the baseline lora-matched."
    )


def heading(content: Content) -> str:
    """Title of the page."""
    return f"Where LoRA may fall short in {content.report.model.model}"


def headline(content: Content) -> str:
    """What the plan does, in a sentence or two."""
    plan, totals = content.plan, content.plan.totals
    share = percent(totals.full_params / max(1, totals.candidate_params))
    kept = [f"{totals.full_modules:,} of {count(totals.candidate_modules, 'module')} in full "
            f"({share} of their parameters)"]  # fmt: skip
    if totals.lora_modules:
        kept.append(f"{totals.lora_modules:,} with LoRA{_ranks(content)}")
    if totals.frozen_modules:
        kept.append(f"{totals.frozen_modules:,} not at all")
    listed = kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} and {kept[-1]}"
    text = f"The plan trains {listed}."
    if plan.method != "score":
        method = _METHODS[plan.method]
        return f"{text} It is a baseline to compare with ({method}), not the choice of a score."
    return text


def _ranks(content: Content) -> str:
    ranks = sorted({line.rank for line in content.lines if line.mode == "lora"})
    if len(ranks) == 1:
        return f" of rank {ranks[0]}"
    return f" of ranks {ranks[0]} to {ranks[-1]}" if ranks else ""


def certainty(content: Content) -> str:
    """How certain the choice is, in a sentence or two."""
    stability, clear = content.plan.stability, content.clear
    if not content.signal:
        return (
            "No score is above zero: these probes show nothing that LoRA cannot reach. That is no "
            "proof that there is nothing; more probe examples may tell more."
        )
    unknown = _no_choice(content)
    if unknown or stability.mean_reselection is None:
        return unknown or f"How certain the choice is cannot be told: {_NO_RESAMPLES}."
    share = f"{100 * stability.mean_reselection:.0f} %"
    again = f"resamples of the same probes choose a chosen module again in {share} of cases"
    if clear is None:
        return f"How certain: {again}. New probes agree less."
    above = (
        f"{clear:,} of {count(len(content.lines), 'module')} "
        f"{'scores' if clear == 1 else 'score'} above zero with 95 % confidence"
    )
    if clear < len(content.full_lines):
        return (
            f"Treat the order as mostly noise: only {above}{_by_chance(content)}, and {again}. "
            "More probe examples would tell more."
        )
    return f"How certain: {above}, and {again}. New probes agree less."


def _no_choice(content: Content) -> str:
    """Why nothing can be said about the stability of the choice, where there is none."""
    if not content.full_lines:
        return "No module is trained in full, so there is no choice to be certain of."
    if content.plan.method != "score":
        return "No score chose these modules, so there is no choice to be certain of."
    if len(content.full_lines) == len(content.lines):
        return "Every module is trained in full, so there was nothing to choose."
    return ""


def _by_chance(content: Content) -> str:
    """How many scores of pure noise would lie above zero with the same confidence."""
    expected = len(content.lines) * INTERVAL[0]
    return f" (about {expected:,.{0 if expected >= 1 else 1}f} would by chance)"


def origin(content: Content) -> str:
    """Where the plan comes from."""
    if content.planned_here:
        asked, score = content.plan.budget.asked, content.score.name
        return (
            f"No plan was given: this one was made for the page, with a budget of {asked}, "
            f"the score {score} and rank {content.plan.lora.rank}."
        )
    if content.other_probes:
        return (
            "The plan was made from other probes than the scores on this page: order, scores and "
            "intervals are those of the scores, modes and stability those of the plan."
        )
    return ""


def heat_caption(content: Content) -> str:
    """How to read the heat map."""
    if not content.signal:
        return "No score is above zero, so there is nothing to tell the cells apart."
    score = content.score
    what = (
        "the more LoRA cannot follow there: an amount, not a share of the module's own gradient"
        if score.leaves_over
        else f"the higher {score.name} beside the highest of all modules"
    )
    texts = [f"The darker (on a dark page: the lighter) a cell, {what}. A diamond marks a module "
             "that is trained in full."]  # fmt: skip
    wide = columns_of(content.lines)
    if wide > 1:
        texts.append(f"A column stands for {wide} layers and shows the highest of them.")
    outside = sum(line.row.layer is None for line in content.lines)
    if outside:
        texts.append(f"{count(outside, 'module')} outside the layers: see the table.")
    return " ".join(texts)


def bars_caption(content: Content) -> str:
    """How to read the ranked bars."""
    texts = []
    if content.replicates.shape[1]:
        texts.append(
            "The thin line on a bar is the 95 % interval over resamples of the probes. An "
            "interval that crosses zero means: no measurable signal."
        )
    else:
        texts.append(f"No intervals: {_NO_RESAMPLES}.")
    number = len(content.full_lines)
    if content.first_places_full and number > TOP:
        texts.append(f"The budget ends at place {number:,}, beyond this chart.")
    elif number and not content.first_places_full:
        texts.append(
            "The modules in full are not simply the first places (locks, sizes or another method "
            "decided too), so no line can part them: diamonds mark them."
        )
    shared = shared_start(content.lines)
    if shared:
        texts.append(f"Names leave out what all begin with: {shared}")
    return " ".join(texts)


def tail_caption(content: Content) -> str:
    """How to read a tail curve."""
    return (
        "What LoRA of each rank leaves of the module's gradient, as an amount and not as a share "
        "(rank 0 leaves all of it). tail: all that is left, noise of the probes too. hls: the part "
        "on which two halves of the probes agree; below zero it is noise. The dashed line marks "
        f"rank {content.plan.lora.rank}, which the plan compares with."
    )


def stability_caption(content: Content) -> str:
    """How to read the chart of stability, and that it flatters."""
    stability = content.plan.stability
    unknown = _no_choice(content)
    if unknown:
        return unknown
    if stability.mean_reselection is None or stability.borderline_modules is None:
        return f"How stable the choice is cannot be told: {_NO_RESAMPLES}."
    texts = [
        f"A chosen module is chosen again in {100 * stability.mean_reselection:.0f} % of the "
        f"resamples on average; {count(stability.borderline_modules, 'module')} "
        f"{'lies' if stability.borderline_modules == 1 else 'lie'} in the doubtful band between "
        "10 % and 90 %.",
        "This is an upper bound: the resamples draw from the same probes, and new probes agree "
        "less.",
    ]
    each = points_per_mark(len(content.lines))
    if each > 1:
        texts.append(f"One in {each} modules is drawn.")
    return " ".join(texts)


def reach_caption(found: Reach, parameters: Reach) -> str:
    """How to read the curves of reach, and that they flatter."""
    return (
        f"The plan's modules in full, {percent(found.plan_taken)} of the modules and "
        f"{percent(parameters.plan_taken)} of the parameters, hold {percent(found.plan_held)} of "
        "the sum of positive scores. Picking the best of noisy scores flatters this curve: even "
        "scores of pure noise lie above the diagonal."
        + (
            " The band, where the same order lies in 95 % of the resamples, flatters too."
            if found.low
            else ""
        )
    )


def memory_caption(content: Content, priced: tuple[Way, ...]) -> str:
    """Memory of the plan in words, with what it was worked out for."""
    asked, plan = content.plan.memory, priced[0]
    return (
        f"Training the plan takes about {memory(plan.use.total_bytes)}: {asked.optimizer}, "
        f"{asked.master} masters, {asked.base_bits}-bit base, {asked.train_batch} x "
        f"{asked.train_length} tokens. Activations are an estimate; allocators take more. "
        "Everything in full means every candidate, run with PEFT like the plan."
    )


def equal_lora(content: Content) -> str:
    """Trained parameters against plain LoRA and full fine-tuning."""
    totals = content.plan.totals
    times = totals.trained_params / max(1, totals.plain_lora_params)
    share = percent(totals.trained_params / max(1, totals.model_params))
    return (
        f"The plan trains {short(totals.trained_params)} parameters: {times:.2f} x plain LoRA of "
        f"rank {content.plan.lora.rank} on every module, {share} of all parameters of the model. A "
        f"plain LoRA of rank {round(times * content.plan.lora.rank) or 1} trains about as many and "
        "is the baseline to beat."
    )


def notes(content: Content) -> tuple[str, ...]:
    """Remarks of the probes, the run and the plan, each once."""
    report = content.report
    found = (*report.probes.notes, *report.run.notes, *content.plan.notes)
    return tuple(visible(note) for note in dict.fromkeys(found))
