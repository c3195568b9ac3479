"""Which model to load, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import partial
from typing import ClassVar, Literal

from hlscore.settings.option import check, option, parse_pairs, refuse_both, require

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LoadIn = Literal["4bit", "8bit"]
DeviceMap = Literal["auto"]

# A number, whole or not, as budgets and sizes of memory have it.
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_MEMORY = re.compile(rf"{NUMBER}\s*([KMGT])(i?)B", re.ASCII | re.IGNORECASE)


def parse_bytes(text: str) -> float | None:
    """A size such as `24GiB` or `20 GB` in bytes; `None` for another text."""
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        return None
    number, prefix, binary = match.groups()
    step: int = 1024 if binary else 1000
    return float(number) * float(step ** ("KMGT".index(prefix.upper()) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model to load, and how."""

    panel: ClassVar = "Model"
    model: str = option(MISSING, "Hub id, local directory, or builtin:tiny.", argument=True)
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    dtype: Dtype = option(
        "auto", "Dtype of the weights; auto: as stored, but never float16 on a CPU."
    )
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N.")
    # The embeddings, the output head and fused experts are not quantized.
    load_in: LoadIn | None = option(
        None, "Quantize the weights while loading (needs hlscore[quant])."
    )
    device_map: DeviceMap | None = option(
        None, "auto: over all GPUs, then CPU memory, then disk (needs hlscore[devices])."
    )
    # Devices that are not named give nine tenths of what is free.
    max_memory: Mapping[str, str] = option(
        {},
        "Memory for weights of one device, such as 0=20GiB or cpu=64GiB (repeatable).",
        parse=partial(
            parse_pairs, form="DEVICE=SIZE", example="0=20GiB", twice="Give one size of a device."
        ),
    )
    offload_folder: str | None = option(
        None, "Folder for weights that go to disk.", default="a temporary one"
    )
    shard: bool = option(False, "Spread the weights over the processes that torchrun started.")
    allow_pickle: bool = option(False, "Accept .bin weights, which can run code when opened.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    text_only: bool = option(
        False, "Load the text-only class of a checkpoint with other inputs too."
    )
    ignore_adapter: bool = option(
        False, "Rank the weights as they are, without the adapter beside them."
    )
    # Class that a plan was made with; it is loaded if it is the one for text alone.
    architecture: str | None = None

    def __post_init__(self) -> None:
        """Check every field, and those that belong together."""
        check(self)
        require(
            bool(self.model.strip()),
            "The model name is empty.",
            "Give a hub id, a local directory, or builtin:tiny.",
        )
        kind, _, index = self.device.partition(":")
        require(
            self.device in ("auto", "cpu", "mps", "cuda") or (kind == "cuda" and index.isdecimal()),
            f"--device is '{self.device}'.",
            "Use auto, cpu, mps, cuda or cuda:N.",
        )
        for flag, given in (("--load-in", self.load_in), ("--device-map", self.device_map)):
            refuse_both("--shard", flag, self.shard and given is not None)
        require(
            self.device_map is None or self.device == "auto",
            f"--device is '{self.device}', but --device-map chooses the devices.",
            "Remove one of them.",
        )
        for flag, value in (
            ("--max-memory", self.max_memory), ("--offload-folder", self.offload_folder),
        ):  # fmt: skip
            require(
                not value or self.device_map is not None,
                f"{flag} is given, but no device map.",
                "Add --device-map auto.",
            )
        require(
            self.offload_folder is None or bool(self.offload_folder.strip()),
            "--offload-folder is empty.",
        )
        for device, size in self.max_memory.items():
            known = device in ("cpu", "mps") or (device.isascii() and device.isdecimal())
            held = parse_bytes(size)
            require(
                known and held is not None and held >= 0,
                f"--max-memory is '{device}={size}'.",
                "Use DEVICE=SIZE, for example cpu=64GiB or 0=20GiB.",
            )

    @property
    def max_memory_bytes(self) -> dict[str, int]:
        """`max_memory` in bytes."""
        return {device: int(parse_bytes(size) or 0) for device, size in self.max_memory.items()}
