"""Trials: short full-parameter trainings whose weight updates are scored in place of gradients.

A gradient says little about how far a matrix will move: adaptive optimizers divide each matrix's
gradient by its own scale. A trial moves the weights. From the base weights, every candidate is
trained for a few steps on a part of the probes that no other trial sees; the update
`U = W - W_trained` is handed over like a gradient, and the weights are put back bit for bit.
Updates of the first half of the trials are averaged to A, those of the second half to B, and the
cross-fitted tail of both is `hls`: what repeats on other data and no rank r can express. The
random walk that an adaptive optimizer makes of noise does not repeat, so it averages to zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hlscore.errors import CaptureError
from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.memory import empty_cache, fixed_weight, free_bytes, is_out_of_memory
from hlscore.gradients.passes import Passed, loss_scale, run_forward
from hlscore.gradients.progress import ProgressFile, RunPosition, RunState
from hlscore.gradients.sketched import SketchGradients
from hlscore.gradients.sources import Sources
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.trial_optimizer import TrialOptimizer, kept_bytes, residuals_fit
from hlscore.objectives.losses import probe_loss
from hlscore.objectives.preference import PAIR_LOSSES
from hlscore.probes.batches import cut
from hlscore.probes.units import ProbeExample, ProbeSet, ProbeUnit
from hlscore.processes import Processes
from hlscore.settings import CaptureSettings, ObjectiveSettings
from hlscore.steps import Progress
from hlscore.wording import memory

# The search for a rate starts here and goes up or down by this factor while that helps.
FIRST_RATE, RATE_FACTOR, MOST_TRIES = 1e-4, 4.0, 5
_SEARCH_STEPS = 4
# Share of the probes that the search trains on, and again that it measures on.
_SEARCH_SHARE = 1 / 32
_WARM_UP_SHARE = 0.25
_ATTEMPTS = 3

# Half of the probes, group within it, and the units of that group with a loss.
Trial = tuple[int, int, list[ProbeUnit]]
# Sequences with log-probabilities of the base model, where a loss compares with them.
References = Mapping[ProbeExample, ProbeExample]


class DivergedError(Exception):
    """A loss or a weight is no longer finite."""


class BatchTooLargeError(Exception):
    """A batch did not fit the memory of the device."""


class TrialRun:
    """Trains from the base weights, once per probe group, and hands every update over.

    Args:
        model: The model; comes back as it was, bit for bit.
        probes: The probe examples: each group of a half is the data of one trial.
        gradients: Receives the updates.
        sources: The weights that are trained.
        seed: Seed of the random rounding of 16-bit weights.
        processes: This process among those that share each step.
        progress_file: Where progress is stored between trials, if anywhere.

    Attributes:
        state: Trials, learning rate and batch size so far; a stored one to resume from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        probes: ProbeSet,
        gradients: ExactGradients | SketchGradients,
        sources: Sources,
        settings: CaptureSettings,
        objective: ObjectiveSettings,
        *,
        seed: int,
        progress: Progress,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        progress_file: ProgressFile | None = None,
    ) -> None:
        self._model, self._probes, self._gradients = model, probes, gradients
        self._weights, self._sources = dict(sources.weights), sources
        self._settings, self._objective, self._seed = settings, objective, seed
        self._progress, self._processes, self._file = progress, processes, progress_file
        self._loss = probe_loss(objective)
        # Its loss and tokens are those seen with the base weights; a rate of 0 is not known yet.
        self.state = RunState(
            position=RunPosition(),
            loss=0.0,
            batch_size=settings.batch_size,
            rate=settings.trial_rate or 0.0,
        )
        # Mean loss of the search's test examples before and after its training at the rate.
        self._losses: tuple[float, float] | None = None
        self._base: dict[str, torch.Tensor] = {}
        self._compensated = all(processes.gather(residuals_fit(sources.weights)))
        self._optimizer: TrialOptimizer

    def run(self) -> float:
        """Find a rate where none is given, run every trial, and put the weights back.

        Returns:
            Mean negative log-likelihood of the counted tokens that were seen with the base
            weights, in nats.
        """
        trials: list[Trial] = [
            (half, index, [unit for unit in group if unit.sequences or unit.pair])
            for half, groups in enumerate(self._probes.units)
            for index, group in enumerate(groups)
        ]
        self._check(trials)
        searched = self._settings.trial_rate is None
        capture = GradientCapture(
            self._model, self._sources, self, checkpointing=self._settings.checkpointing
        )
        with self._base_weights_kept(), torch.enable_grad(), capture:
            if not self.state.rate:
                rate = self._find_rate(trials[0][2], trials[-1][2])
                self.state = replace(self.state, rate=rate)
            for attempt in range(_ATTEMPTS):
                try:
                    self._run_trials(trials)
                    break
                except DivergedError as error:
                    if attempt + 1 == _ATTEMPTS or not searched:
                        raise _diverges(f"{self.state.rate:.1e}") from error
                    self._restore()
                    for name in self._weights:
                        self._gradients.forget(name)
                    self.state = RunState(
                        position=RunPosition(),
                        loss=0.0,
                        batch_size=self.state.batch_size,
                        rate=self.state.rate / RATE_FACTOR,
                    )
        nats, tokens = self._processes.total([self.state.loss, self.state.tokens])
        self._steps = min(self._settings.trial_steps, *(len(units) for _, _, units in trials))
        return nats / max(tokens, 1.0)

    def notes(self) -> Iterator[str]:
        """Remarks on the trials: rate, steps, and what memory allowed."""
        wanted, steps = self._settings, self._steps
        fewer = (
            f"(not {wanted.trial_steps}: each example is seen once) "
            if steps < wanted.trial_steps
            else ""
        )
        yield (
            f"{wanted.trials} trials of {steps} steps {fewer}at learning rate "
            f"{self.state.rate:.2g} ({'given' if wanted.trial_rate else 'found'}), optimizer "
            f"{wanted.trial_optimizer}."
        )
        if self._losses is not None:
            before, after = self._losses
            yield (
                "A few steps at that rate change the loss on other examples from "
                f"{before:.4g} to {after:.4g}."
                if after < before
                else "Warning: no learning rate lowered the loss on other examples "
                f"({before:.4g}): the trials moved by noise. Use other probes (--data), more of "
                "them (--samples), or --movement gradient."
            )
        if self._model.dtype.itemsize == 2 and not self._compensated:
            yield (
                "16-bit weights were rounded at random in the trials, because memory was short: "
                "their updates carry that noise."
            )
        if self.state.batch_size < wanted.batch_size:
            yield (
                f"The device ran out of memory: batches of {wanted.batch_size} were halved down "
                f"to {self.state.batch_size}; the steps stayed the same."
            )

    def _check(self, trials: Sequence[Trial]) -> None:
        wanted = self._settings.trials
        smallest = min((len(units) for _, _, units in trials), default=0)
        if len(trials) < wanted or smallest < 2:
            usable = sum(len(units) for _, _, units in trials)
            raise CaptureError(
                f"{usable} probe examples with a loss are too few for {wanted} trials of at least "
                "2 optimizer steps.",
                hint="Give more examples (--samples), or use --trials 2 or --movement gradient.",
            )
        if name := fixed_weight(self._weights):
            raise CaptureError(
                f"The weight of '{name}' lies in memory that is read-only, or shared with a file "
                "or with other processes.",
                hint="Load the model into memory of this process, or use --movement gradient.",
            )

    @contextmanager
    def _base_weights_kept(self) -> Iterator[None]:
        """Copy the weights, and put them back at the end, also after an error.

        Copies stay on the device of a weight where they fit it twice, beside what else is kept
        there; others go to the host, in memory that a GPU reads fast.
        """
        weights = self._weights.values()
        roomy = {
            device
            for device in {weight.device for weight in weights}
            if device.type != "cpu" and free_bytes(device) > 2 * kept_bytes(self._weights, device)
        }
        on_host = sum(weight.nbytes for weight in weights if weight.device not in roomy)
        free = free_bytes(torch.device("cpu"))
        if on_host > free:
            raise CaptureError(
                f"Trials keep a copy of the weights on the host: {memory(on_host)}, and "
                f"{memory(free)} are free.",
                hint="Use --movement gradient, or --include fewer modules.",
            )
        for name, weight in self._weights.items():
            if weight.device in roomy:
                self._base[name] = weight.detach().clone()
            else:
                pin = weight.device.type == "cuda"
                copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pin)
                self._base[name] = copy.copy_(weight.detach())
        try:
            yield
        finally:
            try:
                self._restore()
            except KeyboardInterrupt:
                self._restore()
                raise
            self._base = {}

    @torch.no_grad()
    def _restore(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._base[name])

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Receive a gradient from the capture: it goes to the optimizer of the current trial."""
        self._optimizer.add(name, gradient)

    def _find_rate(self, train: Sequence[ProbeUnit], test: Sequence[ProbeUnit]) -> float:
        """Train a few steps at several rates; the loss on another part of the probes decides."""
        size = max(2 * _SEARCH_STEPS, round(_SEARCH_SHARE * len(self._probes.sequences)))
        train, test = train[:size], test[:size]
        steps = min(_SEARCH_STEPS, self._settings.trial_steps)
        self._progress.start("finding the learning rate", MOST_TRIES, "tries")
        references = self._references(test)
        try:
            before = self._mean_loss(test, references)
        except DivergedError as error:
            raise CaptureError(
                "The loss is not finite with the base weights.",
                hint="float16 overflows easily: use --dtype bfloat16 or float32. Check the "
                "checkpoint for broken weights.",
            ) from error
        gains: dict[float, float] = {}

        def gain(rate: float) -> float:
            if rate not in gains:
                try:
                    self._train(train, rate, steps, trial=-1)
                    gained = before - self._mean_loss(test, references)
                except DivergedError:
                    gained = -math.inf
                finally:
                    self._restore()
                # Rounding may differ between processes; what follows must not.
                gains[rate] = self._processes.gather(gained)[0]
                self._progress.advance(1)
            return gains[rate]

        best, factor = FIRST_RATE, RATE_FACTOR
        if gain(best * factor) <= gain(best):
            factor = 1 / factor
        while len(gains) < MOST_TRIES and gain(best * factor) > gain(best):
            best *= factor
        if not math.isfinite(gains[best]):
            raise _diverges(", ".join(f"{rate:.1e}" for rate in sorted(gains)))
        self._losses = before, before - gains[best]
        return best

    def _run_trials(self, trials: Sequence[Trial]) -> None:
        self._progress.start("training", sum(_tokens(units) for _, _, units in trials), "tokens")
        for number, (half, index, units) in enumerate(trials):
            if RunPosition(half=half, group=index) < self.state.position:
                self._progress.advance(_tokens(units))
                continue
            before = self.state
            while True:
                try:
                    self._train(units, before.rate, self._settings.trial_steps, trial=number)
                    break
                except BatchTooLargeError:
                    self._restore()
                    self.state = replace(before, batch_size=self.state.batch_size)
                    empty_cache()
            self._hand_over(half, len(self._probes.units[0]) * half + index)
            position = RunPosition(half=half, group=index + 1)
            self.state = replace(self.state, position=position)
            if self._file is not None and self._file.is_due():
                self._file.save(self.state, self._gradients.tensors)

    def _train(self, units: Sequence[ProbeUnit], rate: float, steps: int, *, trial: int) -> None:
        """Train from the base weights, each example once.

        Raises:
            DivergedError: A loss is not finite.
            BatchTooLargeError: A batch did not fit; the batch size is halved for the next try.
        """
        self._optimizer = TrialOptimizer(
            self._weights,
            self._settings.trial_optimizer,
            compensated=self._compensated,
            seed=self._seed + trial + 1,
            processes=self._processes,
        )
        references = self._references(units)
        steps = min(steps, len(units))
        warm_up = max(1, round(_WARM_UP_SHARE * steps))
        for step in range(steps):
            part = units[len(units) * step // steps : len(units) * (step + 1) // steps]
            self._optimizer.begin_step(rate * min(1.0, (step + 1) / warm_up))
            # Every process learns how the others fared before they add their gradients up.
            outcomes = self._processes.gather(self._backward(part, references, step, trial))
            if "out of memory" in outcomes:
                halved = max(1, self.state.batch_size // 2)
                self.state = replace(self.state, batch_size=halved)
                raise BatchTooLargeError
            if "not finite" in outcomes:
                raise DivergedError
            self._optimizer.end_step()
            if trial >= 0:
                self._progress.advance(_tokens(part))

    def _backward(
        self, units: Sequence[ProbeUnit], references: References, step: int, trial: int
    ) -> str:
        """Run this process's share of a step both ways; returns what failed, empty for nothing."""
        size, scale = self._size(units), loss_scale(self._model)
        batches = cut(self._processes.share(units), self._units_per_batch(units))
        for number, batch in enumerate(batches, start=1):
            share = self._size(batch) / size if size else 0.0
            self._optimizer.begin_part(share / scale, last=number == len(batches))
            try:
                loss, passed = self._run_forward(batch, references)
                if not math.isfinite(float(loss.detach())):
                    return "not finite"
                (loss * scale).backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.state.batch_size == 1:
                    raise
                return "out of memory"
            if step == 0 and trial >= 0:
                self.state = replace(
                    self.state,
                    loss=self.state.loss - float(passed.log_probs.detach().sum()),
                    tokens=self.state.tokens + float(passed.counted.sum()),
                )
        return ""

    def _run_forward(
        self, units: Sequence[ProbeUnit], references: References
    ) -> tuple[torch.Tensor, Passed]:
        """Mean loss over what the units count, and the forward pass."""
        passed = self._pass([references.get(item, item) for item in _sequences(units)])
        log_probs, counted, old = passed.log_probs, passed.counted, passed.old_log_probs
        if self._objective.objective == "dpo":
            ratios = torch.where(counted, log_probs - old, 0.0).sum(-1)
            tokens = counted.sum(-1).clamp(min=1)
            pair_loss = PAIR_LOSSES[self._objective.loss_type_name]
            total = pair_loss(
                ratios[::2], ratios[1::2], tokens[::2], tokens[1::2], self._objective.beta_value
            ).sum()
        else:
            total = self._loss(log_probs, passed.coefficients.to(log_probs), counted, old)
        return total / max(self._size(units), 1e-30), passed

    def _pass(self, examples: Sequence[ProbeExample]) -> Passed:
        return run_forward(
            self._model, self._probes, examples, padding_side=self._settings.padding_side
        )

    def _size(self, units: Sequence[ProbeUnit]) -> float:
        """What the summed loss of units is divided by: pairs, or weighed tokens."""
        if self._objective.objective == "dpo":
            return float(len(units))
        return math.fsum(abs(item.coefficient) * item.counted_tokens for item in _sequences(units))

    @torch.no_grad()
    def _mean_loss(self, units: Sequence[ProbeUnit], references: References) -> float:
        size, total = self._size(units), 0.0
        for part in cut(units, self._units_per_batch(units)):
            loss, _ = self._run_forward(part, references)
            total += float(loss) * self._size(part) / size
        if not math.isfinite(total):
            raise DivergedError
        return total

    @torch.no_grad()
    def _references(self, units: Sequence[ProbeUnit]) -> References:
        """Sequences with log-probabilities of the base model, where a loss compares with them.

        Those of preference pairs are always the base model's; completions whose sampling policy
        is known keep its own.
        """
        preference = self._objective.objective == "dpo"
        if self._objective.objective == "sft":
            return {}
        found = {}
        wanted = [item for item in _sequences(units) if preference or not item.old_log_probs]
        for part in cut(wanted, self.state.batch_size):
            passed = self._pass(part)
            for item, row, places in zip(part, passed.log_probs, passed.counted, strict=True):
                found[item] = replace(item, old_log_probs=tuple(row[places].tolist()))
        return found

    def _units_per_batch(self, units: Sequence[ProbeUnit]) -> int:
        """Units whose sequences fill a batch: a pair has two, a prompt several completions."""
        longest = max((len(_sequences([unit])) for unit in units), default=1)
        return max(1, self.state.batch_size // longest)

    def _hand_over(self, half: int, group: int) -> None:
        """Put every weight back, and give its update to the receiver as if it were a gradient."""
        finite: list[torch.Tensor] = []
        self._gradients.begin_batch(half, 1.0)
        for name in self._weights:
            if name not in self._optimizer.moved:
                continue
            update = self._optimizer.take_back(name, self._base[name])
            finite.append(torch.isfinite(update.sum()).cpu())
            # Every process holds the same update, and one of them scores.
            if self._processes.is_main:
                self._gradients.add(name, update)
        if not self._processes.gather(not finite or bool(torch.stack(finite).all()))[0]:
            raise DivergedError
        self._gradients.end_group(half, group)


def _sequences(units: Sequence[ProbeUnit]) -> list[ProbeExample]:
    return [item for unit in units for item in (unit.pair or unit.sequences)]


def _tokens(units: Sequence[ProbeUnit]) -> int:
    return sum(len(item.input_ids) for item in _sequences(units))


def _diverges(rates: str) -> CaptureError:
    return CaptureError(
        f"The trials diverge at every learning rate that was tried: {rates}.",
        hint="Give a lower --trial-rate, or use --movement gradient.",
    )
