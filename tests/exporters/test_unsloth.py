"""The script for Unsloth: the plan in it, and that it stops where the plan is not followed."""

from __future__ import annotations

import ast
import copy
import sys
from types import SimpleNamespace
from typing import Any

import peft
import pytest
from families import FAMILIES
from plans import plan_for

from hlscore.artifacts.plan import Plan
from hlscore.exporters.exporter import Export
from hlscore.exporters.formats.unsloth import EXPORTER

MODES = ("*.0.mlp.down_proj=full", "*.1.self_attn.v_proj=full", "*.1.self_attn.q_proj=frozen")
FULL = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"]


def script_of(plan: Plan) -> str:
    (script,) = EXPORTER.files(Export(plan=plan, full_lr=3e-5, lora_lr=4e-4)).values()
    return str(script)


def assigned(tree: ast.Module) -> dict[str, Any]:
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def test_unsloth_is_a_script_with_the_plan() -> None:
    plan = plan_for(FAMILIES["llama"].build(), (*MODES, "*.0.self_attn.q_proj=rank:2"))
    tree = ast.parse(script_of(plan))
    assert assigned(tree) == {
        "MODEL": "org/model",
        "REVISION": None,
        "DATASET": "FILL_IN",
        "LORA_MODULES": sorted(item.module for item in plan.lora_modules),
        "LORA_PARAMETERS": [],
        "FULL_MODULES": FULL,
        "RANKS": {r"^model\.layers\.0\.self_attn\.q_proj": 2},
        "ALPHAS": {r"^model\.layers\.0\.self_attn\.q_proj": 4},
    }
    calls = {
        ast.unparse(node.func): {word.arg: ast.unparse(word.value) for word in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    wrap = calls["FastModel.get_peft_model"]
    assert (wrap["r"], wrap["lora_alpha"], wrap["target_parameters"], wrap["rank_pattern"]) == (
        "4", "8", "LORA_PARAMETERS", "RANKS",
    )  # fmt: skip
    rates = calls["UnslothTrainingArguments"]
    assert (rates["learning_rate"], rates["embedding_learning_rate"]) == ("0.0004", "3e-05")


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
    exec(compile(script_of(plan_for(model, locks)), "x", "exec"), script)  # noqa: S102
    script["build"]()
    left_out.add("modules_to_save")
    with pytest.raises(SystemExit, match="Not trained as planned"):
        script["build"]()
