"""Which model to load, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from hlscore.settings.checking import require, require_choice

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LoadIn = Literal["4bit", "8bit"]
DeviceMap = Literal["auto"]

_MEMORY_UNITS = {
    f"{letter}{base}": (1024 if base == "IB" else 1000) ** power
    for power, letter in enumerate("KMGT", start=1)
    for base in ("B", "IB")
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model to load, and how.

    Attributes:
        model: Hub id, local directory, or `builtin:tiny`.
        revision: Branch, tag or commit of a hub id.
        dtype: Floating-point type of the loaded weights; `auto` keeps the checkpoint's own.
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        shard: Spread the weights over the processes that torchrun started.
        allow_pickle: Accept `.bin` checkpoints, which can run code when opened.
        trust_remote_code: Run Python code that comes with the model.
        text_only: Of a checkpoint with text and other inputs, load the class for text alone
            instead of the one that config.json names.
        architecture: Class that a plan was made with; it is loaded if it is the one for text
            alone.
        ignore_adapter: Load the weights as they are where an adapter lies beside them.
        load_in: Quantize linear layers to this width while loading; `None` keeps them as they
            are. The embeddings, the output head and fused experts are not quantized.
        device_map: `auto` spreads the model over all GPUs, then host memory, then disk; `None`
            puts it on `device`.
        max_memory: Memory that weights may take, such as `20GiB`, by device: `cpu`, `mps` or the
            number of a GPU. Devices that are not named give nine tenths of what is free.
        offload_folder: Folder for weights that go to disk; `None` makes a temporary one.
    """

    model: str
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    text_only: bool = False
    architecture: str | None = None
    ignore_adapter: bool = False
    load_in: LoadIn | None = None
    device_map: DeviceMap | None = None
    max_memory: Mapping[str, str] = field(default_factory=dict)
    offload_folder: str | None = None
    shard: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field has a value that cannot be used.
        """
        require(bool(self.model.strip()), "The model name is empty.")
        require_choice("--dtype", self.dtype, get_args(Dtype))
        kind, _, index = self.device.partition(":")
        plain = self.device in ("auto", "cpu", "mps", "cuda")
        require(
            plain or (kind == "cuda" and index.isdecimal()),
            f"--device is '{self.device}'.",
            "Use auto, cpu, mps, cuda or cuda:N.",
        )
        if self.load_in is not None:
            require_choice("--load-in", self.load_in, get_args(LoadIn))
        self._check_device_map()

    def _check_device_map(self) -> None:
        quantized, spread = self.load_in is not None, self.device_map is not None
        for option, given in (("--load-in", quantized), ("--device-map", spread)):
            require(
                not (self.shard and given),
                f"--shard does not go with {option}.",
                "Leave one of them away.",
            )
        if self.device_map is not None:
            require_choice("--device-map", self.device_map, get_args(DeviceMap))
            require(
                self.device == "auto",
                f"--device is '{self.device}', but --device-map chooses the devices.",
                "Leave one of them away.",
            )
        needs_map = (("--max-memory", self.max_memory), ("--offload-folder", self.offload_folder))
        for option, value in needs_map:
            require(
                not value or self.device_map is not None,
                f"{option} is given, but no device map.",
                "Add --device-map auto.",
            )
        require(
            self.offload_folder is None or bool(self.offload_folder.strip()),
            "--offload-folder is empty.",
        )
        for device, size in self.max_memory.items():
            known = device in ("cpu", "mps") or (device.isascii() and device.isdecimal())
            require(
                known and _MEMORY.fullmatch(size) is not None,
                f"--max-memory is '{device}={size}'.",
                "Use DEVICE=SIZE, for example cpu=64GiB or 0=20GiB.",
            )

    @property
    def max_memory_bytes(self) -> dict[str, int]:
        """`max_memory` in bytes."""
        found = {}
        for device, size in self.max_memory.items():
            match = _MEMORY.fullmatch(size)
            if match is not None:
                found[device] = int(float(match[1]) * _MEMORY_UNITS[match[2].upper()])
        return found
