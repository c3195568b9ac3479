"""A plan as an adapter's configuration, what trainers cannot run, and the nearest they can."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from peft import LoraConfig
from peft.utils import transformers_weight_conversion as conversion
from plans import family_plan, plan_for
from training_runs import every_mode, planned_model
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from hlscore.artifacts.files import write_files
from hlscore.artifacts.plan import Plan, PlanModule, PlanSkipped
from hlscore.artifacts.plan_file import plan_text, read_plan
from hlscore.exporters.adapter_config import (
    REWRITTEN,
    adapter_config,
    lora_config,
    needs_parameter_name,
    skip_modules,
)
from hlscore.exporters.exporter import Export, find_exporter
from hlscore.exporters.formats.peft import EXPORTER
from hlscore.exporters.limits import PEFT_LIMITS, ExportError, Limits, check_limits, faults, nearest
from hlscore.planning.memory import Choice
from hlscore.planning.parts import choice_of, common_rank, default_rank, lora_instead, revise
from hlscore.records import LeftOut

NARROW = Limits(trainer="narrow", full=False, ranks=False, parameters=False)
LAYER = "model.layers.0"


def changed_modes(before: Plan, after: Plan) -> dict[str, tuple[str, int | None]]:
    """What became of the modules that are not as they were."""
    return {
        new.module: (new.mode, new.rank)
        for old, new in zip(before.modules, after.modules, strict=True)
        if (old.mode, old.rank) != (new.mode, new.rank)
    }


def test_the_whole_plan_is_in_one_configuration() -> None:
    plan = family_plan("mixtral", "*=frozen", "*q_proj=lora", "*k_proj=rank:2", "*.0.*v_proj=full",
                   "*.0.*experts*=full", "*.1.*experts.down_proj=rank:1")  # fmt: skip
    assert adapter_config(plan) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/model",
        "revision": None, "inference_mode": False, "r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "ensure_weight_tying": False,
        "target_modules": [
            f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "kq"
        ],
        "target_parameters": ["model.layers.1.mlp.experts.down_proj"],
        "modules_to_save": [f"{LAYER}.mlp.experts", f"{LAYER}.self_attn.v_proj"],
        "rank_pattern": {
            r"^model\.layers\.0\.self_attn\.k_proj": 2,
            r"^model\.layers\.1\.mlp\.experts\.down_proj": 1,
            r"^model\.layers\.1\.self_attn\.k_proj": 2,
        },
        "alpha_pattern": {
            r"^model\.layers\.0\.self_attn\.k_proj": 4,
            r"^model\.layers\.1\.mlp\.experts\.down_proj": 2,
            r"^model\.layers\.1\.self_attn\.k_proj": 4,
        },
    }  # fmt: skip


def test_modules_below_full_get_the_rank_that_is_written() -> None:
    """Ranks 2 and 4 are as common: the plan's own counts, whichever comes first."""
    for ranks in (("*.0.*=rank:2", "*.1.*=rank:4"), ("*.0.*=rank:4", "*.1.*=rank:2")):
        plan = family_plan("llama", *ranks, "*.0.*q_proj=full", "*.1.*q_proj=full")
        assert default_rank(plan) == 4
        one_rank = Limits(trainer="narrow", full=False, ranks=False)
        changes = [
            change for fault in faults(plan, one_rank) for change in fault.changes
            if change.row.module.endswith("q_proj")
        ]  # fmt: skip
        assert [change.rank for change in changes] == [4, 4]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "lion8bit"])
@pytest.mark.parametrize(("family", "wide"), [("llama", "."), ("mixtral", "v_")])
def test_the_largest_rank_that_costs_no_more(family: str, wide: str, optimizer: str) -> None:
    """Found at once, and the same as by trying all of them."""
    plan = family_plan(family, "*.0.*o_proj=full", rank=8, memory={"optimizer": optimizer})
    plan = plan.model_copy(update={"lora": plan.lora.model_copy(update={"rank": 500})})
    # Some tensors have more than the 4096 numbers from which 8-bit moments have 8 bits.
    some = [item for item in plan.lora_modules if wide in item.module]
    plan = revise(plan, [Choice(row=item, mode="lora", rank=400) for item in some])
    (full,) = plan.full
    most = plan.memory.total_bytes

    def fits(changes: list[Choice]) -> bool:
        after = revise(plan, changes)
        trained = after.totals.trained_params <= plan.totals.trained_params
        return trained and after.memory.total_bytes <= most

    def tried(modules: list[PlanModule]) -> int:
        return next((
            rank for rank in range(plan.lora.rank, 0, -1)
            if fits([Choice(row=item, mode="lora", rank=rank) for item in modules])
        ), 0)  # fmt: skip

    assert (lora_instead(plan, full, 500, lower=True).rank or 0) == tried([full])
    assert common_rank(plan) == max(1, tried(plan.lora_modules))


def test_ranks_beyond_reason_are_cut_down() -> None:
    plan = family_plan("llama", "*.0.*o_proj=full", "*.1.*o_proj=rank:2")
    huge = plan.model_copy(update={"lora": plan.lora.model_copy(update={"rank": 10**12})})
    assert common_rank(huge) == common_rank(plan)
    (full,) = huge.full
    assert lora_instead(huge, full, 10**12, lower=True).rank > 0
    assert lora_instead(huge, full, 10**12, lower=False).mode == "frozen"


def test_fields_that_follow_from_the_plan() -> None:
    assert default_rank(family_plan("llama", "*.0.*=rank:2")) == 4  # as common: the plan's
    assert default_rank(family_plan("llama", "*=full")) == 4
    config = adapter_config(family_plan("llama", "*.0.*=rank:2", "*.1.*q_proj=rank:2"))
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    full = adapter_config(family_plan("llama", "*=full"))
    assert full["target_modules"] == "dummy-target-modules"  # never found
    on_parameters = adapter_config(family_plan("mixtral", "*=frozen", "*experts*=lora"))
    assert on_parameters["target_modules"] == []
    assert adapter_config(family_plan("gpt2"))["fan_in_fan_out"] is True
    assert adapter_config(family_plan("gpt2", "*=full"))["fan_in_fan_out"] is False
    tied = family_plan("qwen3", "*embed_tokens=full", embeddings=True)
    assert adapter_config(tied)["ensure_weight_tying"] is True


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_the_file_is_read_by_peft_and_is_stable(name: str, tmp_path: Path) -> None:
    _, plan = planned_model(name)
    assert find_exporter("peft") is EXPORTER
    first, second = (EXPORTER.files(Export(plan=plan, model="elsewhere")) for _ in range(2))
    assert first == second
    fields = json.loads(str(first["adapter_config.json"]))
    assert list(fields) == sorted(fields)
    write_files(tmp_path, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = LoraConfig.from_pretrained(str(tmp_path))
    expected = lora_config(plan).to_dict() | {"base_model_name_or_path": "elsewhere"}
    assert {**loaded.to_dict(), "peft_version": None} == {**expected, "peft_version": None}


def test_the_table_of_rewritten_names_is_that_of_peft() -> None:
    types = conversion._MODEL_TO_CONVERSION_PATTERN
    for like, leaves in conversion._MOE_TARGET_MODULE_MAPPING.items():
        ours = {key for key, value in REWRITTEN.items() if {*value} == {*leaves}}
        theirs = {key for key, value in types.items()
                  if value == like and get_checkpoint_conversion_mapping(key)}  # fmt: skip
        assert theirs <= ours
        # Older versions rewrite fewer; naming a parameter is right there too.
        newest = version("transformers") >= "5.23"
        assert not newest or ours - theirs <= {"qwen2_moe"}


def test_which_weights_go_by_parameter_and_stay_out_of_4_bits() -> None:
    for family, leaves in (
        ("deepseek_v3", {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "gate"}),
        ("llama", set()),
    ):
        plan = family_plan(family)
        named = [item for item in plan.modules if needs_parameter_name(plan, item)]
        assert {item.module.rpartition(".")[2] for item in named} == leaves
    plan = family_plan("deepseek_v3", "*=frozen", "*.0.*o_proj=full", "*.0.*down_proj=lora")
    assert skip_modules(plan) == [f"{LAYER}.mlp.down_proj", f"{LAYER}.self_attn.o_proj", "lm_head"]
    plan = family_plan("llama", "*.0.*q_proj=full", memory={"base_bits": 4})
    copies, packed, serving = EXPORTER.notes(Export(plan=plan))
    assert "hlscore.apply" in copies
    assert json.dumps(skip_modules(plan)) in packed
    assert "vLLM" in serving
    assert EXPORTER.notes(Export(plan=family_plan("llama"))) == ()


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "mamba"])
@pytest.mark.parametrize(
    "memory",
    [{}, {"optimizer": "adamw8bit", "base_bits": 4}, {"optimizer": "adafactor", "master": "bf16"}],
)
def test_a_revised_plan_adds_up_like_one_made_that_way(name: str, memory: dict[str, Any]) -> None:
    model = FAMILIES[name].build()
    first = plan_for(model, every_mode(model), memory=memory)
    locks = ["*.0.*=rank:2", "*.1.*=frozen"]
    second = plan_for(model, locks, memory=memory)
    revised = revise(first, map(choice_of, second.modules), ["a remark"])
    kept = {"limit": first.budget.limit, "asked": first.budget.asked}
    assert revised.budget == second.budget.model_copy(update=kept)
    assert (revised.totals, revised.memory) == (second.totals, second.memory)
    names = ("module", "mode", "rank", "alpha", "trained_params")
    assert [[getattr(item, name) for name in names] for item in revised.modules] == [
        [getattr(item, name) for name in names] for item in second.modules
    ]
    assert revised.notes[-1] == "a remark"


@pytest.mark.parametrize(("name", "limits"), [
    *((name, limits) for name in FAMILIES for limits in (PEFT_LIMITS, NARROW)),
    *((name, limits) for name in ("llama", "gpt2", "qwen3_moe") for limits in (
        Limits(trainer="one rank", ranks=False), Limits(trainer="no full", full=False),
        Limits(trainer="layers", parameters=False), Limits(trainer="full", lora=False),
    )),
], ids=lambda given: given if isinstance(given, str) else given.trainer)  # fmt: skip
def test_the_nearest_plan_can_be_run_and_costs_no_more(
    name: str, limits: Limits, tmp_path: Path
) -> None:
    model = FAMILIES[name].build()
    locks = every_mode(model)
    halved = [lock.replace(".*=full", ".down_proj=full") for lock in locks]
    plan = plan_for(model, halved)
    near, said = nearest(plan, limits)
    assert faults(near, limits) == []
    assert bool(said) == bool(faults(plan, limits))
    assert near.totals.trained_params <= plan.totals.trained_params
    assert near.memory.total_bytes <= plan.memory.total_bytes
    assert near.budget.spent <= plan.budget.spent
    assert near.memory.total_bytes == sum(
        value for key, value in near.memory.model_dump().items()
        if key.endswith("_bytes") and key != "total_bytes"
    )  # fmt: skip
    (tmp_path / "plan.json").write_text(plan_text(near))
    assert read_plan(tmp_path / "plan.json") == near
    if not said:
        assert near == plan
        check_limits(plan, limits)


def test_the_refusal_says_why_and_what_can_be_done() -> None:
    plan = family_plan("llama", "*.0.*=full")
    with pytest.raises(ExportError) as caught:
        check_limits(plan, NARROW)
    assert caught.value.message.startswith("narrow cannot run this plan. narrow cannot train '")
    assert caught.value.message.endswith("And 4 more.")
    assert "hlscore export --nearest" in caught.value.hint
    assert f"--lock '{plan.full[0].module}=rank:4'" in caught.value.hint


NO_FULL = Limits(trainer="x", full=False)
UP, DOWN = f"{LAYER}.mlp.experts.gate_up_proj", f"{LAYER}.mlp.experts.down_proj"


@pytest.mark.parametrize(("family", "locks", "limits", "changes"), [
    # The router is 4 x 48: LoRA of rank 3 has 156 parameters, of rank 4 more than the 192.
    ("mixtral", ("*.0.*q_proj=full", "*.0.mlp.gate=full", "*.0.*experts.*=full"), NO_FULL, {
        f"{LAYER}.self_attn.q_proj": ("lora", 4), f"{LAYER}.mlp.gate": ("lora", 3),
        UP: ("lora", 4), DOWN: ("lora", 4),
    }),
    # Too small for any rank.
    ("qwen3_next", ("*shared_expert_gate=full",), NO_FULL,
     {f"{LAYER}.mlp.shared_expert_gate": ("frozen", None)}),
    ("mixtral", (f"{UP}=full", f"{DOWN}=rank:2"), PEFT_LIMITS, {UP: ("lora", 2)}),
    ("mixtral", (f"{UP}=full", f"{DOWN}=frozen"), PEFT_LIMITS, {UP: ("lora", 4)}),
    # The model would read past these.
    ("mamba", ("*=frozen", "*.0.*=lora", "*.1.*=full"), PEFT_LIMITS, {
        f"backbone.layers.0.mixer.{kind}": ("frozen", None)
        for kind in ("out_proj", "dt_proj", "x_proj")
    }),
], ids=["ranks", "too small", "half rank", "half frozen", "read past"])  # fmt: skip
def test_nearest_changes(
    family: str, locks: tuple[str, ...], limits: Limits, changes: dict[str, Any]
) -> None:
    plan = family_plan(family, *locks)
    near, said = nearest(plan, limits)
    assert changed_modes(plan, near) == changes
    # At most three changes, how many more there are, and the cost before and after.
    assert len(said) == min(len(changes), 3) + (len(changes) > 3) + 1
    assert near.notes[-len(said) :] == [
        f"Changed for {limits.trainer}: {sentence}" for sentence in said
    ]


def with_skipped(plan: Plan, module: str, parameter: str, left_out: LeftOut) -> Plan:
    skipped = PlanSkipped(
        module=module, parameter=parameter, left_out=left_out, tied_to="", reason="left out"
    )
    return plan.model_copy(update={"skipped": [*plan.skipped, skipped]})


def test_experts_beside_one_that_was_left_out() -> None:
    plan = family_plan("mixtral", "*.0.*experts.*=full")
    (gone,) = (item for item in plan.modules if item.module == DOWN)
    kept = plan.model_copy(update={"modules": [item for item in plan.modules if item != gone]})
    (fault,) = faults(with_skipped(kept, DOWN, gone.parameter, "excluded"), PEFT_LIMITS)
    assert f"without '{DOWN}'" in fault.reason
    assert faults(family_plan("gpt_oss", "*.0.*experts.*=full"), PEFT_LIMITS) == []  # biases beside


@pytest.mark.parametrize(("other", "lora", "full"), [
    ("tower.model.layers.0.self_attn.q_proj", True, True),
    ("tower_model.layers.0.self_attn.q_proj", False, True),
    ("tower.model.layers.0.self_attn.q_proj.inner", True, True),
    ("model.layers.0.self_attn.q_proj.inner", False, True),
    ("model.layers.0.self_attn.q_proj_2", False, False),
])  # fmt: skip
def test_names_that_peft_would_match_besides(other: str, lora: bool, full: bool) -> None:
    for mode, refused in (("lora", lora), ("full", full)):
        plan = family_plan("llama", "*=frozen", f"*.0.*q_proj={mode}")
        plan = with_skipped(plan, other, f"{other}.weight", "outside_blocks")
        found = faults(plan, PEFT_LIMITS)
        assert [fault.modules for fault in found] == [(f"{LAYER}.self_attn.q_proj",)] * refused
        assert not faults(plan, replace(PEFT_LIMITS, peft=False))


@pytest.mark.parametrize(
    ("locks", "rank"),
    [(("*=rank:2", "*.0.*q_proj=rank:8"), 2), (("*=rank:8", "*.0.*q_proj=rank:2"), 7)],
)
def test_one_rank_for_all_costs_no_more_than_the_ranks_did(
    locks: tuple[str, ...], rank: int
) -> None:
    plan = family_plan("llama", *locks, rank=4)
    near, said = nearest(plan, Limits(trainer="x", ranks=False))
    assert {(item.rank, item.alpha) for item in near.lora_modules} == {(rank, 2 * rank)}
    asked, trained = plan.totals.trained_params, near.totals.trained_params
    # One rank more would train more than the plan asks for.
    assert trained <= asked < trained + near.totals.lora_params // rank
    assert said[-1] == f"Trained parameters: {asked:,} in the plan, {trained:,} in the export."


def test_plans_of_one_mode_only() -> None:
    full, lora, none = (family_plan("llama", f"*={mode}") for mode in ("full", "lora", "frozen"))
    near, said = nearest(full, Limits(trainer="x", only_full=False))
    assert len(said) == 2  # the change, and the cost before and after
    assert changed_modes(full, near) == {full.full[-1].module: ("lora", 4)}
    for plan, limits in (
        (lora, Limits(trainer="x", only_lora=False)),
        (none, PEFT_LIMITS),
        (lora, Limits(trainer="x", lora=False)),
    ):
        assert faults(plan, limits)
        with pytest.raises(ExportError):
            nearest(plan, limits)
    assert faults(none, Limits(trainer="table", peft=False)) == []
