"""Checks of weight files, before and after transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hlscore.errors import ModelError, first_line

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse a model in which weights were filled with random numbers.

    Args:
        name: The model, as given.
        info: What transformers says about loading it.

    Raises:
        ModelError: A weight is missing from the files, or has another shape there.
    """
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
    """Read the header of each file, so that a broken one is named before anything is loaded.

    Args:
        directory: Folder of the model.
        name: The model, as given.

    Raises:
        ModelError: A file cannot be read.
    """
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path.name} of '{name}' is corrupt or cut short: {first_line(error)}",
                hint="Download or save the model again.",
            ) from error


def check_head(config: PreTrainedConfig, name: str) -> None:
    """Refuse to probe a checkpoint that has no language-model head, before weights are read.

    Args:
        config: Its configuration.
        name: The model as the user names it.

    Raises:
        ModelError: `architectures` names a classifier, or a model without any head whose
            embeddings do not serve as one.
    """
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    without_head = MODEL_MAPPING_NAMES.get(config.model_type, ())
    bare = (without_head,) if isinstance(without_head, str) else without_head
    for architecture in getattr(config, "architectures", None) or ():
        classifies = architecture.endswith(_CLASSIFIERS)
        if classifies or (architecture in bare and not tied):
            what = "a classifier" if classifies else "a model without an output head"
            raise ModelError(
                f"'{name}' is {what} ({architecture} in its config.json): it has no language-model "
                "loss to probe.",
                hint="Give a causal language model, or score the weights alone with --data none.",
            )
