"""The probe run: forward and backward over every batch of both halves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.capture import GradientCapture, Sources, Use
from hlscore.gradients.exact import ExactGradients
from hlscore.gradients.passes import counted_log_probs, sends_positions
from hlscore.gradients.progress import Place, Progress, ProgressFile
from hlscore.gradients.sketched import SketchGradients
from hlscore.inputs.model import input_device
from hlscore.inputs.modules import decoder_blocks
from hlscore.objectives.losses import ProbeLoss, probe_loss
from hlscore.probes.batches import by_length, collate, cut
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.processes import Processes
from hlscore.settings import CaptureSettings, ObjectiveSettings

# Mean-loss gradients of large models lie near the smallest number float16 can hold.
FLOAT16_LOSS_SCALE = 1024.0

_HOST_MEMORY_WORDS = ("not enough memory", "can't allocate memory")

OnTokens = Callable[[int], None]


class ProbeRun:
    """One run over the probes; `run` does it.

    Args:
        model: The model; comes back as it was.
        probes: Both halves of the probe examples.
        gradients: Receives the gradients.
        sources: Where they come from.
        settings: Batch size, padding, checkpointing, passes.
        objective: The loss that is probed.
        on_tokens: Called after each batch with its tokens.
        processes: This process among those that share the probes.
        progress_file: Where progress is stored, if anywhere.
        in_step: Whether all processes must run the same number of batches, because they share
            the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        probes: ProbeSet,
        gradients: ExactGradients | SketchGradients,
        sources: Sources,
        settings: CaptureSettings,
        objective: ObjectiveSettings = ObjectiveSettings(),  # noqa: B008 - frozen
        *,
        on_tokens: OnTokens,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        progress_file: ProgressFile | None = None,
        in_step: bool = False,
    ) -> None:
        self._model = model
        self._probes = probes
        self._gradients = gradients
        self._sources = sources
        self._settings = settings
        self._loss: ProbeLoss = probe_loss(objective)
        self._clip = objective.clip
        self._off_policy = any(item.old_log_probs for item in probes.sequences)
        # Tokens whose old log-probability is known, and those of them beyond the clip.
        self._known = self._beyond = 0
        self._on_tokens = on_tokens
        self._processes = processes
        self._file = progress_file
        self._in_step = in_step
        self._progress = Progress(place=Place(), loss=0.0, batch_size=settings.batch_size)
        self._here = Place()
        self._positions = sends_positions(model, settings.padding_side)

    @property
    def batch_size(self) -> int:
        """Examples per batch that fitted the memory."""
        return self._progress.batch_size

    @property
    def ratio_note(self) -> str:
        """What the log-probabilities of another policy were like; empty where there are none."""
        known, beyond = self._processes.total([self._known, self._beyond])
        if not known:
            return ""
        low, high = self._clip
        return (
            f"{100 * beyond / known:.0f} % of the {known:,.0f} tokens with log-probabilities have "
            f"ratios outside of {1 - low:g} to {1 + high:g}: if that is much, they are not of this "
            "model and temperature."
        )

    def resume(self) -> None:
        """Go on where a stored run ended."""
        if self._file is None:
            return
        on_host = self._settings.accumulate_on == "host"
        device = torch.device("cpu") if on_host else input_device(self._model)
        self._progress, state = self._file.load(self._progress, device)
        self._gradients.load(state, number=self._progress.place.number)

    def run(self) -> float:
        """Run every probe batch forward and backward, and accumulate the gradients.

        Returns:
            Mean negative log-likelihood over the counted tokens of the whole set, in nats.
        """
        first = self._progress.place.number
        for number in range(first, self._settings.passes + 1):
            if number > first:
                self._begin_pass(number)
            self._run_pass(number)
            self._gradients.load(self._processes.add_up(self._gradients.sums()), number=number)
        tokens = sum(item.counted_tokens for item in self._probes.sequences)
        return self._processes.total([self._progress.loss])[0] / tokens

    def _begin_pass(self, number: int) -> None:
        gradients = self._gradients
        if not isinstance(gradients, SketchGradients):
            return
        gradients.begin_pass()
        self._processes.give_to_all(gradients.bases())
        self._progress = replace(self._progress, place=Place(number=number))
        if self._file is not None:
            self._file.save(self._progress, gradients.state())
            self._processes.wait()
            self._file.forget(before=number)

    def _run_pass(self, number: int) -> None:
        captured = set(self._gradients.captured())
        gradients = self._gradients
        if not captured:
            return
        capture = GradientCapture(
            self._model,
            self._sources.only(captured),
            gradients,
            taps=gradients if isinstance(gradients, SketchGradients) else None,
            blocks=checkpointed_blocks(self._model) if self._settings.checkpointing else (),
        )
        start = self._progress.place
        with torch.enable_grad(), capture:
            for half, groups in enumerate(self._probes.halves):
                earlier = half * len(self._probes.halves[0])
                for index, group in enumerate(groups):
                    batches = self._batches(group)
                    for batch, examples in enumerate(batches):
                        here = Place(number=number, half=half, group=index, batch=batch)
                        if here < start:
                            self._on_tokens(sum(len(e.input_ids) for e in examples))
                            continue
                        self._run_batch(capture, examples, half, here)
                    ended = Place(number=number, half=half, group=index, batch=len(batches))
                    if ended >= start:
                        self._check_finite(ended)
                        gradients.end_group(half, earlier + index)

    def _batches(self, group: Sequence[ProbeExample]) -> list[Sequence[ProbeExample]]:
        """Batches of this process; an empty one where others have more."""
        ordered = by_length(group)
        own = cut(self._processes.share(ordered), self._settings.batch_size)
        if self._in_step:
            largest = -(-len(ordered) // self._processes.size)
            steps = -(-largest // self._settings.batch_size)
            own += [()] * (steps - len(own))
        return own

    def _run_batch(
        self, capture: GradientCapture, examples: Sequence[ProbeExample], half: int, here: Place
    ) -> None:
        self._here = here
        loss = self._run_parts(capture, examples, half, frozenset())
        place = replace(here, batch=here.batch + 1)
        counted = loss if here.number == 1 else 0.0
        self._progress = replace(self._progress, place=place, loss=self._progress.loss + counted)
        self._on_tokens(sum(len(e.input_ids) for e in examples))
        if self._file is not None:
            self._file.save_when_due(self._progress, self._gradients.state)

    def _run_parts(
        self,
        capture: GradientCapture,
        examples: Sequence[ProbeExample],
        half: int,
        skipped: frozenset[Use],
    ) -> float:
        """Run examples in as few parts as fit the memory.

        What a module gained before memory ran out is complete for these examples, so that their
        smaller parts leave it out.
        """
        if not examples:
            self._run_part(capture, self._probes.sequences[:1], half, skipped, weight=0.0)
            return 0.0
        loss, start = 0.0, 0
        while start < len(examples):
            part = examples[start : start + self._progress.batch_size]
            start += len(part)
            try:
                loss += self._run_part(capture, part, half, skipped)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1 or self._in_step:
                    raise
                done = skipped | capture.added()
            # Outside the except clause: the error holds the tensors of the failed try.
            capture.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._progress = replace(self._progress, batch_size=len(part) // 2)
            loss += self._run_parts(capture, part, half, done)
        return loss

    def _run_part(
        self,
        capture: GradientCapture,
        examples: Sequence[ProbeExample],
        half: int,
        skipped: frozenset[Use],
        weight: float = 1.0,
    ) -> float:
        batch = collate(
            examples,
            pad_token_id=self._probes.pad_token_id,
            padding_side=self._settings.padding_side,
            device=input_device(self._model),
        )
        capture.begin_batch(skipped)
        with _named_errors(self._model, self._here):
            log_probs, counted = counted_log_probs(
                self._model, batch, positions=self._positions, temperature=self._probes.temperature
            )
        old = batch.old_log_probs.to(log_probs)
        loss = self._loss(log_probs, batch.coefficients.to(log_probs), counted, old)
        likelihood = -float(log_probs.detach().sum())
        value = float(loss.detach()) + likelihood
        if not math.isfinite(value):
            raise CaptureError(
                f"The loss in {_words(self._here)} is {value}.", hint=_overflow_hint(self._model)
            )
        if not loss.requires_grad:
            raise CaptureError("The loss does not depend on any candidate module.")
        scale = FLOAT16_LOSS_SCALE if self._model.dtype == torch.float16 else 1.0
        # Gradients of the size of a mean, whatever a batch holds.
        size = float((batch.coefficients.abs() * counted.sum(-1).cpu()).sum())
        self._gradients.begin_batch(half, weight * size / scale)
        with _named_errors(self._model, self._here):
            (loss * (scale / size)).backward()  # type: ignore[no-untyped-call]
        # Once per token: after what memory may cut off, and not in further passes.
        if self._off_policy and self._here.number == 1:
            self._count_ratios(log_probs.detach(), counted, old)
        return likelihood

    def _count_ratios(
        self, log_probs: torch.Tensor, counted: torch.Tensor, old: torch.Tensor
    ) -> None:
        ratios = torch.exp(log_probs - old)[counted & ~torch.isnan(old)]
        low, high = self._clip
        self._known += ratios.numel()
        self._beyond += int(((ratios < 1 - low) | (ratios > 1 + high)).sum())

    def _check_finite(self, here: Place) -> None:
        """Look for NaN and infinity, once per group: reading the answer waits for the device."""
        by_device: dict[torch.device, dict[str, torch.Tensor]] = {}
        for name, total in self._gradients.totals(here.half).items():
            by_device.setdefault(total.device, {})[name] = total.sum()
        for sums in by_device.values():
            finite = torch.isfinite(torch.stack(list(sums.values()))).tolist()
            for name, good in zip(sums, finite, strict=True):
                if not good:
                    raise CaptureError(
                        f"The gradient of '{name}' in {_words(here)} holds NaN or infinity.",
                        hint=_overflow_hint(self._model),
                    )


def _words(place: Place) -> str:
    return f"probe group {place.group + 1} of half {place.half + 1}"


@contextmanager
def _named_errors(model: PreTrainedModel, here: Place) -> Iterator[None]:
    """Turn an exception of the model's own code into an error that names the model.

    Runtime errors pass: some are of memory or of other processes, and are dealt with elsewhere.
    """
    try:
        yield
    except (
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        raise CaptureError(
            f"{type(model).__name__} fails in {_words(here)}: {first_line(error)}",
            hint="The model's own code raised this. It is run in evaluation mode, with gradients; "
            "check that it can be trained like that.",
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device or the host has no memory left."""
    on_host = any(words in str(error) for words in _HOST_MEMORY_WORDS)
    return on_host or isinstance(error, torch.OutOfMemoryError)


def _overflow_hint(model: PreTrainedModel) -> str:
    if model.dtype == torch.float16:
        return "float16 overflows easily: use --dtype bfloat16 or float32."
    return "Check the checkpoint for broken weights, and the probe data for odd examples."


def checkpointed_blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Decoder blocks whose activations can be recomputed in the backward pass."""
    if not model.supports_gradient_checkpointing:
        return ()
    return tuple(model.get_submodule(name) for name in decoder_blocks(model))
