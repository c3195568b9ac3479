"""Files that several tests of `hlscore show` look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_content import planned
from shown import mixed_report, save

from hlscore.artifacts.plan_file import write_plan


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(mixed_report(), tmp_path_factory.mktemp("show") / "scores.parquet")


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "plan.json"
    locks = ("*.0.*.o_proj=frozen", "*.1.*.q_proj=rank:2")
    write_plan(planned(mixed_report(), budget="0.2", locks=locks), path)
    return path
