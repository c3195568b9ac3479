"""Plain adapters and merged files against the models that PEFT loads and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from console import Outcome, save_model, write_rows
from console import hlscore as command
from families import FAMILIES
from peft import PeftModel
from safetensors.torch import load_file, save_file
from training_runs import adapted, logits, moved
from transformers import AutoModelForCausalLM, PreTrainedModel

from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings

HYBRID: dict[str, Any] = {
    "target_modules": ["q_proj", "up_proj"],
    "rank_pattern": {"up_proj": 5},
    "modules_to_save": ["model.layers.0.mlp.down_proj", "layers.1.self_attn.o_proj"],
}


def run(name: str, folder: Path, *options: object, out: str = "out") -> Outcome:
    """Runs a command on the training and its base in a folder."""
    places = (folder / "run", "--model", folder / "base", "-o", folder / out)
    return command(name, *places, *options)


def served(folder: Path, *options: object, max_rank: int) -> dict[str, Any]:
    """What `extract-lora --json` prints; inference engines would load what it wrote."""
    result = run("extract-lora", folder, "--max-rank", max_rank, "--json", "--force", *options)
    assert result.code == 0, result.err
    engine_accepts(folder / "out", max_rank)
    return json.loads(result.out)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().clone() for name, value in model.named_parameters()}


def loaded(folder: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return found


def made(
    folder: Path, family: str, config: dict[str, Any], *, dtype: torch.dtype = torch.float32
) -> PeftModel:
    """A base and a trained adapter of it on disk; gives the adapted model."""
    model = FAMILIES[family].build(dtype=dtype)
    save_model(folder / "base", model=model)
    return adapted(FAMILIES[family].build(dtype=dtype), folder / "run", **config).eval()


def engine_accepts(folder: Path, max_rank: int) -> None:
    """The rules of vLLM's loader: `PEFTHelper` and `LoRAModel`, as of 2026."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert 0 < config["r"] <= max_rank
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert config["bias"] == "none"
    # Patterns are ignored there: one scale must be right for all.
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    names = {name.rpartition(".")[2] for name in config["target_modules"]}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert key.startswith("base_model.model.")
        module, _, matrix = key.removesuffix(".weight").rpartition(".")
        assert matrix in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
        assert module.rpartition(".")[2] in names
        assert config["r"] == tensor.shape[0 if matrix.endswith("_A") else 1]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", HYBRID),
        ("llama", {"target_modules": ["k_proj", "gate_proj"], "use_dora": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_rslora": True}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True,
                  "modules_to_save": ["transformer.wte"]}),
    ],
)  # fmt: skip
def test_at_full_rank_a_plain_adapter_gives_the_logits_of_the_hybrid(
    family: str, config: dict[str, Any], tmp_path: Path
) -> None:
    wrapped = made(tmp_path, family, config)
    found = served(tmp_path, max_rank=128)
    assert all(item["error"] < 1e-6 for item in found["modules"])
    plain = PeftModel.from_pretrained(FAMILIES[family].build(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(plain), logits(wrapped), rtol=0, atol=1e-4)
    assert float((logits(FAMILIES[family].build()) - logits(wrapped)).abs().max()) > 1e-2


def test_errors_are_those_of_dense_decompositions(tmp_path: Path) -> None:
    wrapped = made(tmp_path, "llama", HYBRID)
    modules = served(tmp_path, max_rank=4)["modules"]
    before, after = weights(FAMILIES["llama"].build()), weights(wrapped.merge_and_unload())
    plain = PeftModel.from_pretrained(FAMILIES["llama"].build(), tmp_path / "out")
    engine = weights(plain.merge_and_unload())
    for item in modules:
        name = f"{item['module']}.weight"
        values = torch.linalg.svdvals(after[name] - before[name])
        expected = float(values[4:].norm() / values.norm())
        assert item["error"] == pytest.approx(expected, abs=1e-5)
        found = (engine[name] - after[name]).norm() / values.norm()
        assert float(found) == pytest.approx(expected, abs=1e-5)
        full = "down_proj" in name or "o_proj" in name
        assert item["trained"] == ("full" if full else "lora")


def test_an_error_bound_takes_the_smallest_rank_within_it(tmp_path: Path) -> None:
    made(tmp_path, "llama", HYBRID)
    found = served(tmp_path, "--max-error", "0.3", max_rank=48)
    full = [item for item in found["modules"] if item["trained"] == "full"]
    assert all(0.2 < item["error"] <= 0.3 for item in full)
    assert found["rank"] == max(item["rank"] for item in found["modules"]) < 48
    result = run("extract-lora", tmp_path, "--max-rank", "6", "--max-error", "0.3", "--force")
    assert result.code == 2
    assert "Rank 6 leaves an error of" in result.message
    result = run("extract-lora", tmp_path, "--force")
    assert result.code == 0
    assert "--max-lora-rank 64" in result.out


MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "hybrid": ("llama", HYBRID),
    "dora": ("llama", {"target_modules": ["k_proj"], "use_dora": True}),
    "bias": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "norms and biases": ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True,
                                  "modules_to_save": ["h.0.attn.c_proj", "ln_f"]}),
    "tied, one trained": ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied, LoRA on one": ("qwen3", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, both trained": ("qwen3", {"target_modules": ["q_proj"], "ensure_weight_tying": True,
                                     "modules_to_save": ["embed_tokens"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(MERGED))
def test_merged_files_load_without_peft(kind: str, tmp_path: Path) -> None:
    family, config = MERGED[kind]
    wrapped = made(tmp_path, family, config)
    result = run("merge", tmp_path, "--json")
    assert result.code == 0, result.err
    model = loaded(tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(wrapped), rtol=0, atol=1e-4)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    tied = model.config.get_text_config().tie_word_embeddings
    assert tied == (FAMILIES[family].tied_head and kind not in ("tied, one trained",
                                                                "tied, LoRA on one"))  # fmt: skip


def test_sharded_16_bit_models_are_merged_shard_by_shard(tmp_path: Path) -> None:
    wrapped = made(tmp_path, "llama", HYBRID, dtype=torch.bfloat16)
    base = FAMILIES["llama"].build(dtype=torch.bfloat16)
    for path in (tmp_path / "base").glob("*.safetensors"):
        path.unlink()
    base.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    result = run("merge", tmp_path)
    assert result.code == 0, result.err
    shards = {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    assert len(shards) > 3
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == shards
    merged, before = weights(loaded(tmp_path / "out")), weights(base)
    copies = {name.removeprefix("base_model.model."): tensor
              for name, tensor in load_file(tmp_path / "run/adapter_model.safetensors").items()
              if "lora" not in name}  # fmt: skip
    for name, weight in merged.items():
        if name in copies:
            assert torch.equal(weight, copies[name].double())
        elif not name.endswith(("q_proj.weight", "up_proj.weight")):
            assert torch.equal(weight, before[name])
    for name in (f"model.layers.1.{kind}.weight" for kind in ("self_attn.q_proj", "mlp.up_proj")):
        layer: Any = wrapped.base_model.model.get_submodule(name.removesuffix(".weight"))
        a, b = (part["default"].weight.detach() for part in (layer.lora_A, layer.lora_B))
        exact = before[name].float() + layer.scaling["default"] * (b.float() @ a.float())
        rounded = exact.bfloat16().double()
        # Sums of another order may round the other way in a few places.
        assert float((merged[name] != rounded).double().mean()) < 0.01


def whole_model(folder: Path) -> None:
    save_model(folder / "base", model=FAMILIES["llama"].build())
    moved(FAMILIES["llama"].build()).save_pretrained(folder / "run")


def of_another_base(folder: Path) -> None:
    made(folder, "llama", HYBRID)
    save_model(folder / "base", model=FAMILIES["gpt2"].build())


def diverged(folder: Path, name: str) -> None:
    made(folder, "llama", HYBRID)
    path = folder / "run" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if name in key).view(-1)[3] = torch.nan
    save_file(tensors, path)


Make = Callable[[Path], object]
with_norm: Make = partial(
    made, family="llama", config={"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}
)
on_experts: Make = partial(
    made, family="mixtral",
    config={"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "options", "text"),
    [
        ("extract-lora", whole_model, (), "is a whole model"),
        ("merge", whole_model, (), "is a whole model"),
        ("extract-lora", with_norm, (), "model.norm.weight was trained, and LoRA holds no"),
        ("extract-lora", on_experts, (), "is not a linear layer"),
        ("extract-lora", partial(diverged, name="down_proj"), (), "holds NaN or infinity in"),
        ("extract-lora", partial(diverged, name="lora_A"), (), "holds NaN or infinity in"),
        ("merge", on_experts, (), "is stored in pieces"),
        ("merge", partial(diverged, name="lora_B"), (), "holds NaN or infinity in"),
        ("merge", of_another_base, (), "is an adapter for other modules"),
        ("extract-lora", of_another_base, ("--max-rank", "1024"), "--max-rank is 1024"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_written(
    name: str, make: Make, options: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    make(tmp_path)
    result = run(name, tmp_path, *options)
    assert result.code in (2, 3)
    assert text in result.message
    assert not (tmp_path / "out").exists()


def test_existing_results_are_kept(tmp_path: Path) -> None:
    made(tmp_path, "llama", HYBRID)
    for name in ("extract-lora", "merge"):
        assert run(name, tmp_path, out=name).code == 0
        again = run(name, tmp_path, out=name)
        assert (again.code, "already exists" in again.message) == (2, True)
    assert "is the base or the adapter" in run("merge", tmp_path, "--force", out="base").message


def test_losses_before_and_after_are_those_of_the_models(tmp_path: Path) -> None:
    wrapped = made(tmp_path, "llama", HYBRID)
    rows = [{"text": f"{word} and {word}"} for word in ("red", "green", "blue", "grey")]
    data = write_rows(tmp_path / "other.jsonl", rows)
    losses = served(tmp_path, "--data", data, max_rank=4)["held_out"]["losses"]
    audit = run("audit", tmp_path, "--data", data, "--json", out="audit.parquet")
    assert audit.code == 0, audit.err
    assert json.loads(audit.out)["held_out"]["losses"] == {
        "base": losses["base"], "after": losses["trained"]
    }  # fmt: skip
    plain = PeftModel.from_pretrained(FAMILIES["llama"].build(), tmp_path / "out").eval()
    tokenizer = load_model(ModelSettings(model=str(tmp_path / "base"))).tokenizer
    for name, model in (("base", FAMILIES["llama"].build()), ("trained", wrapped),
                        ("as plain LoRA", plain)):  # fmt: skip
        nats, tokens = 0.0, 0
        for row in rows:
            ids = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
            found = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
            nats, tokens = nats - float(found.sum().detach()), tokens + ids.shape[1] - 1
        assert losses[name] == pytest.approx(nats / tokens, rel=1e-3), name
    shown = run("audit", tmp_path, "--data", data, "--force", out="audit.parquet")
    assert "nats per token on 4 examples of" in shown.out
    write_rows(data, rows[:1])
    shown = run("audit", tmp_path, "--data", data, "--force", out="audit.parquet")
    assert "nats per token on 1 example of" in shown.out
