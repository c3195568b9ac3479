"""Draw the picture of the README, and put the same output into it as text.

Both are what `hlscore rank builtin:tiny --budget 0.1` prints on the machine at hand, with
fewer rows. Run it with `python benchmarks/picture.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from marked import fill
from rich.terminal_theme import MONOKAI

from hlscore.artifacts.files import PLAN_FILE, SCORES_FILE
from hlscore.flow.rank import rank_model
from hlscore.inputs.examples import read_examples
from hlscore.inputs.model import load_model
from hlscore.settings import ModelSettings, RankSettings
from hlscore.steps import Silent
from hlscore.views.result import print_result
from hlscore.views.terminal import Terminal

TARGET = Path(__file__).parent / "pictures" / "rank.svg"
README = Path(__file__).parent.parent / "README.md"
COMMAND = "hlscore rank builtin:tiny --budget 0.1 --top 8"


def main() -> None:
    """Run the main job with its default settings and save the terminal as SVG."""
    settings = RankSettings(model=ModelSettings(model="builtin:tiny"))
    loaded = load_model(settings.model)
    found = rank_model(
        loaded.model,
        loaded.tokenizer,
        loaded.identity,
        read_examples(settings.data, seed=settings.seed),
        settings,
        Silent(),
    )
    assert found is not None
    console = Terminal(record=True, width=100, force_terminal=True, color_system="truecolor")
    folder = Path("hlscore-out/builtin-tiny")
    print_result(
        found.report,
        found.plan,
        {name: folder / name for name in (SCORES_FILE, PLAN_FILE)},
        top=8,
        console=console,
    )
    text = console.export_text(clear=False)
    svg = console.export_svg(title=f"$ {COMMAND}", theme=MONOKAI)
    TARGET.parent.mkdir(exist_ok=True)
    # rich points at a web font; a picture should load nothing.
    TARGET.write_text(re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL))
    put_into_readme(text)
    print(TARGET)


def put_into_readme(text: str) -> None:
    """Replace the output between the marks of the README."""
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    fill(README, "output", f"```console\n$ {COMMAND}\n{lines}\n```")


if __name__ == "__main__":
    main()
