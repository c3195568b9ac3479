"""Trials against a training loop written out in float64, and what they leave behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from problems import RANK, by_module, completions, probe_set, run_report, scored, settings
from tokens import byte_tokenizer
from transformers import PreTrainedModel

import hlscore
from hlscore.errors import CaptureError, DataError, UsageError
from hlscore.gradients import trials
from hlscore.gradients.capture import GradientCapture
from hlscore.gradients.progress import ProgressFile
from hlscore.gradients.sums import ExactGradients
from hlscore.gradients.trial_optimizer import TrialOptimizer, round_randomly
from hlscore.gradients.trials import TrialRun
from hlscore.inputs.formats import ExampleSet
from hlscore.objectives.preference import PAIR_LOSSES
from hlscore.probes.encode import encode
from hlscore.probes.units import ProbeExample, ProbeSet
from hlscore.records import ModuleRow, ScoreReport
from hlscore.settings import CaptureSettings, ObjectiveSettings, RankSettings
from hlscore.unfinished import UnfinishedRun

EXAMPLES = completions(24)
RATE = 3e-3


def options(**capture: object) -> RankSettings:
    """Settings of a run with trials at a given rate, unless said otherwise."""
    chosen: dict[str, object] = {"movement": "trial", "trial_steps": 3, "trial_rate": RATE}
    return settings(**chosen | capture)


def log_probs(model: PreTrainedModel, item: ProbeExample) -> torch.Tensor:
    ids = torch.tensor([item.input_ids])
    whole = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
    picked = whole[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return picked[torch.tensor(item.counted[1:])]


class SlowOptimizer:
    """The three optimizers from their papers, on whole second moments, float64."""

    def __init__(self, name: str) -> None:
        self.name, self.step = name, 0
        self.rows: dict[str, torch.Tensor] = {}
        self.columns: dict[str, torch.Tensor] = {}

    def direction(self, key: str, gradient: torch.Tensor) -> torch.Tensor:
        if self.name == "sign":
            return gradient.sign()
        if self.name == "rms":
            return gradient / gradient.square().mean().sqrt()
        beta = 1 - (self.step + 1) ** -0.8
        square = gradient**2 + 1e-30
        rows = beta * self.rows.get(key, torch.zeros(())) + (1 - beta) * square.sum(1)
        columns = beta * self.columns.get(key, torch.zeros(())) + (1 - beta) * square.sum(0)
        self.rows[key], self.columns[key] = rows, columns
        second = torch.outer(rows, columns) / rows.sum()
        update = gradient / second.sqrt()
        return update / max(1.0, float(update.square().mean().sqrt()))


def slow_updates(
    model: PreTrainedModel, probes: ProbeSet, names: list[str], optimizer: str, steps: int,
    pair_loss: str | None = None,
) -> list[list[dict[str, np.ndarray]]]:  # fmt: skip
    """Update of every trial of both halves, one example at a time, in float64."""
    found = []
    for half in probes.units:
        found.append([])
        for units in half:
            trained = copy.deepcopy(model).double().eval()
            for name, parameter in trained.named_parameters():
                parameter.requires_grad_(name in names)
            base = copy.deepcopy(trained)
            slow = SlowOptimizer(optimizer)
            count = min(steps, len(units))
            for step in range(count):
                part = units[len(units) * step // count : len(units) * (step + 1) // count]
                total = torch.zeros((), dtype=torch.float64)
                tokens = 0
                for unit in part:
                    if pair_loss:
                        now = [log_probs(trained, item).sum() for item in unit.pair]
                        then = [log_probs(base, item).sum().detach() for item in unit.pair]
                        sizes = [item.counted_tokens for item in unit.pair]
                        ratios = [a - b for a, b in zip(now, then, strict=True)]
                        total = total + PAIR_LOSSES[pair_loss](*ratios, *sizes, 0.1)
                        tokens += 1
                    else:
                        total = total - log_probs(trained, unit.sequences[0]).sum()
                        tokens += unit.sequences[0].counted_tokens
                trained.zero_grad()
                (total / tokens).backward()
                warm_up = max(1, round(count / 4))
                rate = RATE * min(1.0, (step + 1) / warm_up)
                with torch.no_grad():
                    for name in names:
                        weight = trained.get_parameter(name)
                        assert weight.grad is not None
                        weight -= rate * slow.direction(name, weight.grad)
                slow.step += 1
            found[-1].append(
                {
                    name: (base.get_parameter(name) - trained.get_parameter(name)).detach().numpy()
                    for name in names
                }
            )
    return found


def expected_hls(found: list[list[dict[str, np.ndarray]]], name: str) -> float:
    first, second = (np.mean([update[name] for update in half], axis=0) for half in found)
    return reference.cross_fitted_tail(first[None], second[None], RANK)


def assert_near(found: Mapping[str, ModuleRow], expected: Mapping[str, ModuleRow]) -> None:
    largest = max(row.hls or 0 for row in expected.values())
    for name, row in found.items():
        assert row.hls == pytest.approx(expected[name].hls, rel=1e-3, abs=1e-4 * largest)


@pytest.mark.parametrize("optimizer", ["factored", "sign", "rms"])
@pytest.mark.parametrize("estimator", ["exact", "sketch"])
def test_scores_are_those_of_a_training_written_out(optimizer: str, estimator: str) -> None:
    model = FAMILIES["llama"].build()
    run = options(trial_optimizer=optimizer, estimator=estimator, groups=2, trials=4)
    rows = scored(model, EXAMPLES, run)
    names = [row.parameter for row in rows.values()]
    slow = slow_updates(model, probe_set(model, EXAMPLES, run), names, optimizer, steps=3)
    energies = [expected_hls(slow, row.parameter) for row in rows.values()]
    # Signs of gradients near zero differ between float32 and float64.
    tolerance = 0.03 if optimizer == "sign" else 2e-3
    for row, wanted in zip(rows.values(), energies, strict=True):
        assert row.hls == pytest.approx(wanted, rel=tolerance, abs=tolerance * max(energies))
        if estimator == "exact":
            halves = [np.mean([update[row.parameter] for update in half], axis=0) for half in slow]
            share = wanted / np.prod([np.linalg.norm(half) for half in halves]) * halves[0].size
            assert row.hls_share == pytest.approx(share, rel=tolerance, abs=250 * tolerance)


@pytest.mark.parametrize("fitting", [8, 2])
def test_preference_trials_compare_with_the_base_model(
    fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only so many sequences fit the memory, less than a batch."""
    model, real = FAMILIES["llama"].build(), TrialRun.forward

    def short(self: TrialRun, examples: Any) -> Any:
        if len(examples) > fitting:
            raise torch.OutOfMemoryError("no memory")
        return real(self, examples)

    monkeypatch.setattr(TrialRun, "forward", short)
    rows = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(EXAMPLES.rows, EXAMPLES.rows[1:], strict=False)
    ]
    pairs = ExampleSet(source="test", format="preference", rows=tuple(rows))
    objective = ObjectiveSettings(objective="dpo", loss_type="apo_down", beta=0.1)
    found = hlscore.rank(
        model, byte_tokenizer(), data=rows, objective="dpo", loss_type="apo_down", beta=0.1,
        rank=RANK, movement="trial",
        trials=2, trial_steps=3, trial_rate=RATE, batch_size=4, trial_optimizer="rms",
    )  # fmt: skip
    probes = encode(
        pairs, byte_tokenizer(), model, objective=objective, max_length=None, groups=1, seed=0
    )
    names = [row.parameter for row in found.report.candidates]
    slow = slow_updates(model, probes, names, "rms", steps=3, pair_loss="apo_down")
    wanted = [expected_hls(slow, row.parameter) for row in found.report.candidates]
    for row, value in zip(found.report.candidates, wanted, strict=True):
        assert row.hls == pytest.approx(value, rel=1e-2, abs=1e-2 * max(wanted))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_weights_come_back_after_an_exception(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after every test here, a fixture finds weights, flags and gradients as they were."""
    calls, real = [], GradientCapture._take_gradient

    def breaks(self: GradientCapture, name: str, parameter: torch.Tensor) -> None:
        calls.append(name)
        real(self, name, parameter)
        if len(calls) == 20:
            raise error

    monkeypatch.setattr(GradientCapture, "_take_gradient", breaks)
    with pytest.raises(error):
        run_report("llama", EXAMPLES, options())


def test_batch_size_does_not_change_trials() -> None:
    expected = scored("llama", EXAMPLES, options(batch_size=1))
    for size in (3, 8):
        assert_near(scored("llama", EXAMPLES, options(batch_size=size)), expected)


@pytest.mark.parametrize(("rate", "measuring"), [(RATE, True), (None, True), (None, False)])
def test_out_of_memory_halves_the_batch_and_changes_no_step(
    rate: float | None, measuring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every pass of a run, or only in those that train."""
    model, run = FAMILIES["llama"].build(), options(trial_rate=rate)
    wanted = run_report(model, EXAMPLES, run)
    real = TrialRun.forward

    def short(self: TrialRun, examples: Any) -> Any:
        if len(examples) > 1 and (measuring or torch.is_grad_enabled()):
            raise torch.OutOfMemoryError("no memory")
        return real(self, examples)

    monkeypatch.setattr(TrialRun, "forward", short)
    report = run_report(model, EXAMPLES, run)
    assert any("halved down to 1" in note for note in report.run.notes)
    assert report.run.trial_rate == wanted.run.trial_rate
    assert_near(by_module(report.rows), by_module(wanted.rows))


@pytest.mark.parametrize(("compensated", "rate"), [(True, 1e-5), (False, 2e-3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_trials_score_as_float32_does(
    dtype: torch.dtype, compensated: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compensated also at a rate that rounding to the nearest would lose altogether."""
    monkeypatch.setattr(TrialRun, "_kept_bytes", lambda *_: 0 if compensated else 2**60)
    examples = completions(64)
    model = FAMILIES["llama"].build().to(dtype)
    run = options(trial_rate=rate, groups=2, trials=4)
    narrow = scored(model, examples, run)
    wide = scored(copy.deepcopy(model).float(), examples, run)
    found = np.array([narrow[name].hls for name in wide])
    wanted = np.array([row.hls for row in wide.values()])
    assert np.corrcoef(found, wanted)[0, 1] > 0.95
    assert found.sum() == pytest.approx(wanted.sum(), rel=0.25)


def test_random_rounding_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.full((200_000,), 1.0 + 2**-10)
    for dtype, digit in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10)):
        rounded = round_randomly(values, dtype, generator)
        assert set(rounded.float().unique().tolist()) <= {1.0, 1.0 + digit}
        assert float(rounded.double().mean()) == pytest.approx(1.0 + 2**-10, abs=1e-4)
    negative = round_randomly(-values, torch.bfloat16, generator)
    assert float(negative.double().mean()) == pytest.approx(-1.0 - 2**-10, abs=1e-4)
    assert torch.equal(round_randomly(values, torch.float32, generator), values)


def learnable(count: int) -> ExampleSet:
    """Text that a few steps make likelier: one completion for all."""
    rows = tuple({"prompt": f"{i:03d}", "completion": "abcabcabc"} for i in range(count))
    return ExampleSet(source="test", format="prompt_completion", rows=rows)


def test_a_rate_is_found_within_a_factor_of_four_of_the_best() -> None:
    model = FAMILIES["llama"].build()
    report = run_report(model, learnable(48), options(trial_rate=None, trial_steps=8))
    note = next(note for note in report.run.notes if "learning rate" in note)
    rate = report.run.trial_rate
    assert f"learning rate {rate:.2g} (found)" in note
    assert rate is not None
    assert 4e-4 <= rate <= 0.2
    assert any("change the held-out loss" in text for text in report.run.notes)


@pytest.mark.parametrize(
    ("rate", "at_base", "says"),
    [
        (None, False, "diverge at every learning rate"),
        (1e-3, False, "diverge at every learning rate"),
        (None, True, "not finite with the base weights"),
    ],
)
def test_losses_that_are_not_finite_are_one_clear_error(
    rate: float | None, at_base: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real = FAMILIES["llama"].build(), TrialRun._mean_loss
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    before = weight.detach().clone()

    def explodes(*args: Any) -> Any:
        loss, passed = real(*args)
        broken = at_base or not torch.equal(weight, before)
        return loss * float("nan") if broken else loss, passed

    monkeypatch.setattr(TrialRun, "_mean_loss", explodes)
    with pytest.raises(CaptureError, match=says):
        run_report(model, EXAMPLES, options(trial_rate=rate))


def test_a_trial_that_diverges_is_run_again_from_the_base_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A found rate at which a later trial diverges is lowered; nothing of the failure is left."""
    model = FAMILIES["llama"].build()
    rate = RATE * trials.RATE_FACTOR
    real, calls = TrialRun._step, []

    def fails_once(self: Any, units: Any, references: Any, *, at_base: bool) -> None:
        real(self, units, references, at_base=at_base)
        calls.append(at_base)
        if len(calls) == 6:  # the last of 3 steps of the second trial
            raise trials.DivergedError

    def found(self: Any) -> float:
        self.state = replace(self.state, search=(3.0, 2.0))  # of the rate that diverges
        return rate

    monkeypatch.setattr(TrialRun, "_find_rate", found)
    monkeypatch.setattr(TrialRun, "_step", fails_once)
    report = run_report(model, EXAMPLES, options(trial_rate=None, bootstrap=20))
    assert len(calls) == 6 + 4 * 3
    expected = run_report(model, EXAMPLES, options(trial_rate=RATE, bootstrap=20))
    assert [row.changed() for row in report.rows] == [row.changed() for row in expected.rows]
    assert report.probes.mean_loss == expected.probes.mean_loss
    assert report.run.trial_rate == expected.run.trial_rate == RATE
    assert not any("held-out loss" in note for note in report.run.notes)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (50, "4 trials of 6 steps (not 50: each example is seen once)"),
        (None, "4 trials of 3 steps (not 64: a step has two examples)"),
    ],
)
def test_a_trial_takes_no_more_steps_than_it_has_examples(steps: int | None, said: str) -> None:
    report = run_report("llama", EXAMPLES, options(trials=4, trial_steps=steps))
    assert any(note.startswith(said) for note in report.run.notes)


def test_all_trials_take_as_many_steps_as_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of an example stay in one trial, which has more examples then."""
    steps, real = [], TrialRun._train

    def noted(self: TrialRun, units: Any, rate: float, count: int, *, trial: int) -> None:
        steps.append((len(units), count))
        real(self, units, rate, count, trial=trial)

    monkeypatch.setattr(TrialRun, "_train", noted)
    rows = (*EXAMPLES.rows, *(EXAMPLES.rows[0],) * 30)
    run_report("llama", replace(EXAMPLES, rows=rows), options(trials=4, trial_steps=None))
    sizes, counts = zip(*steps, strict=True)
    assert max(sizes) > 2 * min(sizes)
    assert set(counts) == {max(2, min(sizes) // 2)}


def test_the_default_is_64_steps_where_there_are_examples_for_them() -> None:
    given = CaptureSettings()
    steps = [given.steps_of(examples) for examples in (2, 3, 5, 80, 127, 128, 1000)]
    assert steps == [2, 2, 2, 40, 63, 64, 64]


def test_trials_that_cannot_be_run_are_refused() -> None:
    model = FAMILIES["llama"].build()
    with pytest.raises(CaptureError, match="No weight moved"):
        run_report(model, EXAMPLES, options(trial_rate=1e-30))
    with pytest.raises(DataError, match="too few for 8 trials"):
        run_report(model, completions(6), options(trials=8))
    for given in ({"trials": 8}, {"trial_steps": 3}, {"trial_rate": 0.1}):
        with pytest.raises(UsageError, match="is for trials, and none are run"):
            settings(movement="gradient", **given)
    with pytest.raises(UsageError, match="--trials is 3"):
        options(trials=3)
    for score, says in (("kappa", "does not use trials"), ("l1_adam", "needs gradients")):
        with pytest.raises(UsageError, match=says):
            hlscore.rank(
                model, byte_tokenizer(), data=list(EXAMPLES.rows), movement="trial", score=score
            )


@pytest.mark.parametrize(("run", "together"), [(options(trials=2), True), (settings(), False)])
def test_trials_of_several_processes_are_stored_in_step(
    run: RankSettings, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process holds the sums of all, so that the others are done with saving much sooner."""
    told, real = [], ProgressFile.__init__

    def noted(self: ProgressFile, *args: Any, **more: Any) -> None:
        told.append(more["together"])
        real(self, *args, **more)

    monkeypatch.setattr(ProgressFile, "__init__", noted)
    storage = UnfinishedRun(folder=tmp_path, every_seconds=0, resume=False)
    run_report("llama", EXAMPLES, run, storage=storage)
    assert told == [together]


class _StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_after_its_last_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llama"].build()
    run = options(trials=4, trial_rate=None, bootstrap=20)

    def report(*, resume: bool) -> ScoreReport:
        storage = UnfinishedRun(folder=tmp_path, every_seconds=0, resume=resume)
        return run_report(model, EXAMPLES, run, storage=storage)

    expected = report(resume=False)
    real = ExactGradients.end_group

    def stops(self: ExactGradients, half: int, group: int) -> None:
        if group == 2:
            raise _StoppedError
        real(self, half, group)

    with monkeypatch.context() as patch:
        patch.setattr(ExactGradients, "end_group", stops)
        with pytest.raises(_StoppedError):
            report(resume=False)
    seeds: list[int] = []
    restart = TrialOptimizer.restart

    def counts(self: TrialOptimizer, seed: int) -> None:
        seeds.append(seed)
        restart(self, seed)

    monkeypatch.setattr(TrialOptimizer, "restart", counts)
    found = report(resume=True)
    assert seeds == [0, 3, 4]  # those of the third and the fourth trial
    assert [row.changed() for row in found.rows] == [row.changed() for row in expected.rows]
    assert found.probes.mean_loss == expected.probes.mean_loss
    assert found.run.notes == expected.run.notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unreached_modules_stay_unreached(dtype: torch.dtype) -> None:
    model = FAMILIES["qwen3_moe"].build(dtype)
    report = run_report(model, EXAMPLES, options(groups=1, trials=2))
    assert any((row.grad_energy or 0) > 0 for row in report.candidates)
    gradient = run_report(model, EXAMPLES, settings(movement="gradient"))
    assert {row.module for row in report.rows if row.status == "unreached"} == {
        row.module for row in gradient.rows if row.status == "unreached"
    }


@pytest.mark.parametrize(
    ("movement", "number", "where"),
    [
        ("gradient", 1, "fails"),  # in the self check
        ("gradient", 5, r"fails in probe group \d.*"),
        ("trial", 5, r"fails in probe group \d.*"),
    ],
)
def test_an_error_of_the_models_own_code_names_the_model(
    movement: str, number: int, where: str
) -> None:
    model, passes = FAMILIES["llama"].build(), []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) == number:
            raise ValueError("no kernel for this shape")

    model.register_forward_pre_hook(fail)
    with pytest.raises(CaptureError, match=f"LlamaForCausalLM {where}: no kernel"):
        run_report(model, EXAMPLES, settings(movement=movement))
