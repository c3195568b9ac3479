"""What a run scores: gradients, or the weight updates of trials; and which probes trials need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hlscore.errors import CaptureError, DataError, UsageError
from hlscore.inputs.weights import is_sharded
from hlscore.memory import USABLE_SHARE, fixed_weight, free_bytes
from hlscore.probes.units import ProbeSet
from hlscore.records import Candidate
from hlscore.scores.registry import find_score
from hlscore.settings import CaptureSettings, RankSettings
from hlscore.settings.capture import OF_GRADIENTS
from hlscore.settings.option import changed
from hlscore.wording import count, memory

# Of each trial on average; with fewer examples `auto` means gradients.
_LEAST_EXAMPLES = 8
_INSTEAD = "Gradients were scored in place of trials: {}."


def with_movement(
    model: PreTrainedModel, candidates: Sequence[Candidate], settings: RankSettings
) -> tuple[RankSettings, tuple[str, ...]]:
    """The settings with `movement` decided, and a note where the usual choice was not possible.

    `auto` means trials for supervised fine-tuning with a score that reads them, and one LoRA rank:
    there they chose better than gradients (benchmarks/evidence). With trials each probe group is
    the data of one; whether the probes suffice is decided by `with_enough_probes`.
    """
    capture, score = settings.capture, find_score(settings.plan.score)
    asked = capture.movement == "trial"
    if asked and not score.reads_gradients:
        raise UsageError(
            f"--movement trial is given, but --score {score.name} does not use trials.",
            hint="Remove --movement, or use --score hls with --weight-scores for both.",
        )
    usual = (
        capture.movement == "auto"
        and settings.objective.objective == "sft"
        and score.needs == "gradients"
        and not settings.plan.ranks
        and not set(OF_GRADIENTS).intersection(changed(capture))
    )
    if not (asked or usual):
        return _by_gradients(settings), ()
    weights = list(model.parameters())
    on_meta = [weight.is_meta for weight in weights]
    copied = sum(weight.nbytes for weight in weights)
    obstacle = ""
    if settings.model.load_in or any(item.quantized for item in candidates):
        obstacle = "quantized weights cannot be moved"
    elif settings.model.shard or is_sharded(model):
        obstacle = "sharded weights cannot be moved"
    elif any(on_meta) and not all(on_meta):
        obstacle = "offloaded weights cannot be moved"
    elif score.needs == "whole gradients":
        obstacle = f"the score '{score.name}' needs gradients"
    elif fixed := fixed_weight({i.module: model.get_parameter(i.parameter) for i in candidates}):
        if asked:
            raise CaptureError(
                f"The weight of '{fixed}' lies in memory that is read-only, or shared with a file "
                "or with other processes.",
                hint="Load the model into memory of this process, or use --movement gradient.",
            )
        obstacle = "weights lie in memory that is read-only or shared"
    elif not asked and copied > USABLE_SHARE * free_bytes(torch.device("cpu")):
        obstacle = f"a copy of the weights takes {memory(copied)} of the host's memory"
    if obstacle and asked:
        raise UsageError(
            f"--movement trial cannot be used: {obstacle}.",
            hint="Use --score hls, or gradients: without --movement and options of trials."
            if score.needs == "whole gradients"
            else "Use --movement gradient, for instance with --score hls_share.",
        )
    if obstacle:
        return _by_gradients(settings), (_INSTEAD.format(obstacle),)
    trials = replace(capture, movement="trial", groups=capture.trials // 2)
    return replace(settings, capture=trials), ()


def with_enough_probes(
    probes: ProbeSet, settings: RankSettings, decided: RankSettings
) -> tuple[RankSettings, tuple[str, ...]]:
    """Gradients, and a note, where `auto` decided for trials and the probes are too few.

    Args:
        settings: As they were given.
        decided: By `with_movement`.

    Raises:
        DataError: They are too few for trials that were asked for.
    """
    if decided.capture.movement != "trial":
        return decided, ()
    sizes, trials = list(map(len, probes.trials.values())), decided.capture.trials
    asked, wanted = settings.capture.movement == "trial", trials * _LEAST_EXAMPLES
    found = count(sum(sizes), "example")
    few = ""
    if len(sizes) < trials or min(sizes) < 2:
        few = f"{found} with a loss are too few for {trials} trials of at least two each"
        # A few copies may leave a trial short of examples where others have enough.
        few += "; copies of an example stay in one trial" if sum(sizes) >= 2 * trials else ""
    elif not asked and sum(sizes) < wanted:
        few = f"{found} are too few, {wanted} would do"
    if few and asked:
        raise DataError(
            f"{few}.", hint="Give more examples (--samples), or use --movement gradient."
        )
    return (_by_gradients(settings), (_INSTEAD.format(few),)) if few else (decided, ())


def trial_steps(probes: ProbeSet, capture: CaptureSettings) -> int | None:
    """Steps of every trial: as many as the one with the fewest examples takes; `None` without."""
    if capture.movement != "trial":
        return None
    return capture.steps_of(min(map(len, probes.trials.values())))


def _by_gradients(settings: RankSettings) -> RankSettings:
    return replace(settings, capture=replace(settings.capture, movement="gradient"))
