"""Table and result file of the study with rewards.

`python benchmarks/evidence/rewards_table.py` reads the finished arms of `rlvr.py` and puts their
table, best arm first, into `README.md`.
"""

from __future__ import annotations

from analysis import losses
from arm_table import arm_table, finished_arms, result_of
from journal import REWARDED
from published import publish
from rlvr import DRAWS

BASE = "small"


def main() -> None:
    """Write both."""
    found = finished_arms(BASE, REWARDED, DRAWS)
    arms = dict(sorted(found.items(), key=lambda item: losses(item[1]).mean()))
    result = {f"{BASE}, {REWARDED}": result_of(arms)}
    publish("rewards", arm_table(arms, "of the reward"), "evidence_rlvr", result)


if __name__ == "__main__":
    main()
