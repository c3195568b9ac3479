"""Updates of finished trainings against dense differences of models that PEFT loads and merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted, moved
from console import hlscore as command
from console import save_model
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from problems import by_module
from reference import cross_fitted_tail
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import hlscore
from hlscore.errors import HlscoreError, ModelError, UsageError
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.trained import LowRank
from hlscore.records import ModuleRow
from hlscore.settings import CandidateSettings

RANK = 2
ALL = CandidateSettings(embeddings=True, head=True)


def base_of(name: str, folder: Path, **options: Any) -> PreTrainedModel:
    model = FAMILIES[name].build(**options)
    save_model(folder, model=model)
    return FAMILIES[name].build(**options)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().clone() for name, value in model.named_parameters()}


def dense_updates(base: PreTrainedModel, merged: PreTrainedModel) -> dict[str, torch.Tensor]:
    before, after = weights(base), weights(merged)
    return {name: before[name] - after[name] for name in before}


def check_rows(
    rows: dict[str, ModuleRow],
    base: PreTrainedModel,
    firsts: list[dict[str, torch.Tensor]],
    seconds: list[dict[str, torch.Tensor]],
    tolerance: float = 1e-5,
) -> None:
    """Hold every row against the singular values of dense float64 updates."""
    chosen = candidates_of(find_modules(base, ALL))
    assert rows.keys() == {item.module for item in chosen}
    for item in chosen:
        row, shape = rows[item.module], (-1, *base.get_parameter(item.parameter).shape[-2:])
        a, b, mean = (
            (sum(update[item.parameter] for update in some) / len(some)).reshape(shape)
            for some in (firsts, seconds, [*firsts, *seconds])
        )
        if len(firsts) == 1 and firsts == seconds:
            mean = a
        values = torch.linalg.svdvals(mean)
        energy = float(values.square().sum())
        floor = tolerance * max(energy, 1e-12)
        assert row.grad_energy == pytest.approx(energy, rel=tolerance, abs=floor), item.module
        norm = float(base.get_parameter(item.parameter).detach().double().norm())
        assert row.weight_norm == pytest.approx(norm, rel=1e-6)
        if energy < 1e-12:
            assert row.status == "unreached"
            assert row.reason == "no training changed it"
            continue
        tail = float(values[:, RANK:].square().sum())
        assert row.tail == pytest.approx(tail, rel=tolerance, abs=floor), item.module
        expected = cross_fitted_tail(a.numpy(), b.numpy(), RANK)
        scale = float(a.norm() * b.norm())
        assert row.hls == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)
        assert row.stable_rank == pytest.approx(
            energy / float(values[:, 0].square().sum()), rel=1e-4
        )


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "dora": ("llama", {"target_modules": ["k_proj", "gate_proj"], "use_dora": True}),
    "dora conv1d": (
        "gpt2",
        {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True},
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "o_proj"],
            "rank_pattern": {"v_proj": 1, r"^model\.layers\.1\.self_attn\.q_proj": 4},
            "alpha_pattern": {"v_proj": 9},
        },
    ),
    "hybrid": (
        "llama",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["model.layers.0.mlp.down_proj", "lm_head"],
        },
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "experts": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"],
        },
    ),
    "one expert tensor": (
        "gpt_oss",
        {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    ),
    "bias": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_adapters_are_what_peft_merges(kind: str, tmp_path: Path) -> None:
    family, config = CONFIGS[kind]
    base = base_of(family, tmp_path / "base")
    before = weights(base)
    merged = adapted(FAMILIES[family].build(), tmp_path / "run", **config).merge_and_unload()
    found = hlscore.rank_updates(
        tmp_path / "base", tmp_path / "run", rank=RANK, budget=0.5, embeddings=True, head=True
    )
    update = {name: before[name] - after for name, after in weights(merged).items()}
    check_rows(dict(by_module(found.rows)), base, [update], [update])
    assert any("cannot be cross-fitted" in note for note in found.report.run.notes)
    assert found.report.run.settings["updates"] == (str(tmp_path / "run"),)
    assert found.plan.provenance.settings["capture"]["movement"] == "update"  # type: ignore[index]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3"])
def test_checkpoints_are_subtracted_and_cross_fitted(family: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    updates = []
    for seed in range(3):
        trained = moved(FAMILIES[family].build(), seed=seed)
        trained.save_pretrained(tmp_path / f"run{seed}", max_shard_size="60KB")
        updates.append(dense_updates(base, trained))
    found = hlscore.rank_updates(
        tmp_path / "base",
        [tmp_path / f"run{seed}" for seed in range(3)],
        rank=RANK,
        budget=0.5,
        embeddings=True,
        head=True,
    )
    check_rows(dict(by_module(found.rows)), base, updates[:2], updates[2:], 1e-4)
    assert not any("cross-fitted" in note for note in found.report.run.notes)
    assert all(row.hls_stderr is None for row in found.report.candidates)


def test_four_adapters_are_cross_fitted_without_forming_their_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("llama", tmp_path / "base")
    before, updates = weights(base), []
    for seed in range(4):
        wrapped = adapted(
            FAMILIES["llama"].build(),
            tmp_path / f"run{seed}",
            seed=seed,
            target_modules=["q_proj", "down_proj"],
        )
        after = weights(wrapped.merge_and_unload())
        updates.append({name: before[name] - after[name] for name in before})

    def refuse(_: LowRank) -> torch.Tensor:
        raise AssertionError("an update was formed")

    monkeypatch.setattr(LowRank, "dense", refuse)
    found = hlscore.rank_updates(
        tmp_path / "base", [tmp_path / f"run{seed}" for seed in range(4)], rank=RANK,
        embeddings=True, head=True,
    )  # fmt: skip
    rows = dict(by_module(found.rows))
    check_rows(rows, base, updates[:2], updates[2:])
    reached = [row for row in rows.values() if row.status == "scored"]
    assert len(reached) == 4
    assert all((row.hls_stderr or 0) > 0 for row in reached)
    names = [f"model.layers.{layer}.{kind}" for layer in (0, 1)
             for kind in ("self_attn.q_proj", "mlp.down_proj")]  # fmt: skip
    assert sorted(row.module for row in reached) == sorted(names)


def test_16_bit_checkpoints_say_what_rounding_adds(tmp_path: Path) -> None:
    base_of("llama", tmp_path / "base")
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


def other_base(folder: Path) -> None:
    save_model(folder, model=FAMILIES["gpt2"].build())


def wider(folder: Path) -> None:
    build = FAMILIES["llama"].build()
    config = build.config
    config.intermediate_size = 96
    save_model(folder, model=type(build)(config))


def unrelated(folder: Path) -> None:
    config = FAMILIES["llama"].build().config
    torch.manual_seed(99)
    save_model(folder, model=type(FAMILIES["llama"].build())(config))


def unchanged(folder: Path) -> None:
    save_model(folder, model=FAMILIES["llama"].build())


def without_a_shard(folder: Path) -> None:
    moved(FAMILIES["llama"].build()).save_pretrained(folder, max_shard_size="60KB")
    next(iter(sorted(folder.glob("*-00002-*.safetensors")))).unlink()


def config_change(**changes: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        adapted(FAMILIES["llama"].build(), folder, target_modules=["q_proj"])
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        adapted(FAMILIES["llama"].build(), folder, target_modules=["q_proj"])
        path = folder / "adapter_model.safetensors"
        save_file({key.replace(old, new): v for key, v in load_file(path).items()}, path)

    return make


def untrained(folder: Path) -> None:
    get_peft_model(
        FAMILIES["llama"].build(), LoraConfig(target_modules=["q_proj"])
    ).save_pretrained(folder)


def wider_adapter(folder: Path) -> None:
    build = FAMILIES["llama"].build()
    build.config.intermediate_size = 96
    adapted(type(build)(build.config), folder, target_modules=["down_proj"])


def pickled(folder: Path) -> None:
    adapted(FAMILIES["llama"].build(), folder, target_modules=["q_proj"])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def diverged(folder: Path) -> None:
    model = moved(FAMILIES["llama"].build())
    model.get_submodule("model.layers.0.self_attn.q_proj").weight.data[0, 0] = float("nan")
    model.save_pretrained(folder)


def diverged_adapter(folder: Path) -> None:
    adapted(FAMILIES["llama"].build(), folder, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor * float("inf") for key, tensor in load_file(path).items()}, path)


BAD: dict[str, tuple[Callable[[Path], None], type[HlscoreError], str]] = {
    "another architecture": (other_base, ModelError, "was not trained from this base"),
    "another width": (wider, ModelError, "96 x 48, the base has 80 x 48"),
    "another initialisation": (unrelated, ModelError, "unrelated to those of the base"),
    "no update": (unchanged, UsageError, "there is no update to score"),
    "missing shard": (without_a_shard, ModelError, "which model.safetensors.index.json names"),
    "untrained adapter": (untrained, UsageError, "there is no update to score"),
    "other modules": (renamed("layers.1.", "layers.7."), ModelError, "no model.layers.7.self_attn"),
    "adapter of another width": (wider_adapter, ModelError, "is not for this base model"),
    "unknown tensor": (renamed("lora_A", "lora_Z"), ModelError, "it holds a tensor"),
    "half a LoRA": (
        renamed("layers.1.self_attn.q_proj.lora_A", "norm"),
        ModelError,
        "lacks one of its LoRA",
    ),
    "other method": (config_change(peft_type="IA3"), ModelError, "it is of type IA3"),
    "PiSSA": (config_change(init_lora_weights="pissa"), ModelError, "changes the base weights"),
    "activated": (config_change(alora_invocation_tokens=[1]), ModelError, "activated LoRA"),
    "damaged": (config_change(alpha_pattern={"(": 2}), ModelError, "damaged at alpha_pattern"),
    "damaged alpha": (config_change(lora_alpha="x"), ModelError, "damaged at lora_alpha"),
    "pickle": (pickled, ModelError, "can run code"),
    "neither": (lambda folder: folder.mkdir(), ModelError, "is not a finished fine-tune"),
    "NaN": (diverged, ModelError, "holds NaN or infinity in model.layers.0.self_attn.q_proj"),
    "NaN in LoRA": (diverged_adapter, ModelError, "holds NaN or infinity in model.layers."),
    "nothing there": (lambda _: None, ModelError, "There is no model directory"),
}


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
    base_of("llama", tmp_path / "base")
    make = renamed("base_model.model.model.", "base_model.model._fsdp_wrapped_module.model.")
    make(tmp_path / "run")
    config_change()(tmp_path / "same")
    one, other = (
        hlscore.rank_updates(tmp_path / "base", tmp_path / name, rank=RANK)
        for name in ("run", "same")
    )
    assert [row.hls for row in one.rows] == [row.hls for row in other.rows]


def test_options_of_probes_do_not_go_with_updates(tmp_path: Path) -> None:
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
