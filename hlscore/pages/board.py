"""All charts of a report, in the order in which they are read."""

from __future__ import annotations

from dataclasses import dataclass

from hlscore.pages.charts import Chart
from hlscore.pages.content import Content
from hlscore.pages.figures import Reach, Way, reach, ways
from hlscore.pages.module_charts import bars_chart, heat_chart, tail_chart
from hlscore.pages.plan_charts import memory_chart, reach_chart, stability_chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The charts, and the numbers that captions repeat.

    Attributes:
        content: What they are drawn from.
        heat: Scores by layer and kind; `None` without numbered layers.
        bars: The highest scores.
        tail: Tail curve of the first module; `None` where it has none.
        stability: Selection probabilities; `None` where the plan has none.
        reached: Reach by modules and by parameters; empty where no score is above zero.
        reach: Their charts.
        ways: Ways to train, with their memory.
        memory: Their chart.
    """

    content: Content
    heat: Chart | None
    bars: Chart
    tail: Chart | None
    stability: Chart | None
    reached: tuple[Reach, ...]
    reach: tuple[Chart, ...]
    ways: tuple[Way, ...]
    memory: Chart

    @property
    def charts(self) -> tuple[Chart, ...]:
        """The charts there are."""
        found = (self.heat, self.bars, self.tail, self.stability, *self.reach, self.memory)
        return tuple(chart for chart in found if chart is not None)


def draw(content: Content) -> Board:
    """Make every chart of a report."""
    by_modules, by_parameters = reach(content, "modules"), reach(content, "parameters")
    priced = ways(content)
    reached: tuple[Reach, ...] = ()
    curves: tuple[Chart, ...] = ()
    if by_modules is not None and by_parameters is not None:
        reached = (by_modules, by_parameters)
        curves = (reach_chart(by_modules, "modules"), reach_chart(by_parameters, "parameters"))
    return Board(
        content=content,
        heat=heat_chart(content),
        bars=bars_chart(content),
        tail=tail_chart(content) if content.lines[0].row.curve_ranks else None,
        stability=stability_chart(content),
        reached=reached,
        reach=curves,
        ways=priced,
        memory=memory_chart(priced),
    )
