"""Plans as files of trainers: what is in them, and what is refused."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import FAMILIES
from plans import plan_for, renamed

from hlscore.artifacts.plan import Plan
from hlscore.exporters import formats
from hlscore.exporters.exporter import (
    ExportSettings,
    experimental,
    exporter_names,
    find_exporter,
    origin,
)
from hlscore.exporters.formats.trl import config_fields
from hlscore.exporters.limits import ExportError, check_limits
from hlscore.exporters.nearest import nearest
from hlscore.records import Fingerprint

NAMES = ("axolotl", "llama-factory", "ms-swift", "twinkle", "unsloth", "verl", "prime-rl")
MODES = ("*.0.mlp.down_proj=full", "*.1.self_attn.v_proj=full", "*.1.self_attn.q_proj=frozen")
FULL = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]
RATES = ExportSettings(full_lr=3e-5, lora_lr=4e-4)


def plan_of(family: str, *locks: str, **settings: Any) -> Plan:
    return plan_for(FAMILIES[family].build(), locks, **settings)


def file_of(plan: Plan, name: str, folder: Path, settings: ExportSettings = RATES) -> bytes:
    """The one file of an export, as the command writes it."""
    exporter = find_exporter(name)
    check_limits(plan, exporter.limits)
    (write,) = exporter.writers(plan, settings).values()
    write(folder / "file")
    return (folder / "file").read_bytes()


def yaml_of(plan: Plan, name: str, folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(file_of(plan, name, folder))
    return fields


def lora_names(plan: Plan) -> list[str]:
    return sorted(item.module for item in plan.lora_modules)


def near(plan: Plan, name: str) -> Plan:
    return nearest(plan, find_exporter(name).limits)[0]


@pytest.fixture(scope="module")
def hybrid() -> Plan:
    """Two modules in full, one frozen, LoRA of one rank on the rest."""
    return plan_of("llama", *MODES)


@pytest.fixture(scope="module")
def ranked() -> Plan:
    return plan_of("llama", *MODES, "*.0.self_attn.q_proj=rank:2")


def test_axolotl_carries_the_whole_plan(ranked: Plan, tmp_path: Path) -> None:
    fields = yaml_of(ranked, "axolotl", tmp_path)
    assert fields == {
        "base_model": "org/model",
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target_modules": lora_names(ranked),
        "lora_modules_to_save": FULL,
        "lora_rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2},
        "lora_alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 4},
        "learning_rate": 4e-4,
        "embedding_lr": 3e-5,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "sequence_len": 2048,
        "gradient_checkpointing": True,
        "bf16": "auto",
        "datasets": [{"path": "FILL_IN", "type": "FILL_IN"}],
        "output_dir": "./outputs",
    }


def test_axolotl_puts_lora_on_experts_and_routers(tmp_path: Path) -> None:
    plan = plan_of("qwen3_moe", "*.mlp.gate=lora", "*.0.mlp.experts*=full")
    fields = yaml_of(plan, "axolotl", tmp_path)
    assert "model.layers.1.mlp.gate.weight" in fields["lora_target_parameters"]
    assert "model.layers.1.mlp.experts.gate_up_proj" in fields["lora_target_parameters"]
    assert fields["lora_modules_to_save"] == ["model.layers.0.mlp.experts"]
    assert fields["lora_dropout"] == 0.0


def test_axolotl_keeps_full_modules_out_of_packed_models(tmp_path: Path) -> None:
    packed = plan_of("llama", *MODES, memory={"base_bits": 4})
    fields = yaml_of(packed, "axolotl", tmp_path)
    assert (fields["adapter"], fields["load_in_4bit"]) == ("qlora", True)
    assert fields["bnb_config_kwargs"] == {"llm_int8_skip_modules": [*FULL, "lm_head"]}
    with pytest.raises(ExportError, match=r"into 8 bits, also 'model\.layers\.0\.mlp\.down_proj'"):
        file_of(plan_of("llama", *MODES, memory={"base_bits": 8}), "axolotl", tmp_path)
    light = plan_of("llama", memory={"base_bits": 8})
    fields = yaml_of(light, "axolotl", tmp_path)
    assert (fields["adapter"], fields["load_in_8bit"]) == ("lora", True)


def test_plans_without_lora(tmp_path: Path) -> None:
    plan = plan_of("llama", "*=frozen", *MODES[:2])
    axolotl, swift = (yaml_of(plan, name, tmp_path) for name in ("axolotl", "ms-swift"))
    # PEFT knows this text, but not a list of it.
    assert axolotl["lora_target_modules"] == swift["target_regex"] == "dummy-target-modules"
    assert "target_modules" not in swift
    assert axolotl["learning_rate"] == swift["learning_rate"] == 3e-5


def test_llama_factory(hybrid: Plan, tmp_path: Path) -> None:
    fields = yaml_of(hybrid, "llama-factory", tmp_path)
    assert fields == {
        "model_name_or_path": "org/model",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target": lora_names(hybrid),
        "additional_target": FULL,
        "learning_rate": 3e-5,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "cutoff_len": 2048,
        "bf16": True,
        "dataset": "FILL_IN",
        "template": "FILL_IN",
        "output_dir": "./outputs",
    }


def test_ms_swift(hybrid: Plan, tmp_path: Path) -> None:
    fields = yaml_of(hybrid, "ms-swift", tmp_path)
    assert fields == {
        "model": "org/model",
        "use_hf": True,
        "torch_dtype": "bfloat16",
        "tuner_type": "lora",
        "target_modules": lora_names(hybrid),
        "modules_to_save": FULL,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "learning_rate": 3e-5,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "max_length": 2048,
        "dataset": ["FILL_IN"],
        "output_dir": "./outputs",
    }


def masked(plan: Plan, loss_on: str) -> Plan:
    """A plan made from conversations with a loss on these tokens."""
    changes = {"format": "messages", "loss_on": loss_on}
    probes = plan.provenance.probes.model_copy(update=changes)
    return plan.model_copy(
        update={"provenance": plan.provenance.model_copy(update={"probes": probes})}
    )


def test_trainers_get_the_mask_of_the_probes(hybrid: Plan, tmp_path: Path) -> None:
    """TRL counts every token of a conversation unless told otherwise, others the assistant's."""
    whole, only = masked(hybrid, "all"), masked(hybrid, "assistant")
    for name, key, value in (
        ("axolotl", "train_on_inputs", True),
        ("llama-factory", "train_on_prompt", True),
        ("ms-swift", "loss_scale", "all"),
    ):
        assert yaml_of(whole, name, tmp_path)[key] == value
        assert key not in yaml_of(only, name, tmp_path)
        assert key not in yaml_of(hybrid, name, tmp_path)
    toml = [tomllib.loads(file_of(plan, "prime-rl", tmp_path).decode()) for plan in (whole, only)]
    assert toml[0]["data"]["loss_mask"]["user"] is True
    assert "loss_mask" not in toml[1]["data"]
    trl = [config_fields(plan, RATES, "sft")["assistant_only_loss"] for plan in (whole, only)]
    assert trl == [None, True]
    assert config_fields(only, RATES, "dpo")["assistant_only_loss"] is None
    notes = [find_exporter("unsloth").notes(plan, RATES) for plan in (whole, only)]
    assert ["train_on_responses_only" in " ".join(each) for each in notes] == [False, True]


def test_twinkle(hybrid: Plan, tmp_path: Path) -> None:
    assert json.loads(file_of(hybrid, "twinkle", tmp_path)) == {
        "method": "spectral_hybrid_lora",
        "model_id": "org/model",
        "s_fft": FULL,
        "s_lora": lora_names(hybrid),
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "origin": [*origin(hybrid), experimental("twinkle")],
    }


def test_verl(tmp_path: Path) -> None:
    plan = plan_of("llama", "*.1.*=frozen")
    fields = yaml_of(plan, "verl", tmp_path)
    assert fields == {
        "defaults": ["ppo_trainer", "_self_"],
        "actor_rollout_ref": {
            "model": {
                "path": "org/model",
                "lora_rank": 4,
                "lora_alpha": 8,
                "target_modules": lora_names(plan),
            },
            "actor": {"optim": {"lr": 4e-4}},
            "rollout": {"load_format": "safetensors"},
        },
        "data": {"train_files": "FILL_IN", "val_files": "FILL_IN"},
    }


def test_prime_rl(hybrid: Plan, tmp_path: Path) -> None:
    fields = tomllib.loads(file_of(hybrid, "prime-rl", tmp_path).decode())

    def exact(names: list[str]) -> list[str]:
        return ["^" + name.replace(".", r"\.") + "$" for name in names]

    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    lists = {"target_modules": exact(lora_names(hybrid)), "modules_to_save": exact(FULL)}
    assert fields == {
        "model": {"name": "org/model", "lora": {**lora, **lists}},
        "data": {"name": "FILL_IN", "seq_len": 2048, "batch_size": 1},
        "optim": {"lr": 3e-5},
    }


def test_prime_rl_writes_an_empty_list_of_full_modules(tmp_path: Path) -> None:
    text = file_of(plan_of("llama"), "prime-rl", tmp_path).decode()
    assert tomllib.loads(text)["model"]["lora"]["modules_to_save"] == []


@pytest.mark.parametrize("name", ["llama-factory", "verl"])
def test_ranks_of_their_own_are_refused(name: str, ranked: Plan, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one LoRA rank for all modules"):
        file_of(ranked, name, tmp_path)
    exported = near(ranked, name)
    file_of(exported, name, tmp_path)
    (rank,) = {item.rank for item in exported.lora_modules}
    assert rank is not None
    # One rank more would train more than the plan asks for.
    one_rank = exported.totals.lora_params // rank
    asked, trained = ranked.totals.trained_params, exported.totals.trained_params
    assert trained <= asked < trained + one_rank
    assert exported.notes[-1].endswith(
        f"Trained parameters: {asked:,} in the plan, {trained:,} in the export."
    )


def test_nearest_keeps_the_cost_of_ranks_above_the_plans_own(tmp_path: Path) -> None:
    plan = plan_of("llama", "*=rank:16", "*.0.self_attn.q_proj=rank:4")
    assert plan.lora.rank == 4
    exported = near(plan, "ms-swift")
    ranks = {item.rank for item in exported.lora_modules}
    assert ranks == {15}  # 1 of 14 adapters gets more, so the others get less


def test_ms_swift_puts_lora_on_parameters(tmp_path: Path) -> None:
    fields = yaml_of(plan_of("mixtral"), "ms-swift", tmp_path)
    assert "model.layers.1.mlp.experts.gate_up_proj" in fields["target_parameters"]
    only = plan_of("mixtral", "*=frozen", "*.experts.*=lora")
    fields = yaml_of(only, "ms-swift", tmp_path)
    assert fields["target_regex"] == "dummy-target-modules"
    assert "target_modules" not in fields


def test_packed_models_with_lora_only(tmp_path: Path) -> None:
    plan = plan_of("llama", memory={"base_bits": 4})
    assert yaml_of(plan, "llama-factory", tmp_path)["quantization_bit"] == 4
    swift = yaml_of(plan, "ms-swift", tmp_path)
    assert (swift["quant_method"], swift["quant_bits"]) == ("bnb", 4)
    assert b"load_in_4bit=True" in file_of(plan, "unsloth", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_files_say_where_they_come_from_and_are_stable(
    name: str, hybrid: Plan, tmp_path: Path
) -> None:
    plan = near(hybrid, name)
    text = file_of(plan, name, tmp_path)
    assert text == file_of(Plan.model_validate_json(plan.model_dump_json()), name, tmp_path)
    assert all(line.encode() in text for line in origin(plan))
    assert b"\r" not in text
    assert text.endswith(b"\n")
    assert b"FILL_IN" in text or name == "twinkle"
    for item in (*plan.full, *plan.lora_modules):
        lines = text.decode().replace("\\\\", "").splitlines()
        assert sum(item.module in line for line in lines) == 1, item.module


@pytest.mark.parametrize("name", NAMES)
def test_another_base_model_and_its_own_revision(name: str, hybrid: Plan, tmp_path: Path) -> None:
    plan = near(hybrid, name)
    pinned = plan.model_copy(update={"model": plan.model.model_copy(update={"revision": "c0ffee"})})
    shown = file_of(pinned, name, tmp_path)
    other = file_of(pinned, name, tmp_path, ExportSettings(model="./a b"))
    assert b"./a b" in other
    assert b"c0ffee" not in other
    assert b"c0ffee" in shown or name in ("twinkle", "verl", "prime-rl")


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_stay_inside_their_quotes(name: str, hybrid: Plan, tmp_path: Path) -> None:
    evil = 'x"\n- y: "\u2028 #\x85\'é😀'
    plan = near(hybrid, name)
    text = file_of(plan, name, tmp_path, ExportSettings(model=evil)).decode()
    found: Any
    if name == "twinkle":
        found = json.loads(text)["model_id"]
    elif name == "prime-rl":
        found = tomllib.loads(text)["model"]["name"]
    elif name == "unsloth":
        (line,) = (line for line in text.split("\n") if line.startswith("MODEL = "))
        found = ast.literal_eval(line.removeprefix("MODEL = "))
    else:
        fields = yaml.safe_load(text)
        keys = ("base_model", "model_name_or_path", "model")
        found = next((fields[key] for key in keys if key in fields), None)
        found = found or fields["actor_rollout_ref"]["model"]["path"]
    assert found == evil


def test_one_learning_rate_is_the_smaller_one(hybrid: Plan, tmp_path: Path) -> None:
    swapped = ExportSettings(full_lr=4e-4, lora_lr=3e-5)
    for name in ("llama-factory", "ms-swift"):
        fields = yaml.safe_load(file_of(hybrid, name, tmp_path, swapped))
        assert fields["learning_rate"] == 3e-5
        fields = yaml.safe_load(file_of(plan_of("llama"), name, tmp_path, RATES))
        assert fields["learning_rate"] == 4e-4
    fields = tomllib.loads(file_of(hybrid, "prime-rl", tmp_path, swapped).decode())
    assert fields["optim"]["lr"] == 3e-5
    assert "everything: 3e-05" in find_exporter("prime-rl").notes(hybrid, swapped)[0]


@pytest.mark.parametrize("name", ["axolotl", "ms-swift"])
def test_sgd_keeps_its_momentum(name: str, tmp_path: Path) -> None:
    plan = plan_of("llama", *MODES, memory={"optimizer": "sgd-momentum"})
    text = file_of(plan, name, tmp_path).decode()
    assert "momentum=0.9" in text
    assert "momentum" in " ".join(find_exporter(name).notes(plan, RATES))
    plain = plan_of("llama", *MODES, memory={"optimizer": "sgd"})
    assert "momentum" not in file_of(plain, name, tmp_path).decode()
    assert "momentum" not in " ".join(find_exporter(name).notes(plain, RATES))


@pytest.mark.parametrize("name", ["a${b}", "a$b", "???"])
def test_verl_refuses_names_that_hydra_would_resolve(name: str, tmp_path: Path) -> None:
    plan = plan_of("llama")
    with pytest.raises(ExportError, match=r"does not read .* as text"):
        file_of(plan, "verl", tmp_path, ExportSettings(model=name))
    plan = renamed(plan, "model.layers.0.self_attn.q_proj", name)
    with pytest.raises(ExportError, match=r"does not read .* as text"):
        file_of(plan, "verl", tmp_path)


def test_origins_stay_on_their_lines(tmp_path: Path) -> None:
    plan = plan_of("llama", "*=frozen", *MODES[:2])
    evil = plan.model_copy(
        update={
            "score": plan.score.model_copy(update={"name": "hls\n^.*$\u2028\x1b"}),
            "provenance": plan.provenance.model_copy(update={"hlscore_version": "1\r\n^x$"}),
            "model": plan.model.model_copy(
                update={"fingerprint": Fingerprint(structure="a\n^y$", weights="b\x85^z$")}
            ),
        }
    )
    assert all(line.isprintable() for line in origin(evil))
    lines = file_of(evil, "freeze", tmp_path).decode().splitlines()
    wanted = file_of(plan, "freeze", tmp_path).decode().splitlines()
    found, rules = ([x for x in item if not x.startswith("#")] for item in (lines, wanted))
    assert found == rules == [f"^{name}.weight$" for name in FULL]


@pytest.mark.parametrize("name", ["a|b", "a\nb", "(a", "a*", "\xe9", "a b", "a\\"])
def test_freeze_refuses_names_that_are_no_regular_expressions(name: str, tmp_path: Path) -> None:
    plan = renamed(plan_of("llama", "*=frozen", *MODES[:2]), FULL[0], name)
    with pytest.raises(ExportError, match="regular expression"):
        file_of(plan, "freeze", tmp_path)


@pytest.mark.parametrize("name", exporter_names())
def test_formats_that_never_ran_with_their_trainer_say_so(name: str, tmp_path: Path) -> None:
    exporter = find_exporter(name)
    assert exporter.name == name
    assert exporter.experimental == (name in ("prime-rl", "twinkle", "unsloth", "verl"))
    if exporter.experimental:
        plan = near(plan_of("llama", *MODES), name)
        said = experimental(exporter.limits.trainer)
        assert said in file_of(plan, name, tmp_path).decode()
        assert said in exporter.all_notes(plan, RATES)


PACKED: dict[str, Any] = {"memory": {"base_bits": 4}}
REFUSED: list[tuple[str, str, str, tuple[str, ...], dict[str, Any]]] = [
    *((name, "without LoRA", "llama", ("*=frozen", *MODES[:2]), {})
      for name in ("llama-factory", "twinkle", "unsloth", "prime-rl")),
    *((name, "only the name of its parameter", "mixtral", ("*.0.self_attn.q_proj=full",), {})
      for name in ("llama-factory", "twinkle", "prime-rl")),
    *((name, "into 4 bits, also", "llama", MODES, PACKED)
      for name in ("llama-factory", "ms-swift", "twinkle", "unsloth")),
    *((name, "would untie the embedding", "gemma3", ("*embed_tokens=full",), {"embeddings": True})
      for name in ("llama-factory", "ms-swift", "twinkle")),
    ("verl", "in full beside LoRA", "llama", MODES, {}),
    ("verl", "16 bits only", "llama", (), PACKED),
    ("prime-rl", "16 bits only", "llama", MODES, PACKED),
    ("prime-rl", "not a linear layer", "gpt2", (), {}),
    ("twinkle", "without modules trained in full", "llama", (), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reason", "family", "locks", "settings"), REFUSED)
def test_what_a_trainer_cannot_do_is_refused(
    name: str, reason: str, family: str, locks: tuple[str, ...], settings: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(ExportError, match=reason) as caught:
        file_of(plan_of(family, *locks, **settings), name, tmp_path)
    assert "--base 16" in caught.value.hint or "bits" not in reason
    assert "--to seed-adapter" in caught.value.hint or "untie" not in reason


def test_a_new_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_trainer.py").write_text(
        "from hlscore.exporters.exporter import Exporter\n"
        "from hlscore.exporters.limits import Limits\n"
        "EXPORTER = Exporter(name='my-trainer', summary='mine', limits=Limits(trainer='mine'),\n"
        "                    files=lambda plan, settings: {'mine.txt': plan.model.name})\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert "my-trainer" in exporter_names()
    assert file_of(plan_of("llama"), "my-trainer", tmp_path) == b"org/model"
    monkeypatch.delitem(sys.modules, f"{formats.__name__}.my_trainer")
