"""How weights are read and where they go: quantized, spread over devices, offloaded."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from hlscore.errors import ModelError, UsageError, first_line
from hlscore.paths import typed_path
from hlscore.settings import ModelSettings

_KEPT_SHARE = 0.9
"""Share of a device's free memory that weights may take where `--max-memory` says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How to read the weights of one model."""

    # Arguments of `from_pretrained`; with `device_map` it places the weights itself.
    options: Mapping[str, Any]
    method: str  # name of the quantization method; empty where there is none
    # Temporary folder that the weights are read from, to be removed with the model.
    own_folder: Path | None = None


def plan_placement(
    config: PreTrainedConfig, settings: ModelSettings, device: torch.device, dtype: torch.dtype
) -> Placement:
    """Decide how to read the weights of a model; may make a temporary folder."""
    stored: str = quantization(config).get("quant_method", "")
    if settings.load_in is not None and stored:
        raise UsageError(
            f"--load-in is '{settings.load_in}', but '{settings.model}' is quantized already "
            f"({stored}).",
            hint="Remove --load-in.",
        )
    configured = config.get_text_config().dtype
    if stored and settings.dtype != "auto" and dtype != configured:
        # transformers would convert some of the other parameters and leave some as they are.
        raise UsageError(
            f"--dtype is '{settings.dtype}', but '{settings.model}' is quantized already "
            f"({stored}), with {str(configured).removeprefix('torch.')} beside it.",
            hint="Remove --dtype.",
        )
    method = stored or ("bitsandbytes" if settings.load_in else "")
    if method and method not in ("bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(
            f"'{settings.model}' is quantized with '{method}', which transformers does not know.",
            hint="Give the original, and quantize it with --load-in 4bit.",
        )
    asked = "--device-map" if settings.device_map else f"A model quantized with {method}"
    for package, needed, extra in (
        ("bitsandbytes", method == "bitsandbytes", "quant"),
        ("accelerate", bool(method), "quant"),
        ("accelerate", settings.device_map is not None, "devices"),
    ):
        if needed and importlib.util.find_spec(package) is None:
            raise ModelError(
                f"{asked if settings.load_in is None else '--load-in'} needs the package "
                f"{package}, which is not installed.",
                hint=f"pip install 'hlscore[{extra}]'",
            )
    options: dict[str, Any] = {}
    if settings.load_in == "8bit":  # the settings of LLM.int8()
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif settings.load_in == "4bit":  # those of QLoRA
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if settings.device_map is None:
        if method:
            options["device_map"] = {"": device}
        return Placement(options=options, method=method)

    # Spread over devices: the memory of each, and a folder for weights that go to disk.
    options["device_map"], options["max_memory"] = settings.device_map, None
    if settings.max_memory:
        from accelerate.utils import get_max_memory

        free = {key: int(size * _KEPT_SHARE) for key, size in get_max_memory().items()}
        for name, size in settings.max_memory_bytes.items():
            key: int | str = int(name) if name.isdecimal() else name
            if key != "cpu" and key not in free:
                raise UsageError(
                    f"--max-memory names device '{name}', but this machine has: "
                    f"{', '.join(map(str, free))}.",
                    hint="Devices are cpu and the numbers of the GPUs.",
                )
            free[key] = size
        options["max_memory"] = free
    if settings.offload_folder is None:
        own_folder = Path(tempfile.mkdtemp(prefix="hlscore-offload-"))
        options["offload_folder"] = str(own_folder)
        return Placement(options=options, method=method, own_folder=own_folder)
    folder = typed_path(settings.offload_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--offload-folder '{settings.offload_folder}' cannot be written to: "
            f"{error.strerror or first_line(error)}.",
            hint="Give a folder on a disk with room for the weights.",
        ) from error
    options["offload_folder"] = str(folder)
    return Placement(options=options, method=method)


@contextmanager
def loading(settings: ModelSettings, placement: Placement) -> Iterator[None]:
    """Load the weights of a model quietly; a failure leaves no folder and becomes one error."""
    progress_was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    name = settings.model
    try:
        with quiet_libraries():
            yield
    except BaseException as error:
        if placement.own_folder is not None:
            shutil.rmtree(placement.own_folder, ignore_errors=True)
        if isinstance(error, torch.OutOfMemoryError):
            raise out_of_memory(name, "the device") from error
        if placement.method and isinstance(error, ImportError):
            raise ModelError(
                f"'{name}' is quantized with {placement.method}, and a package is missing: "
                f"{first_line(error)}",
                hint="Install it, or give a checkpoint that is not quantized.",
            ) from error
        if placement.method and settings.device_map and isinstance(error, ValueError):
            what = str(error).partition(". ")[0]
            raise ModelError(
                f"The quantized weights of '{name}' cannot be placed on the devices: {what}.",
                hint="Allow more with --max-memory, or load the original without --load-in: "
                "quantized weights cannot be offloaded to CPU or disk.",
            ) from error
        if isinstance(error, Exception):
            raise ModelError(
                f"The weights of '{name}' cannot be loaded: {first_line(error)}",
                hint="Check that config.json and the weight files belong together.",
            ) from error
        raise
    finally:
        if progress_was_on:
            transformers_logging.enable_progress_bar()


def quantization(config: PreTrainedConfig) -> Mapping[str, Any]:
    """`quantization_config` with the name of its method, such as `gptq`; empty where none is."""
    found = getattr(config, "quantization_config", None) or {}
    settings = dict(found if isinstance(found, Mapping) else found.to_dict())
    if not settings:
        return {}
    by_bits = "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & set(settings) else "unnamed"
    method = settings.get("quant_method") or by_bits
    return settings | {"quant_method": str(getattr(method, "value", method))}


def out_of_memory(name: str, device: str) -> ModelError:
    """Say that a model does not fit, and what would."""
    return ModelError(
        f"'{name}' does not fit on {device}.",
        hint="Use --load-in 4bit, --device-map auto, --dtype bfloat16 or --device cpu.",
    )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep accelerate quiet, and bitsandbytes for good: it logs 8-bit layers in every pass.

    PEFT still uses what transformers has renamed; that warning is not shown.
    """
    accelerate, bitsandbytes = (logging.getLogger(name) for name in ("accelerate", "bitsandbytes"))
    level = accelerate.level
    accelerate.setLevel(logging.ERROR)
    if bitsandbytes.level == logging.NOTSET:
        bitsandbytes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        accelerate.setLevel(level)
