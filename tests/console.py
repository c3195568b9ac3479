"""Runs the command line inside the test process, on tiny models that are saved to disk."""

import io
import json
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from families import FAMILIES
from tokens import CHAT_TEMPLATE_WITH_GENERATION, byte_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hlscore.cli import main

UNFINISHED = ".hlscore-unfinished-*"

# Options of a `rank` whose statistics do not matter.
QUICK = ("--samples", "4", "--bootstrap", "0", "--rank", "4")


@dataclass(frozen=True)
class Outcome:
    """Exit status of a command, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error that was printed; nothing else may stand beside it but a hint."""
        lines = self.err.splitlines()
        assert len(lines) in (1, 2), self.err
        assert lines[0].startswith("error: "), self.err
        assert lines[1:] == [] or lines[1].startswith("  try: "), self.err
        assert "Unexpected" not in lines[0]
        assert not self.out
        return self.err

    @property
    def notes(self) -> list[str]:
        """The notes among the results."""
        return [line for line in self.out.splitlines() if line.startswith("note: ")]


def hlscore(*arguments: object) -> Outcome:
    """Run one command line."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["hlscore", *map(str, arguments)]
    with patch("sys.argv", argv), redirect_stdout(out), redirect_stderr(err):
        code = main._run()
    return Outcome(code, out.getvalue(), err.getvalue())


def save_model(
    folder: Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Save a model with its tokenizer; by default a Llama that knows chats."""
    (model or FAMILIES["llama"].build()).save_pretrained(folder)
    chosen = tokenizer or byte_tokenizer(chat_template=CHAT_TEMPLATE_WITH_GENERATION)
    chosen.save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Changes entries of the config.json of a saved model."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": f"hello number {number}"} for number in range(count)]


def chat(*turns: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(turns)]
