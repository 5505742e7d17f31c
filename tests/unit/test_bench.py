"""`nap bench`: what it refuses, floors by hand, what counts as slower; a whole run of toy weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.bench.history import compare_runs, entry, history_name, last_two, record
from nap_runtime.bench.report import cells, notes, plot
from nap_runtime.bench.roofline import Rates, floor_seconds, measured
from nap_runtime.bench.run import run_bench
from nap_runtime.bench.spec import BenchSpec
from nap_runtime.cli.app import main
from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.shapes import shape_config

TOY: dict[str, Any] = {
    "shape": "llada-tiny",
    "prompt_tokens": 6,
    "path_tokens": 8,
    "summary_tokens": 4,
    "paths": 2,
    "repeats": 1,
    "every": (2,),
}
OPTIONS = (
    *("--shape", "llada-tiny", "--prompt-tokens", "6", "--path-tokens", "8", "--summary-tokens", "4"),
    *("--paths", "2", "--repeats", "1"),
)


ENDINGS = [
    f"{batch}{storage}"
    for batch in ("", ", batch 3")
    for storage in ("", ", weights fp8", ", kv fp8", ", weights fp8, kv fp8")
]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """One run of everything that needs no group."""
    spec = BenchSpec(**TOY, batch_size=(1, 3), weights=("native", "fp8"), kv=("native", "fp8"))
    return run_bench(spec, command="nap bench (a test)")


def of(result: dict[str, Any], case: str) -> dict[str, Any]:
    (row,) = (row for row in result["rows"] if row["case"] == case)
    return dict(row)


def test_every_way_is_there_with_its_ids(result: dict[str, Any]) -> None:
    assert {row["case"] for row in result["rows"]} == {
        *(f"whole canvas{end}" for end in ENDINGS),
        *(f"paths' rows, none{end}" for end in ENDINGS),
        "plain whole canvas",
        "Fast-dLLM prefix cache",
        "Fast-dLLM dual cache",
        "LLaDA generate",
        "branches, 3",
        "views, kv, K = 2",
        "views, tokens, K = 2",
        "views, none",
    }
    for row in result["rows"]:
        assert row["ms_per_step"] > 0
        assert row["over_floor"] > 0
        assert (row["ids"] is None) == (row["case"] in ("whole canvas", "plain whole canvas"))
    assert of(result, "LLaDA generate")["ids"]["equal"] == 1.0
    for case in ("whole canvas, batch 3", "whole canvas, batch 3, weights fp8, kv fp8"):
        assert of(result, case)["ids"] == {
            "against": "each canvas alone",
            "equal": 1.0,
            "agrees": True,
            "must_agree": True,
            "canvases": 3,
        }


def test_figures_are_of_one_another(result: dict[str, Any]) -> None:
    whole, three = of(result, "whole canvas"), of(result, "whole canvas, batch 3")
    slots, steps = result["canvas"]["slots"], result["canvas"]["steps"]
    assert (slots, steps, result["canvas"]["positions"]) == (20, 5, 6 + 2 * 9 + 1 + 4)
    assert whole["tokens_per_second"] == pytest.approx(slots / (whole["ms_per_step"] * steps / 1e3))
    assert whole["rows_per_step"] == result["canvas"]["positions"]
    assert three["rows_per_step"] == 3 * whole["rows_per_step"]
    assert whole["speed"] == 1.0
    assert three["speed"] == pytest.approx(three["tokens_per_second"] / whole["tokens_per_second"])
    assert three["over_batch_1"] == pytest.approx(three["speed"])
    assert whole["over_batch_1"] is None
    own = of(result, "paths' rows, none")
    assert own["ids"]["against"] == "whole canvas"
    assert own["rows_per_step"] < whole["rows_per_step"]
    assert whole["over_floor"] == pytest.approx(whole["ms_per_step"] / whole["floor_ms"])
    rows = [of(result, f"views, {name}")["rows_per_step"] for name in ("none", "kv, K = 2", "tokens, K = 2")]
    assert rows[0] < min(rows[1:])
    json.dumps(result, allow_nan=False)


def test_a_case_that_fails_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of\n memory")

    monkeypatch.setattr("nap_runtime.bench.peers.llada", broken)
    saved: list[dict[str, Any]] = []
    spec = BenchSpec(**{**TOY, "repeats": 2}, methods=("ours", "llada"), sync=("exact",), batch_size=(1, 2))
    found = run_bench(spec, command="-", save=saved.append)
    assert found["failed"] == [{"case": "LLaDA generate", "error": "RuntimeError: out of memory"}]
    assert [row["case"] for row in found["rows"]] == ["whole canvas", "whole canvas, batch 2", "plain whole canvas"]
    first, last = saved
    assert of(first, "whole canvas, batch 2")["ids"] is None  # not yet
    assert of(last, "whole canvas, batch 2")["ids"]["agrees"]
    assert len(of(first, "whole canvas")["ms_per_step_all"]) == 1


def test_a_floor_by_hand() -> None:
    config, rates = shape_config("llada-tiny"), Rates(flops=1e6, bandwidth=1e6, source="by hand")
    d, f = config.d_model, config.d_ff
    layers = 2 * (4 * d * d + 3 * d * f + 2 * d) + d
    head = config.vocab_size * d
    assert floor_seconds(config, rows=1, rates=rates, itemsize=4) == pytest.approx(4 * (layers + head) / 1e6)
    assert floor_seconds(config, rows=9, rates=rates, itemsize=2) == pytest.approx(18 * (layers + head) / 1e6)
    packed = floor_seconds(config, rows=9, rates=rates, itemsize=2, fp8_weights=True)
    assert packed == pytest.approx(18 * (layers / 2 + head) / 1e6)
    found = measured(torch.device("cpu"), torch.float32)
    assert found.source == "measured"
    assert found.best(Rates(flops=1e30, bandwidth=1.0, source="x")).flops == 1e30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods: it is empty"),
        ({"methods": ("ours", "mine")}, "methods: unknown value 'mine'"),
        ({"sync": ("kv", "kv")}, "sync: a value stands twice"),
        ({"every": (0,)}, "every: 0"),
        ({"workers": (1, 4)}, "workers: 4 workers for 2 paths"),
        ({"tokens_per_step": 0}, "tokens_per_step: 0 is not above 0"),
        ({"weights": ("int4",)}, "weights: unknown value 'int4'"),
        ({"compile": ("fast",)}, "compile: unknown value 'fast'"),
        ({"device": "tpu"}, "device: unknown value 'tpu'"),
    ],
)
def test_a_spec_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchSpec(**{**TOY, **changes})


def slower(result: dict[str, Any], case: str, **ratios: float) -> dict[str, Any]:
    """The run as a history's line, with some ratios of a case multiplied."""
    changed = entry(json.loads(json.dumps(result)))
    for name, factor in ratios.items():
        changed["ratios"][case][name] *= factor
    return changed


def test_what_counts_as_slower(result: dict[str, Any]) -> None:
    before, case = entry(result), "views, none"

    def worse(**ratios: float) -> list[str]:
        changes = compare_runs(before, slower(result, case, **ratios), allowed=0.1)
        assert len(changes) == len(result["rows"])
        return [change.case for change in changes if change.worse]

    assert worse() == worse(speed=0.95) == worse(speed=2.0) == worse(over_floor=1.05) == []
    assert worse(speed=0.85) == worse(over_floor=1.2) == [case]


def test_runs_of_other_devices_or_canvases_are_not_compared(result: dict[str, Any]) -> None:
    before, after = entry(result), entry(result)
    after["device_name"] = "another"
    with pytest.raises(UsageError, match="the runs differ in device_name"):
        compare_runs(before, after, allowed=0.1)
    after = json.loads(json.dumps(before))
    after["key"]["path_tokens"] = 9
    with pytest.raises(UsageError, match="the runs differ in key"):
        compare_runs(json.loads(json.dumps(before)), after, allowed=0.1)


def test_a_history_holds_ratios_and_no_milliseconds(result: dict[str, Any], tmp_path: Path) -> None:
    file = record(result, tmp_path)
    assert file.name == history_name(result)
    assert file.name.endswith("-llada-tiny-float32.jsonl")
    with pytest.raises(UsageError, match="has one run"):
        last_two([file])
    record(result, tmp_path)
    before, after = last_two([file])
    assert before == after == entry(result)
    assert "ms_per_step" not in file.read_text()
    for text in ("", "{}\n", '{"schema": "nap.bench.history/1", "ratios": 3}\n', "nonsense\n"):
        file.write_text(text)
        with pytest.raises(DataError):
            last_two([file])


def test_what_is_printed_names_its_run(result: dict[str, Any], tmp_path: Path) -> None:
    text = notes(result)
    env = result["environment"]
    for named in (env["device_name"], env["commit"], "nap bench (a test)", "random weights of llada-tiny", "float32"):
        assert str(named) in text
    assert ("BUSY" in text) == (env["load"] > 1.5 * env["cpus"])
    assert "BUSY: a load of 99 on 2 cores" in notes({**result, "environment": {**env, "load": 99.0, "cpus": 2}})
    row = of(result, "whole canvas, batch 3")
    assert cells(row)[-2:] == ("100.0% agrees", "each canvas alone")
    row["ids"] |= {"agrees": False}
    assert cells(row)[-2] == "100.0% DIFFERS"
    pytest.importorskip("matplotlib")
    plot(result, tmp_path / "a" / "bars.svg")
    drawn = (tmp_path / "a" / "bars.svg").read_text()
    assert "<svg" in drawn
    with pytest.raises(UsageError, match="use an ending of png"):
        plot(result, tmp_path / "bars.txt")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, more = tmp_path / "run.json", ["--methods", "ours,llada", "--seed", "2"]
    assert main(["bench", *OPTIONS, *more, "--out", str(out), "--record", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "LLaDA generate" in shown
    assert "nap bench --shape llada-tiny" in shown
    run = json.loads(out.read_text())
    assert run["schema"] == "nap.bench/1"
    assert run["command"].split() == ["nap", "bench", *OPTIONS, *more]
    assert main(["bench", *OPTIONS, *more, "--json", "--record", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == run["key"]
    (history,) = tmp_path.glob("*.jsonl")
    assert main(["bench", "--compare", str(history), "--allow", "1000"]) == 0
    assert "speed before, now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "llada-tiny", "--model", "nap-tiny"], "--shape: --model has weights of its own"),
        (["--prompt-tokens", "5"], "--prompt-tokens: only --shape uses it"),
        (["--allow", "0.2"], "--allow: only --compare uses it"),
        (["--compare", "a.jsonl", "--repeats", "3"], "--repeats: --compare measures nothing"),
        (["--compare", "nowhere.jsonl"], "--compare: nowhere.jsonl: No such file"),
        (["--shape", "gpt-9"], "model shape 'gpt-9' is unknown"),
        (["--methods", "mine"], "--methods: unknown value 'mine'"),
        (["--batch-size", "0"], "--batch-size: 0"),
        (["--compile", "fast"], "--compile: unknown value 'fast'"),
        (["--out", "."], "--out: . is a folder; give a file"),
        (["--device", "cuda"], "--device: torch sees no CUDA device; use cpu"),
    ],
)
def test_the_command_refuses(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
