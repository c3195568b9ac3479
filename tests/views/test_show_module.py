"""`hlscore show FILE --module NAME`: one module against the file itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from console import hlscore
from report_content import planned
from reports import report
from shown import Row, number, printed, read_modules, read_rows, renamed, same_score, save, told

from hlscore.artifacts.plan import Plan
from hlscore.artifacts.plan_file import write_plan
from hlscore.scores.registry import SCORES

DOWN = "model.layers.0.mlp.down_proj"


def lines_after(out: str, heading: str) -> list[str]:
    """Lines of a table below its heading."""
    lines = out.split("\n")
    first = next(at for at, line in enumerate(lines) if line.startswith(heading))
    last = next(at for at in range(first, len(lines)) if not lines[at].strip())
    return lines[first + 1 : last]


def test_a_full_name_or_an_end_that_no_other_has(scores: Path, plan: Path, tmp_path: Path) -> None:
    for path in (scores, plan):
        for name in (DOWN, "0.mlp.down_proj", "layers.0.mlp.down_proj"):
            assert told("show", path, "--module", name)["module"]["module"] == DOWN
            out = printed("show", path, "-m", name)
            assert out.startswith(f"{DOWN}\nlayer 0 · linear 64 x 48 · 3,072 param")
    found = hlscore("show", plan, "--module", "lm_head")
    assert found.code == 2
    assert "The plan skips 'lm_head': output head: ranked with --head." in found.message
    path = save(renamed(report(3), ["proj", "a.proj", "a.b.proj"]), tmp_path / "scores.parquet")
    assert told("show", path, "-m", "proj")["module"]["module"] == "proj"
    assert told("show", path, "-m", "b.proj")["module"]["module"] == "a.b.proj"
    assert hlscore("show", path, "-m", "roj").code == 2


def test_an_end_of_several_names_is_refused_with_them(scores: Path, plan: Path) -> None:
    for path in (scores, plan):
        found = hlscore("show", path, "--module", "mlp.down_proj")
        names = [f"model.layers.{layer}.mlp.down_proj" for layer in range(4)]
        assert found.code == 2
        line = found.message.splitlines()[0]
        assert line.startswith("error: 'mlp.down_proj' is the end of 4 names: ")
        assert sorted(re.findall(r"model\.[\w.]*\w", line)) == names
        one = told("show", path, "--module", "mlp.down_proj", "--layer", "2")
        assert one["module"]["module"] == names[2]


@pytest.mark.parametrize(("name", "near"), [
    ("q_porj", {f"model.layers.{layer}.self_attn.q_proj" for layer in range(5)}),
    ("2.mlp.donw_proj", {"model.layers.2.mlp.down_proj"}),
    ("model.layer.0.self_attn.q_proj", {"model.layers.0.self_attn.q_proj"}),
    ("GATE_PROJ", {f"model.layers.{layer}.mlp.gate_proj" for layer in range(4)}),
    ("layers.3.mlp", {f"model.layers.3.mlp.{kind}_proj" for kind in ("gate", "up", "down")}),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_near_ones(plan: Path, name: str, near: set[str]) -> None:
    found = hlscore("show", plan, "--module", name)
    assert found.code == 2
    line, hint = found.message.splitlines()
    assert line == f"error: No module is called '{name}'."
    named = re.findall(r"model\.[\w.]*\w", hint)
    assert near <= set(named)
    if "porj" not in name and "model" not in name:
        assert near == set(named) or "donw" in name


def test_json_of_every_row(scores: Path) -> None:
    for row in read_rows(scores)[::4]:
        shown = told("show", scores, "--module", row["module"])
        assert shown["module"].items() <= row.items()
        assert (shown["artifact"], shown["rank"], shown["file"]) == ("report", 4, str(scores))
        wanted = _resamples(row)
        assert shown["intervals"].keys() == wanted.keys()
        for name, values in wanted.items():
            ends = np.quantile(values, [0.025, 0.975])
            np.testing.assert_allclose(shown["intervals"][name], ends, rtol=1e-12)


def _resamples(row: Row) -> dict[str, list[float]]:
    names = ("hls", "tail", "grad_norm")
    found = {name: row[f"{name}_replicates"] or [] for name in names}
    norm = row["weight_norm"] or float("inf")
    found["rgn"] = [max(value, 0) ** 0.5 / norm for value in found["grad_norm"]]
    return {name: values for name, values in found.items() if values and row[name] is not None}


def test_the_scores_of_every_row(scores: Path) -> None:
    rows = read_rows(scores)
    for row in rows[::2]:
        out = printed("show", scores, "--module", row["module"])
        if row["status"] == "skipped":
            assert "95 % interval" not in out
            assert f"\nstatus   skipped: {row['reason']}\n" in out
            continue
        shown = {line.split()[0]: line.split() for line in lines_after(out, "score ")}
        assert list(shown) == list(SCORES)
        for name, cells in shown.items():
            values = _resamples(row).get(name)
            above = sum(other[name] is not None and row[name] is not None
                        and other[name] > row[name] for other in rows)  # fmt: skip
            place = "-" if row[name] is None else str(1 + above)
            assert (cells[1], cells[-1]) == (number(row[name]), place), (row["module"], name)
            assert cells[2] == (number(np.std(values, ddof=1)) if values else "-")
            ends = [number(np.quantile(values or [0], share)) for share in (0.025, 0.975)]
            assert " ".join(cells[3:-2]) == (" to ".join(ends) if values else "-")
        assert f"\nplace    {row['rank']} of 30 by hls\n" in out


def test_the_printed_curves_are_those_of_the_row(scores: Path) -> None:
    row = next(row for row in read_rows(scores) if row["module"] == DOWN)
    out = printed("show", scores, "--module", DOWN)
    shown = [line.split() for line in lines_after(out, "rank ")]
    assert [int(cells[0]) for cells in shown] == list(row["curve_ranks"])
    for place, cells in enumerate(shown):
        tail, share = row["tail_curve"][place], row["tail_curve"][place] / row["tail_curve"][0]
        assert cells[1:4] == [number(tail), f"{100 * share:.3g}", "%"]
        assert number(row["hls_curve"][place]) in cells[4:]
    (against,) = (cells for cells in shown if cells[-2:] == ["compared", "against"])
    assert against[0] == "4"


def test_a_module_of_nothing_but_zeros_and_nulls(tmp_path: Path) -> None:
    found = same_score(report(3), None)
    silent = found.rows[1].changed(tail_curve=(0.0,) * 5, hls_curve=(-1.0, -2.0, 0.0, 0.0, 0.0))
    path = save(replace(found, rows=(found.rows[0], silent)), tmp_path / "scores.parquet")
    out = printed("show", path, "-m", silent.module)
    assert "\ntail ·····  rank 0 to 16\nhls  ·····  rank 0 to 16\n" in out
    assert "%" not in "".join(line[:24] for line in lines_after(out, "rank "))
    assert all(line.split()[1] == "-" for line in lines_after(out, "score "))


def test_every_module_of_a_plan(plan: Path) -> None:
    total = sum(row["trained_params"] for row in read_modules(plan))
    for row in read_modules(plan)[::3]:
        out = printed("show", plan, "--module", row["module"])
        share = f"{100 * row['trained_params'] / total:.3g} % of all trained parameters"
        lora = f"LoRA {row['rank']}"
        how = f"{lora}, alpha {row['alpha']}" if row["mode"] == "lora" else row["mode"]
        assert f"\ntrain    {how}{', set by a lock' if row['locked'] else ''}: " in out
        assert share in out
        place = f"{row['position']} of 30 by hls, which is {number(row['score'])} ("
        assert f"\nplace    {place}" in out
        shown = told("show", plan, "--module", row["module"])
        assert shown["module"] == row
        sides = row["out_features"] + row["in_features"]
        ranks = {4, row["rank"] or 4}
        assert {(way["mode"], way["rank"]): way["params"] for way in shown["costs"]} == {
            ("frozen", None): 0,
            **{("lora", rank): row["matrices"] * rank * sides for rank in ranks},
            ("full", None): row["params"],
        }
        ways = lines_after(out, "cost")
        (ours,) = (line for line in ways if line.rstrip().endswith("planned"))
        assert ours.startswith(f"{lora if row['mode'] == 'lora' else row['mode']} ")
        assert f" {row['trained_params']:,} " in ours


def test_costs_are_what_a_plan_with_the_other_mode_costs(tmp_path: Path) -> None:
    found = report(12)

    def made(mode: str) -> Plan:
        return planned(found, budget="1", locks=("*=lora", "*.o_proj=rank:8", f"{DOWN}={mode}"))

    path = tmp_path / "plan.json"
    write_plan(made("full"), path)
    costs = {(way["mode"], way["rank"]): way["bytes"] for way in
             told("show", path, "--module", DOWN)["costs"]}  # fmt: skip
    nothing = made("frozen").memory.total_bytes
    assert costs[("frozen", None)] == 0
    for mode, way in (("full", ("full", None)), ("lora", ("lora", 4))):
        assert costs[way] == made(mode).memory.total_bytes - nothing, mode
