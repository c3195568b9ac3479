"""The direction of the flow: each room imports only what lies before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hlscore

ROOT = Path(hlscore.__file__).parent
GROUND = {
    "errors", "packing", "paths", "records", "settings", "steps", "unfinished",
    "wording", "_version",
}  # fmt: skip
# What each room may import; GROUND stands for all rooms above.
ALLOWED = {
    "errors": "",
    "paths": "",
    "records": "records",
    "settings": "errors settings",
    "_version": "",
    "packing": "",
    "steps": "",
    "wording": "",
    "unfinished": "errors records settings _version",
    "processes": "errors",
    "control_groups": "",
    "threads": "control_groups",
    "memory": "control_groups threads",
    "inputs": "GROUND processes inputs",
    "objectives": "settings objectives",
    "rollouts": "GROUND memory processes inputs rollouts",
    "probes": "GROUND inputs objectives rollouts probes",
    "gradients": "GROUND memory processes threads inputs objectives probes gradients scores",
    "scores": "GROUND scores",
    "weights": "GROUND scores weights",
    "artifacts": "GROUND scores artifacts",
    "planning": "GROUND scores artifacts planning",
    "exporters": "GROUND inputs rollouts artifacts planning exporters",
    "agreement": "GROUND scores artifacts planning agreement",
    "checks": "GROUND inputs scores artifacts planning exporters agreement checks",
    "training": "GROUND inputs rollouts artifacts planning exporters checks training",
    "serving": "GROUND inputs gradients serving",
    "validation": "GROUND inputs objectives probes scores artifacts planning exporters training "
    "validation",
    "flow": "GROUND memory processes threads inputs rollouts probes gradients scores weights "
    "artifacts planning agreement flow",
    "api": "GROUND inputs rollouts flow",
    "views": "GROUND processes inputs scores artifacts planning exporters agreement checks "
    "serving validation flow views",
    "pages": "GROUND scores artifacts planning agreement views pages",
    "cli": "GROUND processes threads inputs rollouts scores artifacts planning exporters "
    "agreement checks serving validation flow views pages cli",
    "__init__": "errors _version artifacts training flow api",
    "__main__": "cli",
}  # fmt: skip
HEAVY = {
    "torch", "transformers", "datasets", "scipy", "pandas", "huggingface_hub", "safetensors",
    "peft", "trl",
}  # fmt: skip
FREE_OF_TORCH = {
    "errors", "packing", "paths", "unfinished", "records", "settings", "processes",
    "control_groups", "threads", "scores", "planning",
    "artifacts", "exporters", "agreement", "checks", "pages", "cli",
}  # fmt: skip
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
def test_a_file_imports_what_its_room_may(path: Path) -> None:
    """What lies before it in the flow; nothing heavy at the top of rooms that only read."""
    tree = ast.parse(path.read_text())
    names = imports(tree, top_level=False)
    rooms = {name.split(".")[1] for name in names if name.startswith("hlscore.")}
    allowed = set(ALLOWED[room(path)].split())
    assert rooms <= (allowed | GROUND if "GROUND" in allowed else allowed)
    if room(path) in FREE_OF_TORCH:
        assert not {name.split(".")[0] for name in imports(tree, top_level=True)} & HEAVY


def test_every_room_is_known_and_files_have_a_subject() -> None:
    assert {room(path) for path in FILES} == set(ALLOWED)
    assert not {path.stem for path in FILES} & {"utils", "helpers", "manager", "common", "misc"}
