"""Plans as files of trainers: what is in them, and what is refused."""

from __future__ import annotations

import ast
import copy
import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import yaml
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from plans import family_plan, plan_for, renamed

from hlscore.artifacts.plan import Plan
from hlscore.exporters import formats
from hlscore.exporters.exporter import Export, exporter_names, find_exporter, yaml_text
from hlscore.exporters.formats import prime_rl
from hlscore.exporters.limits import ExportError, check_limits, nearest
from hlscore.records import Fingerprint

NAMES = ("axolotl", "llama-factory", "ms-swift", "twinkle", "unsloth", "verl", "prime-rl")
MODES = ("*.0.mlp.down_proj=full", "*.1.self_attn.v_proj=full", "*.1.self_attn.q_proj=frozen")
FULL = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]
RATES: dict[str, Any] = {"full_lr": 3e-5, "lora_lr": 4e-4}
PACKED: dict[str, Any] = {"memory": {"base_bits": 4}}


def text_of(plan: Plan, name: str, **settings: Any) -> str:
    """The one file of an export."""
    exporter = find_exporter(name)
    check_limits(plan, exporter.limits)
    (text,) = exporter.files(Export(plan=plan, **RATES | settings)).values()
    assert isinstance(text, str)
    return text


def fields_of(plan: Plan, name: str, **settings: Any) -> dict[str, Any]:
    """What the trainer reads in it."""
    read = {"prime-rl": tomllib.loads, "twinkle": json.loads}.get(name, yaml.safe_load)
    fields: dict[str, Any] = read(text_of(plan, name, **settings))
    return fields


def notes_of(plan: Plan, name: str, **settings: Any) -> str:
    return " ".join(find_exporter(name).notes(Export(plan=plan, **RATES | settings)))


def lora_names(plan: Plan) -> list[str]:
    return sorted(item.module for item in plan.lora_modules)


def near(plan: Plan, name: str) -> Plan:
    return nearest(plan, find_exporter(name).limits)[0]


@pytest.fixture(scope="module")
def hybrid() -> Plan:
    """Two modules in full, one frozen, LoRA of one rank on the rest."""
    return family_plan("llama", *MODES)


@pytest.fixture(scope="module")
def ranked() -> Plan:
    return family_plan("llama", *MODES, "*.0.self_attn.q_proj=rank:2")


def test_axolotl_carries_the_whole_plan(ranked: Plan) -> None:
    assert fields_of(ranked, "axolotl") == {
        "base_model": "org/model", "adapter": "lora", "lora_r": 4, "lora_alpha": 8,
        "lora_dropout": 0.0, "lora_target_modules": lora_names(ranked),
        "lora_modules_to_save": FULL,
        "lora_rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 2},
        "lora_alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 4},
        "learning_rate": 4e-4, "embedding_lr": 3e-5, "optimizer": "adamw_torch",
        "lr_scheduler": "cosine", "micro_batch_size": 1, "gradient_accumulation_steps": 1,
        "num_epochs": 1, "sequence_len": 2048, "gradient_checkpointing": True, "bf16": "auto",
        "datasets": [{"path": "FILL_IN", "type": "FILL_IN"}], "output_dir": "./outputs",
    }  # fmt: skip


def test_lora_goes_on_experts_and_routers_by_parameter() -> None:
    plan = family_plan("qwen3_moe", "*.mlp.gate=lora", "*.0.mlp.experts*=full")
    fields = fields_of(plan, "axolotl")
    targets = fields["lora_target_parameters"]
    assert {"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.gate_up_proj"} <= {
        *targets
    }
    assert fields["lora_modules_to_save"] == ["model.layers.0.mlp.experts"]
    assert fields["lora_dropout"] == 0.0
    fields = fields_of(family_plan("mixtral", "*=frozen", "*.experts.*=lora"), "ms-swift")
    assert "model.layers.1.mlp.experts.gate_up_proj" in fields["target_parameters"]
    assert fields["target_regex"] == "dummy-target-modules"
    assert "target_modules" not in fields


def test_packed_models() -> None:
    fields = fields_of(family_plan("llama", *MODES, **PACKED), "axolotl")
    assert (fields["adapter"], fields["load_in_4bit"]) == ("qlora", True)
    assert fields["bnb_config_kwargs"] == {"llm_int8_skip_modules": [*FULL, "lm_head"]}
    with pytest.raises(ExportError, match=r"into 8 bits, also 'model\.layers\.0\.mlp\.down_proj'"):
        text_of(family_plan("llama", *MODES, memory={"base_bits": 8}), "axolotl")
    fields = fields_of(family_plan("llama", memory={"base_bits": 8}), "axolotl")
    assert (fields["adapter"], fields["load_in_8bit"]) == ("lora", True)
    plan = family_plan("llama", **PACKED)
    assert fields_of(plan, "llama-factory")["quantization_bit"] == 4
    swift = fields_of(plan, "ms-swift")
    assert (swift["quant_method"], swift["quant_bits"]) == ("bnb", 4)
    assert "load_in_4bit=True" in text_of(plan, "unsloth")


def test_plans_without_lora() -> None:
    plan = family_plan("llama", "*=frozen", *MODES[:2])
    axolotl, swift = (fields_of(plan, name) for name in ("axolotl", "ms-swift"))
    # PEFT knows this text, but not a list of it.
    assert axolotl["lora_target_modules"] == swift["target_regex"] == "dummy-target-modules"
    assert "target_modules" not in swift
    assert axolotl["learning_rate"] == swift["learning_rate"] == 3e-5


TRAINING = {
    "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "learning_rate": 3e-5,
    "optim": "adamw_torch", "lr_scheduler_type": "cosine", "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1, "num_train_epochs": 1, "output_dir": "./outputs",
}  # fmt: skip


def test_llama_factory_ms_swift_and_twinkle(hybrid: Plan) -> None:
    assert fields_of(hybrid, "llama-factory") == TRAINING | {
        "model_name_or_path": "org/model", "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_target": lora_names(hybrid), "additional_target": FULL,
        "cutoff_len": 2048, "bf16": True, "dataset": "FILL_IN", "template": "FILL_IN",
    }  # fmt: skip
    assert fields_of(hybrid, "ms-swift") == TRAINING | {
        "model": "org/model", "use_hf": True, "torch_dtype": "bfloat16", "tuner_type": "lora",
        "target_modules": lora_names(hybrid), "modules_to_save": FULL, "max_length": 2048,
        "dataset": ["FILL_IN"],
    }  # fmt: skip
    assert fields_of(hybrid, "twinkle") == {
        "method": "spectral_hybrid_lora", "model_id": "org/model", "s_fft": FULL,
        "s_lora": lora_names(hybrid), "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
        "origin": list(find_exporter("twinkle").origin(hybrid)),
    }  # fmt: skip


def test_verl() -> None:
    plan = family_plan("llama", "*.1.*=frozen")
    lora = {"lora_rank": 4, "lora_alpha": 8, "target_modules": lora_names(plan)}
    assert fields_of(plan, "verl") == {
        "defaults": ["ppo_trainer", "_self_"],
        "actor_rollout_ref": {
            "model": {"path": "org/model", **lora},
            "actor": {"optim": {"lr": 4e-4}},
            "rollout": {"load_format": "safetensors"},
        },
        "data": {"train_files": "FILL_IN", "val_files": "FILL_IN"},
    }


def test_prime_rl(hybrid: Plan) -> None:
    def exact(names: list[str]) -> list[str]:
        return ["^" + name.replace(".", r"\.") + "$" for name in names]

    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    lists = {"target_modules": exact(lora_names(hybrid)), "modules_to_save": exact(FULL)}
    assert fields_of(hybrid, "prime-rl") == {
        "model": {"name": "org/model", "lora": {**lora, **lists}},
        "data": {"name": "FILL_IN", "seq_len": 2048, "batch_size": 1},
        "optim": {"lr": 3e-5},
    }
    only_lora = fields_of(family_plan("llama"), "prime-rl")["model"]["lora"]
    assert only_lora["modules_to_save"] == []


def test_unsloth_is_a_script_with_the_plan(ranked: Plan) -> None:
    tree = ast.parse(text_of(ranked, "unsloth"))
    assert {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    } == {
        "MODEL": "org/model", "REVISION": None, "DATASET": "FILL_IN",
        "LORA_MODULES": lora_names(ranked), "LORA_PARAMETERS": [], "FULL_MODULES": FULL,
        "RANKS": {r"^model\.layers\.0\.self_attn\.q_proj": 2},
        "ALPHAS": {r"^model\.layers\.0\.self_attn\.q_proj": 4},
    }  # fmt: skip
    calls = {
        ast.unparse(node.func): {word.arg: ast.unparse(word.value) for word in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    wrapping = {"r": "4", "lora_alpha": "8", "target_parameters": "LORA_PARAMETERS",
                "rank_pattern": "RANKS"}  # fmt: skip
    assert wrapping.items() <= calls["FastModel.get_peft_model"].items()
    rates = {"learning_rate": "0.0004", "embedding_learning_rate": "3e-05"}
    assert rates.items() <= calls["UnslothTrainingArguments"].items()


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_the_script_for_unsloth_stops_unless_trained_as_planned(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = MODES if family == "llama" else ("*.0.mlp.experts*=full", "*q_proj=rank:2")
    model = FAMILIES[family].build()
    left_out: set[str] = set()

    class FastModel:
        """What Unsloth does with these arguments, without Unsloth."""

        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> tuple[Any, None]:
            return copy.deepcopy(model), None

        @staticmethod
        def get_peft_model(base: Any, **fields: Any) -> Any:
            kept = {key: value for key, value in fields.items() if key not in left_out}
            return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **kept))

    names = ("UnslothTrainer", "UnslothTrainingArguments")
    stand_in = SimpleNamespace(FastModel=FastModel, **dict.fromkeys(names))
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    script: dict[str, Any] = {"__name__": "script"}
    exec(compile(text_of(plan_for(model, locks), "unsloth"), "x", "exec"), script)  # noqa: S102
    script["build"]()
    left_out.add("modules_to_save")
    with pytest.raises(SystemExit, match="Not trained as planned"):
        script["build"]()


def test_trainers_get_the_mask_of_the_probes(hybrid: Plan) -> None:
    """TRL counts every token of a conversation unless told otherwise, others the assistant's."""

    def masked(loss_on: str) -> Plan:
        provenance = hybrid.provenance
        changes = {"format": "messages", "loss_on": loss_on}
        probes = provenance.probes.model_copy(update=changes)
        return hybrid.model_copy(
            update={"provenance": provenance.model_copy(update={"probes": probes})}
        )

    whole, only = masked("all"), masked("assistant")
    for name, key, value in (
        ("axolotl", "train_on_inputs", True),
        ("llama-factory", "train_on_prompt", True),
        ("ms-swift", "loss_scale", "all"),
    ):
        assert fields_of(whole, name)[key] == value
        assert key not in fields_of(only, name)
        assert key not in fields_of(hybrid, name)
    toml = [fields_of(plan, "prime-rl") for plan in (whole, only)]
    assert toml[0]["data"]["loss_mask"]["user"] is True
    assert "loss_mask" not in toml[1]["data"]
    trl = [find_exporter("trl").files(Export(plan=plan)) for plan in (whole, only)]
    assert ["assistant_only_loss: true" in str(files["sft.yaml"]) for files in trl] == [False, True]
    assert "assistant_only_loss" not in str(trl[1]["dpo.yaml"])
    notes = [notes_of(plan, "unsloth") for plan in (whole, only)]
    assert ["train_on_responses_only" in each for each in notes] == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_files_name_their_origin_and_keep_names_and_revisions(name: str, hybrid: Plan) -> None:
    plan = near(hybrid, name)
    text = text_of(plan, name)
    assert text == text_of(Plan.model_validate_json(plan.model_dump_json()), name)
    assert all(line in text for line in find_exporter(name).origin(plan))
    assert "\r" not in text
    assert text.endswith("\n")
    assert "FILL_IN" in text or name == "twinkle"
    for item in (*plan.full, *plan.lora_modules):
        lines = text.replace("\\\\", "").splitlines()
        assert sum(item.module in line for line in lines) == 1, item.module

    # Another base model has no revision of the plan's.
    pinned = plan.model_copy(update={"model": plan.model.model_copy(update={"revision": "c0ffee"})})
    assert "c0ffee" in text_of(pinned, name) or name in ("twinkle", "verl", "prime-rl")
    other = text_of(pinned, name, model="./a b")
    assert "./a b" in other
    assert "c0ffee" not in other

    # Hostile names stay inside their quotes.
    evil = 'x"\n- y: "\u2028 #\x85\'é😀'
    if name == "unsloth":
        lines = text_of(plan, name, model=evil).split("\n")
        (line,) = (line for line in lines if line.startswith("MODEL = "))
        assert ast.literal_eval(line.removeprefix("MODEL = ")) == evil
        return
    fields = fields_of(plan, name, model=evil)
    keys = ("base_model", "model_name_or_path", "model_id", "model", "actor_rollout_ref")
    found = next(fields[key] for key in keys if key in fields)
    if name in ("prime-rl", "verl"):
        found = found["name"] if name == "prime-rl" else found["model"]["path"]
    assert found == evil


def test_one_learning_rate_is_the_smaller_one(hybrid: Plan) -> None:
    swapped = {"full_lr": 4e-4, "lora_lr": 3e-5}
    for name in ("llama-factory", "ms-swift"):
        assert fields_of(hybrid, name, **swapped)["learning_rate"] == 3e-5
        assert fields_of(family_plan("llama"), name)["learning_rate"] == 4e-4
    assert fields_of(hybrid, "prime-rl", **swapped)["optim"]["lr"] == 3e-5
    assert "everything: 3e-05" in notes_of(hybrid, "prime-rl", **swapped)


@pytest.mark.parametrize("name", ["axolotl", "ms-swift"])
def test_sgd_keeps_its_momentum(name: str) -> None:
    for optimizer in ("sgd-momentum", "sgd"):
        plan = family_plan("llama", *MODES, memory={"optimizer": optimizer})
        said = ["momentum" in text for text in (text_of(plan, name), notes_of(plan, name))]
        assert said == [optimizer == "sgd-momentum"] * 2


@pytest.mark.parametrize("name", ["a${b}", "a$b", "???"])
def test_verl_refuses_names_that_hydra_would_resolve(name: str) -> None:
    plan = family_plan("llama")
    with pytest.raises(ExportError, match=r"does not read .* as text"):
        text_of(plan, "verl", model=name)
    with pytest.raises(ExportError, match=r"does not read .* as text"):
        text_of(renamed(plan, "model.layers.0.self_attn.q_proj", name), "verl")


def test_origins_stay_on_their_lines() -> None:
    plan = family_plan("llama", "*=frozen", *MODES[:2])
    fingerprint = Fingerprint(structure="a\n^y$", weights="b\x85^z$")
    evil = plan.model_copy(
        update={
            "score": plan.score.model_copy(update={"name": "hls\n^.*$\u2028\x1b"}),
            "provenance": plan.provenance.model_copy(update={"hlscore_version": "1\r\n^x$"}),
            "model": plan.model.model_copy(update={"fingerprint": fingerprint}),
        }
    )
    assert all(line.isprintable() for line in find_exporter("freeze").origin(evil))
    texts = (text_of(each, "freeze").splitlines() for each in (evil, plan))
    found, rules = ([line for line in text if not line.startswith("#")] for text in texts)
    assert found == rules == [f"^{name}.weight$" for name in FULL]


@pytest.mark.parametrize("name", ["a|b", "a\nb", "(a", "a*", "\xe9", "a b", "a\\"])
def test_freeze_refuses_names_that_are_no_regular_expressions(name: str) -> None:
    plan = renamed(family_plan("llama", "*=frozen", *MODES[:2]), FULL[0], name)
    with pytest.raises(ExportError, match="regular expression"):
        text_of(plan, "freeze")


@pytest.mark.parametrize("name", exporter_names())
def test_formats_that_never_ran_with_their_trainer_say_so(name: str, hybrid: Plan) -> None:
    exporter = find_exporter(name)
    assert exporter.name == name
    assert exporter.experimental == (name in ("prime-rl", "twinkle", "unsloth", "verl"))
    if exporter.experimental:
        plan = near(hybrid, name)
        assert "Experimental: hlscore's tests have not run" in text_of(plan, name)
        assert "Experimental: hlscore's tests have not run" in notes_of(plan, name)


REFUSED: list[tuple[str, str, str, tuple[str, ...], dict[str, Any]]] = [
    *((name, "without LoRA", "llama", ("*=frozen", *MODES[:2]), {})
      for name in ("llama-factory", "twinkle", "unsloth", "prime-rl")),
    *((name, "only the name of its parameter", "mixtral", ("*.0.self_attn.q_proj=full",), {})
      for name in ("llama-factory", "twinkle", "prime-rl")),
    *((name, "into 4 bits, also", "llama", MODES, PACKED)
      for name in ("llama-factory", "ms-swift", "twinkle", "unsloth")),
    *((name, "would untie the embedding", "gemma3", ("*embed_tokens=full",), {"embeddings": True})
      for name in ("llama-factory", "ms-swift", "twinkle")),
    *((name, "one LoRA rank for all modules", "llama", ("*.0.self_attn.q_proj=rank:2",), {})
      for name in ("llama-factory", "ms-swift", "twinkle", "prime-rl", "verl")),
    ("verl", "in full beside LoRA", "llama", MODES, {}),
    ("verl", "16 bits only", "llama", (), PACKED),
    ("prime-rl", "16 bits only", "llama", MODES, PACKED),
    ("prime-rl", "not a linear layer", "gpt2", (), {}),
    ("trl", "output head 'lm_head'", "llama", (), {"head": True}),
    ("twinkle", "without modules trained in full", "llama", (), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reason", "family", "locks", "settings"), REFUSED)
def test_what_a_trainer_cannot_do_is_refused(
    name: str, reason: str, family: str, locks: tuple[str, ...], settings: dict[str, Any],
) -> None:  # fmt: skip
    with pytest.raises(ExportError, match=reason) as caught:
        text_of(family_plan(family, *locks, **settings), name)
    assert "--base 16" in caught.value.hint or "bits" not in reason
    assert "--to seed-adapter" in caught.value.hint or "untie" not in reason


def test_a_new_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_trainer.py").write_text(
        "from hlscore.exporters.exporter import Exporter\n"
        "from hlscore.exporters.limits import Limits\n"
        "EXPORTER = Exporter(name='my-trainer', summary='mine', limits=Limits(trainer='mine'),\n"
        "                    files=lambda export: {'mine.txt': export.base})\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert "my-trainer" in exporter_names()
    assert text_of(family_plan("llama"), "my-trainer") == "org/model"
    monkeypatch.delitem(sys.modules, f"{formats.__name__}.my_trainer")


# Plans hold no text that cannot be printed.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")))


@given(st.recursive(
    TEXTS | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner.filter(lambda item: not isinstance(item, list | dict)), min_size=1)
    | st.dictionaries(TEXTS.filter(bool), inner, min_size=1),
    max_leaves=8,
))  # fmt: skip
def test_yaml_reads_back(value: Any) -> None:
    text = yaml_text("# a comment\n", {"key": value})
    assert yaml.safe_load(text) == {"key": value}


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_toml_reads_back(text: str, number: float) -> None:
    values = {"text": text, "list": [text, text], "number": number, "flag": True, "none": []}
    assert tomllib.loads(prime_rl._table("a.b", values)) == {"a": {"b": values}}


@given(st.lists(st.text()))
def test_comments_cannot_be_left(lines: list[str]) -> None:
    text = find_exporter("peft").heading(family_plan("llama"), lines)
    assert all(line.startswith("#") for line in text.splitlines())
    assert yaml.safe_load(text) is None
    assert tomllib.loads(text) == {}
