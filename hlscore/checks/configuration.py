"""Rules that a repository keeps: `hlscore-check.toml`, or a table of `pyproject.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hlscore.errors import UsageError, first_line
from hlscore.paths import existing_path
from hlscore.settings import CheckSettings, Drift, parse_age, parse_most

CONFIG_FILE = "hlscore-check.toml"
PROJECT_FILE = "pyproject.toml"
_TABLE = "tool.hlscore.check"
_LARGEST_BYTES = 2**20

_Most = int | float | str
_Share = Annotated[float, Field(ge=-1, le=1)]


class CheckOptions(BaseModel):
    """What can be asked of a plan, as it is typed; `None` and empty where nothing is asked.

    The fields are the options of `hlscore check`, and the keys of the configuration, where a dash
    stands for each underscore.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False,
        alias_generator=lambda name: name.rstrip("_").replace("_", "-"),
    )  # fmt: skip

    plans: list[str] = []
    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    weights: bool = False
    for_: list[str] = []
    min_selection_probability: _Share | None = None
    max_borderline: _Most | None = None
    max_age: str | None = None
    max_drift: Drift | None = None
    baseline: str | None = None
    max_changed: _Most | None = None
    min_overlap: _Share | None = None
    min_tau: _Share | None = None
    ignore: list[str] = []
    strict: bool = False

    def settings(self) -> CheckSettings:
        """Read the numbers, and check what belongs together.

        Returns:
            The settings.

        Raises:
            UsageError: A value cannot be used.
        """
        most = {
            name: None if value is None else parse_most(f"--{name.replace('_', '-')}", str(value))
            for name, value in (
                ("max_borderline", self.max_borderline), ("max_changed", self.max_changed),
            )
        }  # fmt: skip
        return CheckSettings(
            model=self.model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            weights=self.weights,
            trainers=tuple(dict.fromkeys(self.for_)),
            min_selection_probability=self.min_selection_probability,
            max_borderline=most["max_borderline"],
            max_age_days=None if self.max_age is None else parse_age(self.max_age),
            max_drift=self.max_drift,
            baseline=None if self.baseline is None else Path(self.baseline),
            max_changed=most["max_changed"],
            min_overlap=self.min_overlap,
            min_tau=self.min_tau,
            ignore=tuple(self.ignore),
            strict=self.strict,
        )


def read_options(config: Path | None, given: Mapping[str, Any]) -> CheckOptions:
    """Put what the repository asks together with what is typed, which counts where both speak.

    Args:
        config: A TOML file; `None` looks for `hlscore-check.toml`, then for the table of
            `pyproject.toml`, in the working directory.
        given: What is typed, by field; `None`, false and empty values are not.

    Returns:
        The options; files that the configuration names are seen from its folder.

    Raises:
        UsageError: The configuration cannot be read, or has a key or value that it must not have.
    """
    file = config or _find()
    typed = {name: value for name, value in given.items() if not _is_left_out(value)}
    kept = CheckOptions() if file is None else _read(file, asked=config is not None)
    return kept.model_copy(update=typed)


def _find() -> Path | None:
    return next((path for name in (CONFIG_FILE, PROJECT_FILE) if (path := Path(name)).is_file()),
                None)  # fmt: skip


def _read(file: Path, *, asked: bool) -> CheckOptions:
    content = _read_toml(file)
    project = file.name == PROJECT_FILE
    for key in _TABLE.split(".") if project else ():
        content = content.get(key, {}) if isinstance(content, dict) else {}
    if project and asked and not content:
        raise UsageError(
            f"'{file}' has no table [{_TABLE}].", hint="Add it, or leave --config out."
        )
    try:
        options = CheckOptions.model_validate(content)
    except ValidationError as error:
        raise _refusal(file, error) from error
    return options.model_copy(update=_seen_from(file.parent, options))


def _read_toml(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_BYTES + 1)
        if len(data) > _LARGEST_BYTES:
            raise UsageError(f"'{file}' is larger than any configuration.")
        return tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--config '{file}' cannot be read: {first_line(error)}.",
            hint=f"Give a TOML file such as {CONFIG_FILE}.",
        ) from error


def _refusal(file: Path, error: ValidationError) -> UsageError:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else "the table"
    if first["type"] == "extra_forbidden":
        known = (field.alias or name for name, field in CheckOptions.model_fields.items())
        return UsageError(f"'{file}' has the key {key!r}.", hint=f"Use {', '.join(known)}.")
    return UsageError(f"'{file}': {key!r} cannot be used: {first['msg']}.")


def _seen_from(folder: Path, options: CheckOptions) -> dict[str, object]:
    """Files that the configuration names, from its own folder."""
    changed: dict[str, object] = {"plans": [str(folder / plan) for plan in options.plans]}
    if options.baseline is not None:
        changed["baseline"] = str(folder / options.baseline)
    # A model may be a hub id instead.
    if options.model is not None and existing_path(str(folder / options.model)) is not None:
        changed["model"] = str(folder / options.model)
    return changed


def _is_left_out(value: object) -> bool:
    """Whether an option was not typed; a zero was."""
    return value is None or value is False or value == []
