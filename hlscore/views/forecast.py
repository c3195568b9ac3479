"""What `rank --dry-run` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.text import Text

from hlscore.flow import Forecast, WeightForecast
from hlscore.inputs.modules import candidates_of
from hlscore.settings import RankSettings
from hlscore.views.summary import counted_tokens, examples
from hlscore.views.terminal import print_labelled, print_notes, terminal
from hlscore.views.wording import count, duration, memory, short

_FIGURES = (
    "weight_bytes", "gradient_bytes", "activation_bytes", "generation_bytes", "peak_bytes",
    "copy_bytes", "process_bytes", "disk_bytes", "probe_seconds", "free_bytes", "budget_unit",
    "budget_limit",
)  # fmt: skip
_PROBES = ("objective", "examples", "total_tokens", "counted_tokens", "loss_on")


def print_forecast(found: Forecast, settings: RankSettings, *, device: str, as_json: bool) -> None:
    """Print what a run would do."""
    probes, choice, capture = found.probes.summary, found.choice, settings.capture
    if as_json:
        plain = _plain_model(found, settings, device)
        plain |= {name: getattr(probes, name) for name in _PROBES}
        plain |= {
            "estimator": choice.estimator,
            "estimator_reason": choice.reason,
            "sketch_size": choice.sketch_size,
        }
        print(json.dumps(plain | {name: getattr(found, name) for name in _FIGURES}))
        return
    trial = capture.movement == "trial"
    held = "sums of updates" if trial else "gradient sums"
    usage = (
        f"{memory(found.peak_bytes)} at the peak: {memory(found.weight_bytes)} weights + "
        f"{memory(found.gradient_bytes)} {held if choice.estimator == 'exact' else 'sketches'} + "
        f"about {memory(found.activation_bytes)} activations of "
        f"{count(capture.batch_size, 'example')}"
    )
    if found.generation_bytes:
        usage += f"\n(while it samples: {memory(found.weight_bytes)} weights + about "
        usage += f"{memory(found.generation_bytes)} cache and logits)"
    if device == "cpu":
        whole = memory(found.peak_bytes + found.process_bytes)
        usage += f"\n{whole} for the process, libraries included"
    search = ", and a search for the learning rate" if capture.trial_rate is None else ""
    trials = (
        f"{capture.trials} of {capture.trial_steps} steps{search}; the peak holds a copy of the "
        f"base weights ({memory(found.copy_bytes)}); the optimizer takes additional time"
    )
    extra = ", sampling" if found.generation_bytes else ""
    lines = (
        ("model", f"{settings.model.model} on {device}"),
        ("modules", _modules(found)),
        (
            "probes",
            f"{examples(probes)}, {probes.total_tokens:,} tokens, {counted_tokens(probes)}",
        ),
        ("estimator", choice.reason),
        ("memory", usage),
        ("trials", trials if trial else ""),
        (
            "time",
            f"about {duration(found.probe_seconds)} of forward and backward passes at the speed "
            f"measured now; decompositions{extra} and loading come on top",
        ),
        ("disk", f"up to {memory(found.disk_bytes)} of stored progress while it runs"),
        ("budget", _budget(found)),
    )
    _print_lines(lines, probes.notes)


def print_weight_forecast(
    found: WeightForecast, settings: RankSettings, *, device: str, as_json: bool
) -> None:
    """Print what a run on the weights alone would do."""
    if as_json:
        figures = {
            "examples": 0,
            "estimator": "none",
            "matrices": found.matrices,
            "largest_weight_bytes": found.largest_bytes,
            "decomposition_bytes": found.work_bytes,
            "budget_unit": found.budget_unit,
            "budget_limit": found.budget_limit,
        }
        print(json.dumps(_plain_model(found, settings, device) | figures))
        return
    lines = (
        ("model", f"{settings.model.model} on {device}, read tensor by tensor from its files"),
        ("modules", _modules(found)),
        ("probes", f"none: {count(found.matrices, 'singular value decomposition')}"),
        (
            "memory",
            f"{memory(found.largest_bytes)} for the largest weight + about "
            f"{memory(found.work_bytes)} to decompose it",
        ),
        ("budget", _budget(found)),
    )
    _print_lines(lines, ())


def _plain_model(
    found: Forecast | WeightForecast, settings: RankSettings, device: str
) -> dict[str, object]:
    candidates = candidates_of(found.modules)
    return {
        "model": settings.model.model,
        "candidate_modules": len(candidates),
        "skipped_modules": len(found.modules) - len(candidates),
        "candidate_params": sum(item.n_params for item in candidates),
        "device": device,
    }


def _modules(found: Forecast | WeightForecast) -> str:
    candidates = candidates_of(found.modules)
    params = short(sum(item.n_params for item in candidates))
    return f"{count(len(candidates), 'candidate')}, {params} parameters"


def _budget(found: Forecast | WeightForecast) -> str:
    if found.budget_unit == "byte":
        return f"at most {memory(found.budget_limit)} to train in"
    return f"at most {count(found.budget_limit, found.budget_unit)} in full"


def _print_lines(lines: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    console = terminal()
    print_labelled(console, lines, width=10)
    print_notes(console, notes)
    console.print(Text("Nothing was run or written.", style="dim"))
