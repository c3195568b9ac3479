"""What holds with the versions of constraints.txt, and not with the lowest ones."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version

NEWEST = pytest.mark.skipif(
    Version(version("transformers")) < Version("5.23"), reason="needs newer libraries"
)
