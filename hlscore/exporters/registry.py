"""The exporters by name."""

from __future__ import annotations

from importlib import import_module

from hlscore.errors import UsageError
from hlscore.exporters.formats import Exporter

# Modules by name of the exporter; imported when they are asked for.
_MODULES = {
    "peft": "peft",
    "seed-adapter": "seed_adapter",
    "trl": "trl",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "ms-swift": "ms_swift",
    "twinkle": "twinkle",
    "unsloth": "unsloth",
    "verl": "verl",
    "prime-rl": "prime_rl",
    "freeze": "freeze",
    "csv": "csv_table",
}


def exporter_names() -> tuple[str, ...]:
    """Names of all exporters."""
    return tuple(_MODULES)


def find_exporter(name: str) -> Exporter:
    """Look an exporter up.

    Args:
        name: Its name.

    Returns:
        The exporter.

    Raises:
        UsageError: There is no such exporter.
    """
    if name not in _MODULES:
        raise UsageError(
            f"There is no exporter '{name}'.", hint=f"Use one of: {', '.join(_MODULES)}."
        )
    module = import_module(f"hlscore.exporters.{_MODULES[name]}")
    exporter: Exporter = module.EXPORTER
    return exporter
