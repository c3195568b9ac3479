"""All rules by code."""

from __future__ import annotations

from hlscore.checks import (
    age,
    arithmetic,
    baseline,
    file_format,
    model_fit,
    scores,
    stability,
    trainers,
)
from hlscore.checks.rules import Rule
from hlscore.errors import UsageError

_GROUPS = (file_format, arithmetic, model_fit, trainers, scores, stability, age, baseline)
RULES: dict[str, Rule] = {rule.code: rule for group in _GROUPS for rule in group.RULES}


def find_rule(code: str) -> Rule:
    """Look a rule up.

    Args:
        code: Its code; case does not matter.
    """
    rule = RULES.get(code.strip().upper())
    if rule is None:
        raise UsageError(
            f"There is no code '{code}'.", hint="`hlscore check --explain all` lists them."
        )
    return rule
