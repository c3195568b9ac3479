"""The direction of the flow: each room imports only what lies before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hlscore

ROOT = Path(hlscore.__file__).parent
GROUND = {
    "errors", "packing", "paths", "reasons", "records", "settings", "steps", "unfinished",
    "wording", "_version",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "paths": set(),
    "reasons": set(),
    "records": {"reasons", "records"},
    "settings": {"errors", "settings"},
    "_version": set(),
    "packing": set(),
    "steps": set(),
    "wording": set(),
    "unfinished": {"errors", "records", "settings", "_version"},
    "processes": {"errors"},
    "threads": set(),
    "inputs": GROUND | {"processes", "inputs"},
    "objectives": {"settings", "objectives"},
    "rollouts": GROUND | {"processes", "inputs", "rollouts"},
    "probes": GROUND | {"inputs", "objectives", "rollouts", "probes"},
    "gradients": GROUND
    | {"processes", "threads", "inputs", "objectives", "probes", "scores", "gradients"},
    "scores": GROUND | {"scores"},
    "weights": GROUND | {"scores", "weights"},
    "artifacts": GROUND | {"scores", "artifacts"},
    "planning": GROUND | {"scores", "artifacts", "planning"},
    "exporters": GROUND | {"inputs", "rollouts", "planning", "artifacts", "exporters"},
    "agreement": GROUND | {"scores", "planning", "artifacts", "agreement"},
    "checks": GROUND
    | {"inputs", "scores", "planning", "artifacts", "exporters", "agreement", "checks"},
    "training": GROUND
    | {"inputs", "rollouts", "planning", "artifacts", "exporters", "checks", "training"},
    "serving": GROUND | {"inputs", "gradients", "serving"},
    "validation": GROUND
    | {
        "inputs",
        "objectives",
        "probes",
        "scores",
        "planning",
        "artifacts",
        "exporters",
        "training",
        "validation",
    },
    "flow": GROUND
    | {
        "processes",
        "threads",
        "inputs",
        "rollouts",
        "probes",
        "gradients",
        "scores",
        "weights",
        "planning",
        "artifacts",
        "agreement",
        "flow",
    },
    "api": GROUND | {"inputs", "rollouts", "flow"},
    "views": GROUND
    | {
        "processes",
        "inputs",
        "scores",
        "planning",
        "artifacts",
        "exporters",
        "agreement",
        "checks",
        "flow",
        "serving",
        "validation",
        "views",
    },
    "pages": GROUND | {"scores", "planning", "artifacts", "agreement", "views", "pages"},
    "cli": GROUND
    | {
        "processes",
        "threads",
        "inputs",
        "rollouts",
        "scores",
        "planning",
        "artifacts",
        "exporters",
        "agreement",
        "checks",
        "flow",
        "views",
        "pages",
        "validation",
        "serving",
        "cli",
    },
    "__init__": {"_version", "api", "artifacts", "errors", "flow", "training"},
    "__main__": {"cli"},
}
HEAVY = {
    "torch", "transformers", "datasets", "scipy", "pandas", "huggingface_hub", "safetensors",
    "peft", "trl",
}  # fmt: skip
FREE_OF_TORCH = {
    "errors", "packing", "paths", "unfinished", "reasons", "records", "settings", "processes",
    "threads", "scores", "planning",
    "artifacts", "exporters", "agreement", "checks", "pages", "cli",
}  # fmt: skip
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "common", "misc"}

FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(tree: ast.AST, *, top_level: bool) -> set[str]:
    nodes = ast.iter_child_nodes(tree) if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_keep_the_direction(path: Path) -> None:
    names = imports(ast.parse(path.read_text()), top_level=False)
    rooms = {name.split(".")[1] for name in names if name.startswith("hlscore.")}
    assert rooms <= ALLOWED[room(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_read_only_rooms_import_nothing_heavy(path: Path) -> None:
    if room(path) not in FREE_OF_TORCH:
        return
    names = imports(ast.parse(path.read_text()), top_level=True)
    assert not {name.split(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_a_subject(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES


def test_every_room_is_known() -> None:
    assert {room(path) for path in FILES} == set(ALLOWED)
