"""What `validate` computes: arms, splits, search for rates, gaps, verdict, against slow ones."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from plans import family_plan

from hlscore.artifacts.plan import Plan
from hlscore.errors import DataError, UsageError
from hlscore.planning.baselines import nearest_rank
from hlscore.probes.units import ProbeExample, example_sums
from hlscore.validation import gaps
from hlscore.validation.arms import Arm, make_arms, rslora_alpha
from hlscore.validation.gaps import ArmResult, Interval, compare_arms, verdict
from hlscore.validation.run import best, scaling_note, search, split_examples, untried
from hlscore.validation.training import training_order

LOCKS = ("*.0.*.down_proj=full", "*.1.*.q_proj=full")


def arms(full: bool = True) -> dict[str, Arm]:
    made = make_arms(family_plan("llama", *LOCKS), (0, 1, 2), full=full)
    return {arm.name: arm for arm in made}


def with_ranks(plan: Plan, ranks: list[int]) -> Plan:
    return plan.model_copy(update={"lora": plan.lora.model_copy(update={"ranks": ranks})})


def test_arms_are_what_they_say() -> None:
    found = arms()
    names = ["lora", "matched", "rslora", "random", "largest", "last_layers", "plan", "full"]
    assert list(found) == names
    plan = found["plan"].plans[0]
    last = found["last_layers"].plans[0]
    assert {item.layer for item in last.full} == {max(item.layer or 0 for item in plan.modules)}
    assert last.totals.full_params <= plan.totals.full_params
    assert {item.mode for item in found["lora"].plans[0].modules} == {"lora"}
    assert {item.rank for item in found["lora"].plans[0].modules} == {plan.lora.rank}
    assert {item.mode for item in found["full"].plans[0].modules} == {"full"}
    assert "full" not in arms(full=False)
    for arm in found.values():
        names = {item.module for item in arm.plans[1].modules}
        assert names == {item.module for item in plan.modules}
        assert arm.plans[1].skipped == plan.skipped != []


@pytest.mark.parametrize("ranks", [[], [2, 4, 8]])
def test_no_arm_trains_what_the_loss_never_reaches(ranks: list[int]) -> None:
    dead = "model.layers.0.self_attn.k_proj"
    plan = with_ranks(family_plan("llama", *LOCKS, f"{dead}=frozen"), ranks)
    modules = [
        item.model_copy(update={"unreached": True}) if item.module == dead else item
        for item in plan.modules
    ]
    plan = plan.model_copy(update={"modules": modules})
    for arm in make_arms(plan, tuple(range(6)), full=True):
        for made in arm.plans.values():
            modes = {item.module: item.mode for item in made.modules}
            assert modes[dead] == "frozen"
            assert list(modes.values()).count("frozen") == 1


def test_matched_rank_is_the_nearest() -> None:
    plan = arms()["plan"].plans[0]
    sizes = {
        rank: sum(rank * (item.in_features + item.out_features) for item in plan.modules)
        for rank in range(1, 200)
    }
    nearest = min(sizes, key=lambda rank: abs(sizes[rank] - plan.totals.trained_params))
    assert nearest_rank(plan.totals.trained_params, plan.modules) == nearest
    matched = arms()["matched"].plans[0]
    assert matched.totals.trained_params == sizes[nearest]
    alphas = {item.alpha for item in matched.modules}
    assert alphas == {round(plan.lora.alpha * nearest / plan.lora.rank)}
    scaled = arms()["rslora"].plans[0]
    assert scaled.totals == matched.totals
    (alpha,) = {item.alpha for item in scaled.modules}
    assert alpha / nearest == pytest.approx(2 * nearest**0.5, abs=0.5)
    # A plan of a large alpha has that scaling already.
    lora = plan.lora.model_copy(update={"alpha": alpha * plan.lora.rank})
    made = make_arms(plan.model_copy(update={"lora": lora}), (0,), full=False)
    assert "rslora" not in [arm.name for arm in made]


def test_random_draws_are_as_large_and_differ() -> None:
    found = arms()
    budget = found["plan"].plans[0].totals.full_params
    chosen = []
    for plan in found["random"].plans.values():
        full = {item.module: item.params for item in plan.modules if item.mode == "full"}
        left = budget - sum(full.values())
        others = [item.params for item in plan.modules if item.module not in full]
        assert 0 <= left < min(others)
        chosen.append(frozenset(full))
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("ranks", [[], [2, 4, 8]])
def test_every_arm_trains_expert_stacks_of_one_module_together(ranks: list[int]) -> None:
    plan = family_plan("qwen3_moe", "*.0.mlp.experts.*=full", "*.1.*.q_proj=full")
    plan = with_ranks(plan, ranks)
    seen = set()
    for arm in make_arms(plan, tuple(range(8)), full=True):
        for made in arm.plans.values():
            modes: dict[str, set[str]] = {}
            for item in made.modules:
                if item.form == "experts":
                    modes.setdefault(item.module.rpartition(".")[0], set()).add(item.mode)
            assert all(len(found) == 1 for found in modes.values()), arm.name
            if arm.name == "random":
                seen.add(str(sorted((name, *found) for name, found in modes.items())))
    assert len(seen) > 1


def test_ranks_are_dealt_anew_among_modules_of_one_shape() -> None:
    plan = family_plan("llama", "*.0.*.q_proj=rank:2", "*.0.*.up_proj=rank:8",
                       "*.1.*.gate_proj=full", "*.1.*.k_proj=frozen")  # fmt: skip
    plan = with_ranks(plan, [2, 4, 8])
    found = {arm.name: arm for arm in make_arms(plan, tuple(range(6)), full=False)}

    def choices(of: Plan) -> Counter[tuple[object, ...]]:
        return Counter(
            (item.out_features, item.in_features, item.mode, item.rank) for item in of.modules
        )

    dealt = list(found["random"].plans.values())
    assert all(choices(item) == choices(plan) for item in dealt)
    assert {item.totals.trained_params for item in dealt} == {plan.totals.trained_params}
    assert len({str([(m.module, m.mode, m.rank) for m in item.modules]) for item in dealt}) > 2
    with pytest.raises(UsageError, match="no module in full"):
        make_arms(family_plan("llama", "*=rank:4"), (0,), full=True)


def examples(count: int) -> list[ProbeExample]:
    draw = np.random.default_rng(0)
    return [
        ProbeExample(tuple(draw.integers(100, size=5).tolist()), (False, True, True, True, True))
        for _ in range(count)
    ]


def test_parts_share_nothing_and_follow_content() -> None:
    listed = examples(50)
    parts = split_examples(listed, held_out=0.4, seed=1)
    assert [len(part) for part in parts] == [30, 10, 10]
    assert Counter(item for part in parts for item in part) == Counter(listed)
    again = split_examples([*reversed(listed), listed[3]], held_out=0.4, seed=1)
    assert again == parts
    assert split_examples(listed, held_out=0.4, seed=2) != parts
    with pytest.raises(DataError, match="too few"):
        split_examples(listed[:5], held_out=0.3, seed=0)


def test_every_epoch_has_every_example_once() -> None:
    listed = examples(7)
    order = training_order(listed, count=17, seed=3)
    assert Counter(order[:7]) == Counter(order[7:14]) == Counter(listed)
    assert order == training_order(listed, count=17, seed=3)
    assert order != training_order(listed, count=17, seed=4)


@pytest.mark.parametrize(
    ("optimum", "start", "moves", "settled"),
    [
        ((0, 0), (0, 0), (True, False), True),
        ((0, 2), (0, 0), (False, True), True),
        ((0, -4), (0, 0), (False, True), True),
        ((9, 0), (0, 0), (True, False), False),
        ((4, 3), (5, 3), (True, True), True),
        ((6, 1), (5, 3), (True, True), True),
        ((9, -3), (5, 3), (True, True), False),
    ],
)
def test_search_ends_where_no_step_is_better(
    optimum: tuple[int, int], start: tuple[int, int], moves: tuple[bool, bool], settled: bool
) -> None:
    tried: list[tuple[int, int]] = []

    def loss_at(rates: tuple[int, int]) -> float:
        tried.append(rates)
        full, lora = rates[0] - optimum[0], rates[1] - optimum[1]
        return full**2 + lora**2 + full * lora / 2  # the best of one depends on the other

    found = search(loss_at, start=start, moves=moves)
    assert len(tried) == len(set(tried)) == len(found) <= (15 if all(moves) else 8)
    assert tried[0] == start
    assert (not untried(found, moves)) == settled
    if settled:
        assert best(found) == optimum
    for axis in (0, 1):
        if not moves[axis]:
            assert {rates[axis] for rates in tried} == {start[axis]}


def test_diverged_rates_are_never_the_best() -> None:
    def loss_at(rates: tuple[int, int]) -> float:
        return math.nan if rates[0] > -2 else 1.0

    assert best(search(loss_at, start=(0, 0), moves=(True, True)))[0] <= -2


def test_gaps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point figures are plain means; the ends are quantiles of plainly made resamples."""
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 9, size=30).tolist()
    levels = {"lora": 2.0, "plan": 1.5, "full": 1.0}
    sums = {
        name: [(np.array(counts) * (level + 0.3 * draw.standard_normal(30))).tolist()
               for _ in range(4)]
        for name, level in levels.items()
    }  # fmt: skip
    monkeypatch.setattr(gaps, "RESAMPLES", 300)
    found = compare_arms(sums, counts, seed=5)
    means = {name: float(np.sum(table)) / (4 * sum(counts)) for name, table in sums.items()}
    for name, result in found.items():
        assert result.loss.value == pytest.approx(means[name])
        assert result.gain.value == pytest.approx(means["lora"] - means[name])
    share = found["plan"].recovered
    assert share is not None
    assert share.value == pytest.approx(
        (means["lora"] - means["plan"]) / (means["lora"] - means["full"])
    )
    again = np.random.default_rng(5)
    slow = []
    for _ in range(300):
        seeds = again.integers(4, size=4)
        places = again.integers(30, size=30)
        tokens = 4 * sum(counts[place] for place in places)
        loss = {
            name: sum(table[seed][place] for seed in seeds for place in places) / tokens
            for name, table in sums.items()
        }
        slow.append((loss["lora"] - loss["plan"]) / (loss["lora"] - loss["full"]))
    assert share.low == pytest.approx(np.quantile(slow, 0.025))
    assert share.high == pytest.approx(np.quantile(slow, 0.975))


def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 trials with a known gain, about 95 % hold it; with few seeds some fewer."""
    monkeypatch.setattr(gaps, "RESAMPLES", 500)
    draw, held = np.random.default_rng(1), 0
    for _ in range(60):
        noise = draw.standard_normal((2, 8, 1)) * 0.1
        table = 1.0 + noise + 0.2 * draw.standard_normal((2, 8, 40))
        sums = {"lora": (table[0] + 0.3).tolist(), "plan": table[1].tolist()}
        gain = compare_arms(sums, [1] * 40, seed=0)["plan"].gain
        held += gain.low <= 0.3 <= gain.high
    assert 48 <= held <= 60


def test_no_gap_no_ratio() -> None:
    table = np.random.default_rng(0).standard_normal((3, 4, 50)) * 0.1 + 1
    sums = dict(zip(("lora", "plan", "full"), table.tolist(), strict=True))
    assert compare_arms(sums, [1] * 50, seed=0)["plan"].recovered is None


def result(ahead: dict[str, tuple[float, float]], share: float | None) -> ArmResult:
    def interval(low: float, high: float) -> Interval:
        return Interval(value=(low + high) / 2, low=low, high=high)

    return ArmResult(
        loss=interval(1, 1),
        gain=interval(0.1, 0.3),
        recovered=None if share is None else interval(share - 0.1, share + 0.1),
        better_than={name: interval(*ends) for name, ends in ahead.items()},
    )


Ends = tuple[float, float]


def results(
    matched: Ends, drawn: Ends, share: float | None = 0.62, others: float | None = 0.3
) -> dict[str, ArmResult]:
    """Results in which the plan recovers 62 % of the gap, and its rivals 30 %."""
    rivals = dict.fromkeys(("lora", "matched", "random", "full"), result({}, others))
    return {**rivals, "plan": result({"matched": matched, "random": drawn}, share)}


def said(found: dict[str, ArmResult], **given: Any) -> tuple[str, ...]:
    return verdict(found, **{"untrained": 2.0, "seeds": 5, "steps": 60} | given)


AHEAD, BEHIND, OPEN = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)


def test_a_larger_alpha_is_recommended_where_it_helps_lora_of_equal_size() -> None:
    plan = arms()["plan"].plans[0]
    found = {"matched": result({}, 0.3), "plan": result({}, 0.6)}
    assert scaling_note(found, plan) == ()
    for ahead, said_so in ((AHEAD, True), (OPEN, False), (BEHIND, False)):
        told = scaling_note(found | {"rslora": result({"matched": ahead}, 0.4)}, plan)
        assert len(told) == int(said_so)
        assert all(f"--alpha {rslora_alpha(plan.lora.rank)} " in note for note in told)
    large = plan.lora.model_copy(update={"alpha": rslora_alpha(plan.lora.rank)})
    found["rslora"] = result({"matched": AHEAD}, 0.4)
    assert scaling_note(found, plan.model_copy(update={"lora": large})) == ()


@pytest.mark.parametrize(
    ("matched", "drawn", "says"),
    [
        (AHEAD, AHEAD, ("better than LoRA with as many", "better than a random choice")),
        (BEHIND, AHEAD, ("worse than LoRA with as many", "train that instead")),
        (OPEN, BEHIND, ("is not settled", "chose badly")),
    ],
)
def test_verdict(matched: Ends, drawn: Ends, says: tuple[str, str]) -> None:
    found = results(matched, drawn)
    text = " ".join(said(found))
    assert "recovers 62 % [52, 72] of the gap" in text
    assert "a random choice 30 % [20, 40]" in text
    assert all(part in text for part in says)
    assert "few" not in text
    assert "3 seeds are few" in " ".join(said(found, seeds=3))


def test_a_plan_that_diverged_recovers_nothing() -> None:
    table = np.random.default_rng(0).standard_normal((3, 4, 50)) * 0.1
    table += np.array([2.0, 1.5, 1.0])[:, None, None]
    table[1, 2] = math.nan
    sums = dict(zip(("lora", "plan", "full"), table.tolist(), strict=True))
    (first, *_) = said(compare_arms(sums, [1] * 50, seed=0))
    assert first.startswith("The plan diverged with a seed")


def test_verdict_without_a_gap() -> None:
    found = results(OPEN, OPEN, None, None)
    first = said(found)[0]
    assert "nothing for a plan to recover" in first
    assert "%" not in first
    del found["full"]
    assert "left out" in said(found)[0]


def test_no_verdict_while_it_is_too_early() -> None:
    found = results(AHEAD, AHEAD)
    assert said(found, steps=2) == ("No verdict: 2 steps are too few to tell. Give more --steps.",)
    (unlearned,) = said(found, untrained=0.5)
    assert unlearned.startswith(
        "No verdict: no arm does better than the untrained model (0.5000 nats"
    )
    gap, matched, drawn = said(found, unsettled=["full", "random"])
    assert gap.startswith("No verdict on the gap: the best learning rate of full, random is")
    assert "better than LoRA with as many" in matched
    assert drawn.startswith("Plan and a random choice: no verdict")
    assert all("o verdict" in line for line in said(found, unsettled=["plan"]))


def test_a_plan_for_another_loss_is_said_first() -> None:
    found = results(AHEAD, AHEAD)
    first, *others = said(found, objective="grpo")
    assert first.startswith("The plan was made for grpo, and these trainings are SFT")
    assert said(found) == said(found, objective="none") == tuple(others)


def test_example_sums_are_plain_losses() -> None:
    model = FAMILIES["llama"].build().eval()
    listed = [
        ProbeExample((1, 2, 3, 4, 5), (False, False, True, True, True)),
        ProbeExample((7, 8, 9), (False, True, False)),
        ProbeExample((5, 6, 7, 8, 9, 10, 11), (False, *(True,) * 6)),
    ]
    found = example_sums(model, listed, 0, batch_size=8)
    for item, total in zip(listed, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        expected = -sum(
            float(logits[place - 1, token])
            for place, (token, counted) in enumerate(zip(item.input_ids, item.counted, strict=True))
            if counted
        )
        assert total == pytest.approx(expected, rel=1e-4)
