"""Load a model and its tokenizer, or only the model's shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)
from transformers.utils import logging as transformers_logging

from hlscore.errors import ModelError, UsageError, first_line
from hlscore.inputs.fingerprint import fingerprint
from hlscore.inputs.hub import ModelFiles, find_model
from hlscore.records import ModelIdentity
from hlscore.settings import ModelSettings

_ONLY_DECODERS = "hlscore ranks decoder-only (causal) language models."
_TOKENIZER_PATTERNS = ("tokenizer*", "*.model", "*.tiktoken", "vocab.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready for the probe run.

    Attributes:
        model: In inference mode (dropout off), on its device.
        tokenizer: The model's tokenizer.
        identity: What the artifacts say about the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity


def load_model(settings: ModelSettings) -> LoadedModel:
    """Load a model with its weights, and its tokenizer.

    Args:
        settings: Which model, and how.

    Returns:
        Model, tokenizer and identity.

    Raises:
        ModelError: The model cannot be found, read or used.
        UsageError: The device does not exist.
    """
    device = resolve_device(settings.device)
    files = find_model(settings, weights=True)
    config = _read_config(files, settings)
    tokenizer = load_tokenizer(files, settings)
    model = _read_weights(files, config, settings)
    model.eval()
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"'{settings.model}' does not fit on {device}.",
            hint="Use --dtype bfloat16, another --device, or --device cpu.",
        ) from error
    return LoadedModel(
        model=model, tokenizer=tokenizer, identity=identify(model, settings.model, files.revision)
    )


def load_shape(settings: ModelSettings) -> tuple[PreTrainedModel, ModelFiles]:
    """Build a model on the meta device from its configuration alone.

    Args:
        settings: Which model.

    Returns:
        The model without weights, and where its files are.

    Raises:
        ModelError: The configuration cannot be found, read or used.
    """
    files = find_model(settings, weights=False)
    config = _read_config(files, settings)
    auto = _auto_class(config, settings)
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"A model cannot be built from the config.json of '{settings.model}': "
            f"{first_line(error)}"
        ) from error
    model.tie_weights()
    return model.eval(), files


def planned_dtype(model: PreTrainedModel, settings: ModelSettings) -> torch.dtype:
    """Dtype that the weights will have once loaded; `auto` follows the configuration."""
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype
    configured = model.config.get_text_config().dtype
    return configured if isinstance(configured, torch.dtype) else torch.float32


def identify(model: PreTrainedModel, name: str, revision: str | None) -> ModelIdentity:
    """Describe a loaded model for the artifacts.

    Raises:
        ModelError: The model has no weights.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(f"'{name}' is on the meta device: it has no weights.")
    return ModelIdentity(
        model=name,
        revision=revision,
        architecture=type(model).__name__,
        model_type=str(model.config.model_type),
        n_params=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=fingerprint(model),
    )


def resolve_device(device: str) -> torch.device:
    """Turn `auto` into the best device there is, and check the others.

    Args:
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.

    Returns:
        The device.

    Raises:
        UsageError: The machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device("cuda:0" if device == "cuda" else device)
    missing = (
        (chosen.index or 0) >= torch.cuda.device_count()
        if chosen.type == "cuda"
        else chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        there = (
            f"this machine has {torch.cuda.device_count()} CUDA devices that torch can use"
            if chosen.type == "cuda"
            else "torch finds no Apple GPU on this machine"
        )
        raise UsageError(
            f"--device is '{device}', but {there}.", hint="Use --device auto or --device cpu."
        )
    return chosen


def load_tokenizer(files: ModelFiles, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model.

    Args:
        files: Where the model is.
        settings: Which model.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            files.directory, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        there = any(any(files.directory.glob(pattern)) for pattern in _TOKENIZER_PATTERNS)
        why = f"no usable tokenizer: {first_line(error)}" if there else "no tokenizer files."
        raise ModelError(
            f"'{settings.model}' has {why}",
            hint="Save it beside the model with tokenizer.save_pretrained(DIRECTORY).",
        ) from error
    return tokenizer


def _read_config(files: ModelFiles, settings: ModelSettings) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files.directory, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelError(
                f"'{settings.model}' brings its own Python code.",
                hint="Read that code, then pass --trust-remote-code if you trust it.",
            ) from error
        raise ModelError(
            f"The config.json of '{settings.model}' cannot be used: {first_line(error)}"
        ) from error
    return config


def _auto_class(config: PreTrainedConfig, settings: ModelSettings) -> Any:
    remote = getattr(config, "auto_map", None) or {}
    kind = _other_kind(config)
    if kind:
        raise ModelError(
            f"'{settings.model}' is {kind} model ({config.model_type}).", hint=_ONLY_DECODERS
        )
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (
        settings.trust_remote_code and "AutoModelForCausalLM" in remote
    ):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"'{settings.model}' is a {config.model_type} model, which has no causal language model.",
        hint=_ONLY_DECODERS,
    )


def _other_kind(config: PreTrainedConfig) -> str:
    """What a model is, where it has a causal class but its checkpoint is none."""
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    causal = getattr(config, "is_decoder", getattr(config, "causal", True))
    return "" if causal or type(config) not in MODEL_FOR_MASKED_LM_MAPPING else "an encoder"


def _read_weights(
    files: ModelFiles, config: PreTrainedConfig, settings: ModelSettings
) -> PreTrainedModel:
    _check_safetensors(files.directory, settings.model)
    auto = _auto_class(config, settings)
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    progress_was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            files.directory,
            config=config,
            dtype=dtype,
            use_safetensors=None if settings.allow_pickle else True,
            trust_remote_code=settings.trust_remote_code,
            # Mismatches are refused by name below; transformers only counts on its own log.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(
            f"The weights of '{settings.model}' cannot be loaded: {first_line(error)}",
            hint="Check that config.json and the weight files belong together.",
        ) from error
    finally:
        if progress_was_on:
            transformers_logging.enable_progress_bar()
    _check_complete(settings.model, info)
    loaded: PreTrainedModel = model
    return loaded


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse a model in which weights were filled with random numbers."""
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "have the wrong shape for")):
        keys = sorted(_describe_key(item) for item in info.get(key) or ())
        if keys:
            number = "1 tensor" if len(keys) == 1 else f"{len(keys)} tensors, first"
            raise ModelError(
                f"The weights of '{name}' {what} {number} {keys[0]}.",
                hint="They would be random. Check that config.json and the weights belong "
                "together.",
            )


def _describe_key(item: Any) -> str:
    if isinstance(item, str):
        return item
    key, found, wanted = item
    return f"{key} ({list(found)} in the file, {list(wanted)} by config.json)"


def _check_safetensors(directory: Path, name: str) -> None:
    """Read the header of each file, so that a broken one is named before anything is loaded."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path.name} of '{name}' is corrupt or cut short: {first_line(error)}",
                hint="Download or save the model again.",
            ) from error
