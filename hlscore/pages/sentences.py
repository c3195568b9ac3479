"""What a page says in words: headline, facts of the run, certainty, how to read each chart."""

from __future__ import annotations

import json

from hlscore.pages.content import Content
from hlscore.scores.rows import INTERVAL
from hlscore.views.summary import (
    budget_spent,
    clear_modules,
    gap_text,
    method,
    probed,
    reselection,
    run_notes,
    summary,
    times_lora,
)
from hlscore.wording import count, memory, near_whole, percent, short, visible

Facts = list[tuple[str, str]]

NO_RESAMPLES = "there are no resamples of this score at this rank"
_LOSSES = {"sft": "supervised fine-tuning", "dpo": "preferences", "grpo": "reinforcement learning"}
_BASELINES = {
    "lora-matched": "LoRA on every module, with as many trained parameters as the plan of the "
    "score",
    "random": "a random choice, stratified by kind and size",
    "largest": "the largest modules",
    "random-largest": "a random choice among the largest modules",
    "last-layers": "the largest modules of the last layers",
    "all-lora": "LoRA on every module",
    "all-full": "every module in full",
}


def heading(content: Content) -> str:
    """Title of the page."""
    return f"Where LoRA may fall short in {content.report.model.model}"


def headline(content: Content) -> str:
    """What the plan does, in a sentence or two."""
    plan, totals = content.plan, content.plan.totals
    share = percent(totals.full_params / max(1, totals.candidate_params))
    modules = count(totals.candidate_modules, "module")
    parts = [f"{totals.full_modules:,} of {modules} in full ({share} of their parameters)"]
    if totals.lora_modules:
        ranks = sorted({item.rank or 0 for item in plan.lora_modules})
        of_rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        parts.append(f"{totals.lora_modules:,} with LoRA of {of_rank}")
    if totals.frozen_modules:
        parts.append(f"{totals.frozen_modules:,} not at all")
    *first, last = parts
    text = f"The plan trains {', '.join(first)}{' and ' if first else ''}{last}."
    if plan.method == "score":
        return text
    return (
        f"{text} It is a baseline to compare with ({_BASELINES[plan.method]}), not selected by a "
        "score."
    )


def certainty(content: Content) -> str:
    """How certain the choice is, in a sentence or two."""
    if not content.any_positive:
        return (
            "No score is above zero: these probes show no update that LoRA cannot represent. That "
            "does not prove that there is none; more probe examples may show more."
        )
    if unknown := stability_unknown(content):
        return unknown
    again, clear = reselection(content.plan), content.plan.stability.clear_modules
    if clear is None:
        return f"How certain: {again}. New probes agree less."
    above = clear_modules(clear, len(content.lines))
    if clear >= len(content.full_lines):
        return f"How certain: {above}, and {again}. New probes agree less."
    expected = len(content.lines) * INTERVAL[0]
    chance = f"about {expected:,.{0 if expected >= 1 else 1}f} would by chance"
    return (
        f"Treat the order as mostly noise: only {above} ({chance}), and {again}. Use more probe "
        "examples."
    )


def stability_unknown(content: Content) -> str:
    """Why the stability of the choice is undefined or unknown; empty where it is known."""
    if not content.full_lines:
        return "No module is trained in full, so stability is undefined."
    if content.plan.method != "score":
        return "No score selected these modules, so stability is undefined."
    if len(content.full_lines) == len(content.lines):
        return "Every module is trained in full, so there was nothing to choose."
    if content.plan.stability.mean_reselection is None:
        return f"The stability of the choice is unknown: {NO_RESAMPLES}."
    return ""


def origin(content: Content) -> str:
    """Where the plan comes from; empty where it was made from these scores."""
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


def unproven(content: Content) -> str:
    """What is not proven of the numbers, and what to compare a plan with."""
    scores = "estimate what the first step of training gains on the probe examples"
    if content.score.reads_weights:
        scores = "come from the weights alone and know nothing of the training data"
    elif content.report.run.scores_updates:
        scores = "measure how far short or finished trainings moved the weights"
    return (
        "It is not proven, for this score or any other, that modules with a high score gain more "
        f"from full fine-tuning than others. The numbers {scores}. The baseline is a plain LoRA "
        "with as many trained parameters: hlscore plan --baseline lora-matched."
    )


def key_figures(content: Content) -> Facts:
    """The few numbers that stand first, each with what it is."""
    plan, covered, clear = content.plan, content.plan.coverage, content.plan.stability.clear_modules
    rank, share = plan.lora.rank, plan.stability.mean_reselection
    figures = []
    if covered is not None:
        text = f"of this {covered.of} captured by LoRA {rank}"
        figures.append((near_whole(covered.lora), text))
    full = f"{plan.totals.full_modules:,} of {plan.totals.candidate_modules:,}"
    figures += [
        (full, "modules in full"),
        (f"{times_lora(plan.totals):.2f} x", f"the trained parameters of LoRA {rank}"),
        (memory(plan.memory.total_bytes), "memory to train, about"),
    ]
    if share is not None and content.full_lines:
        figures.append((f"{100 * share:.0f} %", "selected again by resamples, at most"))
    if clear is not None:
        above = f"{clear:,} of {len(content.lines):,}"
        figures.append((above, "above zero with 95 % confidence"))
    return figures


def what_was_run(content: Content) -> Facts:
    """Model, data, objective, method and budget."""
    report, plan, lora = content.report, content.plan, content.plan.lora
    model, probes, run = report.model, report.probes, report.run
    has_probes = probes.objective != "none"
    variant = f", {probes.loss_type}" if probes.loss_type else ""
    objective = (
        f"{_LOSSES[probes.objective]} ({probes.objective}{variant})" if has_probes else "none"
    )
    texts = [probed(probes)]
    if probes.truncated:
        texts.append(f"{probes.truncated:,} truncated at the maximum length")
    if probes.dropped:
        texts.append(f"{probes.dropped:,} left out")
    chosen = f", selected from {', '.join(map(str, lora.ranks))}" if lora.ranks else ""
    skipped = count(len(content.skipped), "weight")
    facts = [
        ("Model", model.model + (f", revision {model.revision}" if model.revision else "")),
        ("Architecture", f"{model.architecture}, {short(model.n_params)} parameters"),
        ("Candidates", f"{count(len(content.lines), 'module')}, {skipped} left out"),
        ("Probe data", f"{probes.source} ({probes.format})" if has_probes else "none"),
        ("Objective", objective),
        ("Probes", ", ".join(texts)),
        ("Score", f"{content.score.name}: {content.score.formula}"),
        ("Unit", content.score.unit_in(run)),
        *([("Bias", content.score.caveat)] if content.score.caveat else []),
        ("LoRA rank", f"{lora.rank}, alpha {lora.alpha}{chosen}"),
        ("Computed from", f"{method(report)}, {run.device} {run.dtype}, {run.wall_seconds:.1f} s"),
        ("Budget", f"{plan.budget.asked}: {budget_spent(plan.budget)}"),
        ("Choice", "by the score" if plan.method == "score" else f"baseline {plan.method}"),
    ]
    if content.other_probes:
        facts.append(("Probes of the plan", plan.provenance.probes.source))
    return [(label, visible(value)) for label, value in facts]


def provenance(content: Content) -> Facts:
    """Versions, seed, fingerprints and hashes."""
    report, plan, rates = content.report, content.plan, content.plan.learning_rates
    versions = {"hlscore": report.run.hlscore_version, **report.run.versions}
    facts = [
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Seed", str(report.run.seed)),
        ("Model structure", report.model.fingerprint.structure),
        ("Model weights", report.model.fingerprint.weights),
        ("Probe hash", report.probes.hash),
        ("Probe hash of the plan", plan.provenance.probes.hash),
        ("Solver", f"{plan.solver.name}, {gap_text(plan.solver.gap)}"),
        ("Learning rates", f"full {rates.full.value:g}, LoRA {rates.lora.value:g}, suggested"),
    ]
    return [(label, visible(value)) for label, value in facts]


def settings_text(content: Content) -> str:
    """Settings of the run as indented JSON."""
    return json.dumps(dict(content.report.run.settings), indent=2, default=str)


def notes(content: Content) -> list[str]:
    """Remarks of the probes, the run and the plan, each once."""
    found = (*run_notes(content.report), *content.plan.notes)
    return [visible(note) for note in dict.fromkeys(found)]


def cumulative_caption(content: Content) -> str:
    """How to read the cumulative scores, and in which direction they are biased."""
    if not content.cumulative:
        return "No score is above zero: there are no scores to add up."
    found, parameters = content.cumulative["modules"], content.cumulative["parameters"]
    text = (
        f"The plan's modules in full are {percent(found.plan_taken)} of the modules, have "
        f"{percent(parameters.plan_taken)} of the parameters and {percent(found.plan_held)} of the "
        "sum of positive scores. Selecting the best of noisy scores biases this curve upwards: "
        "even scores of pure noise lie above the diagonal."
    )
    if found.low:
        text += " The band, 95 % of the resamples in the same order, is biased in the same way."
    return text


def equal_lora(content: Content) -> str:
    """Trained parameters compared with plain LoRA and full fine-tuning."""
    rank = round(times_lora(content.plan.totals) * content.plan.lora.rank) or 1
    return (
        f"The plan trains {summary(content.plan)['trained']}. A plain LoRA of rank {rank} trains "
        "about as many and is the baseline to beat."
    )
