"""What `rank --dry-run` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.text import Text

from hlscore.flow import Forecast, WeightForecast
from hlscore.inputs.modules import candidates_of
from hlscore.records import LOSS_ON, ProbeSummary
from hlscore.settings import RankSettings
from hlscore.views.terminal import terminal
from hlscore.views.wording import count, duration, memory, short


def _budget(found: Forecast | WeightForecast) -> str:
    if found.budget_unit == "byte":
        return f"at most {memory(found.budget_limit)} to train in"
    return f"at most {count(found.budget_limit, found.budget_unit)} in full"


def _probes(probes: ProbeSummary) -> str:
    tokens = f"{probes.total_tokens:,} tokens, {probes.counted_tokens:,} of them counted"
    if probes.rollouts is not None:
        drawn = probes.rollouts
        return (
            f"{probes.objective} ({probes.loss_type}): {count(drawn.completions, 'completion')} "
            f"of {count(drawn.prompts, 'prompt')} from {probes.source}, {tokens}"
        )
    what = "pair" if probes.objective == "dpo" else "example"
    loss = f"{probes.objective} ({probes.loss_type}): " if probes.loss_type else ""
    where = probes.loss_on and f" ({LOSS_ON[probes.loss_on]})"
    return f"{loss}{count(probes.examples, what)} from {probes.source}, {tokens}{where}"


def print_forecast(found: Forecast, settings: RankSettings, *, device: str, as_json: bool) -> None:
    """Print what a run would do."""
    chosen = candidates_of(found.modules)
    probes = found.probes.summary
    if as_json:
        print(
            json.dumps(
                {
                    "model": settings.model.model,
                    "candidate_modules": len(chosen),
                    "skipped_modules": len(found.modules) - len(chosen),
                    "candidate_params": sum(item.n_params for item in chosen),
                    "objective": probes.objective,
                    "examples": probes.examples,
                    "total_tokens": probes.total_tokens,
                    "counted_tokens": probes.counted_tokens,
                    "loss_on": probes.loss_on,
                    "estimator": found.choice.estimator,
                    "estimator_reason": found.choice.reason,
                    "sketch_size": found.choice.sketch_size,
                    "device": device,
                    "weight_bytes": found.weight_bytes,
                    "gradient_bytes": found.gradient_bytes,
                    "activation_bytes": found.activation_bytes,
                    "generation_bytes": found.generation_bytes,
                    "peak_bytes": found.peak_bytes,
                    "copy_bytes": found.copy_bytes,
                    "process_bytes": found.process_bytes,
                    "disk_bytes": found.disk_bytes,
                    "probe_seconds": found.probe_seconds,
                    "free_bytes": found.free_bytes,
                    "budget_unit": found.budget_unit,
                    "budget_limit": found.budget_limit,
                }
            )
        )
        return
    trial = settings.capture.movement == "trial"
    held = "sketches"
    if found.choice.estimator == "exact":
        held = "sums of updates" if trial else "gradient sums"
    params = sum(item.n_params for item in chosen)
    lines = (
        ("model", f"{settings.model.model} on {device}"),
        ("modules", f"{count(len(chosen), 'candidate')}, {short(params)} parameters"),
        ("probes", _probes(probes)),
        ("estimator", found.choice.reason),
        (
            "memory",
            f"{memory(found.peak_bytes)} at the peak: {memory(found.weight_bytes)} weights + "
            f"{memory(found.gradient_bytes)} {held} + about "
            f"{memory(found.activation_bytes)} activations of "
            f"{count(settings.capture.batch_size, 'example')}{_beside(found, device)}",
        ),
        *([("trials", _trials(settings, found))] if trial else []),
        (
            "time",
            f"about {duration(found.probe_seconds)} of forward and backward passes at the speed "
            "measured now; decompositions"
            f"{', sampling' if found.generation_bytes else ''} and loading come on top",
        ),
        ("disk", f"up to {memory(found.disk_bytes)} of stored progress while it runs"),
        ("budget", _budget(found)),
    )
    _print_lines(lines, probes.notes)


def _trials(settings: RankSettings, found: Forecast) -> str:
    """What trials add to memory and time."""
    capture = settings.capture
    search = ", and a search for the learning rate" if capture.trial_rate is None else ""
    return (
        f"{capture.trials} of {capture.trial_steps} steps{search}; the peak holds a copy of the "
        f"base weights ({memory(found.copy_bytes)}); the optimizer "
        "takes time of its own"
    )


def _beside(found: Forecast, device: str) -> str:
    """Memory of sampling, and of the process where it shares that of the tensors."""
    text = ""
    if found.generation_bytes:
        text = f"\n          (while it samples: {memory(found.weight_bytes)} weights + about "
        text += f"{memory(found.generation_bytes)} cache and logits)"
    if device == "cpu":
        whole = memory(found.peak_bytes + found.process_bytes)
        text += f"\n          {whole} for the process, libraries included"
    return text


def print_weight_forecast(
    found: WeightForecast, settings: RankSettings, *, device: str, as_json: bool
) -> None:
    """Print what a run on the weights alone would do."""
    chosen = candidates_of(found.modules)
    params = sum(item.n_params for item in chosen)
    if as_json:
        print(
            json.dumps(
                {
                    "model": settings.model.model,
                    "candidate_modules": len(chosen),
                    "skipped_modules": len(found.modules) - len(chosen),
                    "candidate_params": params,
                    "examples": 0,
                    "estimator": "none",
                    "device": device,
                    "matrices": found.matrices,
                    "largest_weight_bytes": found.largest_bytes,
                    "decomposition_bytes": found.work_bytes,
                    "budget_unit": found.budget_unit,
                    "budget_limit": found.budget_limit,
                }
            )
        )
        return
    lines = (
        ("model", f"{settings.model.model} on {device}, read from its files and not loaded"),
        ("modules", f"{count(len(chosen), 'candidate')}, {short(params)} parameters"),
        ("probes", f"none: {count(found.matrices, 'singular value decomposition')}"),
        (
            "memory",
            f"{memory(found.largest_bytes)} for the largest weight + about "
            f"{memory(found.work_bytes)} to decompose it",
        ),
        ("budget", _budget(found)),
    )
    _print_lines(lines, ())


def _print_lines(lines: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    console = terminal()
    for label, text in lines:
        console.print(Text.assemble((f"{label:<10}", "bold"), text), soft_wrap=True)
    for note in notes:
        console.print(Text.assemble(("note: ", "yellow"), note), soft_wrap=True)
    console.print(Text("Nothing was run or written.", style="dim"))
