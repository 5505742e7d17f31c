"""`nap study` as a user meets it: rows, a kill and what comes after, the report in a browser, one-line errors."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime import DecodeConfig, decode
from nap_runtime.cli import main
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.errors import WorkerError
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_runtime.storage import Storage
from nap_runtime.study import plots
from nap_runtime.study.measures import METRICS
from nap_trainer.words import vocabulary

PAPER = Path(__file__).resolve().parents[2] / "examples" / "studies" / "paper.yaml"
STUDY = """
study: small
title: A small <study>
set: {{n: 3}}
problems: {{set: words, n: "${{n}}", seed: 2}}
base: {{model: {model}, workers: 3, simulate: true, batch_size: 2, tokens_per_step: 6}}
sweeps:
  - name: every
    x: sync.every
    by: [sync.mode]
    metrics: [accuracy, arness, staleness_mean, bytes_per_token, seconds]
    grid: {{sync.mode: [kv, tokens], sync.every: [1, 3]}}
  - name: rules
    metrics: [accuracy, arness, seconds]
    grid: {{rule: [confidence, random], tokens_per_step: [6, 10]}}
    cases: [{{workers: 1, simulate: null}}]
  - name: again
    cases: [{{sync.mode: kv, sync.every: 3}}, {{sync.mode: none}}]
"""


Nap = Callable[..., Any]


def make_small(folder: Path, seed: int = 1) -> Path:
    """A model with random weights that knows the words of word problems."""
    make_model_dir("nap-tiny", folder, seed=seed, dtype=torch.float32, scale=3.0, n_layers=2, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), folder)
    (folder / "decode.json").write_text(json.dumps({"paths": 3, "path_tokens": 8, "summary_tokens": 6}))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "s.yaml").write_text(STUDY.format(model=make_small(folder / "model")))
    return folder / "s.yaml"


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run without disturbance."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["study", "run", str(file), "--out", str(out)]) == 0
    return out


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def but_times(row: dict[str, Any]) -> dict[str, Any]:
    timed = re.compile(r"seconds|started|tokens_per_second|threads|commit")
    kept = {key: value for key, value in row.items() if not timed.search(key)}
    return kept | ({"measures": but_times(row["measures"])} if "measures" in row else {})


# --- what it writes ---


def test_one_row_a_run_with_every_metric(whole: Path) -> None:
    rows = lines(whole / "runs.jsonl")
    assert len(rows) == len({row["run_id"] for row in rows}) == 9  # kv with K = 3 is in two sweeps, and is one run
    for row in rows:
        assert set(METRICS) <= set(row)
        assert {"commit", "python", "torch", "device_name", "cpus", "model", "fingerprint", "sync_mode"} <= set(row)
        assert row["n"] == 3
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    simulated = [row for row in rows if row["execution"] == "simulated"]
    assert {row["seconds"] for row in simulated} == {None}  # threads on one device give no times
    assert {row["bytes_from"] for row in simulated} == {"simulated"}
    assert all(row["seconds"] > 0 for row in rows if row["execution"] == "inline")
    kv = {row["sync_every"]: row for row in rows if row["sync_mode"] == "kv"}
    assert (kv[1]["staleness_mean"], kv[1]["staleness_max"]) == (1.0, 1.0)
    assert kv[3]["staleness_mean"] > 1
    assert kv[1]["bytes_per_token"] > kv[3]["bytes_per_token"] > 0


def test_tables(whole: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with (whole / "runs.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    table = parquet.read_table(whole / "runs.parquet").to_pylist()
    assert len(rows) == len(table) == 9
    assert list(rows[0]) == list(table[0])
    assert sorted(row["sweeps"] for row in table)[0] == "again"
    assert [row["sweeps"] for row in table if row["sync_mode"] == "kv" and row["sync_every"] == 3] == ["every;again"]
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in table]


def test_problems_and_traces(whole: Path) -> None:
    for row in lines(whole / "runs.jsonl"):
        problems = lines(whole / "problems" / f"{row['run_id']}.jsonl")
        assert sorted(problem["index"] for problem in problems) == [0, 1, 2]
        mean = sum(problem["measures"]["nfe_steps"] for problem in problems) / 3
        assert row["nfe_steps"] == pytest.approx(mean)
        record = DecodeRecord.from_bytes((whole / "traces" / f"{row['run_id']}.nap").read_bytes())
        assert record.config["rule"] == row["rule"]


# --- stopped and taken up ---


def test_a_killed_study_repeats_and_loses_nothing(nap: Nap, file: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nap_runtime.cli", "study", "run", str(file), "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        if (out / "runs.jsonl").exists() and (out / "runs.jsonl").read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait(30)
    before = {p: p.read_bytes() for p in (out / "problems").iterdir()}
    assert 2 <= len(lines(out / "runs.jsonl")) < 9
    with (out / "runs.jsonl").open("ab") as stream:
        stream.write(b'{"run_id": "half')
    ran = nap("study", "run", file, "--out", out)
    assert (ran.code, "finished already" in ran.err) == (0, True)
    for path, content in before.items():  # nothing that was whole is written again
        assert path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])
    assert list(map(but_times, lines(out / "runs.jsonl"))) == list(map(but_times, lines(whole / "runs.jsonl")))
    for path in (whole / "problems").iterdir():
        assert list(map(but_times, lines(out / "problems" / path.name))) == list(map(but_times, lines(path)))


def test_a_second_time_nothing_is_decoded(nap: Nap, file: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coordinator, "decode", lambda *args, **kwargs: pytest.fail("it decodes again"))
    rows = (whole / "runs.jsonl").read_bytes()
    assert nap("study", "run", file, "--out", whole, "--no-report").code == 0
    assert (whole / "runs.jsonl").read_bytes() == rows


def test_tables_are_in_the_order_of_the_study_however_runs_ended(
    nap: Nap, file: Path, whole: Path, tmp_path: Path
) -> None:
    """As after several processes, or a run that failed at first."""
    shutil.copytree(whole, tmp_path / "out")
    rows = (whole / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "runs.jsonl").write_bytes(b"".join(reversed(rows)))
    assert nap("study", "run", file, "--out", tmp_path / "out", "--no-report").code == 0
    assert (tmp_path / "out" / "runs.csv").read_bytes() == (whole / "runs.csv").read_bytes()


def test_more_problems_are_other_runs(nap: Nap, file: Path, tmp_path: Path) -> None:
    assert "9 runs, 27 decodes" in nap("study", "run", file, "--out", tmp_path / "x", "--dry-run").out
    assert "9 runs, 45 decodes" in nap("study", "run", file, "--out", tmp_path / "x", "--dry-run", "--set", "n=5").out
    assert not (tmp_path / "x").exists()


def test_a_run_that_fails_leaves_the_others(
    nap: Nap, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Coordinator.decode

    def decode(self: Coordinator, jobs: Any, config: Any, **options: Any) -> Any:
        if config.sync.mode == "tokens":
            raise WorkerError("a worker died")
        return real(self, jobs, config, **options)

    monkeypatch.setattr(Coordinator, "decode", decode)
    ran = nap("study", "run", file, "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err.count("failed: a worker died") == 2
    assert len(lines(tmp_path / "out" / "runs.jsonl")) == 7
    assert "2 runs are not finished" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.undo()
    assert nap("study", "run", file, "--out", tmp_path / "out").code == 0
    assert len(lines(tmp_path / "out" / "runs.jsonl")) == 9


# --- the report ---


def test_the_report_stands_alone(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "A small &lt;study&gt;" in page
    assert not re.search(r"<script|\bsrc\s*=|@import", page)
    assert not re.findall(r"href=\"(?!#)", page)
    assert (
        page.count("<figure")
        == len(list((whole / "figures").glob("*.svg")))
        == len(list((whole / "figures").glob("*.png")))
    )
    for name in ("order", "every-accuracy", "every-staleness_mean", "rules-accuracy", "all-accuracy-bytes_per_token"):
        assert (whole / "figures" / f"{name}.svg").is_file(), name
    assert not (whole / "figures" / "every-seconds.svg").exists()  # simulated workers have no times
    assert (whole / "figures" / "rules-seconds.svg").exists()


def test_aup_of_a_sweep_by_hand() -> None:
    """Two curves against one best accuracy; a point more than 5 below its first is dropped."""
    sweep = {"x": "tokens_per_step", "by": ["rule"], "metrics": ["accuracy"]}
    rows = [
        {"rule": rule, "tokens_per_step": tps, "tpf": float(tps), "accuracy": accuracy}
        for rule, tps, accuracy in (("a", 1, 0.8), ("a", 2, 0.8), ("b", 1, 0.6), ("b", 2, 0.5), ("c", 1, 0.7))
    ]
    found = plots.aup_of_sweep(sweep, rows, ["rule"])
    assert set(found) == {"a", "b"}  # one point is no curve
    assert found["a"].value == pytest.approx(1 * 80 + 0.5 * 1 * (80 + 80))
    assert found["b"].value == pytest.approx(60)
    assert found["b"].dropped == ((2.0, 50.0),)
    assert plots.aup_of_sweep({**sweep, "x": "sync.every"}, rows, ["rule"]) == {}


def test_the_report_in_a_browser(whole: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium; Debian's package has it")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--window-size=1200,1600",
    ]
    url = (whole / "report.html").resolve().as_uri()
    dumped = subprocess.run(
        [chromium, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True
    )
    assert dumped.stdout.count("<svg") == len(list((whole / "figures").glob("*.svg")))
    picture = tmp_path / "report.png"
    subprocess.run([chromium, *flags, f"--screenshot={picture}", url], capture_output=True, timeout=120, check=True)
    image = pytest.importorskip("matplotlib.image").imread(picture)
    assert image.shape[0] == 1600
    assert (image[..., :3].min(-1) < 0.5).mean() > 0.005  # text and curves, not a white page


def test_report_again(nap: Nap, whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    for name in ("report.html", "runs.csv", "runs.parquet"):
        (copy / name).unlink()
    assert nap("study", "report", copy).out == f"{copy / 'report.html'}\n"
    assert (copy / "runs.csv").read_bytes() == (whole / "runs.csv").read_bytes()
    trace = next((copy / "traces").iterdir())
    trace.write_bytes(trace.read_bytes()[:50])  # a trace that was cut short costs its picture only
    assert nap("study", "report", copy).code == 0


def test_errors_are_one_line(nap: Nap, file: Path, tmp_path: Path) -> None:
    def refused(text: str, code: int, *parts: str) -> None:
        (tmp_path / "s.yaml").write_text(text)
        ran = nap("study", "run", tmp_path / "s.yaml", "--out", tmp_path / "out")
        assert ran.code == code
        assert ran.err.count("\n") == 1, ran.err
        for part in parts:
            assert part in ran.err

    good = file.read_text()
    refused(good.replace("grid:", "gird:", 1), 2, "sweep 1: gird: unknown key; known are")
    refused(good.replace("staleness_mean", "stale", 1), 2, "sweep every: unknown metric 'stale'")
    refused(good.replace("set: words", "set: gsm8k"), 2, "sweep every: data: give the file (JSONL or parquet)")
    refused(good.replace("set: words", "set: gsm8k, data: none.jsonl"), 2, "data: none.jsonl: no such file")
    refused(good.replace("workers: 3", "workers: 4"), 2, "sweep every: workers: 4 workers for 3 paths")
    refused(good.replace("tokens_per_step: 6", "tokens_per_step: 0"), 2, "tokens_per_step: 0 is not an integer")
    refused(re.sub("model: [^,]+,", "model: no/where,", good), 2, "sweep every: model 'no/where' is no folder")
    assert "no study.json" in nap("study", "report", tmp_path).err
    assert nap("study", "run", file).err.count("--out") == 1


@pytest.mark.soak
def test_quick_ends_within_five_minutes(tmp_path: Path) -> None:
    """The ready-made study as its page says it, on a machine that does nothing else."""
    quick = PAPER.with_name("quick.yaml")
    command = [sys.executable, "-m", "nap_runtime.cli", "study", "run", str(quick), "--out", str(tmp_path / "quick")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=env, check=True, timeout=300)
    page = (tmp_path / "quick" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") > 15
    assert "AUP" in page


# --- the paper's tables ---


def test_the_papers_tables_on_tiny_shapes(nap: Nap, tmp_path: Path) -> None:
    given: list[object] = []
    for seed, name in enumerate(("llada", "dream", "llada_cot", "dream_cot", "llada_nap", "dream_nap")):
        given += ["--set", f"{name}={make_small(tmp_path / name, seed)}"]
    sets = {
        "gsm8k": {"question": "A shirt costs 5.", "answer": "#### 5"},
        "math500": {"problem": "A shirt costs 5.", "answer": "5"},
        "gpqa": {"Question": "A shirt?", "Correct Answer": "5", **{f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)}},
    }
    for name, row in sets.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        given += ["--set", f"{name}={tmp_path / name}"]
    small = {"n": 1, "dtype": "float32", "gen_length": 24, "block_length": 8, "path_tokens_1": 18, "path_tokens_2": 9,
             "path_tokens_3": 6, "summary_tokens": 6, "batch_size": 1}  # fmt: skip
    for key, value in small.items():
        given += ["--set", f"{key}={value}"]
    ran = nap("study", "run", PAPER, "--out", tmp_path / "out", *given)
    assert ran.code == 0, ran.err
    page = (tmp_path / "out" / "report.html").read_text()
    for table in (1, 2, 3, 4, 5):
        assert f"Table {table}" in page
    rows = lines(tmp_path / "out" / "runs.jsonl")
    by_label = {row["label"]: row for row in rows}
    assert by_label["LLaDA AR order"]["arness"] in (None, 1.0)
    assert by_label["LLaDA Fast-dLLM"]["cache"] == "dual"
    widths = {row["paths"]: row["tokens_per_step"] * row["steps"] for row in rows if row["label"] is None}
    assert widths == {1: 24, 2: 24, 3: 24}  # one total budget


NUMBERS = """
study: numbers
problems: {{set: words, n: 2, seed: 2}}
base: {{model: {model}, tokens_per_step: 6}}
sweeps:
  - name: numbers
    by: [weights, kv]
    metrics: [accuracy]
    grid: {{weights: [native, fp8], kv: [native, fp8]}}
  - name: unnamed
    cases: [{{}}]
"""


def test_numbers_of_weights_and_keys_are_studied(file: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "numbers.yaml", tmp_path / "out"
    study.write_text(NUMBERS.format(model=file.parent / "model"))
    assert main(["study", "run", str(study), "--out", str(out)]) == 0
    rows = {(row["weights"], row["kv"]): row for row in map(json.loads, (out / "runs.jsonl").read_text().splitlines())}
    assert len(rows) == 4  # the unnamed one is native's
    plain = rows["native", "native"]["fingerprint"]
    assert rows["fp8", "fp8"]["fingerprint"] == f"{plain}+weights-fp8+kv-fp8"
    for (weights, kv), row in rows.items():
        record = DecodeRecord.from_bytes((out / "traces" / f"{row['run_id']}.nap").read_bytes())
        problem = json.loads((out / "problems" / f"{row['run_id']}.jsonl").read_text().splitlines()[0])
        config = DecodeConfig.from_mapping(record.config)
        storage = Storage(weights=weights, kv=kv)
        alone = decode(problem["question"], config, model=file.parent / "model", storage=storage)
        assert record.final_ids.tolist() == alone.record.final_ids.tolist()
        assert record.model == alone.record.model
    assert main(["study", "report", str(out)]) == 0
    assert "fp8" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("{weights: int4}", "weights: unknown value 'int4'"),
        ("{kv: fp4}", "kv: unknown value 'fp4'"),
        ("{weights: fp8, workers: 3, device: cuda, address: 'ray:6379'}", "weights: 'fp8' on a GPU gives bfloat16"),
    ],
)
def test_numbers_that_cannot_be_held(base: str, message: str, tmp_path: Path, nap: Nap) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(f"problems: {{set: words, n: 1}}\nbase: {base}\nsweeps: [{{name: a, cases: [{{}}]}}]\n")
    code, _, err = nap("study", "run", study, "--out", tmp_path / "out", "--dry-run")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
