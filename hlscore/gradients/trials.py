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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from hlscore.errors import CaptureError
from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.movement import trial_steps
from hlscore.gradients.passes import loss_scale
from hlscore.gradients.probe_run import Run
from hlscore.gradients.progress import RunPosition
from hlscore.gradients.trial_optimizer import TrialOptimizer
from hlscore.inputs.examples import cut
from hlscore.memory import empty_cache, free_bytes, is_out_of_memory
from hlscore.objectives.likelihood import LossInputs, probe_loss
from hlscore.objectives.preference import PAIR_LOSSES
from hlscore.probes.units import ProbeExample, ProbeUnit
from hlscore.settings.capture import DEFAULT_TRIAL_STEPS
from hlscore.wording import memory

# The search for a rate starts here and goes up or down by this factor while that helps.
FIRST_RATE, RATE_FACTOR, MOST_TRIES = 1e-4, 4.0, 5
_SEARCH_STEPS = 4
# Share of the probes that the search trains on, and again that it measures on.
_SEARCH_SHARE = 1 / 32
_WARM_UP_SHARE = 0.25
_ATTEMPTS = 3

# Sequences with log-probabilities of the base model, where a loss compares with them.
References = Mapping[ProbeExample, ProbeExample]
Result = TypeVar("Result")


class DivergedError(Exception):
    """A loss or a weight is no longer finite."""


class BatchTooLargeError(Exception):
    """A batch did not fit the memory of the device."""


class TrialRun(Run):
    """Trains from the base weights, once per probe group, and hands every update over.

    The loss and tokens of its state are those seen with the base weights.
    """

    def __post_init__(self) -> None:
        """Begin with the first trial."""
        super().__post_init__()
        self._weights = dict(self.sources.weights)
        self._trials = self.probes.trials
        self._steps = trial_steps(self.probes, self.settings) or 0
        self._base: dict[str, torch.Tensor] = {}
        devices = {weight.device for weight in self._weights.values()}
        # Room for as many bytes as the weights have, and half of it again.
        fits = all(free_bytes(place) > 0.75 * self._kept_bytes(place) for place in devices)
        self._compensated = all(self.processes.gather(fits))
        self._optimizer = TrialOptimizer(
            self._weights,
            self.settings.trial_optimizer,
            compensated=self._compensated,
            processes=self.processes,
        )
        self._capture = GradientCapture(
            self.model, self.sources, self._optimizer, checkpointing=self.settings.checkpointing
        )

    def run(self) -> float:
        """Find a rate where none is given, run every trial, and put the weights back.

        Returns:
            Mean negative log-likelihood of the counted tokens that were seen with the base
            weights, in nats.
        """
        with self._base_weights_kept(), torch.enable_grad(), self._capture:
            if not self.state.rate:
                rate = self._find_rate()  # puts the losses of its search into the state
                self.state = replace(self.state, rate=rate)
            for attempt in range(_ATTEMPTS):
                try:
                    self._run_trials()
                    break
                except DivergedError as error:
                    rate = self.state.rate
                    if attempt + 1 == _ATTEMPTS or self.settings.trial_rate is not None:
                        raise _diverges(f"{rate:.1e}") from error
                    self._restore()
                    self.gradients.tensors.clear()
                    self.state = replace(
                        self.state, position=RunPosition(), loss=0.0, tokens=0.0,
                        rate=rate / RATE_FACTOR, search=None,
                    )  # fmt: skip
        nats, tokens = self.processes.total([self.state.loss, self.state.tokens])
        return nats / max(tokens, 1.0)

    def _kept_bytes(self, device: torch.device) -> int:
        """Bytes of the weights on a device, and of what those of 16 bits cannot hold."""
        here = [weight for weight in self._weights.values() if weight.device == device]
        return sum(weight.nbytes * (2 if weight.dtype.itemsize == 2 else 1) for weight in here)

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
            if device.type != "cpu" and free_bytes(device) > 2 * self._kept_bytes(device)
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

    def _find_rate(self) -> float:
        """Train a few steps at several rates; the loss on another part of the probes decides."""
        size = max(2 * _SEARCH_STEPS, round(_SEARCH_SHARE * len(self.probes.sequences)))
        units = list(self._trials.values())
        train, test = units[0][:size], units[-1][:size]
        steps = min(_SEARCH_STEPS, self.settings.steps_of(len(train)))
        self.progress.start("finding the learning rate", MOST_TRIES, "tries")
        references = self._halving(lambda: self._references(test))

        def measured() -> float:
            return self._halving(lambda: self._measured(test, references))

        try:
            before = measured()
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
                    gained = before - measured()
                except DivergedError:
                    gained = -math.inf
                finally:
                    self._restore()
                # Rounding may differ between processes; what follows must not.
                gains[rate] = self.processes.gather(gained)[0]
                self.progress.advance(1)
            return gains[rate]

        best, factor = FIRST_RATE, RATE_FACTOR
        if gain(best * factor) <= gain(best):
            factor = 1 / factor
        while len(gains) < MOST_TRIES and gain(best * factor) > gain(best):
            best *= factor
        if not math.isfinite(gains[best]):
            raise _diverges(", ".join(f"{rate:.1e}" for rate in sorted(gains)))
        self.state = replace(self.state, search=(before, before - gains[best]))
        return best

    def _run_trials(self) -> None:
        """Train once per group, put the weights back, and hand each update over as a gradient."""
        self.progress.start("training", sum(map(_tokens, self._trials.values())), "tokens")
        for number, ((half, group), units) in enumerate(self._trials.items()):
            if RunPosition(half=half, group=group) < self.state.position:
                self.progress.advance(_tokens(units))
                continue
            self.here = RunPosition(half=half, group=group)
            self._train(units, self.state.rate, self._steps, trial=number)
            sizes: list[torch.Tensor] = []
            self.gradients.begin_batch(half, 1.0)
            for name in self._weights:
                if name not in self._optimizer.moved:
                    continue
                update = self._optimizer.take_back(name, self._base[name])
                sizes.append(torch.linalg.vector_norm(update, 1).cpu())
                # Every process holds the same update, and one of them scores.
                if self.processes.is_main:
                    self.gradients.add(name, update)
            size = float(torch.stack(sizes).sum()) if sizes else 1.0
            size = self.processes.gather(size)[0]
            if not math.isfinite(size):
                raise DivergedError
            if not size and self.settings.trial_rate is not None:
                raise CaptureError(
                    f"No weight moved at learning rate {self.settings.trial_rate:.1e}: the steps "
                    "are smaller than the weights can hold.",
                    hint="Give a higher --trial-rate, or none.",
                )
            self.gradients.end_group(half, len(self.probes.units[0]) * half + group)
            position = RunPosition(half=half, group=group + 1)
            self.state = replace(self.state, position=position)
            if self.file is not None and self.file.is_due():
                self.file.save(self.state, self.gradients.tensors)

    def _train(self, units: Sequence[ProbeUnit], rate: float, steps: int, *, trial: int) -> None:
        """Train from the base weights, each example once; batches that do not fit are halved.

        Args:
            trial: Its number from 0, or -1 in the search for a rate.

        Raises:
            DivergedError: A loss is not finite.
        """
        before = self.state
        warm_up = max(1, round(_WARM_UP_SHARE * steps))

        def train() -> None:
            self.state = replace(before, batch_size=self.state.batch_size)
            self._optimizer.restart(self.seed + trial + 1)
            try:
                references = self._references(units)
                for step in range(steps):
                    part = units[len(units) * step // steps : len(units) * (step + 1) // steps]
                    self._optimizer.rate = rate * min(1.0, (step + 1) / warm_up)
                    self._step(part, references, at_base=step == 0 and trial >= 0)
                    if trial >= 0:
                        self.progress.advance(_tokens(part))
            except BatchTooLargeError:
                self._restore()
                raise

        self._halving(train)

    def _step(self, units: Sequence[ProbeUnit], references: References, *, at_base: bool) -> None:
        """Take one optimizer step: this process runs its share of the units both ways."""
        size, scale = self._size(units), loss_scale(self.model)
        batches = cut(self.processes.share(units), self._units_per_batch(units))

        def pass_both_ways() -> None:
            for number, batch in enumerate(batches, start=1):
                share = self._size(batch) / size if size else 0.0
                self._optimizer.begin_part(share / scale, last=number == len(batches))
                loss, passed = self._mean_loss(batch, references)
                if not math.isfinite(float(loss.detach())):
                    raise DivergedError
                self.backward(loss * scale)
                if at_base:
                    self.state = replace(
                        self.state,
                        loss=self.state.loss - float(passed.log_probs.detach().sum()),
                        tokens=self.state.tokens + float(passed.counted.sum()),
                    )

        # Every process learns how the others fared before they add their gradients up.
        self._in_all(pass_both_ways)
        self._optimizer.end_step()

    def _in_all(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work; where it fails in one process, it fails in all.

        Raises:
            BatchTooLargeError: A batch of several does not fit the memory.
            DivergedError: A loss is not finite.
        """
        result: list[Result] = []
        failure: type[Exception] | None = None
        try:
            result.append(work())
        except DivergedError:
            failure = DivergedError
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.state.batch_size == 1:
                raise
            failure = BatchTooLargeError
        failures = self.processes.gather(failure)
        for kind in (BatchTooLargeError, DivergedError):
            if kind in failures:
                raise kind
        return result[0]

    def _halving(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work, and again with half the batch for as long as one does not fit."""
        while True:
            try:
                return work()
            except BatchTooLargeError:
                # Outside this clause: the error holds the tensors of the failed try.
                smaller = max(1, self.state.batch_size // 2)
            self.state = replace(self.state, batch_size=smaller)
            empty_cache()

    def _mean_loss(
        self, units: Sequence[ProbeUnit], references: References
    ) -> tuple[torch.Tensor, LossInputs]:
        """Mean loss over what the units count, and the forward pass."""
        passed = self.forward([references.get(item, item) for item in _sequences(units)])
        if self.objective.objective == "dpo":
            log_ratios = torch.where(passed.counted, passed.log_probs - passed.old_log_probs, 0.0)
            ratios, tokens = log_ratios.sum(-1), passed.counted.sum(-1).clamp(min=1)
            pair_loss = PAIR_LOSSES[self.objective.loss_type_name]
            total = pair_loss(
                ratios[::2], ratios[1::2], tokens[::2], tokens[1::2], self.objective.beta_value
            ).sum()
        else:
            total = probe_loss(self.objective, passed)
        return total / max(self._size(units), 1e-30), passed

    @torch.no_grad()
    def _measured(self, units: Sequence[ProbeUnit], references: References) -> float:
        """Mean loss of held-out units; raises what `_in_all` does."""
        size = self._size(units)

        def mean() -> float:
            total = 0.0
            for part in cut(units, self._units_per_batch(units)):
                total += float(self._mean_loss(part, references)[0]) * self._size(part) / size
            if not math.isfinite(total):
                raise DivergedError
            return total

        return self._in_all(mean)

    @torch.no_grad()
    def _references(self, units: Sequence[ProbeUnit]) -> References:
        """Sequences with log-probabilities of the base model, where a loss compares with them.

        Those of preference pairs are always the base model's; completions whose sampling policy
        is known keep its own. Raises what `_in_all` does.
        """
        preference = self.objective.objective == "dpo"
        if self.objective.objective == "sft":
            return {}
        wanted = [item for item in _sequences(units) if preference or not item.old_log_probs]

        def passed_forward() -> References:
            found = {}
            for part in cut(wanted, self.state.batch_size):
                passed = self.forward(part)
                for item, row, places in zip(part, passed.log_probs, passed.counted, strict=True):
                    found[item] = replace(item, old_log_probs=tuple(row[places].tolist()))
            return found

        return self._in_all(passed_forward)

    def _size(self, units: Sequence[ProbeUnit]) -> float:
        """What the summed loss of units is divided by: pairs, or weighed tokens."""
        if self.objective.objective == "dpo":
            return float(len(units))
        return math.fsum(abs(item.coefficient) * item.counted_tokens for item in _sequences(units))

    def _units_per_batch(self, units: Sequence[ProbeUnit]) -> int:
        """Units whose sequences fill a batch: a pair has two, a prompt several completions."""
        longest = max((len(_sequences([unit])) for unit in units), default=1)
        return max(1, self.state.batch_size // longest)

    def notes(self) -> Iterator[str]:
        """Remarks on the trials: rate, steps, and what memory allowed."""
        wanted = self.settings
        steps, usual = self._steps, wanted.trial_steps or DEFAULT_TRIAL_STEPS
        by_twos = not wanted.trial_steps and 2 * steps <= min(map(len, self._trials.values()))
        reason = "a step has two examples" if by_twos else "each example is seen once"
        fewer = f"(not {usual}: {reason}) " if steps < usual else ""
        yield (
            f"{wanted.trials} trials of {steps} steps {fewer}at learning rate "
            f"{self.state.rate:.2g} ({'given' if wanted.trial_rate else 'found'}), optimizer "
            f"{wanted.trial_optimizer}."
        )
        if self.state.search is not None:
            before, after = (f"{loss:.4g}" for loss in self.state.search)
            yield (
                f"A few steps at that rate change the held-out loss from {before} to {after}."
                if float(after) < float(before)
                else f"Warning: no learning rate lowered the held-out loss ({before}): the trials "
                "follow noise. Use other probes (--data), more of them (--samples), or --movement "
                "gradient."
            )
        if self.model.dtype.itemsize == 2 and not self._compensated:
            yield (
                "16-bit weights were rounded at random in the trials, because memory was short: "
                "their updates carry that noise."
            )
        yield from super().notes()


def _sequences(units: Sequence[ProbeUnit]) -> list[ProbeExample]:
    return [item for unit in units for item in (unit.pair or unit.sequences)]


def _tokens(units: Sequence[ProbeUnit]) -> int:
    return sum(len(item.input_ids) for item in _sequences(units))


def _diverges(rates: str) -> CaptureError:
    return CaptureError(
        f"The trials diverge at every learning rate that was tried: {rates}.",
        hint="Give a lower --trial-rate, or use --movement gradient.",
    )
