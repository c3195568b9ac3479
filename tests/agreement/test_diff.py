"""`hlscore diff`: plans and scores against sets, loops, scipy and `plan`; what it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from compared import (
    NO_SCORES,
    ONE,
    RUN_RANK,
    Document,
    close,
    noisy,
    printed,
    refused,
    renamed,
    save,
    save_plan,
    slow_resampled_tau,
    slow_tau,
    told,
)
from console import hlscore

from hlscore.records import ScoreReport

COUNT = 21
Modules = dict[str, Document]


@pytest.fixture(scope="module")
def runs() -> tuple[ScoreReport, ...]:
    return tuple(noisy(COUNT, seed) for seed in (1, 2))


@pytest.fixture(scope="module")
def tables(
    runs: Sequence[ScoreReport], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("tables")
    return tuple(save(run, folder / f"{run.run.seed}" / "scores.parquet") for run in runs)


@pytest.fixture(scope="module")
def plans(runs: Sequence[ScoreReport], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plans by what is special about them."""
    folder, (one, two) = tmp_path_factory.mktemp("plans"), runs
    smaller = renamed(noisy(14, 3), {2: "other.name", 9: "model.layers.1.other"})
    return {
        "one": save_plan(one, folder / "one.json"),
        "two": save_plan(two, folder / "two.json", budget="0.3p"),
        "rank 8": save_plan(two, folder / "rank-8.json", rank=8),
        "ranks": save_plan(two, folder / "ranks.json", ranks=(2, 4, 8)),
        "tail": save_plan(two, folder / "tail.json", score="tail"),
        "locks": save_plan(one, folder / "locks.json", locks=("*q_proj=frozen", "*.0.mlp.*=full")),
        "smaller": save_plan(smaller, folder / "smaller.json"),
    }


def modules_of(path: Path) -> Modules:
    document = json.loads(path.read_text())
    return {item["module"]: item for item in document["modules"]}


def planned(table: Path, folder: Path, *options: object) -> Path:
    """The plan that `hlscore plan` writes."""
    path = folder / f"planned-{len(list(folder.iterdir()))}.json"
    found = hlscore("plan", table, "-o", path, *options)
    assert found.code == 0, found.err
    return path


def share(a: set[object], b: set[object]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def full_of(modules: Modules) -> set[str]:
    return {name for name, item in modules.items() if item["mode"] == "full"}


def check(found: Document, a: Modules, b: Modules) -> None:
    """Hold every figure of a difference against sets, loops and scipy."""
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
    full_a, full_b = full_of(a), full_of(b)
    common_a, common_b = full_a & set(both), full_b & set(both)
    chance = len(common_a) * len(common_b) / len(both) if both else None
    assert found["full"]["shared"] == len(full_a & full_b)
    assert close(found["full"]["expected_by_chance"], chance)
    assert close(found["full"]["jaccard"], share(set(full_a), set(full_b)))
    triples: list[set[object]] = [{(n, *how) for n, how in side.items()} for side in decisions]
    assert close(found["decisions"]["jaccard"], share(*triples))
    tau = slow_tau([a[n]["score"] for n in both], [b[n]["score"] for n in both])
    assert close(found["agreement"]["tau"], tau)
    for move in found["moves"]:
        for side, modules in (("a", a), ("b", b)):
            item = modules.get(move["module"])
            if item is None:
                assert move[side] is None
                continue
            for key in ("mode", "rank", "position", "score", "params", "trained_params"):
                assert move[side][key] == item[key]
    check_groups(found, a, b)


def check_groups(found: Document, a: Modules, b: Modules) -> None:
    counts: dict[str, dict[object, list[int]]] = {"by_kind": {}, "by_layer": {}}
    for name in a.keys() | b.keys():
        item = a[name] if name in a else b[name]
        block, kind = item["block"], item["kind"]
        flags = [name in full_of(a), name in full_of(b), name in full_of(a) & full_of(b)]
        for table, key in (
            ("by_kind", f"{block}.{kind}" if block else kind),
            ("by_layer", item["layer"]),
        ):
            row = counts[table].setdefault(key, [0, 0, 0, 0])
            row[:] = [x + y for x, y in zip(row, [1, *flags], strict=True)]
    for table, wanted in counts.items():
        rows = found[table]
        assert {
            row["name"]: [row["modules"], row["full_a"], row["full_b"], row["full_both"]]
            for row in rows
        } == wanted
        known = [row["name"] for row in rows if row["name"] is not None]
        assert known == sorted(known)
        assert all(row["name"] is not None for row in rows[:-1])


PAIRS = [
    ("two", "one"), ("ranks", "one"), ("one", "tail"), ("one", "locks"), ("smaller", "rank 8"),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_two_plans(plans: dict[str, Path], pair: tuple[str, str]) -> None:
    a, b = (plans[name] for name in pair)
    found = told("diff", a, b)
    check(found, modules_of(a), modules_of(b))
    assert found["moves"]
    assert (found["same"], found["a"]["holds"], found["b"]["holds"]) == (False, "plan", "plan")


def test_the_most_important_moves_come_first(plans: dict[str, Path]) -> None:
    """Into or out of full, then other modes, then ranks; by place within each."""
    for pair in (("one", "ranks"), ("one", "locks"), ("ranks", "smaller")):
        orders = []
        for move in told("diff", *(plans[name] for name in pair))["moves"]:
            sides = [move[side] for side in ("a", "b")]
            modes = [None if side is None else side["mode"] for side in sides]
            crossing = modes.count("full") == 1
            group = 0 if crossing else 1 if modes[0] != modes[1] else 2
            orders.append((group, min(side["position"] for side in sides if side)))
        assert orders == sorted(orders)
        assert len({group for group, _ in orders}) > 1


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-b", "0.2p"],
        ["--score", "random", "--budget", "0.5"],
        ["-r", "2", "--budget", "40k", "--score", "grad_norm"],
    ],
    ids=" ".join,
)
def test_two_score_files_are_planned_as_by_plan(
    tables: Sequence[Path], tmp_path: Path, options: list[str]
) -> None:
    found = told("diff", *tables, *options)
    given = options if {"--budget", "-b"} & set(options) else [*options, "--budget", "0.1"]
    a, b = (modules_of(planned(table, tmp_path, *given)) for table in tables)
    check(found, a, b)
    assert found["a"]["holds"] == found["b"]["holds"] == "scores"


@pytest.mark.parametrize(
    ("name", "plan_first"), [("two", True), ("rank 8", False), ("ranks", False), ("tail", True)]
)
def test_scores_beside_a_plan_are_planned_like_it(
    plans: dict[str, Path], tables: Sequence[Path], tmp_path: Path, name: str, *, plan_first: bool
) -> None:
    plan = plans[name]
    document = json.loads(plan.read_text())
    like = ["--budget", document["budget"]["asked"], "--score", document["score"]["name"],
            "--rank", document["lora"]["rank"]]  # fmt: skip
    if document["lora"]["ranks"]:
        like += ["--ranks", ",".join(map(str, document["lora"]["ranks"]))]
    table = modules_of(planned(tables[0], tmp_path, *like))
    if plan_first:
        check(told("diff", plan, tables[0]), modules_of(plan), table)
    else:
        check(told("diff", tables[0], plan), table, modules_of(plan))
    # The scores that a plan was made from give that plan again.
    assert told("diff", plan, tables[1])["same"] is True


@pytest.mark.parametrize("wish", [["--budget", "0.5"], ["--rank", "8"]], ids=" ".join)
def test_options_go_before_the_plan_beside_the_scores(
    plans: dict[str, Path], tables: Sequence[Path], tmp_path: Path, wish: list[str]
) -> None:
    like = {"--budget": "0.25", "--score": "hls", "--rank": str(RUN_RANK)} | {wish[0]: wish[1]}
    options = [word for pair in like.items() for word in pair]
    table = modules_of(planned(tables[1], tmp_path, *options))
    found = told("diff", plans["one"], tables[1], *wish)
    check(found, modules_of(plans["one"]), table)


def test_scores_are_planned_with_the_memory_of_the_plan(
    runs: Sequence[ScoreReport], tables: Sequence[Path], tmp_path: Path
) -> None:
    path = tmp_path / "memory.json"
    memory = ["--optimizer", "lion8bit", "--base", "4", "--train-batch", "3"]
    given = hlscore("plan", tables[0], "-o", path, "--budget", "60MB", "--alpha", "32", *memory)
    assert given.code == 0, given.err
    assert told("diff", path, tables[0])["same"] is True
    other = modules_of(planned(tables[1], tmp_path, "--budget", "60MB", "--alpha", "32", *memory))
    check(told("diff", path, tables[1]), modules_of(path), other)


def test_resamples_tell_the_noise(runs: Sequence[ScoreReport], tables: Sequence[Path]) -> None:
    found = told("diff", *tables, "--score", "tail")
    for side, run in (("a", runs[0]), ("b", runs[1])):
        rows = [row.tail_replicates for row in run.candidates]
        wanted = slow_resampled_tau(rows)
        assert found[side]["resampled_tau"] == pytest.approx(wanted, abs=1e-6)
    assert told("diff", *tables, "--rank", "8")["a"]["resampled_tau"] is None
    assert told("diff", *tables, "--score", "random")["b"]["resampled_tau"] is None


def test_facts_are_those_of_the_files(plans: dict[str, Path]) -> None:
    documents = {side: json.loads(plans[name].read_text())
                 for side, name in (("a", "one"), ("b", "ranks"))}  # fmt: skip
    facts = {fact["name"]: fact for fact in told("diff", plans["one"], plans["ranks"])["facts"]}
    for side, plan in documents.items():
        assert facts["budget"][side] == plan["budget"]["asked"]
        assert facts["trained parameters"][side] == plan["totals"]["trained_params"]
        assert facts["with LoRA"][side] == plan["totals"]["lora_modules"]
        assert facts["training memory"][side] == plan["memory"]["total_bytes"]
        assert facts["seed"][side] == plan["provenance"]["seed"]
        assert facts["torch"][side] == plan["provenance"]["versions"]["torch"]
    assert facts["LoRA ranks"]["a"] is None
    assert facts["LoRA ranks"]["b"] == "2, 4, 8"
    assert all(fact["same"] == (fact["a"] == fact["b"]) for fact in facts.values())


def test_nothing_differs(plans: dict[str, Path], tables: Sequence[Path]) -> None:
    for path in (plans["ranks"], tables[0]):
        found = told("diff", path, path)
        assert (found["same"], found["moves"], found["full"]["jaccard"]) == (True, [], 1)
        assert found["agreement"]["tau"] == 1
        assert hlscore("diff", path, path, "--exit-code").code == 0
        assert printed("diff", path, path).endswith("\nno difference\n")


def test_exit_code_tells_whether_a_module_moves(
    runs: Sequence[ScoreReport], plans: dict[str, Path], tables: Sequence[Path], tmp_path: Path
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


def test_scores_without_an_order(tables: Sequence[Path], tmp_path: Path) -> None:
    equal = save(noisy(COUNT, 4, **ONE), tmp_path / "equal")
    found = told("diff", equal, tables[0])
    agreement = found["agreement"]
    assert (agreement["tau"], agreement["low"], agreement["n"]) == (None, None, COUNT)
    check(found, *(modules_of(planned(item, tmp_path, "-b", "0.1")) for item in (equal, tables[0])))
    text = printed("diff", equal, tables[0])
    assert "Kendall's tau of hls unknown: fewer than two scores, or all the same" in text


def test_of_two_files_the_one_that_cannot_be_planned_is_named(
    plans: dict[str, Path], tables: Sequence[Path], tmp_path: Path
) -> None:
    nothing = save(noisy(COUNT, 4, **NO_SCORES), tmp_path / "nothing")
    for other in (tables[0], plans["one"]):
        refused(hlscore("diff", other, nothing), 2, f"'{nothing}': ", "no value of 'hls'")
    single = save(noisy(1, 1), tmp_path / "single")
    found = hlscore("diff", tables[0], single)
    refused(found, 2, f"'{single}': ", "less than one module", "at least 1.0")
    found = hlscore("diff", *tables, "--rank", "7")
    refused(found, 2, f"'{tables[0]}': ", "no score for rank 7")
    report = noisy(3, 1)
    skipped = replace(report, rows=tuple(r for r in report.rows if not r.is_candidate))
    path = save(skipped, tmp_path / "skipped")
    refused(hlscore("diff", path, tables[0]), 3, f"'{path}': ", "no candidate modules")


def test_one_module_and_none(
    plans: dict[str, Path], tables: Sequence[Path], tmp_path: Path
) -> None:
    single = save(noisy(1, 1), tmp_path / "single")
    found = told("diff", single, tables[0], "--budget", "1")
    assert found["modules"] == {"common": 1, "only_a": 0, "only_b": COUNT - 1, "other_shape": 0}
    document = json.loads(plans["one"].read_text()) | {"modules": []}
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(document))
    for a, b in ((empty, plans["one"]), (plans["one"], empty), (empty, empty)):
        check(told("diff", a, b), modules_of(a), modules_of(b))
        assert printed("diff", a, b)


def table_under(heading: str, text: str) -> list[list[str]]:
    """The words of a table's lines, from below its headings to the next empty line."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.split()[:1] == [heading])
    end = lines.index("", start)
    return [line.split() for line in lines[start + 1 : end]]


def test_printed_figures_are_those_of_json(
    tables: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ("diff", *tables, "--budget", "0.4")
    found, text = told(*arguments), printed(*arguments, "--top", "100")
    moves = table_under("#", text)
    assert [words[3] for words in moves] == [move["module"] for move in found["moves"]]
    for words, move in zip(moves, found["moves"], strict=True):
        a, b = move["a"], move["b"]
        assert words[:3] == [str(a["position"]), ">", str(b["position"])]
        assert words[4:6] == [f"{a['score']:.3g}", f"{b['score']:.3g}"]
        trained = [f"LoRA {s['rank']}" if s["mode"] == "lora" else s["mode"] for s in (a, b)]
        assert " ".join(words[6:]) == " ".join(trained)
    for heading, key in (("kind", "by_kind"), ("layer", "by_layer")):
        wanted = [
            [str(row[name]) for name in ("name", "modules", "full_a", "full_b", "full_both")]
            for row in found[key] if row["full_a"] or row["full_b"]
        ]  # fmt: skip
        assert table_under(heading, text) == wanted
    agreement, full = found["agreement"], found["full"]
    assert (
        f"Kendall's tau of hls {agreement['tau']:z.2f}, 95 % interval {agreement['low']:z.2f} to "
        f"{agreement['high']:z.2f}, over {COUNT} modules"
    ) in text
    assert (
        f"{full['shared']} in full on both sides ({full['expected_by_chance']:.2g} by chance), "
        f"of 8 in A and 8 in B; Jaccard {full['jaccard']:.2f}"
    ) in text
    taus = [found[side]["resampled_tau"] for side in ("a", "b")]
    assert f"same probes: {taus[0]:.2f} in A, {taus[1]:.2f} in B; new probes agree less" in text


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


def test_different_models_are_told(
    runs: Sequence[ScoreReport], plans: dict[str, Path], tmp_path: Path
) -> None:
    other = renamed(noisy(14, 3), {1: "other.name", 3: "another.name"}, model="org/second")
    rows = list(other.rows)
    for place in (0, 5):
        rows[place] = replace(rows[place], out_features=32, n_params=32 * rows[place].in_features)
    second = save_plan(replace(other, rows=tuple(rows)), tmp_path / "second.json")
    found = told("diff", plans["one"], second)
    assert found["same_structure"] is False
    assert found["modules"] == {"common": 12, "only_a": 9, "only_b": 2, "other_shape": 2}
    assert hlscore("diff", plans["one"], second).notes == [
        "note: these are different models, org/model and org/second: 12 modules of the same name "
        "are compared, 2 of them of other shapes"
    ]
    text = printed("diff", plans["one"], second)
    assert ", 9 only in A, 2 only in B;" in text
    assert re.search(r"^ *\d+ > - .* absent$", text, re.MULTILINE)
    assert re.search(r"^ *- > \d+ .* absent +(full|LoRA 4)$", text, re.MULTILINE)
    namesake = save_plan(renamed(runs[0], {0: "x.y"}), tmp_path / "namesake.json")
    (note,) = hlscore("diff", plans["one"], namesake).notes
    assert "different models, both called org/model: 20 modules of the same name" in note


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--score", "nope"], ["There is no score 'nope'", "hls, tail"]),
        (["--rank", "7"], ["no score for rank 7", "2, 4, 8, 16"]),
        (["--rank", "0"], ["--rank is 0", "1 to 8192"]),
        (["--budget", "x"], ["The budget 'x' is not"]),
        (["--budget", "0.01"], ["less than one module"]),
        (["--budget", "1MiB"], ["too small for org/model"]),
    ],
    ids=lambda item: "=".join(item) if item[0].startswith("--") else "",
)
def test_wrong_usage(tables: Sequence[Path], options: list[str], parts: list[str]) -> None:
    refused(hlscore("diff", *tables, *options), 2, *parts)


def test_plans_are_not_planned_again(plans: dict[str, Path]) -> None:
    for options in (["--budget", "0.2"], ["--score", "tail"], ["--rank", "4"]):
        refused(hlscore("diff", plans["one"], plans["two"], *options), 2, "nothing is left to plan")
