"""Weights streamed from the files of a checkpoint: the same as those of the loaded model."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from console import save_model
from families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hlscore.errors import ModelError
from hlscore.flow.weights_alone import score_weights
from hlscore.inputs.identity import identify
from hlscore.inputs.model import load_model
from hlscore.inputs.modules import candidates_of, find_modules
from hlscore.inputs.stored_weights import StoredWeights
from hlscore.inputs.tensor_files import StoredTensor
from hlscore.records import Candidate
from hlscore.settings import (
    CandidateSettings,
    DataSettings,
    ModelSettings,
    PlanSettings,
    RankSettings,
)
from hlscore.steps import Silent

ALL = CandidateSettings(embeddings=True, head=True)
FILE = "model.safetensors"


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(model=str(folder), device="cpu")


def run(folder: Path, candidates: CandidateSettings = ALL) -> RankSettings:
    return RankSettings(
        model=settings(folder),
        data=DataSettings(data="none"),
        candidates=candidates,
        plan=PlanSettings(score="snr", budget="0.5", rank=4),
    )


def streamed(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Every weight by the name of its parameter, and the hash over all."""
    stored, found = StoredWeights(settings(folder)), {}

    def use(item: Candidate, held: list[torch.Tensor]) -> None:
        assert item.parameter not in found
        found[item.parameter] = held.pop().clone()

    digest = stored.read(candidates_of(find_modules(stored.shape, ALL)), use)
    return found, digest


@pytest.mark.parametrize("name", list(FAMILIES))
def test_weights_and_scores_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES[name].build())
    model = load_model(settings(tmp_path)).model
    found, _ = streamed(tmp_path)
    chosen = candidates_of(find_modules(model, ALL))
    assert found.keys() == {item.parameter for item in chosen}
    for key, weight in found.items():
        assert torch.equal(weight, model.get_parameter(key)), key
    identity = identify(model, str(tmp_path), None)
    streaming = score_weights(run(tmp_path), Silent()).report
    held = score_weights(run(tmp_path), Silent(), (model, identity)).report
    assert streaming.model == held.model == identity
    assert streaming.rows == held.rows
    assert streaming.probes == held.probes
    assert (streaming.run.dtype, streaming.run.estimator) == ("float32", "none")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_sharded_checkpoints_are_read_by_their_index(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].build(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = streamed(tmp_path / "one"), streamed(tmp_path / "many")
    assert one[1] == many[1]
    assert one[0].keys() == many[0].keys()
    assert all(torch.equal(weight, many[0][key]) for key, weight in one[0].items())
    assert StoredWeights(settings(tmp_path / "many")).dtype(
        candidates_of(find_modules(model, ALL))
    ) == ("bfloat16")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("llama", "model.", ""), ("qwen3", "model.embed_tokens.", "lm_head.")],
    ids=["inner model", "tied"],
)
def test_other_names_are_mapped_as_transformers_does(
    name: str, old: str, new: str, tmp_path: Path
) -> None:
    """A checkpoint of the inner model, without its prefix; a tied weight under its other name."""
    save_model(tmp_path, model=FAMILIES[name].build())
    expected = streamed(tmp_path)
    _rewrite(
        tmp_path, lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}
    )
    found = streamed(tmp_path)
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(weight, found[0][key]) for key, weight in expected[0].items())


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_one_parameter_is_in_memory_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, model=FAMILIES[name].build())
    read, alive, most = StoredTensor.read, [], 0

    def watched(self: StoredTensor) -> torch.Tensor:
        nonlocal most
        tensor = read(self)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(StoredTensor, "read", watched)
    monkeypatch.setattr("hlscore.inputs.model.load_weights", refuse)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    report = score_weights(run(tmp_path), Silent()).report
    assert all(row.condition_number is not None for row in report.candidates)
    # The pieces of one fused weight are needed together: gate and up of four experts.
    assert most == (8 if name == "mixtral" else 1)
    assert len(alive) >= 16


def test_modules_left_out_are_sampled_and_not_decomposed(tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES["llama"].build())
    whole = score_weights(run(tmp_path), Silent()).report
    some = CandidateSettings(include=("*.q_proj",))
    part = score_weights(run(tmp_path, some), Silent()).report
    assert part.model == whole.model
    assert {row.kind for row in part.candidates} == {"q_proj"}
    values = {row.module: row.snr for row in whole.candidates}
    assert all(row.snr == values[row.module] for row in part.candidates)


Tensors = dict[str, torch.Tensor]


def _rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})


def _index(folder: Path, places: Any) -> None:
    (folder / FILE).rename(folder / "part.safetensors")
    text = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


Q = "model.layers.0.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: _rewrite(folder, lambda held: {k: v for k, v in held.items() if k != Q}),
        f"lack 1 tensor {Q}",
    ),
    "other shape": (
        lambda folder: _rewrite(folder, lambda held: held | {Q: torch.zeros(3, 4)}),
        r"wrong shape for .*q_proj.weight \(\[3, 4\] float32 in the file",
    ),
    "integers": (
        lambda folder: _rewrite(folder, lambda held: held | {Q: held[Q].to(torch.int8)}),
        "int8 in the file",
    ),
    "cut short": (
        lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:5000]),
        "corrupt or cut short",
    ),
    "index elsewhere": (
        lambda folder: _index(folder, {Q: "../part.safetensors"}),
        "which is not a file of its folder",
    ),
    "index to nothing": (
        lambda folder: _index(folder, {Q: "gone.safetensors"}),
        "which model.safetensors.index.json names",
    ),
    "index without": (lambda folder: _index(folder, 3), "has no weight_map"),
    "nothing of the model": (
        lambda folder: _rewrite(folder, lambda _: {}), r"lack \d+ tensors, first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGE))
def test_files_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES["llama"].build())
    change, message = DAMAGE[name]
    change(tmp_path)
    with pytest.raises(ModelError, match=message):
        score_weights(run(tmp_path, CandidateSettings()), Silent())


def test_pieces_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES["mixtral"].build())
    key = next(key for key in load_file(tmp_path / FILE) if ".experts.1." in key)
    _rewrite(tmp_path, lambda held: held | {key: torch.zeros(5, 7)})
    with pytest.raises(ModelError, match=r"mlp.experts.* cannot be put together from \d+ tensors"):
        score_weights(run(tmp_path), Silent())


def test_a_weight_with_nan_is_told_and_the_others_are_scored(tmp_path: Path) -> None:
    save_model(tmp_path, model=FAMILIES["llama"].build())
    _rewrite(tmp_path, lambda held: held | {Q: held[Q] * float("nan")})
    report = score_weights(run(tmp_path, CandidateSettings()), Silent()).report
    for row in report.candidates:
        broken = row.parameter == Q
        assert (row.kappa is None) == broken
        assert ("NaN or infinity" in row.reason) == broken
