"""The study's page: differences worked out by hand, words that follow intervals, and the committed page itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_runtime.errors import UsageError
from nap_runtime.policy import SyncPolicy
from nap_runtime.study.cost.predict import Device, Link, Machine, predict
from nap_runtime.study.cost.scenario import Scenario
from nap_runtime.study.pack import Packed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import origin  # noqa: E402
import study_numbers as numbers  # noqa: E402
import study_overhead as overhead  # noqa: E402
import study_page  # noqa: E402
import study_plain as plain  # noqa: E402
import study_sections as sections  # noqa: E402
from shaped import tables  # noqa: E402

N = 40


def run(correct: list[int], *, paths: list[list[int]] | None = None, arness: list[float] | None = None,
        same: list[int] | None = None, pairs: list[int] | None = None, **row: Any) -> numbers.Run:  # fmt: skip
    n = len(correct)
    arrays = {
        "correct": np.array(correct, dtype=np.int8),
        "arness": np.array([0.5] * n if arness is None else arness, dtype=np.float32),
        "paths": np.array([[1, 0]] * n if paths is None else paths, dtype=np.int8),
        "same": np.array([0] * n if same is None else same, dtype=np.int8),
        "pairs": np.array([1] * n if pairs is None else pairs, dtype=np.int8),
    }
    values = {"run_id": "a", "n": n, "problems_set": "words", "problems_seed": 1, **row}
    return numbers.Run(Packed(study={"sweeps": []}, rows=[values], problems={"a": arrays}), values)


def test_differences_by_hand() -> None:
    one, other = run([1] * 30 + [0] * 10), run([1] * 20 + [0] * 20)
    found = numbers.difference(one, other, "accuracy")
    assert found.value == pytest.approx(0.25)
    assert 0.1 < found.low < 0.25 < found.high < 0.4  # sd of a mean of 10 ones among 40: 0.068
    assert found.sign == 1
    same = numbers.difference(one, one, "accuracy")
    assert (same.value, same.low, same.high, same.sign) == (0, 0, 0, 0)


def test_plain_words_follow_the_intervals() -> None:
    one, other = run([1] * 30 + [0] * 10, arness=[0.2] * N), run([1] * 20 + [0] * 20, arness=[0.4] * N)
    assert plain.directions(one, other, ("accuracy", "arness")) == (
        "answers are right more often; the order is further from left to right"
    )
    assert plain.directions(other, one, ("accuracy", "path_accuracy")) == (
        "answers are right less often; no change can be told in single paths"
    )
    assert plain.directions(one, one, ("accuracy", "path_accuracy", "arness")) == (
        "no change can be told in the answers, single paths and the order (ARness)"
    )


def test_pairing_is_by_problem() -> None:
    """The same shares on other problems: no difference, but a wide interval where pairs disagree."""
    one, other = run([1, 0] * 20), run([0, 1] * 20)
    found = numbers.difference(one, other, "accuracy")
    assert found.value == 0
    assert found.high - found.low > 0.4
    with pytest.raises(UsageError, match="problems_seed: 1 and 2 cannot be paired"):
        numbers.difference(one, run([1, 0] * 20, problems_seed=2), "accuracy")


def test_measures_of_paths() -> None:
    mixed = run([1, 0, 1, 1], paths=[[1, 1], [0, -1], [1, 0], [1, 1]], same=[1, 0, 0, 1], pairs=[1, 0, 1, 1],
                arness=[0.2, float("nan"), 0.4, 0.6])  # fmt: skip
    assert numbers.estimate(mixed, "path_accuracy").value == pytest.approx(5 / 8)  # no answer is wrong
    assert numbers.estimate(mixed, "path_agree").value == pytest.approx(2 / 3)  # of pairs that both answer
    assert numbers.estimate(mixed, "arness").value == pytest.approx(0.4, abs=1e-6)
    nothing = run([0, 0], pairs=[0, 0])
    assert numbers.spread(numbers.estimate(nothing, "path_agree")) == numbers.NONE
    with pytest.raises(UsageError, match="no problems are kept of 'tpf'"):
        numbers.estimate(mixed, "tpf")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (numbers.Interval(0.1, 0.02, 0.2), "rises (+0.100 [0.020, 0.200])"),
        (numbers.Interval(-0.1, -0.2, -0.02), "falls (−0.100 [−0.200, −0.020])"),
        (numbers.Interval(0.1, -0.02, 0.2), "cannot be told from unchanged (+0.100 [−0.020, 0.200])"),
        (numbers.Interval(float("nan"), float("nan"), float("nan")), "is undefined"),
    ],
)
def test_words_follow_the_interval(found: numbers.Interval, words: str) -> None:
    assert numbers.moves(found) == words


def cell(workers: int, seconds: float, *, paths: int, mode: str = "exact", crowded: bool = False,
         threads: int = 1) -> dict[str, Any]:  # fmt: skip
    scenario = {"paths": paths, "threads": threads, "workers": workers, "path_tokens": 8, "steps": 10,
                "shape": "nap-tiny", "dtype": "float32",
                "sync": {"mode": mode, "every": 8 if mode == "kv" else None}}  # fmt: skip
    return {"name": f"{mode} m{paths} w{workers}", "scaling": "weak", "scenario": scenario, "seconds": seconds,
            "compute_seconds": seconds / 2, "blocked_seconds": seconds / 4, "wire_bytes": 2048,
            "oversubscribed": crowded}  # fmt: skip


def test_result_files_have_one_head() -> None:
    """What was measured before there was a head has one too, with null for what was not noted."""
    new = origin.head()
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    assert len(files) >= 7
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        several = [document] if "environment" in document else document["runs"]
        for run in several:
            assert {"when", "command"} <= run.keys(), file.name
            assert {"benchmark", "schema"} & run.keys(), file.name
            assert run["environment"].keys() == new["environment"].keys(), file.name
            assert {"commit", "device"} <= {key for key, value in run["environment"].items() if value}, file.name
            assert not {"commit", "torch", "cpus", "load", "date"} & document.keys(), file.name


def test_result_files_say_where_they_were_made(tmp_path: Path) -> None:
    links = json.loads((ROOT / "benchmarks/results/2026-11-24-links.json").read_text(encoding="utf-8"))
    cells = [cell(1, 2.0, paths=2), cell(2, 1.0, paths=2)]
    points = [{"name": c["name"], "scenario": c["scenario"], "seconds": c["seconds"]} for c in cells]
    new = {**origin.head(), "cells": cells, "points": points, "repeats": 3}
    assert new["environment"].keys() >= {"commit", "device", "device_name", "devices", "cpus", "load", "threads"}
    here = origin.origin(new)
    assert (here["device"], here["command"]) == ("cpu", new["command"])
    assert (here["cpus"], here["torch"]) == (len(os.sched_getaffinity(0)), torch.__version__)
    shaped = origin.origin(links)
    assert (shaped["device"], shaped["device_name"], shaped["cpus"]) == ("cpu", "x86_64", 2)
    assert "on x86_64, 2 cores (load 1.3 at the end)" in tables.page(links)
    assert "2 cores (load 3.0 at" in tables.page(
        links | {"environment": {**new["environment"], "cpus": 2, "load": 3.0}})  # fmt: skip
    h200 = json.loads((ROOT / "benchmarks/results/2026-11-22-h200-llada-8b.json").read_text(encoding="utf-8"))
    assert (origin.origin(h200)["device"], origin.origin(h200)["device_name"]) == ("cuda", "NVIDIA H200")
    file = tmp_path / "a-scaling.json"
    file.write_text(json.dumps(new))
    assert overhead.section(file)[0].startswith(f"### {here['device_name']}, ")
    assert list(overhead.findings(file))


def test_every_benchmark_heads_its_file_alike() -> None:
    """Scripts that write results call `head`; none asks for commit or device by itself."""
    scripts = [f for f in (ROOT / "benchmarks").glob("*.py") if "args.out.write_text" in f.read_text(encoding="utf-8")]
    assert len(scripts) >= 7
    for file in scripts:
        text = file.read_text(encoding="utf-8")
        assert "**head(" in text, file.name
        assert not re.search(r"commit\(\)|get_device_name|platform\.", text), file.name


def test_overhead_says_nothing_of_more_workers_than_cores() -> None:
    cells = [cell(1, 2.0, paths=2), cell(2, 1.0, paths=2), cell(2, 0.5, paths=2, mode="kv"),
             cell(1, 3.0, paths=3), cell(3, 9.0, paths=3, crowded=True)]  # fmt: skip
    (said,) = overhead.sentences("weak", cells)
    assert said == (
        "With 2 workers, against the same canvas on one device: exact 2.00× (25% of the time blocked); kv, K = 8 4.00× "
        "(25% of the time blocked). More than 2× is no error: between syncs a worker computes its own paths' rows "
        "alone, and nobody those of prompt and summary. 1 cells with more workers than cores are shown and left out."
    )
    assert overhead.sentences("weak", cells[3:]) == [
        "No run with several workers had a core a worker, so nothing is claimed of it."
    ]
    marked = [line for line in overhead.scaling_table(cells) if "more workers than cores" in line]
    assert len(marked) == 1
    assert "0.33×" in marked[0]


@pytest.mark.parametrize(("threads", "said"), [(1, "one thread"), (2, "2 threads")])
def test_time_is_said_with_the_threads(tmp_path: Path, threads: int, said: str) -> None:
    """Two workers against one device: who had how many threads stands beside the ratio."""
    cells = [cell(1, 2.0, paths=2, threads=threads), cell(2, 1.0, paths=2), cell(2, 2.5, paths=2, mode="kv")]
    file = tmp_path / "a-scaling.json"
    document = {**origin.head(), "cells": [{**each, "scaling": "strong"} for each in cells]}
    file.write_text(json.dumps(document))
    (sentence,) = plain._time(file)
    assert sentence == (
        "**What does it cost in time?** 2 workers of one thread on "
        f"{document['environment']['device_name']} against one device of {said}, the same canvas: at best 2.00 times "
        "as fast (`exact`); slower than one device: `kv, K = 8`."
    )


def test_each_held_out_point_is_named_with_its_error(tmp_path: Path) -> None:
    """Points that a known machine made, two of them bent: what was not fitted is named, what is crowded is not."""
    machine = Machine(
        device=Device(flops=1e10, memory=1e12, launch=2e-4, forward=9e-4, score=1e-9),
        link=Link(latency=2e-4, bandwidth=3e8, start=3e-3),
    )
    cells = []
    for paths, workers, held in ((1, 1, False), (2, 1, False), (3, 1, False), (2, 2, False), (3, 3, True)):
        for tokens in (20, 90):
            for mode in ("exact", "none") if workers > 1 else ("exact",):
                scenario = Scenario(shape="nap-tiny", paths=paths, path_tokens=tokens, summary_tokens=4,
                                    workers=workers, prompt_tokens=8, steps=12, dtype="float32",
                                    sync=SyncPolicy(mode))  # fmt: skip
                bend = {"exact": 1.0, "none": 1 / 1.3}[mode] if held else 1.0
                cells.append({"name": f"t{tokens} {mode} m{paths} w{workers}", "scenario": scenario.to_mapping(),
                              "seconds": predict(scenario, machine).seconds * bend, "hold_out": held})  # fmt: skip
    file = tmp_path / "a-scaling.json"
    file.write_text(json.dumps({**origin.head(), "points": cells}))
    crowded = [{"name": each["name"], "oversubscribed": each["name"].startswith("t20 exact m3")} for each in cells]
    said, _, beside = overhead.model_lines(file, crowded)
    assert "of 3 points that it had not seen, 1 lie within 20%" in said
    assert re.search(r"t20 none, 3 paths on 3 workers \+(29|30|31)\.\d%", said)
    assert re.search(r"t90 exact, 3 paths on 3 workers [+−][01]\.\d%", said)
    assert "t20 exact" not in said
    assert beside.startswith("1 points with more workers than cores are left out")


def test_sections_without_records_are_left_out() -> None:
    makers = (sections.every, sections.modes, sections.paths, sections.twins, sections.adapted, sections.mismatch)
    assert [make({}) for make in makers] == [None] * len(makers)


def test_no_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_page.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 2
    assert "no packed study; `nap study pack` makes them" in capsys.readouterr().err


def test_links_are_kept() -> None:
    page = "a\n<!-- links:begin -->\n## Links\n\n1 ms\n<!-- links:end -->\nb"
    assert study_page.links_of(page) == "\n## Links\n\n1 ms\n"
    assert study_page.links_of("none") == "\n"


@pytest.mark.skipif(not (ROOT / "docs" / "study.md").is_file(), reason="no study has been written")
def test_the_committed_page_is_what_the_records_give() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "study_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"run python benchmarks/study_page.py\n{done.stderr}"
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    for name in [part.partition(")")[0] for part in text.split("](study/")[1:]]:
        assert (ROOT / "docs" / "study" / name).is_file(), name


def test_records_are_small() -> None:
    folder = ROOT / "benchmarks" / "results" / "study"
    sizes = {str(file): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert sum(sizes.values()) < 3_000_000, json.dumps(sizes)


# --- a whole page ---


def twin_rows(label: str, paths: int) -> list[dict[str, Any]]:
    """Runs of one rule at 1 and 4 tokens a step, as a study's row has them."""
    shared = {"label": label, "rule": "parallel-forced", "scope": "path", "workers": 1, "paths": paths, "n": N,
              "sync_mode": "exact", "problems_set": "words", "problems_seed": 11, "accuracy_low": 0.0,
              "accuracy_high": 1.0, "arness_corrected": 0.1, "device_name": "toy", "torch": "2", "dtype": "float32",
              "commit": "abc"}  # fmt: skip
    return [
        shared | {"run_id": f"{label}{tokens}", "tokens_per_step": float(tokens), "steps": 120 // tokens, "tpf": tokens,
                  "accuracy": 0.75, "arness": 0.5}
        for tokens in (1, 4)
    ]  # fmt: skip


def write_packed(
    folder: Path, name: str, rows: list[dict[str, Any]], right: int, outside: list[dict[str, Any]] | None = None
) -> None:
    """A packed study whose `rules` are the rows; those `outside` belong to its sweep `paths`, and come first."""
    folder.mkdir(parents=True)
    outside = outside or []
    sweep = {"name": "rules", "runs": [row["run_id"] for row in rows]}
    empty = [{"name": one, "runs": []} for one in ("every", "modes", "topology", "temperature", "warmup")]
    empty.insert(0, {"name": "paths", "runs": [row["run_id"] for row in outside]})
    rows = [*outside, *rows]
    (folder / "study.json").write_text(json.dumps({"name": name, "sweeps": [*empty, sweep]}))
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arrays = {}
    for row in rows:
        one = run([1] * right + [0] * (N - right), paths=[[1] * row["paths"]] * N).arrays
        arrays |= {f"{row['run_id']}.{key}": value for key, value in one.items()}
    np.savez(folder / "problems.npz", **arrays)


def test_a_page_follows_its_records(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    (docs / "study.md").write_text("<!-- links:begin -->\nkept\n<!-- links:end -->\n")
    other = {"run_id": "other", "paths": 1, "arness_corrected": 0.9}
    rows = twin_rows("nap-tiny", 3)
    write_packed(results / "study" / "full", "full", rows, right=30, outside=[rows[0] | other])
    write_packed(results / "study" / "twin", "twin", twin_rows("nap-tiny-cot", 1), right=20)
    where = ["--results", str(results), "--docs", str(docs)]
    assert study_page.main([*where, "--check"]) == 1
    assert study_page.main(where) == 0
    assert study_page.main([*where, "--check"]) == 0
    page = (docs / "study.md").read_text()
    assert "\nkept\n" in page
    assert "**NAP minus twin** (`parallel-forced`, 4 tokens a step): accuracy +0.250 [" in page
    assert "**Not run, and missing here:** mismatch, adapted, scaling." in page
    assert {file.name for file in (docs / "study").iterdir()} >= {"twins-accuracy.svg", "twins-arness.svg"}
    assert "| nap-tiny, parallel-forced | 0.100 |" in page  # not that of the run on another canvas, 0.900
    file = results / "study" / "twin" / "runs.jsonl"
    file.write_text(file.read_text().replace('"accuracy": 0.75', '"accuracy": 0.76'))
    assert study_page.main([*where, "--check"]) == 1


def test_seqdep_of_the_records() -> None:
    """The table of the committed SeqDep records says what they hold."""
    folder = ROOT / "benchmarks" / "results" / "study" / "seqdep"
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    section = sections.across({}, found)
    assert section is not None
    within = found["words"]["forms"]["within"]["seqdep"]
    value, low, high = (f"{within['per_token'][key]:.3f}" for key in ("value", "low", "high"))
    start = f"| words | within | {within['texts']} | {value} [{low}, {high}] |"
    assert [line for line in section.lines if line.startswith(start)]
    across = next(line for line in section.lines if line.startswith("| words | across |"))
    assert "| – |" in across  # of whole paths all orders are averaged: there is no shuffled control
