"""The files for TRL: read by its own parser, and trained with as a user would."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import families
import pandas as pd
import peft
import pytest
import torch
import trl
import yaml
from console import hlscore, write_rows
from datasets import Dataset
from plans import family_plan, plan_for
from training_runs import PAIRS, QUICK, ROWS, changed, planned, python, two_blocks, weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from hlscore.artifacts.files import write_files
from hlscore.artifacts.plan import Plan
from hlscore.errors import DataError, UsageError
from hlscore.exporters.adapter_config import lora_config
from hlscore.exporters.exporter import Export, exporter_names, find_exporter
from hlscore.inputs.examples import BUILTIN_KNOWN, builtin_rows
from hlscore.planning.parts import suggested_rates
from hlscore.rollouts.verifiers import verify_all
from hlscore.training.rewards import as_probed, judgeable, numeric, reward_functions

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


def probed(settings: dict[str, Any], **data: Any) -> Plan:
    """A plan that says it was made from such probes."""
    plan = family_plan("llama", "*down_proj=full")
    objective = settings.get("objective", "grpo")
    asked = {"objective": {"objective": objective, **settings}, "data": data}
    probes = plan.provenance.probes.model_copy(update={"objective": objective})
    changes = {"settings": asked, "probes": probes}
    return plan.model_copy(update={"provenance": plan.provenance.model_copy(update=changes)})


def text_of(plan: Plan, method: str, **settings: Any) -> str:
    return str(find_exporter("trl").files(Export(plan=plan, **settings))[f"{method}.yaml"])


def fields_of(plan: Plan, method: str, **settings: Any) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(text_of(plan, method, **settings))
    return fields


def notes_of(plan: Plan, name: str = "trl") -> str:
    return " ".join(find_exporter(name).notes(Export(plan=plan)))


def test_two_steps_have_the_reward_of_the_probe(tmp_path: Path) -> None:
    rows = [
        {"question": row["prompt"], "right": row["answer"]}
        for row in builtin_rows(BUILTIN_KNOWN)[:24] if row["kind"] != "code"
    ]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", rows)
    done = hlscore(
        "rank", "builtin:tiny", "--objective", "grpo", "--reward", "numeric", "--rank", "4",
        "--data", tmp_path / "rows.jsonl", "--column", "prompt=question", "--column",
        "answer=right", "--generations", "4", "--max-new-tokens", "24", "--bootstrap", "20",
        "--temperature", "1.5", "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = hlscore("export", tmp_path / "run/plan.json", "--to", "trl", "-o", tmp_path / "trl")
    assert done.code == 0, done.err
    printed = python(
        tmp_path / "trl/train.py", "grpo", "--config", tmp_path / "trl/grpo.yaml",
        "--dataset_name", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out",
        "--log_completions", "true", "--gradient_accumulation_steps", "16", *QUICK,
    )  # fmt: skip
    tables = [pd.read_parquet(path) for path in sorted((tmp_path / "out").glob("comp*/*.parquet"))]
    assert len(tables) == 2
    answers = {row["question"]: row["right"] for row in rows}
    for table in tables:
        prompts, texts = list(table["prompt"]), list(table["completion"])
        columns = {"answer": [answers[prompt] for prompt in prompts]}
        expected = verify_all("numeric", prompts, texts, columns)
        assert list(table["numeric"]) == expected
        assert sum(filter(None, expected)) > 0
    norms = [float(found) for found in re.findall(r"'grad_norm': '([\d.e+-]+)'", printed)]
    assert len(norms) == 2
    assert max(norms) > 0


def test_the_configuration_has_the_loss_and_the_sampling_of_the_probe(tmp_path: Path) -> None:
    plan = probed(
        {
            "rewards": ["numeric", "mine.rewards:judge", "regex:a+", "mine:Judge.call"],
            "reward_weights": [1.0, 0.5, 2.0, 1.0], "generations": 6, "temperature": 0.7,
            "top_p": 0.9, "top_k": 40, "max_new_tokens": 77, "loss_type": "gspo",
            "scale_rewards": "batch", "epsilon": 0.1, "epsilon_high": 0.3, "mask_truncated": True,
        }
    )  # fmt: skip
    parser = trl.TrlParser((trl.GRPOConfig,))
    fields = fields_of(plan, "grpo")
    rewards = fields.pop("reward_funcs")
    assert rewards == [
        "hlscore.training.rewards.numeric", "mine.rewards.judge", "regex:a+", "mine:Judge.call"
    ]  # fmt: skip
    known = set(vars(parser.parse_args_and_config(["--use_cpu"])[0]))
    (tmp_path / "only.yaml").write_text(
        yaml.safe_dump({key: value for key, value in fields.items() if key in known})
    )
    (args,) = parser.parse_args_and_config(
        ["--config", str(tmp_path / "only.yaml"), "--use_cpu", "--bf16", "false"]
    )
    expected = {
        "num_generations": 6, "max_completion_length": 77, "temperature": 0.7, "top_p": 0.9,
        "top_k": 40, "loss_type": "grpo", "importance_sampling_level": "sequence",
        "scale_rewards": "batch", "epsilon": 0.1, "epsilon_high": 0.3,
        "mask_truncated_completions": True, "reward_weights": [1.0, 0.5, 2.0, 1.0],
        "generation_batch_size": 6,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    dpo = fields_of(probed({"objective": "dpo", "loss_type": "ipo", "beta": 0.3}), "dpo")
    assert (dpo["loss_type"], dpo["beta"]) == (["ipo"], 0.3)
    assert "no stop texts" in notes_of(probed({"rewards": ["exact"], "stop": ["\n\n"]}))


@pytest.mark.parametrize(
    "settings",
    [{"rewards": ["lambda"]}, {"rollouts": "r.jsonl"}, {"objective": "sft"}, {"epsilon": -1}],
)
def test_without_a_reward_to_import_the_script_refuses(settings: dict[str, Any]) -> None:
    plan = probed(settings)
    text = text_of(plan, "grpo")
    assert "reward_funcs" not in yaml.safe_load(text)
    assert "--dataset_name DATA --reward_funcs REWARD" in text
    if settings.keys() & {"rewards", "rollouts"}:
        assert "Give --reward_funcs package.module:function" in notes_of(plan)


def test_a_function_of_python_never_passes_for_a_verifier() -> None:
    from hlscore.api import _named

    def numeric(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    assert list(_named((numeric, "exact"))) == ["numeric#2", "exact"]


@pytest.mark.parametrize("objective", ["sft", "dpo", "grpo"])
def test_rates_follow_the_loss_that_is_trained(objective: str) -> None:
    plan = probed({"objective": objective})
    # A plan of the fixture has SFT's own rates; those of other losses are TRL's defaults.
    usual = {"sft": 2e-5, "dpo": trl.DPOConfig(use_cpu=True, bf16=False).learning_rate,
             "grpo": trl.GRPOConfig(use_cpu=True, bf16=False).learning_rate}  # fmt: skip
    for method, rate in usual.items():
        if method != objective:
            text = text_of(plan, method)
            assert yaml.safe_load(text)["learning_rate"] == rate
            assert f"TRL's {method.upper()}Trainer" in " ".join(text.replace("\n# ", " ").split())
        given = fields_of(plan, method, full_lr=3e-6, lora_lr=3e-4)
        assert given["learning_rate"] == 3e-6


@pytest.mark.parametrize("name", exporter_names())
def test_another_loss_than_the_file_trains_is_said(name: str) -> None:
    methods = find_exporter(name).methods
    for objective in ("sft", "grpo"):
        said = f"made for {objective}, this file trains" in notes_of(
            probed({"objective": objective}), name
        )
        assert said == (bool(methods) and objective not in methods)


def test_rewards_by_name() -> None:
    names = ["numeric", "hlscore.training.rewards.exact", "regex:^4", "os.path.join"]
    found = reward_functions(names)
    given: dict[str, Any] = {
        "prompts": ["a", "b"], "completions": ["4", "so #### 5"], "answer": ["4", 5],
        "completion_ids": [[1], [2]], "trainer_state": None,
    }  # fmt: skip
    assert [function(**given) for function in found[:3]] == [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    assert found[0].__name__ == numeric.__name__ == "numeric"
    for wrong in (["nothing"], ["no.such.module:f"]):
        with pytest.raises(UsageError):
            reward_functions(wrong)


def test_rows_that_no_verifier_can_judge_are_left_out_as_in_the_probe() -> None:
    data = Dataset.from_dict({"prompt": ["a", "b"], "answer": ["4", "a word"]})
    assert judgeable(data, ["numeric"])["prompt"][:] == ["a"]
    assert len(judgeable(data, ["exact"])) == len(judgeable(data, ["mine:f"])) == 2
    with pytest.raises(DataError, match="column of answers"):
        judgeable(data.select([1]), ["numeric"])


def test_the_trainer_reads_the_columns_of_the_probe() -> None:
    data = Dataset.from_dict({"q": ["a", "b"], "Answer": [4, 5], "completion": ["x", "y"]})
    plan = probed({"objective": "sft"}, columns={"prompt": "q", "completion": "Answer"})
    assert as_probed(data, plan).to_dict() == {
        "q": ["a", "b"], "Answer": [4, 5], "prompt": ["a", "b"], "completion": ["4", "5"]
    }  # fmt: skip
    assert as_probed(data, probed({"objective": "sft"})).to_dict() == data.to_dict()
