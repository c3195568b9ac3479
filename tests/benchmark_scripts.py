"""Scripts of benchmarks/, imported for a test module as they import each other, then forgotten."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def part(name: str) -> ModuleType:
    """A script as a module."""
    return importlib.import_module(name)


def scripts_in(folder: Path) -> Callable[[], Iterator[None]]:
    """A fixture, for a whole test module, under which `part` finds the scripts of a folder."""

    @pytest.fixture(scope="module", autouse=True)
    def path() -> Iterator[None]:
        before = set(sys.modules)
        places = list(sys.path)
        sys.path.insert(0, str(folder))
        yield
        sys.path[:] = places
        for name in set(sys.modules) - before:
            if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
                sys.modules.pop(name)

    return path
