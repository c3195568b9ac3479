"""Checks of weight files, before and after transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hlscore.errors import ModelError, first_line

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def check_complete(name: str, info: dict[str, Any]) -> None:
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


def check_safetensors(directory: Path, name: str) -> None:
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
