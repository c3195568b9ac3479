"""The study on a real model, on a tiny one: trainings against plain loops, resuming, tables."""

from pathlib import Path
from typing import Any

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
from tokens import VOCAB_SIZE, byte_tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

_path = scripts_in(BENCHMARKS / "evidence")


def tiny_model() -> LlamaForCausalLM:
    return tiny_llama(VOCAB_SIZE)


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"add {n} {n + 3}\n", "completion": f" {2 * n + 3}"}
        for n in range(start, start + count)
    ]


def examples(count: int, start: int = 0) -> Any:
    study, training = part("real_study"), part("real_training")
    encoded = study.encoded(rows(count, start), byte_tokenizer(), tiny_model())
    length = max(len(item.input_ids) for item in encoded)
    return encoded, training.tensors_of(encoded, length, 8, torch.device("cpu"))


def lora(**options: Any) -> Any:
    return with_lora(tiny_model(), **options)


def hybrid() -> Any:
    return lora(modules_to_save=["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"],
                exclude_modules=r".*(0.mlp.down_proj|1.self_attn.q_proj)")  # fmt: skip


@pytest.mark.parametrize(
    "wrapped",
    [
        hybrid,
        lambda: lora(use_dora=True, lora_alpha=7),
        lambda: lora(use_rslora=True, init_lora_weights="pissa"),
    ],
)
def test_trainings_equal_plain_loops_over_the_wrapped_model(wrapped: Any) -> None:
    training = part("real_training")
    encoded, data = examples(24)
    trials = [
        training.Trial(seed=0, full_rate=1e-3, lora_rate=1e-2),
        training.Trial(seed=1, full_rate=3e-3, lora_rate=2e-2),
    ]
    linears = training.linears_of(wrapped())
    together = training.Stack(tiny_model(), linears, data, trainings=2, steps=5, batch=4)
    alone = training.Stack(tiny_model(), linears, data, trainings=1, steps=5, batch=4)
    for _ in range(2):  # the second run starts anew
        together.run(trials, [linears] * 2)
    for place, trial in enumerate(trials):
        alone.run([trial], [linears])
        model = wrapped()
        losses = (
            plain_loss(model, [encoded[row] for row in chosen])[0]
            for chosen in training.data_order(trial.seed, 24, 5, 4)
        )
        rates = {True: trial.full_rate, False: trial.lora_rate}
        curve = plain_training(
            model, lambda name, rates=rates: rates["modules_to_save" in name], losses, 5, 0.05
        )
        expected, right = plain_loss(model, encoded)
        for stack, row in ((together, place), (alone, 0)):
            assert torch.allclose(stack.curve[:, row], torch.tensor(curve), rtol=2e-4)
            measured = stack.measure(data, batch=10)[row]
            assert measured.loss == pytest.approx(expected.item(), rel=5e-4)
            assert measured.accuracy == pytest.approx(right)


@pytest.mark.parametrize("wrapped", [hybrid, lambda: lora(use_dora=True)])
def test_linear_layers_in_bfloat16_train_nearly_the_same(wrapped: Any) -> None:
    training = part("real_training")
    _, data = examples(24)
    trials = [training.Trial(seed=0, full_rate=1e-3, lora_rate=1e-2)]
    linears = training.linears_of(wrapped())
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        stack = training.Stack(
            tiny_model(), linears, data, trainings=1, steps=8, batch=4, dtype=dtype
        )
        stack.run(trials, [linears])
        curves.append(stack.curve)
        # What is trained is kept in float32: small updates do not vanish.
        name = "model.layers.0.mlp.up_proj"
        moved = (stack.values(0, name, "a") - linears[name].a).abs()
        assert moved.max() > 1e-3
        assert len(moved.unique()) > 10
    assert torch.allclose(*curves, rtol=2e-2)
    assert not torch.equal(*curves)


def plain_loss(model: Any, chosen: Any) -> tuple[torch.Tensor, float]:
    """Mean over counted tokens, one example after the other; share of exact answers."""
    sums, exact = [], []
    for item in chosen:
        logits = model(input_ids=torch.tensor([item.input_ids])).logits[0, :-1]
        targets = torch.tensor(item.input_ids[1:])
        counted = torch.tensor(item.counted[1:])
        nats = functional.cross_entropy(logits, targets, reduction="none")
        sums.append(nats[counted].sum())
        exact.append(bool((logits.argmax(dim=-1) == targets)[counted].all()))
    count = sum(item.counted_tokens for item in chosen)
    return torch.stack(sums).sum() / count, sum(exact) / len(exact)


def test_no_frozen_weight_moves_and_a_stack_trains_what_the_arm_says() -> None:
    study, training = part("real_study"), part("real_training")
    arms = part("arms")
    base, (_, data) = tiny_model().requires_grad_(requires_grad=False), examples(24)
    report = study.hlscore.rank(
        base, byte_tokenizer(), data="none", score="spectral", rank=2
    ).report
    planner = arms.Planner(report=report, rank=2)
    names = {row.module for row in report.candidates}
    chosen = {"model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"}
    for arm, full in (
        (planner.full(), names), (planner.lora(2), set()), (planner.chosen("h", chosen), chosen),
    ):  # fmt: skip
        linears = study.seeded_linears(arm.wrap(study.deepcopy(base)), 1)
        assert {name for name, item in linears.items() if item.full} == full
        assert {name for name, item in linears.items() if item.a is not None} == names - full
        stack = training.Stack(base, linears, data, trainings=1, steps=3, batch=4)
        trial = training.Trial(seed=1, full_rate=1e-3, lora_rate=1e-2)
        stack.run([trial], [linears])
        shapes = {row.module: row for row in report.candidates}
        assert stack.trained_params == sum(
            shapes[name].n_params
            if name in full
            else 2 * (shapes[name].in_features + shapes[name].out_features)
            for name in names
        )
        for name, item in linears.items():
            for key, value in item.trained.items():
                assert not torch.equal(stack.values(0, name, key), value), (name, key)
            assert torch.equal(item.weight, base.get_submodule(name).weight)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    study = part("real_study")
    for name, value in (
        ("SAMPLES", 16), ("FULL_RATES", (-6, -5)), ("LORA_RATES", (-4,)), ("MOST_EXTENSIONS", 1),
        ("around", lambda _: (-5,)),
    ):  # fmt: skip
        monkeypatch.setattr(study, name, value)
    for place, name in enumerate(("sums", "more")):
        splits = {"test": rows(12, 1000 * place), "tuning": rows(8, 100), "train": rows(48, 200)}
        part("real_tasks").write(name, splits, tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    part("real_study").main(
        ["--model", str(folder / "model"), "--folder", str(folder), "--journals", str(folder),
         "--steps", "3", "--batch", "4", "--device", "cpu", *arguments]
    )  # fmt: skip


def test_from_tasks_to_tables_and_nothing_is_trained_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, tables, journal = part("real_study"), part("real_tables"), part("journal")
    run(folder, "--task", "sums", "--task", "more", "--find")
    assert capsys.readouterr().out.count("FIND") == 2
    run(folder, "--pick", "1")
    assert capsys.readouterr().out.strip() in {"sums", "more"}
    run(folder, "--task", "sums")
    lines = journal.lines_of(folder / "sums.jsonl")
    names = [line["name"] for line in lines]
    assert len(names) == len(set(names))
    by_arm = {line["arm"]: line for line in lines if "arm" in line}
    assert by_arm["full"]["full"] == by_arm["lora r=8"]["full"] == []
    weights = [
        row.n_params for row in study.read_report(folder / "scores" / "weights.parquet").candidates
    ]
    assert (len(weights), sum(weights)) == (14, by_arm["full"]["parameters"])
    for source in ("gradients", "trials"):
        choice = next(line for line in lines if line["name"] == f"choice hls of {source}")
        assert by_arm[f"hybrid hls of {source}"]["full"] == choice["modules"]
    deciding = {line["seed"] for line in lines if line.get("arm") == "hybrid hls of gradients"}
    assert deciding == {0, 1, 2, 3}

    def never(*_: object) -> None:
        raise AssertionError("a finished training ran again")

    monkeypatch.setattr(study.RealStudy, "_train", never)
    run(folder, "--task", "sums")
    assert journal.lines_of(folder / "sums.jsonl") == lines
    monkeypatch.undo()
    full_counts = {
        "full": 0, "dora r=4": 0, study.GATE_OR_UP: 1, "hybrid random 1": 1,
        study.SCORED_AGAIN: 1, study.BY_FINISHED: 1, "hybrid up_proj by hls of trials": 1,
        "hybrid random 1, alpha 30": 1,
    }  # fmt: skip
    for name, full in full_counts.items():
        run(folder, "--task", "sums", "--steps", "2", "--arm", name, "0.001", "0.002", "7")
        line = journal.lines_of(folder / "sums.jsonl")[-1]
        assert (line["arm"], line["seed"], line["lora_rate"]) == (name, 7, 0.002)
        assert len(line["full"]) == full
    with pytest.raises(ValueError, match="No arm of the study"):
        run(folder, "--task", "sums", "--arm", "hybrid", "0.001", "0.002", "7")
    capsys.readouterr()
    tables.main(["--journals", str(folder), "--print"])
    printed = capsys.readouterr().out
    assert "### sums" in printed
    assert "### more" not in printed
    assert all(f"| {name} |" in printed for name in by_arm)


def test_equal_seeds_give_equal_numbers_and_no_time_trains_nothing(folder: Path) -> None:
    journal = part("journal")
    run(folder, "--task", "sums", "--find")
    path = folder / "sums.jsonl"
    first = journal.lines_of(path)
    path.unlink()
    run(folder, "--task", "sums", "--find", "--minutes", "0")
    assert not path.exists()
    run(folder, "--task", "sums", "--find")
    for before, after in zip(first, journal.lines_of(path), strict=True):
        assert before["test_losses"] == after["test_losses"]
        assert before["tuning_loss"] == after["tuning_loss"]


def test_figures_of_the_tables() -> None:
    tables = part("real_tables")

    def lines(
        arm: str, parameters: int, losses: tuple[float, ...], rate: float = 0.1, on: str = "cuda"
    ) -> list[dict[str, Any]]:
        common = {"arm": arm, "parameters": parameters, "full": [], "seconds": 1.0,
                  "full_rate": rate, "lora_rate": 0.0, "accuracy": 0.5, "device": on,
                  "settings": {"device": on}}  # fmt: skip
        return [
            {**common, "seed": seed, "test_loss": loss, "tuning_loss": loss}
            for seed, loss in enumerate(losses)
        ]

    # The first loss of each is of the tuning seed, which no table reports.
    by_hand = lines("hybrid a", 100, (8.0, 1.1), on="cpu")[1:]
    journal = [
        *lines("full", 1000, (9.0, 1.0, 1.2)), *lines("lora r=8", 10, (9.0, 2.0, 2.2)),
        *lines("lora r=60", 98, (9.0, 1.5, 1.7)), *lines("hybrid a", 100, (9.0, 1.2, 1.5)),
        *lines("hybrid a", 100, (9.5, 0.1, 0.1), rate=0.3), *by_hand,
    ]  # fmt: skip
    arms = tables.arms_of(journal)
    arm = arms["hybrid a"]
    assert arm.loss == pytest.approx(1.35)
    assert tables.recovered(arms, arm).values == pytest.approx([0.8, 0.7])
    assert tables.equal_lora(arms, arm).name == "lora r=60"
    assert tables.equal_lora(arms, arms["full"]) is None
    assert tables.excess(arms, arm).values == pytest.approx([-0.6, -0.4])
    assert tables.named(arms, "lora equal size").name == "lora r=60"
    cells = "cpu | 1.1000 | 50.0 | 1.0000 | 2.0000 | 1.5000 | 1.2000 | 0.90 | 0.50 |"
    assert tables.added(journal, arms)[-1] == f"| hybrid a | 0.1 0 | 1 | {cells}"


def test_tasks_are_disjoint_and_written_the_same_way_twice(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = part("real_tasks")
    sizes = {"test": 20, "tuning": 10, "train": 50}
    splits = tasks.draw("base_conversion", byte_tokenizer(), sizes)
    assert {split: len(found) for split, found in splits.items()} == sizes
    prompts = [row["prompt"] for found in splits.values() for row in found]
    assert len(set(prompts)) == 80
    first = tasks.write("base_conversion", splits, tmp_path).read_bytes()
    again = tasks.draw("base_conversion", byte_tokenizer(), sizes)
    assert tasks.write("base_conversion", again, tmp_path).read_bytes() == first
    assert tasks.read("base_conversion", tmp_path) == splits
    for row in splits["test"]:
        assert row["prompt"].endswith("\n")
        assert row["completion"].startswith(" ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("wrapped", [hybrid, lambda: lora(use_dora=True)])
def test_a_captured_step_trains_as_steps_one_by_one(
    wrapped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study, training = part("real_study"), part("real_training")
    encoded = study.encoded(rows(24), byte_tokenizer(), tiny_model())
    length = max(len(item.input_ids) for item in encoded)
    data = training.tensors_of(encoded, length, 8, torch.device("cuda"))
    base = tiny_model().cuda()
    linears = training.linears_of(wrapped().cuda())
    trials = [training.Trial(seed=s, full_rate=1e-3, lora_rate=1e-2) for s in (0, 1)]
    curves = []
    for capture in (True, True, False):
        stack = training.Stack(base, linears, data, trainings=2, steps=20, batch=4)
        if not capture:
            stack._tried_capture = True
        for _ in range(2):
            stack.run(trials, [linears] * 2)
        curves.append(stack.curve)
    assert "one by one" not in capsys.readouterr().out
    for curve in curves[1:]:
        assert torch.allclose(curves[0], curve, rtol=1e-2)
    assert curves[0][-1].mean() < curves[0][0].mean()
