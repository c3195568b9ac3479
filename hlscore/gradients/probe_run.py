"""Runs over the probes; the usual one goes forward and backward over every batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from hlscore.errors import CaptureError, first_line
from hlscore.gradients.capture import GradientCapture, Use
from hlscore.gradients.passes import loss_scale, run_forward
from hlscore.gradients.progress import ProgressFile, RunPosition, RunState
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import Sources
from hlscore.gradients.sums import ExactGradients
from hlscore.inputs.examples import cut
from hlscore.inputs.weights import is_sharded
from hlscore.memory import empty_cache, is_out_of_memory
from hlscore.objectives.likelihood import LossInputs, probe_loss
from hlscore.probes.units import ProbeExample, ProbeSet, by_length
from hlscore.processes import Processes
from hlscore.settings import CaptureSettings, ObjectiveSettings
from hlscore.steps import Progress, Silent


@dataclass(kw_only=True, eq=False, repr=False)
class Run:
    """A run over the probes: what it works with, and how far it is.

    Attributes:
        state: Position, loss, batch size and learning rate so far; a stored one to resume from.
        here: The probe group that runs, for errors.
    """

    model: PreTrainedModel
    probes: ProbeSet
    gradients: ExactGradients | SketchGradients
    sources: Sources
    settings: CaptureSettings
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    seed: int = 0  # of what trials round at random
    progress: Progress = field(default_factory=Silent)
    processes: Processes = field(default_factory=Processes)
    file: ProgressFile | None = None

    def __post_init__(self) -> None:
        """Begin at the first batch; a rate of 0 is not known yet."""
        self.state = RunState(
            position=RunPosition(),
            loss=0.0,
            batch_size=self.settings.batch_size,
            rate=self.settings.trial_rate or 0.0,
        )
        self.here = RunPosition()

    def forward(self, examples: Sequence[ProbeExample]) -> LossInputs:
        """Run examples forward, padded to one batch."""
        with self._named_errors():
            return run_forward(self.model, self.probes, examples)

    def backward(self, loss: torch.Tensor) -> None:
        """Run a loss backward."""
        with self._named_errors():
            loss.backward()  # type: ignore[no-untyped-call]

    def notes(self) -> Iterator[str]:
        """Remarks on the run: batches that did not fit."""
        wanted = self.settings.batch_size
        smallest = min(self.processes.gather(self.state.batch_size))
        if smallest < wanted:
            yield (
                f"The device ran out of memory: batches of {wanted} were halved down to "
                f"{smallest}; scores do not depend on it."
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn an exception of the model's own code into an error that names the model.

        Runtime errors pass: some are of memory or of other processes, and are dealt with elsewhere.
        """
        try:
            yield
        except (
            AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise CaptureError(
                f"{type(self.model).__name__} fails in {self.here}: {first_line(error)}",
                hint="The model's own code raised this. It is run in evaluation mode, with "
                "gradients; check that it can be trained like that.",
            ) from error


class ProbeRun(Run):
    """Runs every probe batch forward and backward, and hands the gradients over."""

    def __post_init__(self) -> None:
        """Begin at the first batch."""
        super().__post_init__()
        self._off_policy = any(item.old_log_probs for item in self.probes.sequences)
        # Processes that share the weights must run the same number of batches.
        self._in_step = is_sharded(self.model)

    def run(self) -> float:
        """Run every batch; gives the mean loss of the counted tokens, in nats."""
        gradients, processes, file = self.gradients, self.processes, self.file
        start = self.state.position
        tokens = [len(item.input_ids) for item in self.probes.sequences]
        self.progress.start("probing", sum(processes.share(tokens)), "tokens")
        capture = GradientCapture(
            self.model, self.sources, gradients, checkpointing=self.settings.checkpointing
        )
        with torch.enable_grad(), capture:
            for half, groups in enumerate(self.probes.halves):
                earlier = half * len(self.probes.halves[0])
                for index, group in enumerate(groups):
                    ordered, size = by_length(group), self.settings.batch_size
                    batches = cut(processes.share(ordered), size)
                    if self._in_step:  # an empty batch where others have more
                        largest = -(-len(ordered) // processes.size)
                        batches += [()] * (-(-largest // size) - len(batches))
                    for batch, examples in enumerate(batches):
                        here = RunPosition(half=half, group=index, batch=batch)
                        if here >= start:
                            self.here = here
                            loss = self._run_batch(capture, examples, frozenset())
                            self.state = replace(
                                self.state,
                                position=replace(here, batch=batch + 1),
                                loss=self.state.loss + loss,
                            )
                        self.progress.advance(sum(len(item.input_ids) for item in examples))
                        if here >= start and file is not None and file.is_due():
                            file.save(self.state, gradients.tensors)
                    ended = RunPosition(half=half, group=index, batch=len(batches))
                    if ended >= start:
                        self._check_finite(ended)
                        gradients.end_group(half, earlier + index)
        gradients.tensors.update(processes.add_up(gradients.tensors))
        counted = sum(item.counted_tokens for item in self.probes.sequences)
        return processes.total([self.state.loss])[0] / counted

    def _run_batch(
        self, capture: GradientCapture, examples: Sequence[ProbeExample], skipped: frozenset[Use]
    ) -> float:
        """Run examples in as few parts as fit the memory.

        What a module gained before memory ran out is complete for these examples, so that their
        smaller parts leave it out.
        """
        if not examples:
            self._run_part(capture, self.probes.sequences[:1], skipped, weight=0.0)
            return 0.0
        loss, start = 0.0, 0
        while start < len(examples):
            part = examples[start : start + self.state.batch_size]
            start += len(part)
            try:
                loss += self._run_part(capture, part, skipped)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1 or self._in_step:
                    raise
                done = skipped | capture.added
            # Outside the except clause: the error holds the tensors of the failed try.
            capture.clear()
            empty_cache()
            self.state = replace(self.state, batch_size=len(part) // 2)
            loss += self._run_batch(capture, part, done)
        return loss

    def _run_part(
        self,
        capture: GradientCapture,
        examples: Sequence[ProbeExample],
        skipped: frozenset[Use],
        weight: float = 1.0,
    ) -> float:
        capture.begin_batch(skipped)
        passed = self.forward(examples)
        loss = probe_loss(self.objective, passed)
        likelihood = -float(passed.log_probs.detach().sum())
        value = float(loss.detach()) + likelihood
        if not math.isfinite(value):
            raise CaptureError(
                f"The loss in {self.here} is {value}.", hint=_overflow_hint(self.model)
            )
        if not loss.requires_grad:
            raise CaptureError("The loss does not depend on any candidate module.")
        scale = loss_scale(self.model)
        # Gradients of the size of a mean, whatever a batch holds.
        size = float((passed.coefficients.abs() * passed.counted.sum(-1).cpu()).sum())
        self.gradients.begin_batch(self.here.half, weight * size / scale)
        self.backward(loss * (scale / size))
        # Once per token: after what memory may cut off.
        if self._off_policy and weight:
            ratios = torch.exp(passed.log_probs.detach() - passed.old_log_probs)
            ratios = ratios[passed.counted & ~torch.isnan(passed.old_log_probs)]
            low, high = self.objective.clip
            beyond = int(((ratios < 1 - low) | (ratios > 1 + high)).sum())
            self.state = replace(
                self.state,
                known=self.state.known + ratios.numel(),
                beyond=self.state.beyond + beyond,
            )
        return likelihood

    def _check_finite(self, here: RunPosition) -> None:
        """Look for NaN and infinity, once per group: reading the answer waits for the device."""
        for name, total in self.gradients.totals(here.half).items():
            if not math.isfinite(float(total.sum())):
                raise CaptureError(
                    f"The gradient of '{name}' in {here} holds NaN or infinity.",
                    hint=_overflow_hint(self.model),
                )

    def notes(self) -> Iterator[str]:
        """Remarks on the run: ratios to the sampling policy, and batches that did not fit."""
        known, beyond = self.processes.total([self.state.known, self.state.beyond])
        low, high = self.objective.clip
        if known:
            yield (
                f"{100 * beyond / known:.0f} % of the {known:,.0f} tokens with log-probabilities "
                f"have ratios outside {1 - low:g} to {1 + high:g}. A large share means that "
                "another model or temperature sampled them."
            )
        yield from super().notes()


def _overflow_hint(model: PreTrainedModel) -> str:
    if model.dtype == torch.float16:
        return "float16 overflows easily: use --dtype bfloat16 or float32."
    return "Check the checkpoint for broken weights, and the probe data for odd examples."
