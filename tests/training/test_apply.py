"""Plans on live models: exactly the planned weights train, through every trap of PEFT."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import save_model
from families import FAMILIES, Family
from peft import LoraConfig, PeftModel, get_peft_model
from plans import family_plan, plan_for
from torch import nn
from training_runs import changed, every_mode, logits, planned, planned_model, train, weights
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.errors import ArtifactError, ModelError, UsageError
from hlscore.exporters.adapter_config import lora_config
from hlscore.exporters.limits import PEFT_LIMITS, ExportError, nearest
from hlscore.training import apply as applying
from hlscore.training import groups
from hlscore.training.apply import apply, skip_modules
from hlscore.training.groups import check_trainables, expected_trainables

STATE_SPACE = ("out_proj", "dt_proj", "x_proj")
REFUSED = {"mamba": STATE_SPACE, "mamba2": STATE_SPACE[:1], "falcon_h1": STATE_SPACE[:1],
           "jamba": STATE_SPACE[1:2]}  # fmt: skip


def changed_config(name: str, **settings: Any) -> Family:
    """A family with some settings of its configuration changed."""
    family = FAMILIES[name]

    def config() -> Any:
        found = family.config()
        for key, value in settings.items():
            setattr(found, key, value)
        return found

    return replace(family, config=config)


def edited(plan: Plan, end: str, **changes: Any) -> Plan:
    """A plan with one module changed by hand, past all checks."""
    modules = [item.model_copy(update=changes) if item.module.endswith(end) else item
               for item in plan.modules]  # fmt: skip
    assert modules != plan.modules
    return plan.model_copy(update={"modules": modules})


def trained(plan: Plan, model: PreTrainedModel) -> set[str]:
    """Names of the base weights that two steps by a plan change; the rest is bit-identical."""
    before = weights(model)
    wrapped = apply(model, plan)
    train(wrapped)
    return changed(before, weights(wrapped.merge_and_unload()))


def expected(model: PeftModel, plan: Plan, *modes: str) -> set[str]:
    """Names of the parameters that modules of these modes train."""
    by_module = expected_trainables(model, plan)
    return {name for item in plan.modules if item.mode in modes for name in by_module[item.module]}


@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_the_planned_weights_train(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, base = family.build(), family.build()
    plan = plan_for(model, every_mode(model, left=REFUSED.get(name, ())))
    before, untrained = weights(model), logits(model)
    wrapped = apply(model, plan)
    sizes = {key: value.numel() for key, value in wrapped.named_parameters()}
    for mode, params in (("full", plan.totals.full_params), ("lora", plan.totals.lora_params)):
        assert sum(sizes[name] for name in expected(wrapped, plan, mode)) == params
    assert set(expected_trainables(wrapped, plan)) == {item.module for item in plan.modules}
    assert not expected(wrapped, plan, "frozen")
    assert torch.equal(logits(wrapped), untrained)
    train(wrapped)
    after = logits(wrapped)
    assert not torch.equal(after, untrained)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), untrained)
    wrapped.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), after, atol=1e-5, rtol=0)
    merged = wrapped.merge_and_unload()
    assert changed(before, weights(merged)) == planned(plan, merged)
    torch.testing.assert_close(logits(merged), after, atol=1e-4, rtol=0)


EMBEDDINGS = {"embeddings": True, "head": True}


@pytest.mark.parametrize(("family", "locks", "settings"), [
    ("llama", ["*=full"], {}),
    ("llama", ["*=lora"], {}),
    ("llama", ["*=frozen", "*.1.*q_proj=full"], {}),
    ("llama", ["*=frozen", "*embed_tokens=full", "lm_head=full"], EMBEDDINGS),
    ("llama", ["*=frozen", "*embed_tokens=lora", "lm_head=lora"], EMBEDDINGS),
    ("qwen3_moe", ["*=full"], {}),
    ("mixtral", ["*=frozen", "*.0.*experts.*=lora", "*.1.*gate=rank:2"], {}),
])  # fmt: skip
def test_plans_of_few_modes(family: str, locks: Sequence[str], settings: dict[str, Any]) -> None:
    model, plan = planned_model(family, locks, **settings)
    assert trained(plan, model) == planned(plan, model)


def test_dense_layers_of_a_sparse_model_are_not_taken_for_experts() -> None:
    family = changed_config("qwen3_moe", mlp_only_layers=[0])
    model = family.build()
    plan = plan_for(model, ["*=frozen", "*.0.mlp.*=rank:2", "*.0.mlp.up_proj=full"])
    config = lora_config(plan)
    assert config.target_parameters == [
        "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    ]  # fmt: skip
    assert trained(plan, model) == planned(plan, model)
    # By their own names PEFT puts the adapters on the experts of the other layer.
    naive = LoraConfig(target_modules=["model.layers.0.mlp.down_proj"])
    names = [key for key, value in get_peft_model(family.build(), naive).named_parameters()
             if value.requires_grad]  # fmt: skip
    assert names
    assert all(".experts." in name for name in names)


def test_ranks_of_layers_whose_numbers_overlap(tmp_path: Path) -> None:
    family = changed_config("llama", num_hidden_layers=12)
    model = family.build()
    plan = plan_for(
        model,
        ["*.1.*q_proj=rank:1", "*.11.*q_proj=rank:2", "*.1.*up_proj=frozen", "*.1.*k_proj=full"],
    )
    wrapped = apply(model, plan)
    wrapped.save_pretrained(str(tmp_path))
    for found in (wrapped, PeftModel.from_pretrained(family.build(), str(tmp_path))):
        ranks = {key.removeprefix("base_model.model."): (module.r["default"], module.scaling)
                 for key, module in found.named_modules() if hasattr(module, "lora_A")}  # fmt: skip
        assert ranks == {item.module: (item.rank, {"default": 2.0}) for item in plan.lora_modules}


def test_an_adapter_of_another_rank_is_noticed() -> None:
    model, plan = planned_model("llama", ["*.1.*q_proj=rank:2"])
    config = lora_config(plan)
    config.rank_pattern = {}
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj' has 448 .* not the 224"):
        check_trainables(get_peft_model(model, config), plan)


def test_names_that_end_alike_are_refused() -> None:
    model = FAMILIES["llama"].build()
    mirror = nn.Module()
    mirror.model = FAMILIES["llama"].build().model
    model.mirror = mirror
    plan = plan_for(model, ["*=frozen", "*.0.*q_proj=lora", "*.1.*q_proj=full"])
    with pytest.raises(ExportError, match=r"'mirror\.model\.layers\.0\.self_attn\.q_proj"):
        apply(model, plan)
    # Two adapter halves and one copy on the mirror image.
    with pytest.raises(ModelError, match=r"3 train unplanned: base_model\.model\.mirror"):
        check_trainables(get_peft_model(model, lora_config(plan)), plan)


def test_a_tied_embedding_in_full_stays_tied() -> None:
    model, plan = planned_model(
        "qwen3", ["*=frozen", "*q_proj=lora", "*embed_tokens=full"], embeddings=True
    )
    before = weights(model)
    wrapped = apply(model, plan)
    assert expected(wrapped, plan, "full") == {
        "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    }
    train(wrapped)
    after = logits(wrapped)
    merged = wrapped.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert changed(before, weights(merged)) == planned(plan, merged) | {"lm_head.weight"}
    torch.testing.assert_close(logits(merged), after, atol=1e-4, rtol=0)


def test_tied_weights_that_peft_would_untie() -> None:
    model, plan = planned_model("qwen3", ["*embed_tokens=frozen"], embeddings=True)
    with pytest.raises(ExportError, match=r"LoRA on 'model\.embed_tokens' would merge wrongly"):
        apply(model, edited(plan, "embed_tokens", mode="lora", rank=4, alpha=8))
    model, plan = planned_model("gpt2", ["*wte=full"], embeddings=True)
    with pytest.raises(ExportError, match=r"'transformer\.wte' cannot be trained in full"):
        apply(model, plan)


def test_experts_half_in_full_are_refused_and_the_nearest_plan_runs() -> None:
    model, plan = planned_model("mixtral", ["*.0.*experts.down_proj=full", "*.1.*experts.*=full"])
    with pytest.raises(ExportError, match="trains all weights of 'model"):
        apply(model, plan)
    near, said = nearest(plan, PEFT_LIMITS)
    assert len(said) == 2  # the change, and the cost before and after
    assert trained(near, model) == planned(near, model)


def test_lora_that_state_space_models_would_ignore() -> None:
    for name, kind in (("mamba", "dt_proj"), ("jamba", "dt_proj")):
        model = FAMILIES[name].build()
        plan = plan_for(model, ["*=frozen", f"*.0.*{kind}=lora"])
        before = logits(model)
        with pytest.raises(ExportError, match="no effect"):
            apply(model, plan)
        wrapped = get_peft_model(model, lora_config(plan))
        with torch.no_grad():
            for key, value in wrapped.named_parameters():
                if "lora_B" in key:
                    value.fill_(1.0)
        assert torch.equal(logits(wrapped), before)


def test_gpt2_is_wrapped_without_a_warning() -> None:
    model, plan = planned_model("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        wrapped = apply(model, plan)
    assert wrapped.peft_config["default"].fan_in_fan_out is True


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "qwen3_next"])
def test_full_copies_of_a_16_bit_model_are_kept_in_float32(name: str) -> None:
    model = FAMILIES[name].build(torch.bfloat16)
    plan = plan_for(model, every_mode(model))
    wrapped = apply(model, plan)
    trainable = {key: value for key, value in wrapped.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trainable.values()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    before = {key: trainable[key].detach().clone() for key in expected(wrapped, plan, "full")}
    with torch.autocast("cpu", torch.bfloat16):
        train(wrapped, lr=1e-6)
    moved = [(trainable[key] != value).float().mean().item() for key, value in before.items()]
    assert sum(moved) / len(moved) > 0.9  # in bfloat16 nearly all of these steps are lost


def test_16_bit_master_weights_stay_as_they_are() -> None:
    model = FAMILIES["llama"].build(torch.bfloat16)
    plan = plan_for(model, every_mode(model), memory={"master": "bf16"})
    wrapped = apply(model, plan)
    assert {value.dtype for value in wrapped.parameters()} == {torch.bfloat16}
    train(wrapped)


@pytest.mark.parametrize(("config", "change", "message"), [
    ({"intermediate_size": 96}, {}, r"'model\.layers\.0\.mlp\.gate_proj' is 96 x 48, not 80"),
    ({"num_hidden_layers": 1}, {}, r"it has no 'model\.layers\.1\.self_attn\.q_proj'"),
    ({"num_hidden_layers": 3}, {}, r"the plan does not know its 'model\.layers\.2"),
    ({}, {"parameter": "model.x"}, r"q_proj' has the weight .*q_proj\.weight, not model\.x"),
    ({}, {"form": "embedding"}, r"q_proj' has the form linear, not embedding"),
    ({}, {"form": "experts"}, r"q_proj' has the form linear, not experts"),
])  # fmt: skip
def test_another_model_is_refused(
    config: dict[str, int], change: dict[str, str], message: str
) -> None:
    plan = family_plan("llama", "*.0.*=full")
    with pytest.raises(ModelError, match=message):
        apply(
            changed_config("llama", **config).build(),
            edited(plan, "0.self_attn.q_proj", **change) if change else plan,
        )


def test_other_weights_are_warned_about() -> None:
    family = FAMILIES["llama"]
    plan = plan_for(family.build(), ["*.0.*=full"])
    with pytest.warns(UserWarning, match="not those of 'org/model' that were scored"):
        apply(family.build(seed=1), plan)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The weights of this model")
        apply(family.build(seed=1), plan, allow_other_weights=True)
        apply(family.build(torch.bfloat16), plan)


def test_a_plan_file_and_another_adapter_name(tmp_path: Path) -> None:
    model, plan = planned_model("mixtral")
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    wrapped = apply(model, str(path), adapter_name="plan")
    assert all(".plan" in name for name in expected(wrapped, plan, "full", "lora"))
    with pytest.raises(ModelError, match="wrapped by PEFT already"):
        apply(wrapped, plan)
    with pytest.raises(ArtifactError):
        apply(model, tmp_path / "other.json")


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = planned_model("llama", [])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'hlscore\[peft\]'"):
        apply(model, plan)
    with pytest.raises(UsageError, match=r"pip install 'hlscore\[peft\]'"):
        lora_config(plan)


def test_the_model_is_left_as_it_was_when_peft_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = planned_model("mixtral", ["*.0.*experts.down_proj=full"])
    kinds = {name: type(module) for name, module in model.named_modules()}
    flags = [value.requires_grad for value in model.parameters()]
    attributes, before = set(model.__dict__), logits(model)
    monkeypatch.setattr(applying, "check_limits", lambda *_: None)
    with pytest.raises(ModelError, match="PEFT cannot put the plan on this model"):
        apply(model, plan)
    good = plan_for(model, every_mode(model))
    monkeypatch.setattr(groups, "expected_trainables", lambda *_, **__: {"any": ("x",)})
    with pytest.raises(ModelError, match="1 are missing: x; "):
        apply(model, good)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert [value.requires_grad for value in model.parameters()] == flags
    assert set(model.__dict__) == attributes
    assert torch.equal(logits(model), before)
    monkeypatch.undo()
    assert trained(good, model) == planned(good, model)


@pytest.mark.parametrize(("name", "locks"), [
    ("llama", ["*=rank:2", "*.0.*q_proj=full", "*.1.*down_proj=full"]),
    ("qwen3_moe", ["*=frozen", "*.0.mlp.*=rank:2", "*.1.*q_proj=full", "*.0.*o_proj=lora"]),
])  # fmt: skip
def test_4_bit_models(name: str, locks: Sequence[str], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    if name == "qwen3_moe":
        sizes["mlp_only_layers"] = [0]
    original = changed_config(name, **sizes).build()
    plan = plan_for(original, locks)
    folder = save_model(tmp_path, model=original)

    def load(skipped: list[str]) -> PreTrainedModel:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=skipped
        )
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)

    with pytest.raises(ModelError, match=r"its weight is quantized\. .*skip_modules"):
        apply(load(["lm_head"]), plan)
    wrapped = apply(load(skip_modules(plan)), plan)
    before = weights(wrapped)
    train(wrapped)
    assert changed(before, weights(wrapped)) == expected(wrapped, plan, "full", "lora")
    after = logits(wrapped)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(load(skip_modules(plan)), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded), after, atol=1e-5, rtol=0)


def _refuse_adapters(module: nn.Module, *_: Any) -> None:
    if hasattr(module.up_proj, "lora_A"):
        raise RuntimeError("this layer works in groups")


def test_adapters_that_break_the_forward_pass_are_refused() -> None:
    """Some layers take no adapter, which shows only when they are called."""
    model = FAMILIES["llama"].build()
    model.model.layers[1].mlp.register_forward_pre_hook(_refuse_adapters)
    plan, before = plan_for(model, ("*.1.*.down_proj=full",)), set(dict(model.named_modules()))
    with pytest.raises(ModelError, match=r"fails at or after '.*1.self_attn.o_proj': this layer"):
        apply(model, plan)
    assert set(dict(model.named_modules())) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    wrapped = apply(model, plan, try_forward=False)
    with pytest.raises(RuntimeError, match="in groups"):
        logits(wrapped)


def test_a_model_that_takes_no_plain_tokens_is_wrapped_with_a_warning() -> None:
    model, plan = planned_model("llama", ("*.1.*.down_proj=full",))

    def failing(*_: Any) -> None:
        raise RuntimeError("pixels are missing")

    hook = model.register_forward_pre_hook(failing)
    with pytest.warns(UserWarning, match="is not checked.*pixels are missing"):
        wrapped = apply(model, plan)
    hook.remove()
    check_trainables(wrapped, plan)
    logits(wrapped)


def test_trying_the_forward_pass_changes_nothing() -> None:
    model = FAMILIES["llama"].build().train()
    plan = plan_for(model, ("*.1.*.down_proj=full",))
    states = []
    for tried in (True, False):
        torch.manual_seed(5)
        wrapped = apply(FAMILIES["llama"].build().train(), plan, try_forward=tried)
        hooks = [name for name, module in wrapped.named_modules() if module._forward_pre_hooks]
        states.append((torch.get_rng_state().tolist(), hooks, wrapped.training))
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("model", "plan", "message"),
    [("llama", 3, "type 'int'"), (3, "llama", "Cannot apply a plan to a int")],
    ids=["plan", "model"],
)
def test_other_types_are_refused(model: Any, plan: Any, message: str) -> None:
    given = [family_plan(plan) if isinstance(plan, str) else plan]
    built = FAMILIES[model].build() if isinstance(model, str) else model
    with pytest.raises(UsageError, match=message):
        apply(built, *given)
