"""Count the functions of the package that one run passes through.

python benchmarks/functions.py            # rank builtin:tiny --budget 0.1
python benchmarks/functions.py --list     # with their names
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import hlscore
from hlscore.cli.main import app

PACKAGE = Path(hlscore.__file__).parent


def called(arguments: list[str]) -> Counter[tuple[str, str]]:
    """Calls of each function of the package in a run, by file and name; comprehensions apart."""
    found: Counter[tuple[str, str]] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        # Bodies of modules and classes, comprehensions and lambdas are no functions to visit.
        if code.co_name.startswith("<") or not code.co_flags & 0x1:
            return
        if code.co_filename.startswith(str(PACKAGE)):
            found[str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname] += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        app(arguments, standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


def main() -> None:
    """Run `hlscore rank` and print how many functions in how many files it passed through."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print every function")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = called(["rank", "builtin:tiny", "--budget", "0.1", "--out", folder, "--force"])
    if options.list:
        for (file, name), calls in sorted(found.items()):
            print(f"{calls:8,}  {file}  {name}")
    print(f"{len(found)} functions in {len({file for file, _ in found})} files")


if __name__ == "__main__":
    main()
