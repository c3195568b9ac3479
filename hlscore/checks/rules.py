"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass

from hlscore.artifacts.json_places import JsonPath
from hlscore.checks.findings import Finding, Level

PLAN_AGAIN = "Make the plan again with `hlscore plan` or `hlscore rank`; do not edit it by hand."


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that a plan must satisfy.

    Attributes:
        code: Stable code, such as `HLS201`.
        name: Short name in words.
        asks: What has to hold, in one sentence.
        why: What goes wrong where it does not.
        remedy: What to do.
        level: Of its findings, unless one says otherwise.
        when: The option that it waits for; empty for a rule that always applies.
    """

    code: str
    name: str
    asks: str
    why: str
    remedy: str
    level: Level = "error"
    when: str = ""

    def finding(self, message: str, path: JsonPath = (), *, level: Level | None = None) -> Finding:
        """A finding of this rule.

        Args:
            level: `error` or `warning` where it is not the rule's own.
        """
        return Finding(code=self.code, level=level or self.level, message=message, path=path)
