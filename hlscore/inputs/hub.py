"""Find a model's files: the package, a local directory, or the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hlscore.errors import HlscoreError, ModelError, UsageError, first_line
from hlscore.paths import existing_path
from hlscore.settings import ModelSettings

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = ("tiny",)

_CONFIG_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# The same weights again, in folders or formats that transformers does not read.
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_IGNORED_PATTERNS = ("*/*.safetensors", "*/*.bin", "consolidated*.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on the local disk.

    Attributes:
        directory: Folder with `config.json`.
        revision: Commit hash when it came from the hub, else `None`.
    """

    directory: Path
    revision: str | None


def find_model(settings: ModelSettings, *, weights: bool) -> ModelFiles:
    """Find a model's files, downloading what is needed from the hub.

    Args:
        weights: Whether the weights are needed too, or only configuration and tokenizer.
    """
    name = settings.model
    if name.startswith(BUILTIN_PREFIX):
        short = name.removeprefix(BUILTIN_PREFIX)
        if short not in BUILTIN_MODELS:
            known = ", ".join(f"{BUILTIN_PREFIX}{model}" for model in BUILTIN_MODELS)
            raise ModelError(f"There is no built-in model '{name}'.", hint=f"There is: {known}.")
        folder = Path(str(resources.files("hlscore.inputs") / "builtin" / short))
        files = ModelFiles(directory=folder, revision=None)
    elif (local := existing_path(name)) is not None and local.is_dir():
        files = ModelFiles(directory=local, revision=None)
    elif local is not None and local.suffix == ".gguf":
        raise _gguf_error(name, str(local.parent), local.name)
    elif looks_like_path(name):
        raise ModelError(
            f"There is no model directory at '{name}'.",
            hint="Give a directory with config.json, a hub id such as Qwen/Qwen3-0.6B, or "
            "builtin:tiny.",
        )
    else:
        files = _download(settings, weights=weights)
    if settings.revision is not None and files.revision is None:
        raise UsageError(
            f"--revision is '{settings.revision}', but '{name}' does not come from the hub.",
            hint="Remove --revision, or give a hub id.",
        )
    _check_files(files.directory, settings, weights=weights)
    return files


def find_adapter(settings: ModelSettings) -> Path | None:
    """Find the folder of a PEFT adapter."""
    name = settings.model
    local = existing_path(name)
    if name.startswith(BUILTIN_PREFIX) or (local is None and looks_like_path(name)):
        return None
    if local is not None:
        # Beside weights of a whole model it is not clear which ones count: `find_model` says so.
        adapter = holds_adapter(local)
        return local if adapter and not _weights(local, ".safetensors") else None
    files = _download(settings, weights=False)
    if not holds_adapter(files.directory):
        return None
    return _download(settings, weights=True).directory


def looks_like_path(name: str) -> bool:
    """Whether a name is that of a local file or directory, and not a hub id."""
    return (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or existing_path(name) is not None
    )


def _download(settings: ModelSettings, *, weights: bool) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = list(_CONFIG_PATTERNS)
    if weights:
        patterns.append("*.safetensors")
    if settings.trust_remote_code:
        patterns.append("*.py")
    try:
        folder = snapshot_download(
            settings.model,
            revision=settings.revision,
            allow_patterns=patterns,
            ignore_patterns=list(_IGNORED_PATTERNS),
        )
        if weights and not _weights(Path(folder), ".safetensors"):
            if not settings.allow_pickle:
                _refuse_pickles(settings.model, _hub_pickles(settings))
            folder = snapshot_download(
                settings.model,
                revision=settings.revision,
                allow_patterns=[*patterns, "*.bin"],
                ignore_patterns=list(_IGNORED_PATTERNS),
            )
    except HlscoreError:
        raise
    except HFValidationError as error:
        raise ModelError(
            f"'{settings.model}' is neither a directory nor a valid hub id.",
            hint="A hub id looks like Qwen/Qwen3-0.6B.",
        ) from error
    except Exception as error:
        raise hub_error(settings.model, settings.revision, "model", error) from error
    return ModelFiles(directory=Path(folder), revision=Path(folder).name)


def _hub_pickles(settings: ModelSettings) -> list[str]:
    """Pickle weights in a hub repository; refuses one that holds only GGUF files."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(settings.model, revision=settings.revision)
    except Exception:  # offline: what is in the cache has to do
        return []
    gguf = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    pickles = sorted(
        name
        for name in names
        if name.endswith(".bin") and "/" not in name and name not in _ADAPTER_WEIGHTS
    )
    if gguf and not pickles:
        raise _gguf_error(settings.model, settings.model, gguf[0])
    return pickles


def _refuse_pickles(model: str, pickles: list[str]) -> None:
    if pickles:
        raise ModelError(
            f"'{model}' only has pickle weights ({pickles[0]}), which can run code when opened.",
            hint="Convert it to safetensors, or pass --allow-pickle if you trust its source.",
        )


def hub_error(name: str, revision: str | None, what: str, error: Exception) -> HlscoreError:
    """Turn a failure of the hub client into one clear error."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return ModelError(
            f"The {what} '{name}' is gated.",
            hint="Accept its terms on its hub page, then log in: `hf auth login` or HF_TOKEN.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return ModelError(
            f"The {what} '{name}' has no revision '{revision}'.",
            hint="Give a branch, tag or full commit hash that its hub page lists.",
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return ModelError(
            f"There is no {what} '{name}', neither as a local path nor on the hub.",
            hint="Check the spelling; for a private repository log in with `hf auth login`.",
        )
    if isinstance(error, hub.LocalEntryNotFoundError | hub.OfflineModeIsEnabled):
        return ModelError(
            f"The {what} '{name}' is not in the local cache and the hub cannot be reached.",
            hint="Check the network and HF_HUB_OFFLINE, or give a local copy.",
        )
    if isinstance(error, hub.HfHubHTTPError):
        return ModelError(
            f"The hub answered with an error for '{name}': {first_line(error)}",
            hint="Try again later, or give a local copy.",
        )
    return ModelError(
        f"Downloading the {what} '{name}' failed: {first_line(error)}",
        hint="What was downloaded so far is kept: run the same command again to continue.",
    )


def _weights(directory: Path, suffix: str) -> list[Path]:
    """Files of the model's own weights."""
    found = directory.glob(f"*{suffix}")
    return sorted(path for path in found if path.name not in _ADAPTER_WEIGHTS)


def _check_files(directory: Path, settings: ModelSettings, *, weights: bool) -> None:
    adapter = holds_adapter(directory)
    has_config = (directory / "config.json").is_file()
    there = [path for suffix in (".safetensors", ".bin") for path in _weights(directory, suffix)]
    # Trainers save config.json beside an adapter too; a hub download for a shape has no weights.
    if adapter and (not has_config or (weights and not there)):
        raise _adapter_alone(directory, settings.model)
    gguf = sorted(path.name for path in directory.glob("*.gguf"))
    if gguf and (not has_config or (weights and not there)):
        raise _gguf_error(settings.model, str(directory), gguf[0])
    if adapter and not settings.ignore_adapter:
        raise ModelError(
            f"'{settings.model}' holds an adapter ({_ADAPTER_CONFIG}) beside the weights: "
            "transformers attaches it when it loads the model, which renames modules.",
            hint="If it is merged into the weights already, remove the adapter's files or pass "
            "--ignore-adapter; otherwise merge it with PEFT's merge_and_unload.",
        )
    if not has_config:
        raise ModelError(
            f"'{settings.model}' has no config.json.",
            hint="hlscore reads models saved in the Hugging Face format (save_pretrained).",
        )
    if not weights or _weights(directory, ".safetensors"):
        return
    pickles = _weights(directory, ".bin")
    if not pickles:
        raise ModelError(
            f"'{settings.model}' has no weights: no .safetensors file beside config.json.",
            hint="`hlscore modules` works from the configuration alone; `rank` needs weights.",
        )
    if not settings.allow_pickle:
        _refuse_pickles(settings.model, [path.name for path in pickles])


def holds_adapter(directory: Path) -> bool:
    """Whether transformers finds an adapter in a folder and attaches it."""
    return (directory / _ADAPTER_CONFIG).is_file()


def _adapter_alone(directory: Path, name: str) -> ModelError:
    try:
        base = json.loads((directory / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = str(base.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        base = ""
    return ModelError(
        f"'{name}' is an adapter, not a model.",
        hint=f"Give its base model, '{base}', or the model with the adapter merged."
        if base.isprintable() and base
        else "Give its base model, or the model with the adapter merged.",
    )


def _gguf_error(name: str, folder: str, file: str) -> ModelError:
    return ModelError(
        f"'{name}' holds GGUF weights ({file}), which cannot be ranked.",
        hint="Give the original checkpoint. If there is none, dequantize it: "
        f"AutoModelForCausalLM.from_pretrained('{folder}', gguf_file='{file}'), then "
        "save_pretrained(DIRECTORY); the same with AutoTokenizer.",
    )
