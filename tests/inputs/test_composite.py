"""Checkpoints with text and other inputs are ranked as the class that trainers load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from benchmark_scripts import BENCHMARKS, part, scripts_in
from console import QUICK, change_config, hlscore, save_model
from families import FAMILIES
from transformers import PreTrainedModel

from hlscore.artifacts.plan_file import read_plan
from hlscore.errors import ModelError, UsageError
from hlscore.inputs.model import load_model, load_shape
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.settings import ModelSettings
from hlscore.training.apply import apply

FAMILY = {
    "Qwen3_5": "qwen3_5", "Qwen3_5Moe": "qwen3_5_moe", "Llama4": "llama4", "Mllama": "mllama",
    "Emu3": "emu3",
}  # fmt: skip

_path = scripts_in(BENCHMARKS)


def build(name: str) -> PreTrainedModel:
    model: PreTrainedModel = part("tiny_architectures").build_multimodal(FAMILY[name])
    return model


def named_class(name: str) -> Any:
    return getattr(transformers, f"{name}ForConditionalGeneration")


@pytest.fixture(scope="module", params=list(FAMILY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of a family, by whose name it is called."""
    name: str = request.param
    return save_model(tmp_path_factory.mktemp("saved") / name, model=build(name))


def as_trainers_load(folder: Path) -> PreTrainedModel:
    from trl.trainer.utils import create_model_from_path

    model: PreTrainedModel = create_model_from_path(str(folder))
    return model


def assert_plan_fits(plan: Path, folder: Path) -> None:
    """The plan checks against the model, and its seed adapter can be written."""
    checked = hlscore("check", plan, "--model", folder, "--weights")
    assert (checked.code, checked.err) == (0, "")
    assert hlscore("export", plan, "--to", "seed-adapter", "-o", plan.parent / "seed").code == 0


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(model=str(folder), device="cpu", **options)


def test_every_way_to_see_a_model_sees_the_class_that_the_configuration_names(folder: Path) -> None:
    loaded = load_model(settings(folder))
    stored = StoredWeights(settings(folder))
    shape, _ = load_shape(settings(folder))
    assert type(loaded.model) is type(shape) is type(stored.shape) is named_class(folder.name)
    assert loaded.identity.architecture == named_class(folder.name).__name__
    assert loaded.identity.notes == ()
    wanted = as_trainers_load(folder).state_dict()
    assert loaded.model.state_dict().keys() == wanted.keys() == shape.state_dict().keys()
    streamed = stored.read((), lambda *_: None)
    assert streamed == loaded.identity.fingerprint.weights


def test_a_plan_is_checked_exported_and_trained_on_what_trainers_load(
    folder: Path, tmp_path: Path
) -> None:
    out, plan_path = tmp_path / "out", tmp_path / "out" / "plan.json"
    # LoRA does not run on Llama 4's routers, which return a tuple.
    locks = ("--lock", "*.router=frozen") if folder.name == "Llama4" else ()
    assert hlscore("rank", folder, *QUICK, "--budget", "0.2", *locks, "-o", out).code == 0
    assert_plan_fits(plan_path, folder)
    model = as_trainers_load(folder)
    plan = read_plan(plan_path)
    wrapped = apply(model, plan)
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    tokens = torch.arange(10)[None]
    logits = wrapped(input_ids=tokens).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
    torch.optim.SGD([p for p in wrapped.parameters() if p.grad is not None], lr=1.0).step()
    changed = {name for name, value in wrapped.named_parameters() if not value.equal(before[name])}
    full = {item.module for item in plan.modules if item.mode == "full"}
    moved = {name.partition(".modules_to_save")[0] for name in changed if "modules_to_save" in name}
    assert {name.removeprefix("base_model.model.") for name in moved} == full


def test_text_only_loads_the_text_class_and_the_plan_says_so(folder: Path, tmp_path: Path) -> None:
    family = folder.name
    out, plan_path = tmp_path / "out", tmp_path / "out" / "plan.json"
    done = hlscore("rank", folder, *QUICK, "--text-only", "-o", out)
    if family == "Emu3":  # transformers cannot load the text class from the whole checkpoint
        assert done.code == 3
        assert "lack 39 tensors" in done.message
        return
    assert any("--text-only" in note and named_class(family).__name__ in note
               for note in done.notes)  # fmt: skip
    plan = read_plan(plan_path)
    assert plan.model.architecture == f"{family}ForCausalLM"
    assert plan.modules[0].module.startswith("model.layers.")
    assert any("--text-only" in note for note in plan.notes)
    assert_plan_fits(plan_path, folder)
    apply(transformers.AutoModelForCausalLM.from_pretrained(folder), plan)
    weights = hlscore("rank", folder, "--data", "none", "--text-only", "-o", tmp_path / "weights")
    assert weights.code == 0
    streamed = read_plan(tmp_path / "weights" / "plan.json").model
    assert streamed.fingerprint == plan.model.fingerprint
    with pytest.raises(ModelError, match="differs"):
        apply(as_trainers_load(folder), plan)


def test_commands_without_weights_follow_both_ways(tmp_path: Path) -> None:
    folder = save_model(tmp_path, model=build("Emu3"))
    for name in ("modules", "estimate"):
        whole, text = (hlscore(name, folder, *more, "--json") for more in ((), ("--text-only",)))
        assert (whole.code, text.code) == (0, 0)
        assert "model.text_model.layers.0" in whole.out or name != "modules"
        assert whole.out != text.out


def test_text_only_needs_a_text_class_and_changes_nothing_for_a_text_model(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llava", model=FAMILIES["llava"].build())
    with pytest.raises(UsageError, match="no text-only class for llava") as error:
        load_shape(settings(folder, text_only=True))
    assert "LlavaForConditionalGeneration" in str(error.value.hint)
    folder = save_model(tmp_path / "llama")
    loaded = load_model(settings(folder, text_only=True))
    assert loaded.identity == load_model(settings(folder)).identity


@pytest.mark.parametrize(
    ("named", "command"),
    [
        ("LlamaForSequenceClassification", "modules"),
        ("LlamaModel", "rank --dry-run"),
        ("LlamaForTokenClassification", "rank"),
    ],
)
def test_classes_without_an_output_head_are_refused(
    named: str, command: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path)
    change_config(folder, architectures=[named])
    name, *options = command.split()
    outcome = hlscore(name, folder, *options)
    assert outcome.code == 3
    assert f"names {named}, which is not a causal language model" in outcome.message
    assert "LlamaForCausalLM" in outcome.message


def test_a_name_that_transformers_does_not_know_falls_back_to_the_configuration(
    tmp_path: Path,
) -> None:
    folder = save_model(tmp_path)
    for names in (["LLaMAForCausalLM"], ["Trainer"], ["logging"], [""], [], None):
        change_config(folder, architectures=names)
        assert type(load_model(settings(folder)).model).__name__ == "LlamaForCausalLM"
