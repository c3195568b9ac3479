"""Updates of finished trainings against dense differences of models that PEFT loads and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from console import hlscore as command
from console import save_model
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from problems import by_module
from reference import cross_fitted_tail
from safetensors.torch import load_file, save_file
from training_runs import adapted, moved
from transformers import PreTrainedModel

import hlscore
from hlscore.errors import HlscoreError, ModelError, UsageError
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.trained import LowRank
from hlscore.settings import CandidateSettings

RANK = 2


def ranked(
    folder: Path, family: str, trained: list[torch.nn.Module], tolerance: float = 1e-5
) -> hlscore.RankResult:
    """Rank by trainings saved as `run0` and so on; hold rows against dense float64 updates."""
    save_model(folder / "base", model=FAMILIES[family].build())
    found = hlscore.rank_updates(
        folder / "base", [folder / f"run{seed}" for seed in range(len(trained))], rank=RANK,
        budget=0.5, embeddings=True, head=True,
    )  # fmt: skip
    base, rows = FAMILIES[family].build(), by_module(found.rows)
    chosen = candidates_of(find_modules(base, CandidateSettings(embeddings=True, head=True)))
    assert rows.keys() == {item.module for item in chosen}
    for item in chosen:
        weight, row = base.get_parameter(item.parameter).detach().double(), rows[item.module]
        shape = (-1, *weight.shape[-2:])
        updates = [
            (weight - each.get_parameter(item.parameter).detach().double()).reshape(shape)
            for each in trained
        ]
        half = (len(updates) + 1) // 2
        a, b, mean = (
            sum(some) / len(some) for some in (updates[:half], updates[half:] or updates, updates)
        )
        values = torch.linalg.svdvals(mean)
        energy = float(values.square().sum())
        floor = tolerance * max(energy, 1e-12)
        assert row.grad_energy == pytest.approx(energy, rel=tolerance, abs=floor), item.module
        assert row.weight_norm == pytest.approx(float(weight.norm()), rel=1e-6)
        if energy < 1e-12:
            assert (row.status, row.reason) == ("unreached", "no training changed it")
            continue
        tail = float(values[:, RANK:].square().sum())
        assert row.tail == pytest.approx(tail, rel=tolerance, abs=floor), item.module
        expected = cross_fitted_tail(a.numpy(), b.numpy(), RANK)
        scale = float(a.norm() * b.norm())
        assert row.hls == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)
        assert row.stable_rank == pytest.approx(
            energy / float(values[:, 0].square().sum()), rel=1e-4
        )
    return found


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "dora": ("llama", {"target_modules": ["k_proj", "gate_proj"], "use_dora": True}),
    "dora conv1d": (
        "gpt2", {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "patterns": ("llama", {
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "rank_pattern": {"v_proj": 1, r"^model\.layers\.1\.self_attn\.q_proj": 4},
        "alpha_pattern": {"v_proj": 9},
    }),
    "hybrid": ("llama", {
        "target_modules": ["q_proj"],
        "modules_to_save": ["model.layers.0.mlp.down_proj", "lm_head"],
    }),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "experts": ("mixtral", {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"],
    }),
    "one expert tensor": (
        "gpt_oss", {"target_modules": [], "target_parameters": ["experts.down_proj"]}
    ),
    "bias": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_adapters_are_what_peft_merges(kind: str, tmp_path: Path) -> None:
    family, config = CONFIGS[kind]
    wrapped = adapted(FAMILIES[family].build(), tmp_path / "run0", **config)
    found = ranked(tmp_path, family, [wrapped.merge_and_unload()])
    assert any("cannot be cross-fitted" in note for note in found.report.run.notes)
    assert found.report.run.settings["updates"] == (str(tmp_path / "run0"),)
    assert found.plan.provenance.settings["capture"]["movement"] == "update"  # type: ignore[index]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
def test_checkpoints_are_subtracted_and_cross_fitted(family: str, tmp_path: Path) -> None:
    trained = [moved(FAMILIES[family].build(), seed=seed) for seed in range(3)]
    for seed, each in enumerate(trained):
        each.save_pretrained(tmp_path / f"run{seed}", max_shard_size="60KB")
    found = ranked(tmp_path, family, list(trained), 1e-4)
    assert not any("cross-fitted" in note for note in found.report.run.notes)
    assert not found.report.probes.notes
    assert all(row.hls_stderr is None for row in found.report.candidates)


def test_four_adapters_are_cross_fitted_without_forming_their_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = ["q_proj", "down_proj"]
    trained = [
        adapted(
            FAMILIES["llama"].build(), tmp_path / f"run{seed}", seed=seed, target_modules=modules
        ).merge_and_unload()
        for seed in range(4)
    ]
    monkeypatch.setattr(LowRank, "dense", Mock(side_effect=AssertionError("an update was formed")))
    found = ranked(tmp_path, "llama", trained)
    reached = [row for row in found.rows if row.status == "scored"]
    assert all((row.hls_stderr or 0) > 0 for row in reached)
    names = [f"model.layers.{layer}.{kind}" for layer in (0, 1)
             for kind in ("self_attn.q_proj", "mlp.down_proj")]  # fmt: skip
    assert sorted(row.module for row in reached) == sorted(names)


def test_16_bit_checkpoints_say_what_rounding_adds(tmp_path: Path) -> None:
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    moved(FAMILIES["llama"].build(), scale=2e-4).to(torch.bfloat16).save_pretrained(
        tmp_path / "run"
    )
    found = hlscore.rank_updates(tmp_path / "base", tmp_path / "run", rank=RANK)
    note = next(note for note in found.report.run.notes if "16 bits" in note)
    # The rounding of weights of scale 0.1 is 1.6e-4, nearly as large as the update.
    share = int(note.split(" % of")[0].rpartition(" ")[2])
    exact = {}
    for name, weight in FAMILIES["llama"].build().named_parameters():
        if name.endswith("_proj.weight"):
            after = weight.detach() + 0
            exact[name] = float((after - after.bfloat16().float()).square().sum())
    energy = sum(row.grad_energy or 0 for row in found.report.candidates)
    assert share == pytest.approx(100 * sum(exact.values()) / energy, abs=15)


def llama(seed: int = 0, **changes: object) -> PreTrainedModel:
    """A new model with a changed configuration."""
    built = FAMILIES["llama"].build()
    for name, value in changes.items():
        setattr(built.config, name, value)
    torch.manual_seed(seed)
    return type(built)(built.config)


def without_a_shard(folder: Path) -> None:
    moved(FAMILIES["llama"].build()).save_pretrained(folder, max_shard_size="60KB")
    next(iter(sorted(folder.glob("*-00002-*.safetensors")))).unlink()


def changed_config(**changes: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        adapted(FAMILIES["llama"].build(), folder, target_modules=["q_proj"])
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def changed_tensors(old: str = "", new: str = "", *, scale: float = 1.0) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        changed_config()(folder)
        path = folder / "adapter_model.safetensors"
        found = load_file(path).items()
        save_file({key.replace(old, new) if old else key: v * scale for key, v in found}, path)

    return make


def untrained(folder: Path) -> None:
    get_peft_model(
        FAMILIES["llama"].build(), LoraConfig(target_modules=["q_proj"])
    ).save_pretrained(folder)


def pickled(folder: Path) -> None:
    changed_config()(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def diverged(folder: Path) -> None:
    model = moved(FAMILIES["llama"].build())
    model.get_submodule("model.layers.0.self_attn.q_proj").weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)


BAD: dict[str, tuple[Callable[[Path], Any], type[HlscoreError], str]] = {
    "another architecture": (
        lambda folder: save_model(folder, model=FAMILIES["gpt2"].build()),
        ModelError, "was not trained from this base",
    ),
    "another width": (
        lambda folder: save_model(folder, model=llama(intermediate_size=96)),
        ModelError, "96 x 48, the base has 80 x 48",
    ),
    "another initialisation": (
        lambda folder: save_model(folder, model=llama(seed=99)),
        ModelError, "unrelated to those of the base",
    ),
    "no update": (
        lambda folder: save_model(folder, model=FAMILIES["llama"].build()),
        UsageError, "there is no update to score",
    ),
    "missing shard": (without_a_shard, ModelError, "which model.safetensors.index.json names"),
    "untrained adapter": (untrained, UsageError, "there is no update to score"),
    "other modules": (
        changed_tensors("layers.1.", "layers.7."), ModelError, "no model.layers.7.self_attn"
    ),
    "adapter of another width": (
        lambda folder: adapted(llama(intermediate_size=96), folder, target_modules=["down_proj"]),
        ModelError, "is not for this base model",
    ),
    "unknown tensor": (changed_tensors("lora_A", "lora_Z"), ModelError, "it holds a tensor"),
    "half a LoRA": (
        changed_tensors("layers.1.self_attn.q_proj.lora_A", "norm"),
        ModelError, "lacks one of its LoRA",
    ),
    "other method": (changed_config(peft_type="IA3"), ModelError, "it is of type IA3"),
    "PiSSA": (changed_config(init_lora_weights="pissa"), ModelError, "changes the base weights"),
    "activated": (changed_config(alora_invocation_tokens=[1]), ModelError, "activated LoRA"),
    "damaged": (changed_config(alpha_pattern={"(": 2}), ModelError, "damaged at alpha_pattern"),
    "damaged alpha": (changed_config(lora_alpha="x"), ModelError, "damaged at lora_alpha"),
    "pickle": (pickled, ModelError, "can run code"),
    "neither": (lambda folder: folder.mkdir(), ModelError, "is not a finished fine-tune"),
    "NaN": (diverged, ModelError, "holds NaN or infinity in model.layers.0.self_attn.q_proj"),
    "NaN in LoRA": (
        changed_tensors(scale=float("inf")), ModelError, "holds NaN or infinity in model.layers."
    ),
    "nothing there": (lambda _: None, ModelError, "There is no model directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_trainings_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, error, text = BAD[kind]
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    make(tmp_path / "run")
    with pytest.raises(error) as caught:
        hlscore.rank_updates(tmp_path / "base", tmp_path / "run", rank=RANK)
    assert text in caught.value.message
    assert "\n" not in caught.value.message


def test_names_of_unwrapped_saves_are_understood(tmp_path: Path) -> None:
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    unwrapped = "base_model.model._fsdp_wrapped_module.model."
    changed_tensors("base_model.model.model.", unwrapped)(tmp_path / "run")
    changed_config()(tmp_path / "same")
    one, other = (
        hlscore.rank_updates(tmp_path / "base", tmp_path / name, rank=RANK)
        for name in ("run", "same")
    )
    assert [row.hls for row in one.rows] == [row.hls for row in other.rows]


def test_options_of_probes_do_not_go_with_updates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="updates is empty"):
        hlscore.rank_updates(tmp_path, [])
    base, run = str(tmp_path / "base"), str(tmp_path / "run")
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    moved(FAMILIES["llama"].build()).save_pretrained(run)
    for options, text in (
        (["--data", "train.jsonl"], "--data is for probes, and --update has none"),
        (["--samples", "3"], "--samples is for probes"),
        (["--objective", "dpo"], "--objective is for probes"),
        (["--trials", "8"], "--trials is for probes"),
        (["--movement", "trial"], "--movement is trial, but --update is given"),
        (["--update", run], "names a training twice"),
        (["--update", ""], "--update is empty"),
        (["--score", "l1_adam"], "'l1_adam' is one of gradients"),
        (["--resume"], "--update has none"),
        (["--device-map", "auto"], "--device-map is for probes"),
    ):
        result = command("rank", base, "--update", run, *options)
        assert result.code == 2, options
        assert text in result.message
    result = command("rank", base, "--movement", "update")
    assert (result.code, "needs a finished training" in result.message) == (2, True)


def test_the_command_writes_prints_and_plans_again(tmp_path: Path) -> None:
    save_model(tmp_path / "base", model=FAMILIES["llama"].build())
    for seed in range(2):
        moved(FAMILIES["llama"].build(), seed=seed).save_pretrained(tmp_path / f"run{seed}")
    base, out = str(tmp_path / "base"), tmp_path / "out"
    runs = ["--update", str(tmp_path / "run0"), "--update", str(tmp_path / "run1")]
    result = command("rank", base, *runs, "-r", "2", "--budget", "0.2", "-o", str(out),
                             "--weight-scores")  # fmt: skip
    assert result.code == 0, result.err
    assert f"2 finished trainings: {tmp_path / 'run0'}, {tmp_path / 'run1'}" in result.out
    assert "validate" not in result.out
    scores = str(out / "scores.parquet")
    again = command("plan", scores, "--ranks", "1,2,4", "--budget", "0.1p", "-o",
                            str(out / "ranks.json"))  # fmt: skip
    assert again.code == 0, again.err
    for words in (
        ["show", scores, "--sort", "snr"],
        ["report", scores, "-o", str(out / "r.html")],
        ["export", str(out / "plan.json"), "--to", "peft", "-o", str(out / "peft")],
    ):
        shown = command(*words)
        assert shown.code == 0, shown.err
    dry = command("rank", base, *runs, "--dry-run")
    assert dry.code == 0
    assert "read tensor by tensor from its" in dry.out
