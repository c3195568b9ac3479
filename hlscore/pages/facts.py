"""What was run, what came of it and where the numbers come from, as short pairs."""

from __future__ import annotations

import json

from hlscore.pages.content import Content
from hlscore.records import LOSS_ON, ProbeSummary
from hlscore.views.wording import count, memory, near_whole, short, visible

Facts = list[tuple[str, str]]

_LOSSES = {"sft": "supervised fine-tuning", "dpo": "preferences", "grpo": "reinforcement learning"}
_LIMITS = {"full": "trained in full", "trained": "trained in all", "memory": "training memory"}


def key_figures(content: Content, total_bytes: int) -> Facts:
    """The few numbers that stand first, each with what it is."""
    totals, stability = content.plan.totals, content.plan.stability
    times = totals.trained_params / max(1, totals.plain_lora_params)
    covered = content.plan.coverage
    figures = []
    if covered is not None:
        figures.append(
            (
                near_whole(covered.lora),
                f"of this {covered.of} LoRA {content.plan.lora.rank} follows",
            )
        )
    figures += [
        (f"{totals.full_modules:,} of {totals.candidate_modules:,}", "modules in full"),
        (f"{times:.2f} x", f"the trained parameters of LoRA {content.plan.lora.rank}"),
        (memory(total_bytes), "memory to train, about"),
    ]
    if stability.mean_reselection is not None and content.full_lines:
        figures.append(
            (f"{100 * stability.mean_reselection:.0f} %", "chosen again by resamples, at most")
        )
    if content.clear is not None:
        figures.append(
            (f"{content.clear:,} of {len(content.lines):,}", "above zero with 95 % confidence")
        )
    return figures


def what_was_run(content: Content) -> Facts:
    """Model, data, objective, method and budget."""
    report, plan = content.report, content.plan
    model, probes, run = report.model, report.probes, report.run
    revision = f", revision {model.revision}" if model.revision else ""
    how = f"sketches, k = {run.sketch_size}" if run.sketch_size else f"{run.estimator} gradients"
    if probes.format == "update":
        how = "none: exact updates"
    elif probes.objective == "none":
        how = "none"
    budget, left = plan.budget, count(len(content.skipped), "weight")
    facts = [
        ("Model", f"{model.model}{revision}"),
        ("Architecture", f"{model.architecture}, {short(model.n_params)} parameters"),
        (
            "Candidates",
            f"{count(len(content.lines), 'module')}, {left} left out",
        ),
        ("Probe data", _source(probes)),
        ("Objective", _objective(probes)),
        ("Probes", _probes(probes)),
        ("Score", f"{content.score.name}: {content.score.formula}"),
        ("Unit", content.score.unit_in(content.report.run)),
        ("LoRA rank", _ranks(content)),
        ("Gradients", f"{how}, {run.device} {run.dtype}, {run.wall_seconds:.1f} s"),
        ("Budget", f"{budget.asked}: {_spent(content)}"),
        ("Choice", "by the score" if plan.method == "score" else f"baseline {plan.method}"),
    ]
    if probes.mean_loss is not None:
        facts.insert(6, ("Mean loss", f"{probes.mean_loss:.3f} nats per counted token"))
    if content.other_probes:
        facts.append(("Probes of the plan", plan.provenance.probes.source))
    return _visible(facts)


def _source(probes: ProbeSummary) -> str:
    if probes.format == "update":
        return "none"
    return "none" if probes.objective == "none" else f"{probes.source} ({probes.format})"


def _objective(probes: ProbeSummary) -> str:
    if probes.objective == "none":
        return "none"
    variant = f", {probes.loss_type}" if probes.loss_type else ""
    return f"{_LOSSES[probes.objective]} ({probes.objective}{variant})"


def _probes(probes: ProbeSummary) -> str:
    if probes.format == "update":
        return f"none: updates of {count(probes.examples, 'finished training')}, {probes.source}"
    if probes.objective == "none":
        return "none: the scores come from the weights alone"
    noun = {"sft": "example", "dpo": "pair", "grpo": "prompt"}[probes.objective]
    texts = [count(probes.examples, noun), f"{probes.counted_tokens:,} counted tokens"]
    if probes.loss_on:
        texts.append(f"loss on {LOSS_ON[probes.loss_on]}")
    if probes.truncated:
        texts.append(f"{probes.truncated:,} cut at the maximum length")
    if probes.dropped:
        texts.append(f"{probes.dropped:,} left out")
    drawn = probes.rollouts
    if drawn is not None:
        texts.append(count(drawn.completions, "completion"))
        texts.append(f"{count(drawn.carrying, 'prompt')} with rewards that differ")
        if drawn.mean_reward is not None:
            texts.append(f"mean reward {drawn.mean_reward:.3g}")
    return ", ".join(texts)


def _ranks(content: Content) -> str:
    lora = content.plan.lora
    chosen = f", chosen among {', '.join(map(str, lora.ranks))}" if lora.ranks else ""
    return f"{lora.rank}, alpha {lora.alpha}{chosen}"


def _spent(content: Content) -> str:
    budget = content.plan.budget
    if budget.unit == "bytes":
        return f"{memory(budget.spent)} of at most {memory(budget.limit)} {_LIMITS[budget.counts]}"
    if budget.unit == "modules":
        most = count(budget.limit, "module")
        return f"{budget.spent:,} of at most {most} {_LIMITS[budget.counts]}"
    limit = f"{short(budget.limit)} {budget.unit}"
    return f"{short(budget.spent)} of at most {limit} {_LIMITS[budget.counts]}"


def provenance(content: Content) -> Facts:
    """Versions, seed, settings, fingerprints and hashes."""
    report, plan = content.report, content.plan
    run = report.run
    rates = plan.learning_rates
    versions = {"hlscore": run.hlscore_version, **run.versions}
    facts = [
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Seed", str(run.seed)),
        ("Model structure", report.model.fingerprint.structure),
        ("Model weights", report.model.fingerprint.weights),
        ("Probe hash", report.probes.hash),
        ("Probe hash of the plan", plan.provenance.probes.hash),
        ("Solver", f"{plan.solver.name}, at most {100 * plan.solver.gap:.2g} % from the best"),
        ("Learning rates", f"full {rates.full.value:g}, LoRA {rates.lora.value:g}, suggested"),
    ]
    return _visible(facts)


def _visible(facts: Facts) -> Facts:
    return [(label, visible(value)) for label, value in facts]


def settings_text(content: Content) -> str:
    """Settings of the run as indented JSON."""
    return json.dumps(dict(content.report.run.settings), indent=2, default=str)
