"""Numbers of a report page against slow and obviously right ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from report_content import content, planned, read_page, silent_content
from reports import report

from hlscore.errors import UsageError
from hlscore.pages import sentences
from hlscore.pages.charts import charts_of, heat_chart
from hlscore.pages.content import Content, join
from hlscore.pages.page import html_text
from hlscore.pages.vega import signed
from hlscore.scores.registry import SCORES
from hlscore.wording import measure, memory


def quantile(values: list[float], share: float) -> float:
    """Quantile by linear interpolation, the slow way."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("score", ["hls", "rgn", "taylor"])
def test_lines_carry_the_scores_and_spreads_of_the_report(score: str) -> None:
    found = content(20, score=score, budget="0.3")
    values = [line.score for line in found.lines]
    assert values == sorted(values, key=lambda value: -(value or 0))
    assert [line.row.rank for line in found.lines] == list(range(1, 21))
    original = {row.module: row for row in found.report.rows}
    for line in found.lines:
        row = original[line.row.module]
        ratio = (row.grad_energy or 0) ** 0.5 / (row.weight_norm or 1)
        assert line.score == pytest.approx(ratio if score == "rgn" else getattr(row, score))
        resampled = SCORES[score].replicates(row)
        if not resampled:
            assert (line.stderr, line.low, line.high) == (None, None, None)
            continue
        mean = sum(resampled) / len(resampled)
        variance = sum((value - mean) ** 2 for value in resampled) / (len(resampled) - 1)
        assert line.stderr == pytest.approx(variance**0.5)
        assert line.low == pytest.approx(quantile(list(resampled), 0.025))
        assert line.high == pytest.approx(quantile(list(resampled), 0.975))


def test_another_rank_has_its_own_scores_and_no_resamples() -> None:
    found = content(20, rank=8)
    for line in found.lines:
        assert line.score == line.row.hls_curve[line.row.curve_ranks.index(8)]
        assert line.stderr is None
    assert found.plan.stability.clear_modules is None
    assert "no resamples" in sentences.certainty(found)
    assert "no resamples" in charts_of(found)["bars"].caption
    assert "stability" not in charts_of(found)


@pytest.mark.parametrize("unit", ["modules", "parameters"])
def test_cumulative_scores_are_the_share_of_positive_scores(unit: str) -> None:
    found = content(30, budget="0.2p")
    spoiled = tuple(
        replace(line, score=-1.0) if place > 20 else line for place, line in enumerate(found.lines)
    )
    found = replace(found, lines=spoiled)
    curve = found.cumulative[unit]  # type: ignore[index]
    lines = found.lines
    cost = [line.row.n_params if unit == "parameters" else 1 for line in lines]
    gain = [max(0.0, line.score or 0.0) for line in lines]
    for number in range(len(lines) + 1):
        assert curve.taken[number] == pytest.approx(sum(cost[:number]) / sum(cost))
        assert curve.held[number] == pytest.approx(sum(gain[:number]) / sum(gain))
        shares = []
        for resample in zip(*(row.tolist() for row in found.replicates), strict=True):
            positive = [max(0.0, value) for value in resample]
            shares.append(sum(positive[:number]) / sum(positive))
        assert curve.low[number] == pytest.approx(quantile(shares, 0.025))
        assert curve.high[number] == pytest.approx(quantile(shares, 0.975))
    full = [place for place, line in enumerate(lines) if line.full]
    assert curve.plan_taken == pytest.approx(sum(cost[at] for at in full) / sum(cost))
    assert curve.plan_held == pytest.approx(sum(gain[at] for at in full) / sum(gain))
    assert curve.at(0.5) == pytest.approx(
        max(h for t, h in zip(curve.taken, curve.held, strict=True) if t <= 0.5), abs=0.05
    )


def test_cumulative_scores_need_a_positive_score_and_resamples_for_its_band() -> None:
    found = content(8, resamples=0, budget="0.2")
    assert found.cumulative["modules"].low == ()
    nothing = tuple(replace(line, score=-1.0) for line in found.lines)
    empty = replace(found, lines=nothing)
    assert empty.cumulative == {}
    text = html_text(empty, "0")
    assert "No score is above zero" in text


def test_memory_of_the_plan_is_that_of_the_plan_file() -> None:
    for settings in ({}, {"budget": "0.3p"}, {"locks": ("*.0.*=frozen",)}):
        found = content(21, **settings)
        mine, lora, full = found.costs
        assert mine.use.total_bytes == found.plan.memory.total_bytes
        for name, baseline in (("all-lora", lora), ("all-full", full)):
            other = planned(found.report, baseline=name)
            assert baseline.use.total_bytes == other.memory.total_bytes
            assert baseline.trained_params == other.totals.trained_params
        assert memory(mine.use.total_bytes) in html_text(found, "0")


def cells_of(found: Content) -> list[list[str]]:
    page = read_page(html_text(found, "0"))
    return page.tables["modules"][1:]


def test_the_table_holds_every_module_with_the_numbers_of_the_report() -> None:
    found = content(30, budget="0.2", locks=("*.3.*=frozen",))
    rows = cells_of(found)
    assert len(rows) == 31
    plan = {item.module: item for item in found.plan.modules}
    original = {row.module: row for row in found.report.rows}
    for number, cells in enumerate(rows[:-1], start=1):
        item, row = plan[cells[1]], original[cells[1]]
        trained = {"full": "full", "lora": f"LoRA {item.rank}", "frozen": "frozen"}[item.mode]
        share = item.selection_probability
        assert cells[0] == str(number) == str(item.position)
        assert cells[2] == measure(row.hls)
        assert cells[5] == ("-" if share is None else f"{100 * share:.0f} %")
        assert cells[6] == f"{row.out_features} x {row.in_features}"
        assert cells[7] == f"{row.n_params:,}"
        assert cells[8] == trained
        assert cells[9] == f"{item.trained_params:,}"
        assert ("locked" in cells[10]) == item.locked
    assert rows[-1][:3] == ["-", "lm_head", "-"]
    assert rows[-1][8:] == ["left out", "0", "output head: ranked with --head"]


def test_curves_of_the_page_are_those_of_the_report() -> None:
    found = content(12, budget="0.2")
    page = read_page(html_text(found, "0"))
    (data,) = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert data["curves"]["ranks"] == list(found.lines[0].row.curve_ranks)
    for line, tail, hls in zip(
        found.lines, data["curves"]["tail"], data["curves"]["hls"], strict=True
    ):
        assert tail == pytest.approx(line.row.tail_curve, rel=0.005)
        assert hls == pytest.approx(line.row.hls_curve, rel=0.005)


def test_every_module_is_in_the_heat_map_or_named_beside_it() -> None:
    found = content(35)
    chart = heat_chart(found)
    assert chart is not None
    assert sum(chart.columns["modules"]) == 35
    cells = dict(
        zip(
            zip(chart.columns["layer"], chart.columns["kind"], strict=True),
            chart.columns["full"],
            strict=True,
        )
    )
    for line in found.lines:
        assert cells[line.row.layer, signed(line.row.kind)] == int(line.full)
    some = replace(found, lines=(
        *found.lines[:30],
        *(replace(line, row=replace(line.row, layer=None)) for line in found.lines[30:]),
    ))  # fmt: skip
    assert "5 modules outside the layers" in charts_of(some)["heat"].caption
    outside = replace(found, lines=tuple(
        replace(line, row=replace(line.row, layer=None)) for line in found.lines
    ))  # fmt: skip
    assert heat_chart(outside) is None
    assert "there is no map" in html_text(outside, "0")


def test_many_layers_share_columns_and_many_kinds_a_row() -> None:
    found = content(7 * 140)
    chart = heat_chart(found)
    assert chart is not None
    assert len(set(chart.columns["layer"])) <= 128
    assert sum(chart.columns["modules"]) == 980
    assert "A column stands for 2 layers" in chart.caption
    for at, number in zip(chart.columns["id"], chart.columns["modules"], strict=True):
        assert number <= 2
        assert found.lines[at].row.layer is not None
    single = tuple(
        replace(line, row=replace(line.row, block=f"mlp.experts.{at}", kind="up_proj", layer=0))
        for at, line in enumerate(found.lines[:100])
    )
    experts = heat_chart(replace(found, lines=single))
    assert experts is not None
    assert experts.columns["kind"] == [signed("up_proj")]
    kinds = tuple(
        replace(line, row=replace(line.row, kind=f"kind{at}", layer=0))
        for at, line in enumerate(found.lines[:100])
    )
    mixed = heat_chart(replace(found, lines=kinds))
    assert mixed is not None
    assert len(mixed.columns["kind"]) == 60
    assert max(mixed.columns["modules"]) == 41


def test_the_headline_says_what_the_plan_does() -> None:
    found = content(20, budget="0.2", locks=("*.1.*=frozen",))
    totals = found.plan.totals
    text = sentences.headline(found)
    for part in (f"{totals.full_modules} of 20 modules in full", "with LoRA of rank 4",
                 f"{totals.frozen_modules} not at all"):  # fmt: skip
        assert part in text
    baseline = content(20, baseline="lora-matched")
    assert "baseline" in sentences.headline(baseline)
    assert "baseline lora-matched" in html_text(baseline, "0")
    assert "No module is trained in full" in sentences.certainty(baseline)


def test_certainty_counts_what_lies_above_zero() -> None:
    found = report(20)
    shifted = tuple(
        replace(
            row,
            hls_replicates=tuple(value - (row.hls or 0) for value in row.hls_replicates),
            hls_ci_low=(row.hls_ci_low or 0) - (row.hls or 0),
        )
        if place > 2
        else row
        for place, row in enumerate(found.rows[:-1])
    )
    noisy = replace(found, rows=shifted)
    for budget, doubtful in (("0.15", False), ("0.5", True)):
        joined = join(noisy, planned(noisy, budget=budget), planned_here=False)
        text = sentences.certainty(joined)
        assert "3 of 20 modules score above zero with 95 % confidence" in text
        assert ("mostly noise" in text) == doubtful
        again = joined.plan.stability.mean_reselection
        assert f"{100 * (again or 0):.0f} % of cases" in text


def test_plans_of_other_models_scores_and_ranks_are_refused() -> None:
    found = report(10)
    plan = planned(found)
    print_ = plan.model.fingerprint.model_copy(update={"structure": "sha256:other"})
    other = plan.model_copy(
        update={"model": plan.model.model_copy(update={"fingerprint": print_, "name": "org/b"})}
    )
    with pytest.raises(UsageError, match="org/b"):
        join(found, other, planned_here=False)
    with pytest.raises(UsageError, match="not a candidate of the scores"):
        join(replace(found, rows=found.rows[1:]), plan, planned_here=False)
    unknown = plan.model_copy(update={"score": plan.score.model_copy(update={"name": "best"})})
    with pytest.raises(UsageError, match="no score 'best'"):
        join(found, unknown, planned_here=False)
    rank = plan.model_copy(update={"lora": plan.lora.model_copy(update={"rank": 5})})
    with pytest.raises(UsageError, match="rank 5"):
        join(found, rank, planned_here=False)


def test_other_probes_are_told() -> None:
    found = report(10)
    other = replace(found, probes=replace(found.probes, hash="sha256:9", source="other.jsonl"))
    text = html_text(join(other, planned(found), planned_here=False), "0")
    assert "made from other probes" in text
    assert "made from other probes" not in html_text(content(10), "0")


def noisy_content(modules: int) -> Content:
    """Scores of which no interval lies above zero."""
    found = report(modules)
    rows = tuple(
        replace(row, hls_replicates=tuple((-1.0) ** at for at in range(20)), hls_ci_low=-1.0)
        if row.is_candidate
        else row
        for row in found.rows
    )
    found = replace(found, rows=rows)
    return join(found, planned(found), planned_here=False)


def test_scores_of_zero_are_called_nothing_found() -> None:
    found = silent_content(30)
    assert "No score is above zero" in sentences.certainty(found)
    assert "does not prove that there is none" in sentences.certainty(found)
    assert "all cells look alike" in charts_of(found)["heat"].caption
    assert "undefined" in sentences.stability_unknown(found)
    assert "stability" not in charts_of(found)


def test_an_order_of_noise_is_called_noise_and_chance_is_given() -> None:
    said = sentences.certainty(noisy_content(200))
    assert "mostly noise: only 0 of 200 modules" in said
    assert "(about 5 would by chance)" in said
    assert "(about 0.5 would by chance)" in sentences.certainty(noisy_content(20))
    assert "noise" not in sentences.certainty(content(20))


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ("random", "No score selected these modules"),
        ("all-full", "No score selected these modules"),
        ("all-lora", "No module is trained in full"),
    ],
)
def test_of_baselines_no_stability_is_told(baseline: str, said: str) -> None:
    found = content(42, baseline=baseline)
    for text in (sentences.certainty(found), sentences.stability_unknown(found)):
        assert said in text
        assert "resamples" not in text


def test_where_everything_is_chosen_nothing_was_to_choose() -> None:
    found = content(5, budget="1")
    assert "nothing to choose" in sentences.certainty(found)
    assert "stability" not in charts_of(found)
    assert "budget ends" not in str(charts_of(found)["bars"].spec)
