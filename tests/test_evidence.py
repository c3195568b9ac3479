"""The evidence study: its trainings against plain loops, its figures against plain arithmetic."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from benchmark_scripts import (
    BENCHMARKS,
    part,
    plain_training,
    scripts_in,
    tiny_llama,
    with_lora,
)
from scipy.stats import kendalltau, ttest_1samp
from transformers import LlamaForCausalLM

import hlscore

_path = scripts_in(BENCHMARKS / "evidence")


def tiny_model() -> LlamaForCausalLM:
    return tiny_llama(len(part("world").WORDS))


def lora_model(**options: Any) -> peft.PeftModel:
    return with_lora(tiny_model(), **options)


def full_model() -> LlamaForCausalLM:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("proj" in name)
    return model


@pytest.mark.parametrize("wrapped", [full_model, lora_model, lambda: lora_model(use_dora=True)])
def test_stacked_trainings_equal_plain_ones(wrapped: Any) -> None:
    world, stacked = part("world"), part("stacked")
    task = world.fine_tuning_tasks(world.new_world())["next"]

    def batch(seed: int, step: int) -> Any:
        return world.encode(task.draw(np.random.default_rng((seed, step)), 8))

    test = world.encode(task.draw(np.random.default_rng(5), 70))
    trials = [
        stacked.Trial(seed=0, full_rate=1e-3, lora_rate=1e-2),
        stacked.Trial(seed=1, full_rate=3e-3, lora_rate=3e-2),
    ]
    found, _ = stacked.train(
        wrapped(), trials, batch, steps=6, measured=(3,), tuning=test, test=test
    )
    for trial, result in zip(trials, found, strict=True):
        model = wrapped()

        def loss(given: Any, model: Any = model) -> torch.Tensor:
            found: torch.Tensor = model(input_ids=given.ids, labels=given.labels).loss
            return found

        rates = {True: trial.lora_rate, False: trial.full_rate}
        losses = (loss(batch(trial.seed, step)) for step in range(1, 7))
        plain_training(model, lambda name, rates=rates: rates["lora_" in name], losses, 6, 0.1)
        with torch.no_grad():
            expected = loss(test).item()
        assert result.curve[-1] == pytest.approx(expected, rel=2e-4)
        assert np.mean(result.losses) == pytest.approx(expected, rel=2e-4)
        assert len(result.curve) == 2


def test_worlds_differ_where_they_should() -> None:
    world = part("world")
    old, new = world.old_world(), world.new_world()
    changed = (old.chain != new.chain).any(axis=1).sum()
    assert changed == world.CHANGED_STATES
    assert 0.25 < (old.facts != new.facts).any(axis=2).mean() <= 1 / 3
    assert ((old.next != new.next).sum(axis=1) >= world.CHANGED_SYMBOLS - 3).all()
    assert np.allclose(new.chain.sum(axis=1), 1)


def test_examples_are_true() -> None:
    world = part("world")
    new = world.new_world()
    place = {word: number for number, word in enumerate(world.SYMBOLS)}
    keys = {word: number for number, word in enumerate(world.KEYS)}
    tasks = world.fine_tuning_tasks(new)
    for row in tasks["facts"].draw(np.random.default_rng(0), 50):
        _, first, second, _ = row["prompt"].split()
        expected = new.facts[keys[first], keys[second]]
        assert [place[word] for word in row["completion"].split()] == list(expected)
    for row in tasks["next"].draw(np.random.default_rng(0), 50):
        given = [place[word] for word in row["prompt"].split()[1:-1]]
        expected = [new.next[where, symbol] for where, symbol in enumerate(given)]
        assert [place[word] for word in row["completion"].split()] == expected
    lines = [row["text"].split() for row in tasks["chain"].draw(np.random.default_rng(0), 400)]
    counts = np.zeros_like(new.chain)
    for line in lines:
        for before, after in itertools.pairwise(line):
            counts[place[before], place[after]] += 1
    seen = counts.sum(axis=1) > 300
    shares = counts[seen] / counts[seen].sum(axis=1, keepdims=True)
    assert np.abs(shares - new.chain[seen]).max() < 0.12
    steps = ((place[a], place[b]) for line in lines for a, b in itertools.pairwise(line))
    entropy = np.log(len(place)) * len(lines) - sum(np.log(new.chain[step]) for step in steps)
    assert tasks["chain"].floor == pytest.approx(entropy / sum(map(len, lines)), rel=0.03)


def test_product_reads_the_examples_as_the_trainings_do() -> None:
    world = part("world")
    row = world.fine_tuning_tasks(world.new_world())["facts"].draw(np.random.default_rng(0), 1)[0]
    tokenizer = world.tokenizer()
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    assert ids == world.encode([row]).ids[0].tolist()[:-1]


def test_rates_go_on_beyond_an_edge() -> None:
    study = part("study")
    best = (8e-3, 4e-2)

    def run(trials: list[Any]) -> list[Any]:
        stacked = part("stacked")
        return [
            stacked.Trained(
                trial=trial, curve=(), losses=(), accuracy=0.0,
                tuning_loss=abs(np.log(trial.full_rate / best[0]))
                + abs(np.log(trial.lora_rate / best[1])),
            )
            for trial in trials
        ]  # fmt: skip

    trials = part("trials")
    found = trials.tune("hybrid", run)
    assert trials.best_of(found) == pytest.approx(best)
    assert {trial.seed for trial in trials.trials_at(best)} == set(trials.SEEDS)
    assert not set(trials.SEEDS) & {*trials.TUNING_SEEDS, *study.ORACLE_SEEDS}


def test_gap_and_rival_by_hand() -> None:
    analysis = part("analysis")
    rng = np.random.default_rng(0)

    def entry(level: float, parameters: int = 0) -> dict[str, Any]:
        table = level + 0.01 * rng.standard_normal((5, 40))
        return {"trials": [{"losses": list(row)} for row in table], "parameters": parameters}

    full, lora, arm = entry(1.0), entry(2.0), entry(1.4)
    means = [float(np.mean([t["losses"] for t in item["trials"]])) for item in (arm, lora, full)]
    figure = analysis.gap_recovered(arm, lora, full)
    assert figure.value == pytest.approx((means[1] - means[0]) / (means[1] - means[2]))
    assert figure.low < figure.value < figure.high
    assert figure.high - figure.low < 0.02
    uniform = [entry(2.0, 100), entry(1.0, 400)]
    middle = analysis.lora_of_size(uniform, 200)
    halves = [np.array([t["losses"] for t in item["trials"]]) for item in uniform]
    assert np.allclose(middle, (halves[0] + halves[1]) / 2)
    assert np.allclose(analysis.lora_of_size(uniform, 100), halves[0])
    assert np.allclose(analysis.lora_of_size(uniform, 400), halves[1])


def test_agreement_with_the_oracle() -> None:
    analysis = part("analysis")
    rng = np.random.default_rng(0)
    modules = [f"m{number}" for number in range(12)]
    gains = {name: list(rng.standard_normal(3)) for name in modules}
    oracle = {
        "gains": gains,
        "kinds": {name: "ab"[place % 2] for place, name in enumerate(modules)},
        "scores": {
            name: {"x": float(rng.standard_normal()), "n_params": 10 * (1 + place % 3)}
            for place, name in enumerate(modules)
        },
    }
    x = [oracle["scores"][name]["x"] for name in modules]
    y = [np.mean(gains[name]) for name in modules]
    assert analysis.agreement(oracle, "x", per_parameter=False, within_kind=False) == (
        pytest.approx(kendalltau(x, y).statistic)
    )
    each = [kendalltau(x[place::2], y[place::2]).statistic for place in (0, 1)]
    assert analysis.agreement(oracle, "x", per_parameter=False, within_kind=True) == (
        pytest.approx(np.mean(each))
    )
    table = np.array(list(gains.values()))
    pairs = [kendalltau(table[:, a], table[:, b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert analysis.self_agreement(gains) == pytest.approx(np.mean(pairs))


def test_journal_goes_on(tmp_path: Path) -> None:
    journal = part("journal")
    path = tmp_path / "a.jsonl"
    journal.Journal(path, {"steps": 1}).add("full", {"loss": 1.0})
    assert journal.Journal(path, {"steps": 1}).arms["full"]["loss"] == 1.0
    assert journal.Journal(path, {"steps": 2}).arms == {}


@pytest.fixture(scope="module")
def planner(_path: None) -> Any:
    world = part("world")
    rows = world.fine_tuning_tasks(world.new_world())["next"].draw(np.random.default_rng(0), 32)
    report = hlscore.rank(
        tiny_model(), world.tokenizer(), data=rows, rank=2, ranks=part("study").UNIFORM_RANKS,
        samples=0, estimator="exact", weight_scores=True, checkpointing=False,
    ).report  # fmt: skip
    return part("arms").Planner(report=report, rank=2)


def test_plans_of_ranks_cost_what_one_rank_does(planner: Any) -> None:
    arms = [planner.lora(4), *(part("ranks").ranks_arm(planner, "tail", 4, p) for p in (1.0, 0.25))]
    plain, *others = (part("trials").trainable(arm.wrap(tiny_model())) for arm in arms)
    assert all(0.9 * plain < other <= plain for other in others)
    assert all(len(set(arm.ranks.values())) > 1 for arm in arms[1:])


def test_arms_of_one_shape_and_other_ranks_are_not_the_same(planner: Any) -> None:
    trials = part("trials")
    arm = part("arms").Arm(name="", kind="hybrid", wrap=tiny_model, full=("a",), rank=2)
    other = {"kind": "hybrid", "full": ["a"], "rank": 2}
    assert trials.same(other, arm)
    assert not trials.same({**other, "ranks": {"b": 4}}, arm)
    drawn = planner.drawn("x", seed=0, params=planner.scored("hls").totals.full_params)
    assert trials.same({"kind": "hybrid", "full": list(drawn.full), "rank": 2}, drawn)


def test_largest_modules_are_the_largest(planner: Any) -> None:
    sizes = {row.module: row.n_params for row in planner.report.candidates}
    chosen = [part("replicas").largest(planner, "", draw, 2).full for draw in range(6)]
    assert {sizes[name] for names in chosen for name in names} == {max(sizes.values())}
    assert len(set(chosen)) > 1


def entry_of(loss: float, parameters: int = 0) -> dict[str, Any]:
    return {"trials": [{"losses": [loss, loss]}], "parameters": parameters}


def test_power_is_fitted_on_other_tasks() -> None:
    ranks, table = part("ranks"), part("tables")
    losses = {("a", 1.0): 2.0, ("a", 0.5): 0.9, ("b", 1.0): 0.8, ("b", 0.5): 1.0}
    studies: dict[str, dict[str, Any]] = {}
    for task in ("a", "b"):
        arms = {f"lora r={rank}": entry_of(1.0) for rank in ranks.EQUAL_TO}
        for power in (1.0, 0.5):
            for rank in ranks.EQUAL_TO:
                arms[ranks.name_of("hls", rank, power)] = entry_of(losses[task, power])
        studies[task] = arms
    ratios = table.ratios_of(studies)
    assert set(ratios) == {("hls", 1.0), ("hls", 0.5)}
    assert ratios["hls", 1.0]["a", 4] == pytest.approx(np.log(2.0))
    assert table.fitted(ratios, "hls", ["a"]) == 0.5
    assert table.fitted(ratios, "hls", ["b"]) == 1.0
    held_out = table.ranks_table(studies)[-1].split(" | ")
    assert "fitted" in held_out[0]
    assert held_out[1:5] == ["+100.0 %", "+100.0 %", "+0.0 %", "+0.0 %"]


def test_spread_over_models_is_students() -> None:
    table = part("replicas_table")
    values = [0.3, 0.5, 0.45, 0.7]
    found = table.Spread(values=values)
    ends = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.ends == pytest.approx((ends.low, ends.high))
    arms = {"lora r=2": entry_of(2.0, 100), "full": entry_of(1.0), "x": entry_of(1.25, 200)}
    assert table.recovered(arms, "x") == pytest.approx(0.75)


def test_bytes_of_a_step_are_those_of_its_tensors(planner: Any) -> None:
    cost = part("cost")
    way = cost.Way(planner.lora(2), tiny_model(), torch.randint(60, (2, 8)))
    way.timed_step()
    found = way.cost()
    trained = sum(value.nbytes for value in way.trained)
    weights = sum(value.nbytes for value in way.model.parameters())
    steps = 4 * len(way.trained)  # AdamW counts the steps of each tensor
    buffers = sum(value.nbytes for value in way.model.buffers())
    assert found.parameters * 4 == trained
    assert found.state_bytes == weights + buffers + 3 * trained + steps
    assert found.peak_bytes > found.state_bytes
    assert cost.equal_rank(5.0, {2: 4.0, 4: 8.0}) == pytest.approx(2.5)


def reported_arms() -> dict[str, dict[str, Any]]:
    named = (("full", 0.5, 800), ("lora r=1", 1.2, 100), ("lora r=2", 1.0, 200),
             ("hybrid hls", 0.6, 200), ("hybrid random 0", 0.7, 210),
             ("hybrid random 1", 0.9, 220))  # fmt: skip
    trial = {"seed": 5, "full_rate": 0.1, "lora_rate": 0.2}
    common = {"trial": trial, "accuracy": 0.5, "curve": [3.0, 2.0]}
    return {
        name: {"name": name, "parameters": size, "seconds": 1.0,
               "trials": [{**common, "losses": [loss, loss]}] * 2}
        for name, loss, size in named
    }  # fmt: skip


def test_table_of_arms_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = part("arm_table")
    journal = part("journal").Journal(tmp_path / "arms.jsonl", {})
    for name, entry in {**reported_arms(), "oracle": {"gains": {"a": 1.0}}}.items():
        journal.add(name, entry)
    monkeypatch.setattr(table, "path_of", lambda *_: tmp_path / "arms.jsonl")
    arms = table.finished_arms("small", "next", 2)
    assert table.RANDOM in arms
    assert table.EQUAL not in arms
    assert table.RANDOM not in table.finished_arms("small", "next", 3)
    first, blank, _, _, *rows = table.arm_table(arms, "bits")
    assert first.startswith("LoRA of rank 2 lags full fine-tuning by 0.5000 [0.5000, 0.5000] bits")
    assert not blank
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    # LoRA of 200 parameters is r=2 itself.
    assert cells["hybrid hls"] == ["200", "0.6000", "0.80 [0.80, 0.80]", "-40 % [-40, -40]"]
    assert cells["lora r=2"][2] == "reference"
    assert cells["hybrid random"][:2] == ["215", "0.8000"]
    arms["full"] = {**arms["full"], "trials": arms["lora r=1"]["trials"]}
    assert " | no gap | " in table.arm_table(arms, "bits")[-1]


def test_result_files_hold_means_and_nothing_pooled() -> None:
    table = part("arm_table")
    arms = {**reported_arms(), table.RANDOM: reported_arms()["full"]}
    found = table.result_of(arms)
    assert set(found) == set(reported_arms())
    assert found["hybrid hls"]["trials"][1] == {
        "seed": 5, "full_rate": 0.1, "lora_rate": 0.2, "loss": 0.6, "accuracy": 0.5,
        "curve": "3.0 2.0",
    }  # fmt: skip


def test_every_published_arm_has_its_kind_in_the_figure() -> None:
    figure, latest = part("figure"), part("published").latest
    found = {**latest("evidence"), **latest("evidence_rlvr")}
    names = {name for study, arms in found.items() if ", " in study for name in arms}
    kinds: dict[str, set[str]] = {}
    for name in names - {"oracle"}:
        kinds.setdefault(figure.kind_of(name), set()).add(name.split()[0])
    assert set(kinds) == set(figure.COLOURS)
    assert kinds[figure.PEFT] == {*part("arms").BASELINES, *part("rlvr").PEERS, "adalora"}
    assert kinds[figure.RANKS] == {"ranks"}
    assert kinds[figure.TRAINED] == kinds[figure.DRAWN] == kinds[figure.BY_SCORE] == {"hybrid"}


def test_tables_are_put_into_their_place(tmp_path: Path) -> None:
    part("published")  # which finds the scripts one folder up
    fill = part("marked").fill
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    for _ in range(2):
        fill(readme, "x", "\n| new |\n")
        assert readme.read_text() == "a\n<!-- x -->\n\n| new |\n\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="no place for y"):
        fill(readme, "y", "\n| new |\n")
    assert "| new |" in readme.read_text()


def test_newest_result_file_is_read(tmp_path: Path) -> None:
    latest = part("published").latest
    assert latest("evidence", tmp_path) == {}
    for name in ("evidence_2026-01-09", "evidence_2026-01-10", "evidence_rlvr_2026-02-01"):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}"}}')
    assert latest("evidence", tmp_path)["name"] == "evidence_2026-01-10"
    assert latest("evidence_rlvr", tmp_path)["name"] == "evidence_rlvr_2026-02-01"


def test_rewards_are_shares_of_words_at_their_place() -> None:
    rlvr = part("rlvr")
    found = rlvr.share_right(["a b c", "b a c", "a", "a b c d", ""], ["a b c"] * 5)
    assert found == pytest.approx([1.0, 1 / 3, 1 / 3, 3 / 4, 0.0])
    asked = rlvr.rows((7, 2), 3)
    assert [len(row["answer"].split()) for row in asked] == [part("world").LIST_LENGTH] * 3
    losses, right = rlvr.measured(tiny_model(), asked)
    assert len(losses) == 3
    assert all(0 <= share <= 1 for share in (*losses, right))


def test_movement_goes_on_and_replicas_take_the_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    movement, trials, study = part("movement"), part("trials"), part("study")
    monkeypatch.setattr(trials, "load_base", lambda *_, **__: tiny_model())
    for steps in (trials.STEPS, study.STEPS):
        monkeypatch.setitem(steps, "next", 2)
    monkeypatch.setattr(study, "HELD_OUT", 8)
    monkeypatch.setattr(movement, "PROBES", 16)
    monkeypatch.setattr(movement, "SEEDS", (0, 1))
    for module in (movement, study):
        monkeypatch.setattr(module, "path_of", lambda *names: tmp_path / f"{names}.jsonl")
    arms: dict[str, Any] = {}

    def first_arms(planners: Any) -> list[Any]:
        arms.update((arm.name, arm) for arm in movement.deciding_arms(planners))
        return list(arms.values())[:3]

    monkeypatch.setitem(movement.PARTS, "deciding", first_arms)
    for base in ("small", "small-1"):
        movement.run_part("deciding", base, "next")
    apart = [name.rsplit(".", 1)[-1] for name in arms[movement.APART].full]
    assert len(apart) == len(arms[movement.BY_TRIALS].full)
    assert not {"gate_proj", "up_proj"} <= set(apart)
    first, second = (movement.study_of(base, "next").journal.arms for base in ("small", "small-1"))
    assert list(first) == list(second) == ["full", "lora r=2", movement.BY_TRIALS]
    assert len(first[movement.BY_TRIALS]["tuning"]) == 6
    assert not second[movement.BY_TRIALS]["tuning"]
    assert all(trials.rates_of(first[name]) == trials.rates_of(second[name]) for name in first)
    published = part("published").latest("evidence")["small, next"]["full"]["trials"][0]
    assert trials.rates_of(first["full"]) == (published["full_rate"], 0.0)
    monkeypatch.setattr(trials.Study, "train", None)
    movement.run_part("deciding", "small", "next")


def test_gains_are_products_of_tails_and_the_other_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gain = part("movement_gain")
    torch.manual_seed(0)
    found = {kind: torch.randn(2, 6, 5) for kind in ("trial", "gradient")}

    def scored(*_: Any, movement: str, **__: Any) -> None:
        halves = found[movement].unsqueeze(1)
        gain.capture.reduce_gradients(tuple(halves), name="m")

    monkeypatch.setattr(gain, "scored", scored)
    monkeypatch.setattr(gain.capture, "reduce_gradients", lambda *_, **__: None)
    gains, hls = gain.gains_and_hls(SimpleNamespace(model=lambda: None))
    (a, b), (of_a, of_b) = (found[kind].double() for kind in ("trial", "gradient"))
    tails = []
    for half in (a, b):
        left, values, right = torch.linalg.svd(half)
        tails.append(sum(values[i] * torch.outer(left[:, i], right[i]) for i in range(2, 5)))
    assert hls["m"] == pytest.approx(float((tails[0] * b + tails[1] * a).sum() / 2))
    assert gains["m"] == pytest.approx(-float((tails[0] * of_b + tails[1] * of_a).sum() / 2))
    values = {"0.mlp.gate_proj": 3.0, "0.mlp.up_proj": 4.0, "1.mlp.gate_proj": 2.0}
    assert gain.best(values, 2) == ["0.mlp.up_proj", "1.mlp.gate_proj"]


def test_excess_and_lead_over_lora_of_equal_size_by_hand() -> None:
    table, movement = part("movement_tables"), part("movement")
    arms = {
        "full": entry_of(1.0, 900),
        "lora r=2": entry_of(2.0, 200),
        "lora r=3": entry_of(1.8, 300),
        "lora r=4": entry_of(1.6, 400),
        "lora r=6": entry_of(1.4, 600),
    } | {name: entry_of(1.3, 400) for name in table.HYBRIDS}
    assert table.excess_change(arms, movement.BY_TRIALS) == pytest.approx(-50.0)
    assert table.recovered_by_equal_lora(arms, movement.BY_TRIALS) == pytest.approx(0.4)
    cells = {(base, task): arms for base in ("a", "b", "c") for task in table.TASKS}
    del cells["c", "next"]
    bases = table.finished(cells, table.HYBRIDS)
    assert {task: len(found) for task, found in bases.items()} == {
        "chain": 3, "facts": 3, "next": 2,
    }  # fmt: skip
    row = table.lead_table(cells, bases, movement.APART, table.HYBRIDS)[-1]
    assert row == (
        "| LoRA of equal size | +0.30 [+0.30, +0.30] | +0.30 [+0.30, +0.30] | +0.30 | +0.30 |"
    )


def test_calibration_is_one_where_errors_are_right() -> None:
    tables = part("movement_tables")
    rng = np.random.default_rng(0)
    sets = {
        f"4 trials, probe set {number}": {
            "scores": {f"m{place}": float(rng.normal(scale=3.0)) for place in range(200)},
            "errors": {f"m{place}": 3.0 for place in range(200)},
        }
        for number in range(tables.SETS)
    }
    assert tables.calibration(sets, 4) == pytest.approx(1.0, abs=0.1)


def test_rewards_of_reasoning_gym() -> None:
    scorers = part("real_rlvr").SCORERS
    letters = [scorers["spell_backward"](text, "cba") for text in ("CBA", "cab", "cbaa", "cb", "")]
    assert letters == pytest.approx([1.0, 1 / 3, 0.8, 2 / 3, 0.0])
    words = [
        scorers["letter_jumble"](text, "Two words")
        for text in ("two words", "two", "words two", "two words more", "")
    ]
    assert words == [1.0, 0.5, 0.0, 1.0, 0.0]
    reward = part("real_rlvr").reward_of("spell_backward")
    assert reward(completions=[" cba\n", "x"], answer=["cba", "cba"], prompts=[]) == [1.0, 0.0]


def test_adapters_and_full_modules_have_rates_of_their_own() -> None:
    optimizer, schedule = part("rlvr").optimizers(
        lora_model(modules_to_save=["lm_head"]), full_rate=1e-3, lora_rate=1e-2, steps=20
    )
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert max(rates) == [1e-2, 1e-3]
    assert all(lora == pytest.approx(10 * full) for lora, full in rates)
    assert rates[0] == pytest.approx([5e-3, 5e-4])
    assert rates[-1] == pytest.approx([1e-2 / 18, 1e-3 / 18])
