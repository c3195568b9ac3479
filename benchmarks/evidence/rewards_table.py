"""Table and result file of the study with rewards.

`python benchmarks/evidence/rewards_table.py` reads the finished arms of `rlvr.py` and puts their
table into `README.md`.
"""

from __future__ import annotations

from arm_table import arm_table, finished_arms, published
from journal import REWARDED
from published import publish
from rlvr import DRAWS

BASE = "small"


def main() -> None:
    """Write both."""
    arms = finished_arms(BASE, REWARDED, DRAWS)
    found = {f"{BASE}, {REWARDED}": published(arms)}
    publish("rewards", arm_table(arms, "of the reward"), "evidence_rlvr", found)


if __name__ == "__main__":
    main()
