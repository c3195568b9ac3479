"""Rules that a repository keeps: `hlscore-check.toml`, or a table of `pyproject.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from hlscore.artifacts.files import read_bytes
from hlscore.errors import ArtifactError, UsageError, did_you_mean, first_line
from hlscore.paths import existing_path
from hlscore.settings import CheckSettings, Setting, settings_in

CONFIG_FILE = "hlscore-check.toml"
PROJECT_FILE = "pyproject.toml"
PLANS = "plans"
_TABLE = "tool.hlscore.check"
_LARGEST_BYTES = 2**20


def read_configuration(config: Path | None) -> dict[str, Any]:
    """Options of `hlscore check` that a repository keeps, by field; and `plans`, a list of paths.

    Keys are options without the dashes before them. Without `config` the file is
    `hlscore-check.toml`, or else `pyproject.toml`, of the working directory. Files that it names
    are relative to its folder.
    """
    file = config or next(
        (path for name in (CONFIG_FILE, PROJECT_FILE) if (path := Path(name)).is_file()), None
    )
    if file is None:
        return {}
    hint = f"Give --config a TOML file such as {CONFIG_FILE}."
    try:
        data = read_bytes(file, _LARGEST_BYTES + 1)
        if len(data) > _LARGEST_BYTES:
            raise UsageError(f"'{file}' is larger than any configuration.")
        table: Mapping[str, Any] = tomllib.loads(data.decode("utf-8"))
    except ArtifactError as error:
        raise UsageError(error.message, hint=hint) from error
    except (ValueError, RecursionError) as error:
        message = f"--config '{file}' cannot be read: {first_line(error)}."
        raise UsageError(message, hint=hint) from error
    project = file.name == PROJECT_FILE
    for key in _TABLE.split(".") if project else ():
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"'{file}': {key!r} is no table.", hint=f"Write [{_TABLE}].")
    if project and config is not None and not table:
        raise UsageError(f"'{file}' has no table [{_TABLE}].", hint="Add it, or remove --config.")
    known = {item.flag.removeprefix("--"): item for item in settings_in(CheckSettings).values()}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key == PLANS and _is_texts(value):
            found[PLANS] = [str(file.parent / plan) for plan in value]
        elif key in known:
            found[known[key].name] = _read(known[key], value, file)
        elif key == PLANS:
            raise UsageError(
                f"'{file}': 'plans' is not a list of texts.", hint=f'Write {PLANS} = ["plan.json"].'
            )
        else:
            names = [PLANS, *known]
            hint = f"{did_you_mean(key.replace('_', '-'), names)}There are: {', '.join(names)}."
            raise UsageError(f"'{file}' has the unknown key {key!r}.", hint=hint)
    if "baseline" in found:
        found["baseline"] = file.parent / found["baseline"]
    # A model may be a hub id instead.
    if "model" in found and existing_path(str(file.parent / found["model"])) is not None:
        found["model"] = str(file.parent / found["model"])
    return found


def _read(setting: Setting, value: Any, file: Path) -> Any:
    """A value of the configuration, in the type of its setting."""
    parse = setting.option.parse
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if parse is not None:
        wanted, fits = "a text or a number", is_number or isinstance(value, str)
        value = parse(str(value), setting.flag) if fits else None
    elif setting.type is bool:
        wanted, fits = "true or false", isinstance(value, bool)
    elif setting.type is float:
        wanted, fits = "a number", is_number
    elif get_origin(setting.type) is tuple:
        wanted, fits = "a list of texts", _is_texts(value)
    else:
        wanted, fits = "a text", isinstance(value, str)
    if not fits:
        key = setting.flag.removeprefix("--")
        raise UsageError(
            f"'{file}': {key!r} cannot be used: it is not {wanted}.",
            hint=f"`hlscore check --help` describes --{key}.",
        )
    return tuple(value) if isinstance(value, list) else value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
