"""The files for TRL: read by TRL's own parser, and trained with as a user would."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import families
import peft
import pytest
import torch
import trl
from console import write_rows
from plans import plan_for
from training_runs import PAIRS, QUICK, ROWS, changed, planned, python, two_blocks, weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from hlscore.artifacts.files import write_files
from hlscore.artifacts.plan import Plan
from hlscore.errors import UsageError
from hlscore.exporters.adapter_config import lora_config
from hlscore.exporters.exporter import Export, find_exporter
from hlscore.exporters.limits import check_limits, nearest
from hlscore.planning.parts import suggested_rates

LOCKS = ("*down_proj=full", "*.0.*o_proj=frozen")
FLOAT32 = ("--bf16", "false", "--dtype", "float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first two blocks of the tiny model, and its tokenizer."""
    out = tmp_path_factory.mktemp("base")
    two_blocks().model.save_pretrained(out)
    two_blocks().tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    rows = {"sft": ROWS, "dpo": PAIRS, "grpo": ROWS}
    return {
        method: write_rows(folder / method / "train.jsonl", lines) for method, lines in rows.items()
    }


def plan_of(base: Path, *locks: str, **changes: Any) -> Plan:
    return plan_for(two_blocks().model, locks or LOCKS, str(base), **changes)


def export(plan: Plan, out: Path, **settings: Any) -> Path:
    write_files(out, find_exporter("trl").files(Export(plan=plan, **settings)))
    return out


def parsed(path: Path) -> tuple[Any, ...]:
    """What the `trl` command makes of a configuration: its own parser, which fails on typos."""
    kind = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[path.stem]
    parser = trl.TrlParser((trl.ScriptArguments, kind, trl.ModelConfig))
    found: tuple[Any, ...] = parser.parse_args_and_config(
        ["--config", str(path), "--use_cpu", "--bf16", "false"]
    )
    return found


def trainables(model: PreTrainedModel, config: peft.LoraConfig) -> dict[str, torch.Size]:
    wrapped = peft.get_peft_model(model, config)
    return {name: item.shape for name, item in wrapped.named_parameters() if item.requires_grad}


def trains_the_plan(plan: Plan, base: Path, out: Path) -> None:
    """Hold the weights that a saved adapter changes against the plan."""
    model = AutoModelForCausalLM.from_pretrained(base)
    before = weights(model)
    merged = peft.PeftModel.from_pretrained(model, out).merge_and_unload()
    assert changed(before, weights(merged)) == planned(plan, merged)


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_script_trains_the_plan(
    method: str, base: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    plan = plan_of(base, *LOCKS, "*q_proj=rank:2")
    folder, out = export(plan, tmp_path / "trl", full_lr=1e-3, lora_lr=1e-2), tmp_path / "out"
    (tmp_path / "rewards.py").write_text(
        "def characters(completions, **_):\n"
        "    return [sum(map(ord, text)) % 7 for text in completions]\n"
    )
    more = {
        "sft": ["--merged_dir", tmp_path / "merged", *FLOAT32],
        "dpo": [],
        "grpo": ["--reward_funcs", "rewards:characters", "--num_generations", "2",
                 "--max_completion_length", "6"],
    }[method]  # fmt: skip
    printed = python(
        folder / "train.py", method, "--config", folder / f"{method}.yaml",
        "--dataset_name", data[method], "--output_dir", out, *QUICK,
        "--per_device_train_batch_size", "2", *more,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert "'learning_rate_full': '0.001', 'learning_rate_lora': '0.01'" in printed
    trains_the_plan(plan, base, out)
    if method == "sft":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        before = weights(AutoModelForCausalLM.from_pretrained(base))
        assert changed(before, weights(plain)) == planned(plan, plain)


def test_the_trl_command_trains_the_same_modules(
    base: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    plan = plan_of(base)
    folder = export(plan, tmp_path / "trl", full_lr=1e-3)
    python(
        "-m", "trl.scripts.sft", "--config", folder / "sft.yaml",
        "--dataset_name", data["sft"].parent, "--output_dir", tmp_path / "out", *QUICK,
        "--per_device_train_batch_size", "2", *FLOAT32,
    )  # fmt: skip
    trains_the_plan(plan, base, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "family", "locks"),
    [
        ("sft", "llama", LOCKS),
        ("dpo", "llama", ("*=full",)),
        ("grpo", "llama", ("*=frozen", "*.1.*q_proj=lora", "*.0.*q_proj=full")),
        ("sft", "gpt2", ("*c_proj=full",)),
        ("dpo", "qwen3_moe", ("*.0.*experts*=full", "*.1.mlp.gate=full")),
        ("grpo", "qwen3_moe", ("*=frozen", "*.1.*experts*=lora")),
        ("sft", "qwen3_moe", ("*=frozen", "*.1.*experts*down_proj=lora")),
    ],
)
def test_the_trl_command_reads_the_plan(
    method: str, family: str, locks: tuple[str, ...], tmp_path: Path
) -> None:
    build = families.FAMILIES[family].build
    plan = plan_for(build(), locks)
    script, arguments, model = parsed(export(plan, tmp_path) / f"{method}.yaml")
    assert script.dataset_name is None
    assert model.model_name_or_path == "org/model"
    rates = suggested_rates(method)
    assert arguments.learning_rate == (rates.full if plan.full else rates.lora).value
    found = trainables(build(), trl.get_peft_config(model))
    assert found == trainables(build(), lora_config(plan))


@pytest.mark.parametrize(
    ("locks", "changes", "reason"),
    [
        ((*LOCKS, "*q_proj=rank:2"), {}, "several ranks"),
        (("*embed_tokens=full",), {"embeddings": True}, "tied"),
        (LOCKS, {"memory": {"base_bits": 4}}, "quantized"),
    ],
)
def test_the_trl_command_stops_at_what_it_cannot_train(
    base: Path, locks: tuple[str, ...], changes: dict[str, Any], reason: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = plan_of(base, *locks, **changes)
    path = export(plan, tmp_path) / "sft.yaml"
    assert "Not for the trl command" in path.read_text()
    assert reason in " ".join(find_exporter("trl").notes(Export(plan=plan)))
    with pytest.raises(SystemExit):
        parsed(path)
    message = capsys.readouterr().err
    assert all(part in message for part in ("lora_r", reason, "python train.py sft"))


def test_no_adapter_goes_on_the_head() -> None:
    plan = plan_for(families.FAMILIES["llama"].build(), (), head=True)
    limits = find_exporter("trl").limits
    with pytest.raises(UsageError, match="output head 'lm_head'"):
        check_limits(plan, limits)
    changed, _ = nearest(plan, limits)
    assert {item.module for item in changed.modules if item.mode == "frozen"} == {"lm_head"}


@functools.cache
def script() -> dict[str, Any]:
    path = Path(find_exporter.__code__.co_filename).parent / "formats/trl_train.py.txt"
    text = path.read_text().replace("{{RATES}}", "{}")
    module = type(sys)("train")
    module.__dict__["__file__"] = str(path)
    sys.modules["train"] = module  # dataclasses look their module up
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102
    return module.__dict__


def test_the_script_checks_its_arguments() -> None:
    for flag in ("--lora_r=4", "--lora-alpha", "--use_peft"):
        with pytest.raises(SystemExit, match=r"plan\.json"):
            script()["parse"]("sft", [flag])
    for words in (["sft"], ["dpo", "--config"], ["grpo", "--config", "none.yaml"]):
        with pytest.raises(SystemExit, match=f"give --config {words[0]}.yaml"):
            script()["main"](words)
    with pytest.raises(SystemExit, match=r"sft\.yaml"):
        script()["main"](["ppo"])
    with pytest.raises(SystemExit, match="--reward_funcs"):
        script()["find_rewards"](None)
    with pytest.raises(SystemExit, match="--dataset_name"):
        script()["load_data"](script()["Options"](), "train")
