"""`hlscore diff`: plans and scores against sets, loops, scipy and `plan`; what it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compared import NO_SCORES, ONE, Document, close, noisy, refused, slow_resampled_tau, slow_tau
from console import hlscore
from shown import printed, renamed, save, save_plan, told

from hlscore.records import ScoreReport
from hlscore.settings import MemorySettings

COUNT = 21
Runs = Sequence[ScoreReport]
Files = Sequence[Path]
Plans = dict[str, Path]
Modules = dict[str, Document]


@pytest.fixture(scope="module")
def runs() -> Runs:
    return [noisy(COUNT, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def tables(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tables")
    return [save(run, folder / f"{run.run.seed}" / "scores.parquet") for run in runs]


@pytest.fixture(scope="module")
def plans(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """Plans by what is special about them."""
    folder, (one, two) = tmp_path_factory.mktemp("plans"), runs
    memory = MemorySettings(optimizer="lion8bit", base_bits=4, train_batch=3)
    smaller = renamed(noisy(14, 3), {2: "other.name", 9: "model.layers.1.other"})
    return {
        "one": save_plan(one, folder / "one.json"),
        "two": save_plan(two, folder / "two.json", budget="0.3p"),
        "rank 8": save_plan(two, folder / "rank-8.json", rank=8),
        "ranks": save_plan(two, folder / "ranks.json", ranks=(2, 4, 8)),
        "tail": save_plan(two, folder / "tail.json", score="tail"),
        "memory": save_plan(two, folder / "memory.json", budget="60MB", alpha=32, memory=memory),
        "locks": save_plan(one, folder / "locks.json", locks=("*q_proj=frozen", "*.0.mlp.*=full")),
        "smaller": save_plan(smaller, folder / "smaller.json"),
    }


def modules_of(path: Path) -> Modules:
    return {item["module"]: item for item in json.loads(path.read_text())["modules"]}


def planned(table: Path, folder: Path, *options: object) -> Modules:
    """Modules of the plan that `hlscore plan` writes."""
    path = folder / f"planned-{len(list(folder.iterdir()))}.json"
    found = hlscore("plan", table, "-o", path, *options)
    assert found.code == 0, found.err
    return modules_of(path)


def check(found: Document, a: Modules, b: Modules) -> None:
    """Hold every figure of a difference against sets, loops and scipy."""

    def share(one: set[object], other: set[object]) -> float:
        return len(one & other) / len(one | other) if one | other else 1.0

    decisions = [
        {name: (item["mode"], item["rank"]) for name, item in side.items()} for side in (a, b)
    ]
    moved = {n for n in a.keys() | b.keys() if decisions[0].get(n) != decisions[1].get(n)}
    assert {move["module"] for move in found["moves"]} == moved
    assert len(found["moves"]) == len(moved)
    both = [name for name in a if name in b]
    assert found["modules"] == {
        "common": len(both),
        "only_a": len(a.keys() - b.keys()),
        "only_b": len(b.keys() - a.keys()),
        "other_shape": sum(
            any(a[n][key] != b[n][key] for key in ("matrices", "out_features", "in_features"))
            for n in both
        ),
    }
    full_a, full_b = (
        {name for name, item in side.items() if item["mode"] == "full"} for side in (a, b)
    )
    chance = len(full_a & set(both)) * len(full_b & set(both)) / len(both) if both else None
    assert found["full"] == {
        "shared": len(full_a & full_b),
        "expected_by_chance": close(chance),
        "jaccard": close(share(set(full_a), set(full_b))),
    }
    triples: list[set[object]] = [{(n, *how) for n, how in side.items()} for side in decisions]
    assert found["decisions"]["jaccard"] == close(share(*triples))
    tau = slow_tau([a[n]["score"] for n in both], [b[n]["score"] for n in both])
    assert found["agreement"]["tau"] == close(tau)
    for move in found["moves"]:
        for side, modules in (("a", a), ("b", b)):
            item = modules.get(move["module"])
            if item is None:
                assert move[side] is None
                continue
            for key in ("mode", "rank", "position", "score", "params", "trained_params"):
                assert move[side][key] == item[key]

    counts: dict[str, dict[object, list[int]]] = {"by_kind": {}, "by_layer": {}}
    for name in a.keys() | b.keys():
        item = a[name] if name in a else b[name]
        flags = [name in full_a, name in full_b, name in full_a & full_b]
        for table, key in (
            ("by_kind", f"{item['block']}.{item['kind']}".lstrip(".")),
            ("by_layer", item["layer"]),
        ):
            row = counts[table].setdefault(key, [0, 0, 0, 0])
            row[:] = [x + y for x, y in zip(row, [1, *flags], strict=True)]
    for table, wanted in counts.items():
        assert {
            row["name"]: [row["modules"], row["full_a"], row["full_b"], row["full_both"]]
            for row in found[table]
        } == wanted
        names = [row["name"] for row in found[table]]
        assert None not in names[:-1]
        known = [name for name in names if name is not None]
        assert known == sorted(known)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("two", "one"), ("ranks", "one"), ("one", "tail"), ("one", "locks"), ("smaller", "rank 8"),
        ("ranks", "smaller"),
    ],
)  # fmt: skip
def test_two_plans(plans: Plans, a: str, b: str) -> None:
    found = told("diff", plans[a], plans[b])
    check(found, modules_of(plans[a]), modules_of(plans[b]))
    assert (found["same"], found["a"]["holds"], found["b"]["holds"]) == (False, "plan", "plan")
    # Into or out of full first, then other modes, then ranks; by place within each.
    orders = []
    for move in found["moves"]:
        sides = [move[side] for side in ("a", "b")]
        modes = [None if side is None else side["mode"] for side in sides]
        group = 0 if modes.count("full") == 1 else 1 if modes[0] != modes[1] else 2
        orders.append((group, min(side["position"] for side in sides if side)))
    assert orders
    assert orders == sorted(orders)
    if "ranks" in (a, b) or "locks" in (a, b):
        assert len({group for group, _ in orders}) > 1


@pytest.mark.parametrize(
    "options", ["", "-b 0.2p", "--score random --budget 0.5", "-r 2 --budget 40k --score grad_norm"]
)
def test_two_score_files_are_planned_as_by_plan(
    tables: Files, tmp_path: Path, options: str
) -> None:
    found = told("diff", *tables, *options.split())
    given = options.split() or ["--budget", "0.1"]
    check(found, *(planned(table, tmp_path, *given) for table in tables))
    assert found["a"]["holds"] == found["b"]["holds"] == "scores"


@pytest.mark.parametrize(
    ("name", "plan_first", "wish", "like"),
    [
        ("two", True, "", "-b 0.3p"),
        ("rank 8", False, "", "-b 0.25 -r 8"),
        ("ranks", False, "", "-b 0.25 --ranks 2,4,8"),
        ("tail", True, "", "-b 0.25 --score tail"),
        ("memory", True, "", "-b 60MB --alpha 32 --optimizer lion8bit --base 4 --train-batch 3"),
        ("two", True, "--budget 0.5", "-b 0.5"),
        ("two", True, "--rank 8", "-b 0.3p -r 8"),
    ],
)
def test_scores_beside_a_plan_are_planned_like_it_but_for_options(
    plans: Plans, tables: Files, tmp_path: Path, name: str, wish: str, like: str, *,
    plan_first: bool,
) -> None:  # fmt: skip
    table = planned(tables[0], tmp_path, *like.split())
    sides = [(plans[name], modules_of(plans[name])), (tables[0], table)]
    (a, in_a), (b, in_b) = sides if plan_first else reversed(sides)
    check(told("diff", a, b, *wish.split()), in_a, in_b)
    # The scores that a plan was made from give that plan again.
    assert told("diff", plans[name], tables[1], *wish.split())["same"] is not bool(wish)


def test_resamples_tell_the_noise(runs: Runs, tables: Files) -> None:
    found = told("diff", *tables, "--score", "tail")
    for side, run in zip("ab", runs, strict=True):
        wanted = slow_resampled_tau([row.tail_replicates for row in run.candidates])
        assert found[side]["resampled_tau"] == pytest.approx(wanted, abs=1e-6)
    assert told("diff", *tables, "--rank", "8")["a"]["resampled_tau"] is None
    assert told("diff", *tables, "--score", "random")["b"]["resampled_tau"] is None


def test_facts_are_those_of_the_files(plans: Plans) -> None:
    facts = {fact["name"]: fact for fact in told("diff", plans["one"], plans["ranks"])["facts"]}
    for side, name in (("a", "one"), ("b", "ranks")):
        plan = json.loads(plans[name].read_text())
        assert facts["budget"][side] == plan["budget"]["asked"]
        assert facts["trained parameters"][side] == plan["totals"]["trained_params"]
        assert facts["with LoRA"][side] == plan["totals"]["lora_modules"]
        assert facts["training memory"][side] == plan["memory"]["total_bytes"]
        assert facts["seed"][side] == plan["provenance"]["seed"]
        assert facts["torch"][side] == plan["provenance"]["versions"]["torch"]
        assert facts["steps of trials"][side] == plan["provenance"]["trial_steps"]
    assert (facts["LoRA ranks"]["a"], facts["LoRA ranks"]["b"]) == (None, "2, 4, 8")
    assert all(fact["same"] == (fact["a"] == fact["b"]) for fact in facts.values())


def test_nothing_differs(plans: Plans, tables: Files) -> None:
    for path in (plans["ranks"], tables[0]):
        found = told("diff", path, path)
        assert (found["same"], found["moves"], found["full"]["jaccard"]) == (True, [], 1)
        assert found["agreement"]["tau"] == 1
        outcome = hlscore("diff", path, path, "--exit-code")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.endswith("\nno difference\n")


def test_exit_code_tells_whether_a_module_moves(
    runs: Runs, plans: Plans, tables: Files, tmp_path: Path
) -> None:
    pair = (plans["one"], tables[1])
    found, quiet = hlscore("diff", *pair, "--exit-code"), hlscore("diff", *pair)
    assert (found.code, found.err, found.out, quiet.code) == (1, "", quiet.out, 0)
    as_json = hlscore("diff", *pair, "--exit-code", "--json")
    assert (as_json.code, as_json.err) == (1, "")
    assert json.loads(as_json.out)["moves"]
    other = replace(runs[0], run=replace(runs[0].run, seed=77))
    path = save_plan(other, tmp_path / "seed.json")
    found = hlscore("diff", plans["one"], path, "--exit-code")
    assert found.code == 0
    assert "moved  0 of 21 modules trained differently; Jaccard" in found.out
    assert told("diff", plans["one"], path)["same"] is False


def test_scores_without_an_order(tables: Files, tmp_path: Path) -> None:
    pair = (save(noisy(COUNT, 4, **ONE), tmp_path / "equal"), tables[0])
    found = told("diff", *pair)
    agreement = found["agreement"]
    assert (agreement["tau"], agreement["low"], agreement["n"]) == (None, None, COUNT)
    check(found, *(planned(item, tmp_path, "-b", "0.1") for item in pair))
    text = printed("diff", *pair)
    assert "Kendall's tau of hls unknown: fewer than two scores, or all the same" in text


def test_of_two_files_the_one_that_cannot_be_planned_is_named(
    plans: Plans, tables: Files, tmp_path: Path
) -> None:
    nothing = save(noisy(COUNT, 4, **NO_SCORES), tmp_path / "nothing")
    single = save(noisy(1, 1), tmp_path / "single")
    report = noisy(3, 1)
    rows = tuple(row for row in report.rows if not row.is_candidate)
    skipped = save(replace(report, rows=rows), tmp_path / "skipped")
    for a, b, named, code, *parts in (
        (tables[0], nothing, nothing, 2, "no value of 'hls'"),
        (plans["one"], nothing, nothing, 2, "no value of 'hls'"),
        (tables[0], single, single, 2, "less than one module", "at least 1.0"),
        (skipped, tables[0], skipped, 3, "no candidate modules"),
    ):
        refused(hlscore("diff", a, b), code, f"'{named}': ", *parts)


def test_one_module_and_none(plans: Plans, tables: Files, tmp_path: Path) -> None:
    single = save(noisy(1, 1), tmp_path / "single")
    found = told("diff", single, tables[0], "--budget", "1")
    assert found["modules"] == {"common": 1, "only_a": 0, "only_b": COUNT - 1, "other_shape": 0}
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(json.loads(plans["one"].read_text()) | {"modules": []}))
    for a, b in ((empty, plans["one"]), (plans["one"], empty), (empty, empty)):
        check(told("diff", a, b), modules_of(a), modules_of(b))
        assert printed("diff", a, b)


def test_printed_figures_are_those_of_json(tables: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ("diff", *tables, "--budget", "0.4")
    found, text = told(*arguments), printed(*arguments, "--top", "100")

    def table_under(heading: str) -> list[list[str]]:
        """The words of a table's lines, from below its headings to the next empty line."""
        lines = text.splitlines()
        start = next(at for at, line in enumerate(lines) if line.split()[:1] == [heading])
        return [line.split() for line in lines[start + 1 : lines.index("", start)]]

    for words, move in zip(table_under("#"), found["moves"], strict=True):
        a, b = move["a"], move["b"]
        assert words[:4] == [str(a["position"]), ">", str(b["position"]), move["module"]]
        assert words[4:6] == [f"{a['score']:.3g}", f"{b['score']:.3g}"]
        trained = [f"LoRA {s['rank']}" if s["mode"] == "lora" else s["mode"] for s in (a, b)]
        assert " ".join(words[6:]) == " ".join(trained)
    for heading, key in (("kind", "by_kind"), ("layer", "by_layer")):
        assert table_under(heading) == [
            [str(row[name]) for name in ("name", "modules", "full_a", "full_b", "full_both")]
            for row in found[key]
            if row["full_a"] or row["full_b"]
        ]
    agreement, full = found["agreement"], found["full"]
    taus = [found[side]["resampled_tau"] for side in ("a", "b")]
    for part in (
        f"Kendall's tau of hls {agreement['tau']:z.2f}, 95 % interval {agreement['low']:z.2f} to "
        f"{agreement['high']:z.2f}, over {COUNT} modules",
        f"{full['shared']} in full on both sides ({full['expected_by_chance']:.2g} by chance), "
        f"of 8 in A and 8 in B; Jaccard {full['jaccard']:.2f}",
        f"same probes: {taus[0]:.2f} in A, {taus[1]:.2f} in B; new probes agree less",
    ):
        assert part in text


@pytest.mark.parametrize(("spread", "less"), [(0.0001, True), (5.0, False)])
def test_noise_is_held_against_the_difference(tmp_path: Path, spread: float, *, less: bool) -> None:
    """Where resamples hardly scatter, noise cannot explain another order."""
    paths = []
    for seed in (1, 2):
        report = noisy(COUNT, seed)
        rows = [
            replace(row, hls_replicates=tuple(
                (row.hls or 0) + spread * (value - 0.9 * (row.tail_energy or 0))
                for value in row.hls_replicates
            )) for row in report.rows
        ]  # fmt: skip
        paths.append(save(replace(report, rows=tuple(rows)), tmp_path / f"{seed}"))
    found = told("diff", *paths)
    lowest = min(found[side]["resampled_tau"] for side in ("a", "b"))
    assert (found["agreement"]["high"] < lowest) is less
    text = printed("diff", *paths)
    assert ("A and B agree less than that: other probes, or a real change" in text) is less
    assert ("noise alone can explain the other order" in text) is not less


def test_different_models_are_told(runs: Runs, plans: Plans, tmp_path: Path) -> None:
    other = renamed(noisy(14, 3), {1: "other.name", 3: "another.name"}, model="org/second")
    rows = list(other.rows)
    for place in (0, 5):
        rows[place] = replace(rows[place], out_features=32, n_params=32 * rows[place].in_features)
    second = save_plan(replace(other, rows=tuple(rows)), tmp_path / "second.json")
    found = told("diff", plans["one"], second)
    assert found["same_structure"] is False
    assert found["modules"] == {"common": 12, "only_a": 9, "only_b": 2, "other_shape": 2}
    outcome = hlscore("diff", plans["one"], second)
    assert outcome.notes == [
        "note: these are different models, org/model and org/second: 12 modules of the same name "
        "are compared, 2 of them of other shapes"
    ]
    assert ", 9 only in A, 2 only in B;" in outcome.out
    assert re.search(r"^ *\d+ > - .* absent$", outcome.out, re.MULTILINE)
    assert re.search(r"^ *- > \d+ .* absent +(full|LoRA 4)$", outcome.out, re.MULTILINE)
    namesake = save_plan(renamed(runs[0], {0: "x.y"}), tmp_path / "namesake.json")
    (note,) = hlscore("diff", plans["one"], namesake).notes
    assert "different models, both called org/model: 20 modules of the same name" in note


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--score nope", ["There is no score 'nope'", "hls, tail"]),
        ("--rank 7", ["scores.parquet': ", "no score for rank 7", "2, 4, 8, 16"]),
        ("--rank 0", ["--rank is 0", "1 to 8192"]),
        ("--budget x", ["The budget 'x' is not"]),
        ("--budget 0.01", ["less than one module"]),
        ("--budget 1MiB", ["too small for org/model"]),
    ],
)
def test_wrong_usage(tables: Files, options: str, parts: list[str]) -> None:
    refused(hlscore("diff", *tables, *options.split()), 2, *parts)


@pytest.mark.parametrize("option", ["--budget 0.2", "--score tail", "--rank 4"])
def test_plans_are_not_planned_again(plans: Plans, option: str) -> None:
    found = hlscore("diff", plans["one"], plans["two"], *option.split())
    refused(found, 2, "nothing is left to plan")
