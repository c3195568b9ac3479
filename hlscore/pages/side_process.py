"""Python code that runs beside this process, while the files of a report are read."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self


class SideProcess:
    """A process that is started early, because what it does takes long.

    vl-convert needs about a second to start, in which it lets no other thread run.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        """Prepare it.

        Args:
            code: Python that prints its result as bytes.
            arguments: Its `sys.argv[1:]`.
        """
        self._command = [sys.executable, "-P", "-c", code, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it; where no process can be started, there is no answer later."""
        try:
            self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from a user
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it if nobody asked for its answer."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def answer(self, question: bytes = b"") -> bytes | None:
        """Wait for what it prints.

        Returns:
            What it printed; `None` where it failed.
        """
        if self._process is None:
            return None
        printed, _ = self._process.communicate(question)
        failed, self._process = self._process.returncode != 0, None
        return None if failed else printed
