"""Find a model's files: the package, a local directory, or the Hugging Face hub."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hlscore.errors import HlscoreError, ModelError, UsageError, first_line
from hlscore.paths import existing_path
from hlscore.settings import ModelSettings

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = ("tiny",)
BUILTIN_FOLDER = Path(str(resources.files("hlscore.inputs"))) / "builtin"

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
ADAPTER_PREFIX = "base_model.model."  # what PEFT puts before the names of modules
SAVE_AGAIN = "Download or save the model again."
# Files that trainers save beside weights, with suffixes of weights.
_NO_WEIGHTS = (
    ADAPTER_WEIGHTS, ADAPTER_PICKLE, "training_args.bin", "optimizer.bin", "scheduler.bin",
)  # fmt: skip

_CONFIG_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
# The same weights again, in folders or formats that transformers does not read.
_IGNORED_PATTERNS = ["*/*.safetensors", "*/*.bin", "consolidated*.safetensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on the local disk."""

    directory: Path  # folder with `config.json`
    revision: str | None  # commit hash when it came from the hub, else `None`


def find_model(settings: ModelSettings, *, weights: bool) -> ModelFiles:
    """Find a model's files: configuration, tokenizer and, if asked for, weights."""
    name = settings.model
    if name.startswith(BUILTIN_PREFIX):
        short = name.removeprefix(BUILTIN_PREFIX)
        if short not in BUILTIN_MODELS:
            known = ", ".join(f"{BUILTIN_PREFIX}{model}" for model in BUILTIN_MODELS)
            raise ModelError(f"There is no built-in model '{name}'.", hint=f"There is: {known}.")
        files = ModelFiles(directory=BUILTIN_FOLDER / short, revision=None)
    elif (local := existing_path(name)) is not None and local.is_dir():
        files = ModelFiles(directory=local, revision=None)
    elif local is not None and local.suffix == ".gguf":
        raise _gguf_error(name, local.name, str(local.parent))
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

    # The folder holds what is needed, and nothing that changes it.
    directory = files.directory
    adapter = (directory / ADAPTER_CONFIG).is_file()
    has_config = (directory / "config.json").is_file()
    there = [path for suffix in (".safetensors", ".bin") for path in _weights(directory, suffix)]
    # Trainers save config.json beside an adapter too; a hub download for a shape has no weights.
    incomplete = not has_config or (weights and not there)
    if adapter and incomplete:
        base = ""
        with suppress(ModelError):
            content = read_json(directory / ADAPTER_CONFIG)
            base = str(content.get("base_model_name_or_path") or "")
        named = f", '{base}'," if base and base.isprintable() else ","
        raise ModelError(
            f"'{name}' is an adapter, not a model.",
            hint=f"Give its base model{named} or the model with the adapter merged.",
        )
    gguf = sorted(path.name for path in directory.glob("*.gguf"))
    if gguf and incomplete:
        raise _gguf_error(name, gguf[0], str(directory))
    if adapter and not settings.ignore_adapter:
        raise ModelError(
            f"'{name}' holds an adapter ({ADAPTER_CONFIG}) beside the weights: "
            "transformers attaches it when it loads the model, which renames modules.",
            hint="If it is merged into the weights already, remove the adapter's files or pass "
            "--ignore-adapter; otherwise merge it with PEFT's merge_and_unload.",
        )
    if not has_config:
        raise ModelError(
            f"'{name}' has no config.json.",
            hint="hlscore reads models saved in the Hugging Face format (save_pretrained).",
        )
    if weights and not there:
        raise ModelError(
            f"'{name}' has no weights: no .safetensors file beside config.json.",
            hint="`hlscore modules` works from the configuration alone; `rank` needs weights.",
        )
    if weights and there[0].suffix == ".bin" and not settings.allow_pickle:
        raise _pickle_error(name, there[0].name)
    return files


def find_adapter(settings: ModelSettings) -> Path | None:
    """The folder of a PEFT adapter; `None` for anything else."""
    name = settings.model
    folder = existing_path(name)
    if name.startswith(BUILTIN_PREFIX) or (folder is None and looks_like_path(name)):
        return None
    if folder is None:
        folder = _download(settings, weights=False).directory
        if (folder / ADAPTER_CONFIG).is_file():
            return _download(settings, weights=True).directory
    # Beside weights of a whole model it is not clear which ones count: `find_model` says so.
    elif (folder / ADAPTER_CONFIG).is_file() and not _weights(folder, ".safetensors"):
        return folder
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file of a model."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"'{path}' cannot be read: {first_line(error)}", hint=SAVE_AGAIN
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' does not hold a JSON object.", hint=SAVE_AGAIN)
    return content


def looks_like_path(name: str) -> bool:
    """Whether a name is that of a local file or directory, and not a hub id."""
    return (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or existing_path(name) is not None
    )


def _download(settings: ModelSettings, *, weights: bool) -> ModelFiles:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, revision = settings.model, settings.revision

    def fetch(*patterns: str) -> Path:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*_CONFIG_PATTERNS, *patterns],
            ignore_patterns=_IGNORED_PATTERNS,
        )
        return Path(folder)

    patterns = ("*.py",) if settings.trust_remote_code else ()
    stored: list[str] = []
    try:
        folder = fetch(*patterns, *(("*.safetensors",) if weights else ()))
        if weights and not _weights(folder, ".safetensors"):
            if not settings.allow_pickle:  # nothing of them is fetched
                with suppress(Exception):  # offline: what is in the cache has to do
                    stored = HfApi().list_repo_files(name, revision=revision)
            own = sorted(file for file in stored if "/" not in file and file not in _NO_WEIGHTS)
            for suffix, refuse in ((".bin", _pickle_error), (".gguf", _gguf_error)):
                for file in own:
                    if file.endswith(suffix):
                        raise refuse(name, file)
            folder = fetch(*patterns, "*.bin")
    except HlscoreError:
        raise
    except HFValidationError as error:
        raise ModelError(
            f"'{name}' is neither a directory nor a valid hub id.",
            hint="A hub id looks like Qwen/Qwen3-0.6B.",
        ) from error
    except Exception as error:
        message, hint = hub_error(f"model '{name}'", type(error), first_line(error), revision)
        raise ModelError(message, hint=hint) from error
    return ModelFiles(directory=folder, revision=folder.name)


def hub_error(
    what: str, kind: type[Exception], text: str, revision: str | None = None
) -> tuple[str, str]:
    """Message and hint for a failure of the hub client with, say, `model 'org/name'`."""
    from huggingface_hub import errors as hub

    known: tuple[tuple[Any, str, str], ...] = (
        (hub.GatedRepoError, f"The {what} is gated.",
         "Accept its terms on its hub page, then log in: `hf auth login` or HF_TOKEN."),
        (hub.RevisionNotFoundError, f"The {what} has no revision '{revision}'.",
         "Give a branch, tag or full commit hash that its hub page lists."),
        (hub.RepositoryNotFoundError,
         f"There is no {what}, neither as a local path nor on the hub.",
         "Check the spelling; for a private repository log in with `hf auth login`."),
        ((hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled),
         f"The {what} is not in the local cache and the hub cannot be reached.",
         "Check the network and HF_HUB_OFFLINE, or give a local copy."),
        (hub.HfHubHTTPError, f"The hub answered with an error for the {what}: {text}",
         "Try again later, or give a local copy."),
    )  # fmt: skip
    for kinds, message, hint in known:
        if issubclass(kind, kinds):
            return message, hint
    return (
        f"Downloading the {what} failed: {text}",
        "What was downloaded so far is kept: run the same command again to continue.",
    )


def _weights(directory: Path, suffix: str) -> list[Path]:
    """Files of the model's own weights."""
    found = directory.glob(f"*{suffix}")
    return sorted(path for path in found if path.name not in _NO_WEIGHTS)


def _pickle_error(name: str, file: str) -> ModelError:
    return ModelError(
        f"'{name}' only has pickle weights ({file}), which can run code when opened.",
        hint="Convert it to safetensors, or pass --allow-pickle if you trust its source.",
    )


def _gguf_error(name: str, file: str, folder: str = "") -> ModelError:
    return ModelError(
        f"'{name}' holds GGUF weights ({file}), which cannot be ranked.",
        hint="Give the original checkpoint. If there is none, dequantize it: "
        f"AutoModelForCausalLM.from_pretrained('{folder or name}', gguf_file='{file}'), then "
        "save_pretrained(DIRECTORY); the same with AutoTokenizer.",
    )
