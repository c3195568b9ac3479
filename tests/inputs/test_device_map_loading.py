"""Models spread over devices: host memory and disk here, where there is no second device."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from console import save_model
from families import FAMILIES, token_batch
from loading import assert_same_weights, deepen, half_on_disk, input_gradient
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from transformers import PreTrainedModel

from hlscore.errors import ModelError, UsageError
from hlscore.inputs.identity import identify
from hlscore.inputs.model import input_device, load_model, load_shape
from hlscore.inputs.weights import offload_source
from hlscore.settings import CandidateSettings, ModelSettings, settings_in

Saved = tuple[Path, PreTrainedModel]
once = pytest.mark.parametrize("saved", ["qwen3"], indirect=True)


@pytest.fixture(scope="module", params=["qwen3", "mixtral"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    pytest.importorskip("accelerate")
    model = deepen(request.param)
    return save_model(tmp_path_factory.mktemp(request.param), model=model), model


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_enough_memory_changes_nothing(saved: Saved) -> None:
    folder, model = saved
    loaded = load_model(ModelSettings(model=str(folder), device_map="auto"))
    assert loaded.identity == identify(model, str(folder), None)
    if not torch.cuda.is_available():
        assert input_device(loaded.model) == torch.device("cpu")


def test_blocks_on_disk(saved: Saved, temporary: Path) -> None:
    folder, original = saved
    loaded = load_model(half_on_disk(folder, original))
    model, meta = loaded.model, {n for n, p in loaded.model.named_parameters() if p.is_meta}
    assert any(name.startswith("model.layers.5.") for name in meta)
    assert not any(name.startswith("model.layers.0.") for name in meta)
    assert loaded.identity == identify(original, str(folder), None)
    assert input_device(model) == torch.device("cpu")
    assert_same_weights(model, original)
    torch.testing.assert_close(input_gradient(model, model.model.layers), input_gradient(original))
    assert {name for name, p in model.named_parameters() if p.is_meta} == meta
    assert loaded.identity == identify(model, str(folder), None)
    del loaded, model
    gc.collect()
    assert not list(temporary.iterdir())


def test_offload_folder_of_the_user_is_kept(saved: Saved, tmp_path: Path, temporary: Path) -> None:
    folder, original = saved
    chosen = tmp_path / "new" / "folder"
    loaded = load_model(half_on_disk(folder, original, offload_folder=str(chosen)))
    assert any(parameter.is_meta for parameter in loaded.model.parameters())
    # Fused experts are not stored as they are used: they have to be written again.
    assert bool(list(chosen.iterdir())) is ("mixtral" in folder.name)
    assert not list(temporary.iterdir())
    del loaded
    gc.collect()
    assert chosen.is_dir()


@once
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_failure_leaves_no_folder(
    saved: Saved, temporary: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder, original = saved

    def fail(*arguments: object, **options: Any) -> None:
        assert Path(options["offload_folder"]).parent == temporary
        raise error

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    with pytest.raises((ModelError, KeyboardInterrupt)):
        load_model(half_on_disk(folder, original))
    assert not list(temporary.iterdir())


def test_models_offloaded_by_the_caller(saved: Saved) -> None:
    """As `accelerate` leaves them: every weight is a placeholder, tied ones are two."""
    from accelerate import cpu_offload

    folder, original = saved
    family = FAMILIES["qwen3"]
    model = family.auto_class.from_pretrained(folder, dtype=torch.float32)
    cpu_offload(model, execution_device="cpu", offload_buffers=True)
    with torch.no_grad():
        model(**token_batch())
    assert all(offload_source(model, n) for n, p in model.named_parameters() if p.is_meta)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert identify(model, "mine", None) == identify(original, "mine", None)
    assert_same_weights(model, original, CandidateSettings(head=True, embeddings=True))


@once
def test_empty_model_is_refused(saved: Saved) -> None:
    shape, _ = load_shape(ModelSettings(model=str(saved[0])))
    with pytest.raises(ModelError, match="has no weights"):
        identify(shape, "empty", None)


def test_inputs_go_where_the_embedding_runs() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = FAMILIES["llama"].build()
    assert input_device(model) == torch.device("cpu")
    embedding = model.get_input_embeddings()
    # A device that this machine need not have.
    embedding._hf_hook = hooks.SequentialHook(
        hooks.ModelHook(), hooks.AlignDevicesHook(execution_device="cuda:1")
    )
    assert input_device(model) == torch.device("cuda:1")


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_sharded_weights_are_gathered() -> None:
    model, original = FAMILIES["mixtral"].build(), FAMILIES["mixtral"].build()
    mesh = init_device_mesh("cpu", (1,))
    for module in model.modules():
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                module._parameters[leaf] = nn.Parameter(sharded)
    assert identify(model, "mine", None) == identify(original, "mine", None)
    assert_same_weights(model, original)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "cpu", "device_map": "auto"}, "--device is 'cpu', but --device-map"),
        ({"device_map": "balanced"}, "--device-map is 'balanced'"),
        ({"load_in": "2bit"}, "--load-in is '2bit'"),
        ({"max_memory": {"cpu": "1GB"}}, "--max-memory is given, but no device map"),
        ({"offload_folder": "here"}, "--offload-folder is given, but no device map"),
        ({"device_map": "auto", "offload_folder": " "}, "--offload-folder is empty"),
        ({"device_map": "auto", "max_memory": {"gpu": "1GB"}}, "--max-memory is 'gpu=1GB'"),
        ({"device_map": "auto", "max_memory": {"-1": "1GB"}}, "--max-memory is '-1=1GB'"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "--max-memory is 'cpu=much'"),
        ({"device_map": "auto", "max_memory": {"cpu": "12"}}, "--max-memory is 'cpu=12'"),
        ({"device_map": "auto", "max_memory": {"cpu": "-2GB"}}, "--max-memory is 'cpu=-2GB'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelSettings(model="m", **settings)
    assert says in caught.value.message


def test_memory_of_devices_is_read() -> None:
    sizes = {"cpu": "1.5GiB", "0": "20 GB", "1": "3kb", "mps": "2TiB"}
    found = ModelSettings(model="m", device_map="auto", max_memory=sizes).max_memory_bytes
    assert found == {"cpu": 3 * 2**29, "0": 20 * 10**9, "1": 3000, "mps": 2 * 2**40}
    read = settings_in(ModelSettings)["max_memory"].read
    assert read(["0=20GiB", "cpu=64GiB"]) == {"0": "20GiB", "cpu": "64GiB"}
    for typed, says in ((["20GiB"], "is not DEVICE=SIZE"), (["0=2GB", "0=1GB"], "'0' twice")):
        with pytest.raises(UsageError, match=says):
            read(typed)


@once
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_memory": {"77": "1GiB"}}, "names device '77'"),
        ({"offload_folder": __file__}, "cannot be written to"),
    ],
)
def test_what_cannot_hold_weights_is_refused(
    saved: Saved, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        load_model(half_on_disk(*saved, **options))


@once
def test_quantized_weights_do_not_go_to_disk(saved: Saved, temporary: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder, original = saved
    settings = replace(half_on_disk(folder, original), load_in="8bit", max_memory={"cpu": "9KB"})
    with pytest.raises(ModelError, match="cannot be offloaded") as caught:
        load_model(settings)
    assert "--max-memory" in caught.value.hint
    gc.collect()
    assert not list(temporary.iterdir())
