"""Load a model and its tokenizer, spread it over processes, or build only its shape."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from hlscore.errors import HlscoreError, ModelError, UsageError, first_line
from hlscore.inputs.hub import ADAPTER_CONFIG, ModelFiles, find_model
from hlscore.inputs.identity import count_params, identify, packable_sizes
from hlscore.inputs.modules import ONLY_DECODERS, decoder_blocks
from hlscore.inputs.placement import (
    Placement,
    loading,
    out_of_memory,
    plan_placement,
    quantization,
)
from hlscore.inputs.tensor_files import stored_tensors
from hlscore.inputs.weights import accelerate_hooks, tied_names
from hlscore.packing import packed_bytes
from hlscore.processes import Processes, local_rank
from hlscore.records import ModelIdentity
from hlscore.settings import Dtype, ModelSettings

BELONG_TOGETHER = "Check that config.json and the weights belong together."
# Name in the files: name in the model, and the pattern and entry of a conversion if there is one.
Renamer = Callable[[str], tuple[str, tuple[str, Any] | None]]
_TOKENIZER_PATTERNS = ("tokenizer*", "*.model", "*.tiktoken", "vocab.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Files of a model, and how transformers loads them."""

    settings: ModelSettings
    files: ModelFiles
    loader: Any  # the class whose `from_pretrained` loads it
    config: PreTrainedConfig  # what the class takes


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready for the probe run."""

    model: PreTrainedModel  # in inference mode (dropout off), on its device or devices
    tokenizer: PreTrainedTokenizerBase  # the model's tokenizer
    identity: ModelIdentity  # what the artifacts say about the model


def load_model(settings: ModelSettings) -> LoadedModel:
    """Load a model with its weights, and its tokenizer."""
    resolve_device(settings.device)  # a wrong one is named before anything is read
    source = find_source(settings, weights=True)
    tokenizer = load_tokenizer(source)
    model = load_weights(source)
    identity = identify(
        model, settings.model, source.files.revision, notes=loading_notes(model, source)
    )
    return LoadedModel(model=model, tokenizer=tokenizer, identity=identity)


def load_sharded(settings: ModelSettings, processes: Processes) -> LoadedModel:
    """Load a model whose weights no single device holds, with FSDP2.

    The main process reads the model into the memory of its host, once; each process keeps its
    part of every weight on its device. Blocks are gathered one at a time when they are run.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = resolve_device(settings.device)
    model, source = load_shape(settings)
    check_blocks_share_nothing(model, settings.model)
    model = model.to(planned_dtype(model.config, settings))
    tokenizer = load_tokenizer(source)
    whole = None
    if processes.is_main:
        # Not `auto`: what a CPU avoids is no matter of the devices that compute.
        dtype = cast("Dtype", str(planned_dtype(model.config, settings)).removeprefix("torch."))
        whole = load_model(replace(settings, device="cpu", shard=False, dtype=dtype))
    identity = processes.gather(None if whole is None else whole.identity)[0]
    if identity is None:
        raise ModelError(f"The main process could not load '{settings.model}'.")
    held = None if whole is None else whole.model
    try:
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        for name in decoder_blocks(model):
            fully_shard(model.get_submodule(name), mesh=mesh)
        fully_shard(model, mesh=mesh)
        # Buffers that no checkpoint holds, such as rotary frequencies, are sent one by one.
        originals = {} if held is None else dict(held.named_buffers())
        for name, buffer in list(model.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            value = originals.get(name, torch.empty_like(buffer, device=device)).to(device)
            torch.distributed.broadcast(value, src=0)
            model.get_submodule(owner)._buffers[leaf] = value
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, {} if held is None else held.state_dict(), options=options)
        model.tie_weights(recompute_mapping=False)  # what the files tie, not what config.json says
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, str(device)) from error
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, identity=identity)


def check_blocks_share_nothing(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose blocks hold one parameter together: each block is gathered alone."""
    owners: dict[int, str] = {}
    for block in decoder_blocks(model):
        for leaf, parameter in model.get_submodule(block).named_parameters():
            owner = owners.setdefault(id(parameter), block)
            if owner != block:
                raise ModelError(
                    f"'{name}' cannot be sharded: {owner} and {block} share {leaf}.",
                    hint="Use --device-map auto, or one process with --estimator sketch.",
                )


def _without_adapter(directory: Path, placement: Placement) -> tuple[Path, Placement]:
    """A folder of links to all but the adapter, which transformers would find and attach."""
    own = placement.own_folder or Path(tempfile.mkdtemp(prefix="hlscore-model-"))
    linked = own / "without-adapter"
    linked.mkdir()
    for path in directory.iterdir():
        if not path.name.startswith("adapter_"):
            (linked / path.name).symlink_to(path.resolve())
    return linked, replace(placement, own_folder=own)


def load_weights(source: ModelSource) -> PreTrainedModel:
    """Load a model with its weights, without a tokenizer."""
    settings, config, directory = source.settings, source.config, source.files.directory
    device = resolve_device(settings.device)
    stored_tensors(directory)  # a broken file is named before anything is loaded
    planned = planned_dtype(config, settings)
    widened = config.get_text_config().dtype == torch.float16 != planned
    placement = plan_placement(config, settings, device, planned)
    if (directory / ADAPTER_CONFIG).is_file():
        directory, placement = _without_adapter(directory, placement)
    placed = "device_map" in placement.options
    model: PreTrainedModel
    with loading(settings, placement):
        model, info = source.loader.from_pretrained(
            directory,
            config=config,
            dtype=planned if widened or settings.dtype != "auto" else "auto",
            use_safetensors=None if settings.allow_pickle else True,
            trust_remote_code=settings.trust_remote_code,
            # Mismatches are refused by name below; transformers only counts on its own log.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **placement.options,
        )
    if not placed and model.dtype == torch.float16 != planned:
        model.float()  # the configuration names no dtype
    if placement.own_folder is not None:
        weakref.finalize(model, shutil.rmtree, placement.own_folder, ignore_errors=True)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # Not the dtype of the checkpoint: float16 would lose small gradients, and biases would
            # be cast in place.
            module.compute_dtype, module.compute_type_is_set = model.dtype, True
            # On CPUs with AVX512-BF16 bitsandbytes would rearrange the weights in a forward pass
            # without gradients, after which no gradient flows through them.
            module.support_avx512bf16_for_cpu = False
    for kind, what in (("missing_keys", "lack"), ("mismatched_keys", "have the wrong shape for")):
        keys = sorted(
            item
            if isinstance(item, str)
            else f"{item[0]} ({list(item[1])} in the file, {list(item[2])} by config.json)"
            for item in info.get(kind) or ()
        )
        if keys:
            raise unfit(settings.model, what, keys)
    model.eval()
    try:
        if not placed:
            model.to(device)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(settings.model, str(device)) from error
    return model


def unfit(name: str, what: str, tensors: Sequence[str]) -> ModelError:
    """The error for weights that lack tensors of the model, or have others of their names."""
    number = "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors, first"
    return ModelError(
        f"The weights of '{name}' {what} {number} {tensors[0]}.", hint=BELONG_TOGETHER
    )


def load_shape(
    settings: ModelSettings, *, weights: bool = False
) -> tuple[PreTrainedModel, ModelSource]:
    """Build a model on the meta device from its configuration, and find its files."""
    source = find_source(settings, weights=weights)
    loader, config = source.loader, source.config
    shape: PreTrainedModel
    try:
        with torch.device("meta"):
            shape = (
                loader._from_config(config)  # what the classes with from_config call
                if issubclass(loader, PreTrainedModel)
                else loader.from_config(config, trust_remote_code=settings.trust_remote_code)
            )
    except Exception as error:
        raise ModelError(
            f"A model cannot be built from the config.json of '{settings.model}': "
            f"{first_line(error)}"
        ) from error
    shape.tie_weights()
    shape.eval()

    # Untie the weights that are unequal in the files, as `from_pretrained` does.
    tied = dict(tied_names(shape))
    try:
        tensors = stored_tensors(source.files.directory) if tied else {}
    except ModelError:  # refused when the weights are read
        tensors = {}
    stored = {}
    if tensors:
        current = renamer(shape)
        for name, tensor in tensors.items():
            target, conversion = current(name)
            if conversion is None:
                stored[target] = tensor
    for target, first in tied.items():
        both = target in stored and first in stored
        if both and not stored[target].equals(stored[first]):
            owner, _, leaf = target.rpartition(".")
            weight = nn.Parameter(torch.empty_like(shape.get_parameter(first)))
            shape.get_submodule(owner)._parameters[leaf] = weight
            shape.all_tied_weights_keys.pop(target)
    return shape, source


def renamer(shape: PreTrainedModel) -> Renamer:
    """Transformers' own renaming of stored tensors, for one model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    table = get_model_conversion_mapping(shape)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    by_pattern = {key: entry for entry in converters for key in entry.source_patterns}
    held, prefix = shape.state_dict(), shape.base_model_prefix

    def current(name: str) -> tuple[str, tuple[str, Any] | None]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, held)
        if target not in held and name in held:
            target, pattern = rename_source_key(name, [], [], prefix, held)
        return target, None if pattern is None else (pattern, by_pattern[pattern])

    return current


def loading_notes(model: PreTrainedModel, source: ModelSource) -> tuple[str, ...]:
    """Say where a model differs from what a trainer would load from the same files."""
    notes, loaded = [], type(model).__name__
    named = str((source.config.architectures or [loaded])[0])
    if source.settings.text_only and named != loaded:
        notes.append(
            f"Loaded as {loaded} (--text-only): most trainers load {named}, which config.json "
            "names and whose modules have other names."
        )
    tied = getattr(model, "all_tied_weights_keys", None)
    wanted = {} if tied is None else model.get_expanded_tied_weights_keys(all_submodels=True)
    for second, first in sorted(wanted.items()):
        if second not in (tied or ()):
            notes.append(
                f"config.json ties {second} to {first}, but the files hold different values: they "
                "are loaded as two weights."
            )
    if (source.files.directory / ADAPTER_CONFIG).is_file():
        notes.append(
            "The adapter beside the weights was ignored (--ignore-adapter): remove its files "
            "before training, or transformers attaches it."
        )
    return tuple(notes)


def planned_dtype(config: PreTrainedConfig, settings: ModelSettings) -> torch.dtype:
    """Dtype of the weights once loaded, packed ones aside; `auto` follows the configuration."""
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype
    configured = config.get_text_config().dtype
    narrow = configured == torch.float16 and not quantization(config)
    if narrow and resolve_device(settings.device).type == "cpu":
        return torch.float32  # most CPUs compute in float16 very slowly
    return configured if isinstance(configured, torch.dtype) else torch.float32


def planned_weight_bytes(model: PreTrainedModel, settings: ModelSettings) -> int:
    """Estimate the memory that the weights will take once loaded, on all devices together.

    Quantized are linear layers other than the output head, with the constants of bitsandbytes: the
    estimate is a few per cent off for other methods. Unknown widths count as not quantized.
    """
    stored = quantization(model.config)
    bits = stored.get("bits", stored.get("w_bit"))
    if settings.load_in is not None:
        bits = 4 if settings.load_in == "4bit" else 8
    elif stored.get("load_in_4bit"):
        bits = 4
    elif stored.get("load_in_8bit") or "fp8" in stored.get("quant_method", ""):
        bits = 8
    size: int = planned_dtype(model.config, settings).itemsize
    whole = count_params(model)
    if bits not in (4, 8):
        return whole * size
    packed, rows = packable_sizes(model)
    return packed_bytes(packed, rows, bits) + (whole - packed) * size


def input_device(model: PreTrainedModel) -> torch.device:
    """Find the device that token ids have to be on."""
    embedding = model.get_input_embeddings()
    for hook in accelerate_hooks(embedding):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    weight = getattr(embedding, "weight", None)
    return weight.device if isinstance(weight, torch.Tensor) else model.device


def resolve_device(device: str) -> torch.device:
    """Turn `auto` into the best device there is, and check the others.

    Of processes that `torchrun` started each takes the GPU of its number on the host.
    """
    if device == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    own = (local_rank() or 0) % max(1, torch.cuda.device_count())
    chosen = torch.device(f"cuda:{own}" if device in ("auto", "cuda") else device)
    there = ""
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        there = f"this machine has {torch.cuda.device_count()} CUDA devices that torch can use"
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        there = "torch finds no Apple GPU on this machine"
    if there:
        raise UsageError(
            f"--device is '{device}', but {there}.", hint="Use --device auto or --device cpu."
        )
    return chosen


def dtype_warning(settings: ModelSettings) -> str:
    """A warning about the dtype that was asked for; empty where there is none."""
    if settings.dtype == "float16" and resolve_device(settings.device).type == "cpu":
        return (
            "float16 is very slow on most CPUs. --dtype bfloat16 takes as much memory; --dtype "
            "float32 holds the same weights exactly."
        )
    return ""


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model."""
    settings, directory = source.settings, source.files.directory
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        there = any(any(directory.glob(pattern)) for pattern in _TOKENIZER_PATTERNS)
        why = f"no usable tokenizer: {first_line(error)}" if there else "no tokenizer files."
        raise ModelError(
            f"'{settings.model}' has {why}",
            hint="Save it beside the model with tokenizer.save_pretrained(DIRECTORY).",
        ) from error
    return tokenizer


def find_source(settings: ModelSettings, *, weights: bool) -> ModelSource:
    """Find a model's files, and with which class and configuration transformers loads them."""
    files = find_model(settings, weights=weights)
    try:
        content, _ = PreTrainedConfig.get_config_dict(files.directory)
        known = content.get("model_type") in CONFIG_MAPPING
        own_code = "AutoConfig" in (content.get("auto_map") or ())
        if own_code and not known and not settings.trust_remote_code:
            raise ModelError(
                f"'{settings.model}' contains its own Python code.",
                hint="Read that code, then pass --trust-remote-code if you trust it.",
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files.directory, trust_remote_code=settings.trust_remote_code
        )
    except HlscoreError:
        raise
    except Exception as error:
        raise ModelError(
            f"The config.json of '{settings.model}' cannot be used: {first_line(error)}"
        ) from error
    loader = _loader(config, settings)
    kind = loader.config_class if issubclass(loader, PreTrainedModel) else PreTrainedConfig
    if not isinstance(config, kind):
        config = kind.from_pretrained(files.directory)
    return ModelSource(settings=settings, files=files, loader=loader, config=config)


def _loader(config: PreTrainedConfig, settings: ModelSettings) -> Any:
    """The class that loads a model.

    It is the class that `architectures` in config.json names: trainers load it (TRL's
    `create_model_from_path`). Auto classes may choose a text-only class with other module names.
    """
    decodes = getattr(config, "is_decoder", getattr(config, "causal", True))
    encodes = not decodes and type(config) in MODEL_FOR_MASKED_LM_MAPPING
    both = getattr(config, "is_encoder_decoder", False)
    if both or encodes:
        kind = "an encoder-decoder" if both else "an encoder"
        raise ModelError(
            f"'{settings.model}' is {kind} model ({config.model_type}).", hint=ONLY_DECODERS
        )
    named = str((config.architectures or [""])[0])
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    mapped = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__ if causal else ""
    if settings.text_only:
        if not mapped or (config.get_text_config() is not config and mapped == named):
            raise UsageError(
                f"--text-only: transformers has no text-only class for {config.model_type} "
                "checkpoints.",
                hint=f"Remove it to load {named}." if named else ONLY_DECODERS,
            )
        return AutoModelForCausalLM
    if causal and settings.architecture == mapped:
        return AutoModelForCausalLM
    remote = (getattr(config, "auto_map", None) or {}) if settings.trust_remote_code else {}
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if auto.__name__ in remote:
            return auto
    found: Any = getattr(transformers, named, None) if named else None
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    if is_model:
        whole = found.forward is not nn.Module.forward  # not a frame around several models
        if not (whole and issubclass(found, GenerationMixin)):
            raise ModelError(
                f"The config.json of '{settings.model}' names {named}, which is not a causal "
                "language model.",
                hint=f'Set its architectures to ["{mapped}"], as trainers load what it names, '
                "if the weights hold an output head."
                if mapped
                else ONLY_DECODERS,
            )
        return found
    if causal:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"'{settings.model}' is a {config.model_type} model, which has no causal language model.",
        hint=ONLY_DECODERS,
    )
