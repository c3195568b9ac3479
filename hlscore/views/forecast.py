"""What `rank --dry-run` prints."""

from __future__ import annotations

from hlscore.flow.forecast import Forecast, WeightForecast
from hlscore.inputs.modules import candidates_of
from hlscore.settings import RankSettings
from hlscore.views.summary import probed
from hlscore.views.terminal import Terminal, picked, print_json
from hlscore.wording import count, duration, memory, short

_FIGURES = (
    "weight_bytes", "gradient_bytes", "activation_bytes", "generation_bytes", "peak_bytes",
    "copy_bytes", "process_bytes", "disk_bytes", "probe_seconds", "free_bytes",
)  # fmt: skip
_PROBES = ("objective", "examples", "total_tokens", "counted_tokens", "loss_on")


def print_forecast(
    found: Forecast | WeightForecast,
    settings: RankSettings,
    *,
    device: str,
    saves: bool,
    as_json: bool,
) -> None:
    """Print what a run would do.

    Args:
        saves: Whether the run stores its progress.
    """
    candidates, limit, unit = candidates_of(found.modules), found.budget_limit, found.budget_unit
    params = sum(item.n_params for item in candidates)
    notes: tuple[str, ...] = ()
    content: dict[str, object] = {
        "model": settings.model.model, "candidate_modules": len(candidates),
        "skipped_modules": len(found.modules) - len(candidates), "candidate_params": params,
        "device": device,
    }  # fmt: skip
    lines = {
        "model": f"{settings.model.model} on {device}",
        "modules": f"{count(len(candidates), 'candidate')}, {short(params)} parameters",
    }
    if isinstance(found, Forecast):
        probes, choice, capture = found.probes.summary, found.choice, found.settings.capture
        trial = capture.movement == "trial"
        held = "sums of updates" if trial else "gradient sums"
        usage = (
            f"{memory(found.peak_bytes)} at the peak: {memory(found.weight_bytes)} weights + "
            f"{memory(found.gradient_bytes)} "
            f"{held if choice.estimator == 'exact' else 'sketches'} + about "
            f"{memory(found.activation_bytes)} activations of "
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
            f"{capture.trials} of {found.trial_steps} steps{search}; the peak holds a copy of "
            f"the base weights ({memory(found.copy_bytes)}); the optimizer takes additional time"
        )
        content |= picked(probes, *_PROBES) | picked(choice, "estimator", "sketch_size")
        content |= {"estimator_reason": choice.reason, "movement": capture.movement}
        of_trials = ("trials", "trial_rate")
        content |= picked(capture, *of_trials) if trial else dict.fromkeys(of_trials)
        content |= picked(found, "trial_steps", *_FIGURES)
        lines |= {
            "probes": f"{probed(probes)}, {probes.total_tokens:,} tokens in all",
            "estimator": choice.reason,
            "memory": usage,
            "trials": trials if trial else "",
            "time": f"about {duration(found.probe_seconds)} of forward and backward passes at the "
            "speed measured now, plus decompositions"
            f"{', sampling' if found.generation_bytes else ''} and loading",
            "disk": f"up to {memory(found.disk_bytes)} of stored progress, twice that while it is "
            "written"
            if saves
            else "",
        }
        notes = found.notes
    else:
        content |= {
            "examples": 0, "estimator": "none", "matrices": found.matrices,
            "largest_weight_bytes": found.largest_bytes, "decomposition_bytes": found.work_bytes,
        }  # fmt: skip
        lines["model"] += ", read tensor by tensor from its files"
        lines["probes"] = f"none: {count(found.matrices, 'singular value decomposition')}"
        lines["memory"] = (
            f"{memory(found.largest_bytes)} for the largest weight + about "
            f"{memory(found.work_bytes)} to decompose it"
        )
    if as_json:
        print_json(content | {"budget_unit": unit, "budget_limit": limit, "notes": notes})
        return
    full = f"at most {count(limit, unit)} {'trained in all' if settings.plan.ranks else 'in full'}"
    lines["budget"] = f"training memory of at most {memory(limit)}" if unit == "byte" else full
    console = Terminal()
    console.labelled(lines.items(), width=10)
    console.notes(notes)
    console.dim("Nothing was run or written.")
