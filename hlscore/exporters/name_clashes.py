"""Names of a model that PEFT would match besides the one that is meant."""

from __future__ import annotations

from bisect import bisect_left

from hlscore.artifacts.plan import Plan, PlanModule
from hlscore.exporters.peft_names import full_name

# After every character of a name.
_LAST = "\U0010ffff"


class Names:
    """Every name of a model that its plan knows: modules, parameters, and what they lie in.

    Args:
        plan: A plan; its skipped weights count too.
    """

    def __init__(self, plan: Plan) -> None:
        listed = [(item.module, item.parameter) for item in plan.modules]
        listed += [(item.module, item.parameter) for item in plan.skipped]
        self._modules = sorted(module for module, _ in listed)
        every = {part for pair in listed for name in pair for part in _with_parents(name)}
        self._reversed = sorted(name[::-1] for name in every)

    def longer(self, name: str, *, whole_parts: bool) -> str:
        """Find a longer name that ends in a name.

        Args:
            name: The name.
            whole_parts: Whether the part before it must end in a dot.

        Returns:
            The first such name; empty if there is none.
        """
        start = name[::-1] + ("." if whole_parts else "")
        first = bisect_left(self._reversed, start)
        for found in self._reversed[first : first + 2]:
            if found.startswith(start) and len(found) > len(name):
                return found[::-1]
        return ""

    def inside(self, item: PlanModule) -> str:
        """Find a weight that would be trained with a module, as it lies inside.

        Args:
            item: A module trained in full.

        Returns:
            The first such weight other than the module's own; empty if there is none.
        """
        start = f"{full_name(item)}."
        first = bisect_left(self._modules, start)
        last = bisect_left(self._modules, start + _LAST)
        return next((name for name in self._modules[first:last] if not _own(name, item)), "")


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _own(name: str, item: PlanModule) -> bool:
    """The tensors of fused experts lie side by side in one module, with their biases."""
    return item.form == "experts" and name.rpartition(".")[0] == full_name(item)
