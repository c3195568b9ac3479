"""Numbers and sentences of a report page against slow and obviously right ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_content import content, joined, planned, with_rows
from reports import report

from hlscore.errors import UsageError
from hlscore.pages import sentences
from hlscore.pages.charts import charts_of
from hlscore.pages.content import join
from hlscore.pages.page import html_text
from hlscore.scores.registry import SCORES
from hlscore.wording import memory


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
def test_cumulative_scores_are_the_share_of_positive_scores(unit: Any) -> None:
    found = content(30, budget="0.2p")
    lines = tuple(
        replace(line, score=-1.0) if place > 20 else line for place, line in enumerate(found.lines)
    )
    found = replace(found, lines=lines)
    curve = found.cumulative[unit]
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
    empty = replace(found, lines=tuple(replace(line, score=-1.0) for line in found.lines))
    assert empty.cumulative == {}
    assert "No score is above zero" in html_text(empty, "0")


def test_memory_is_that_of_the_plan_and_of_baselines() -> None:
    found = content(21, budget="0.3p")
    mine, lora, full = found.ways.values()
    assert mine == found.plan
    for name, baseline in (("all-lora", lora), ("all-full", full)):
        other = planned(found.report, baseline=name)
        assert baseline.memory == other.memory
        assert baseline.totals == other.totals
    for way in (mine, lora, full):
        assert memory(way.memory.total_bytes) in html_text(found, "0")


def test_the_headline_says_what_the_plan_does() -> None:
    found = content(20, budget="0.2", locks=("*.1.*=frozen",))
    totals, text = found.plan.totals, sentences.headline(found)
    assert f"{totals.full_modules} of 20 modules in full" in text
    assert "with LoRA of rank 4" in text
    assert f"{totals.frozen_modules} not at all" in text
    baseline = content(20, baseline="lora-matched")
    assert "baseline" in sentences.headline(baseline)
    assert "baseline lora-matched" in html_text(baseline, "0")
    assert "No module is trained in full" in sentences.certainty(baseline)


def test_the_bias_of_a_score_is_told() -> None:
    assert dict(sentences.what_was_run(content(8, budget="0.2")))["Bias"] == SCORES["hls"].caveat
    assert "Bias" not in dict(sentences.what_was_run(content(8, budget="0.2", score="tail")))


def test_certainty_counts_what_lies_above_zero() -> None:
    found = report(20)
    shifted = []
    for place, row in enumerate(found.rows):
        hls = row.hls or 0 if place > 2 else 0
        lower = tuple(value - hls for value in row.hls_replicates)
        low = None if row.hls_ci_low is None else row.hls_ci_low - hls
        shifted.append(replace(row, hls_replicates=lower, hls_ci_low=low))
    for budget, doubtful in (("0.15", False), ("0.5", True)):
        noisy = joined(replace(found, rows=tuple(shifted)), budget=budget)
        text = sentences.certainty(noisy)
        assert "3 of 20 modules score above zero with 95 % confidence" in text
        assert ("mostly noise" in text) == doubtful
        again = noisy.plan.stability.mean_reselection
        assert f"{100 * (again or 0):.0f} % of cases" in text


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("model", {"fingerprint": "other", "name": "org/b"}, "org/b"),
        ("score", {"name": "best"}, "no score 'best'"),
        ("lora", {"rank": 5}, "rank 5"),
        ("", {}, "not a candidate of the scores"),
    ],
)
def test_plans_of_other_models_scores_and_ranks_are_refused(
    part: str, changes: dict[str, Any], said: str
) -> None:
    found = report(10)
    plan = planned(found)
    if "fingerprint" in changes:
        print_ = replace(plan.model.fingerprint, structure="sha256:other")
        changes |= {"fingerprint": print_}
    if part:
        plan = plan.model_copy(update={part: getattr(plan, part).model_copy(update=changes)})
    else:
        found = replace(found, rows=found.rows[1:])
    with pytest.raises(UsageError, match=said):
        join(found, plan, planned_here=False)


def test_other_probes_are_told() -> None:
    found = report(10)
    other = replace(found, probes=replace(found.probes, hash="sha256:9", source="other.jsonl"))
    text = html_text(join(other, planned(found), planned_here=False), "0")
    assert "made from other probes" in text
    assert "made from other probes" not in html_text(content(10), "0")


def test_scores_of_zero_are_called_nothing_found() -> None:
    found = with_rows(30, hls=0.0, hls_curve=(0.0,) * 5, hls_replicates=(0.0,) * 20)
    assert "No score is above zero" in sentences.certainty(found)
    assert "does not prove that there is none" in sentences.certainty(found)
    assert "all cells look alike" in charts_of(found)["heat"].caption
    assert "undefined" in sentences.stability_unknown(found)
    assert "stability" not in charts_of(found)


def test_an_order_of_noise_is_called_noise_and_chance_is_given() -> None:
    noise = {"hls_replicates": tuple((-1.0) ** at for at in range(20)), "hls_ci_low": -1.0}
    said = sentences.certainty(with_rows(200, **noise))
    assert "mostly noise: only 0 of 200 modules" in said
    assert "(about 5 would by chance)" in said
    assert "(about 0.5 would by chance)" in sentences.certainty(with_rows(20, **noise))
    assert "noise" not in sentences.certainty(content(20))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"baseline": "random"}, "No score selected these modules"),
        ({"baseline": "all-full"}, "No score selected these modules"),
        ({"baseline": "all-lora"}, "No module is trained in full"),
        ({"budget": "1"}, "there was nothing to choose"),
    ],
    ids=str,
)
def test_where_no_score_chose_no_stability_is_told(settings: dict[str, Any], said: str) -> None:
    found = content(42, **settings)
    for text in (sentences.certainty(found), sentences.stability_unknown(found)):
        assert said in text
        assert "resamples" not in text
    assert "stability" not in charts_of(found)
    assert "budget ends" not in str(charts_of(found)["bars"].spec)
