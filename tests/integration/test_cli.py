"""The command line as a user meets it: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.cli import main
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.errors import DecodeError
from nap_runtime.executor.coordinator import Coordinator, JobFailure
from nap_runtime.job import DecodeJob
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_trainer.words import vocabulary

KEYS = [
    *("schema", "index", "id", "answer", "answer_source", "summary", "paths", "tokens", "layout", "order"),
    *(
        "config",
        "steps",
        "nfe",
        "tpf",
        "arness",
        "sync",
        "seconds",
        "workers",
        "seed",
        "unknown_words",
        "commit",
    ),
]
QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


Nap = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights that knows the words of word problems."""
    folder = tmp_path_factory.mktemp("models") / "small"
    make_model_dir("nap-tiny", folder, seed=1, dtype=torch.float32, scale=3.0, n_layers=2, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), folder)
    defaults = {"paths": 3, "path_tokens": 8, "summary_tokens": 6, "eos_weight": 0.0}
    (folder / "decode.json").write_text(json.dumps(defaults))
    return folder


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Two good lines, and one of each kind of bad line between them."""
    file = tmp_path / "batch.jsonl"
    lines = [
        {"question": "What is 3 + 4?", "id": "first", "gold": 7},
        "not json",
        "",
        {"prompt": "What?"},
        {"question": "  "},
        ["a list"],
        {"question": "Why " * 2000},
        {"question": "What is 3 + 5?", "answer": "8", "family": "ignored"},
    ]
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def one_line(ran: Any, code: int, *parts: str) -> None:
    """Nothing on stdout, one line on stderr that names the command and what is wrong."""
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.err.startswith("nap")
    for part in parts:
        assert part in ran.err


# --- start ---


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from nap_runtime.cli import main; main(['decode', '--help']);"
        "heavy = {'torch', 'numpy', 'ray', 'transformers', 'rich', 'yaml', 'importlib.metadata'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_a_fraction_of_a_second() -> None:
    """In CPU seconds, the least of five: what it takes on a machine that does nothing else."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "nap_runtime.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3


def test_version(nap: Nap) -> None:
    assert nap("--version").out.startswith("nap ")


def test_ctrl_c_is_130_and_one_line(model: Path, tmp_path: Path) -> None:
    """Interrupted where the first of many results is out, so in the middle of the decode."""
    file = tmp_path / "many.jsonl"
    file.write_text((json.dumps({"question": QUESTION}) + "\n") * 1000)
    command = [sys.executable, "-m", "nap_runtime.cli", "decode", "--model", str(model), "--file", str(file)]
    command += ["--workers", "3", "--simulate", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "nap decode: interrupted\n")


# --- usage errors ---


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["decode", ""], ["PROMPT", "empty"]),
        (["decode", "  \n"], ["PROMPT", "empty"]),
        (["decode", "What\udcff?"], ["PROMPT", "not valid Unicode"]),
        (["decode", "--model", "", "What?"], ["--model", "empty"]),
        (["decode", "--trace", "/proc/no/t.nap", "What?"], ["--trace", "/proc/no", "No such file"]),
        (["decode", "--trace", "/", "What?"], ["--trace", "is a folder"]),
        (["decode", "--workers", "5", "--paths", "3"], ["--workers", "at most 3"]),
        (["decode", "--paths", "7"], ["--paths", "6"]),
        (["decode", "--rule", "magic"], ["--rule", "'magic'", "parallel-forced"]),
        (["decode", "--rule", "threshold", "--steps", "4"], ["--steps", "rule 'threshold' does not use it"]),
        (["decode", "--sync", "kv", "--every", "0"], ["--every: 0 is not an integer of at least 1"]),
        (["decode", "--every", "4"], ["--every", "'exact'"]),
        (["decode", "--every", "four"], ["--every", "'four' is not an integer"]),
        (["decode", "--sync", "sometimes"], ["--sync", "'sometimes'"]),
        (["decode", "--sync", "none", "--overlap"], ["--overlap", "sync 'none' does not use it"]),
        (["decode", "--cfg", "-2"], ["--cfg", "-2"]),
        (["decode", "--threshold", "0.9"], ["--threshold", "'parallel-forced' does not use it"]),
        (["decode", "--rule", "threshold", "--threshold", "1.2"], ["--threshold", "no probability"]),
        (["decode", "--rule", "threshold", "--factor", "2"], ["--factor", "'threshold' does not use it"]),
        (["decode", "--sync", "none", "--summary", "live"], ["--summary", "sync 'none' has none"]),
        (["decode", "--summary", "consensus"], ["--summary", "exact"]),
        (["decode", "--top", "4"], ["--top", "consensus"]),
        (["decode", "--cache", "dual"], ["--cache", "layout 'plain'"]),
        (["decode", "--cache-every", "4"], ["--cache-every", "dkv"]),
        (["decode", "--cache", "closed"], ["--cache", "sync 'exact' has one at every step", "or 'none'"]),
        (["decode", "--rule", "p2", "--rule-arg", "eta=much"], ["--rule-arg", "eta", "'much'"]),
        (["decode", "--gen-length", "9"], ["--gen-length", "'nap'"]),
        (["decode", "--block-length", "9"], ["--block-length", "parallel-forced"]),
        (["decode", "--rule-arg", "schedule"], ["--rule-arg", "KEY=VALUE"]),
        (["decode", "--rule-arg", "a=b"], ["--rule-arg", "'a'"]),
        (["decode", "--paths", "3", "--path-tokens", "3,4"], ["--path-tokens", "2 budgets for 3 paths"]),
        (["decode", "--temperature", "nan"], ["--temperature"]),
        (["decode", "--dtype", "int8"], ["--dtype", "'int8'"]),
        (["decode", "--simulate"], ["--simulate", "--workers"]),
        (["decode", "--address", "here:1"], ["--address", "--workers"]),
        (["decode", "--gold", "4"], ["--gold"]),
        (["decode", "--file", "none.jsonl"], ["--file", "none.jsonl", "No such file"]),
        (["decode", "--file", "none.jsonl", "What?"], ["--file", "not both"]),
        (["decode", "--config", "none.yaml"], ["--config", "none.yaml"]),
        (["decode", "--model", "/no/such/model", "What?"], ["--model", "/no/such/model"]),
        (["decode", "--evry", "4"], ["--evry", "unknown option", "did you mean --every?"]),
        (["decode", "--ever", "4"], ["--ever", "unknown option"]),
        (["decode", "What", "now?"], ["now?", "quote"]),
        (["decode", "--workers"], ["--workers"]),
        (["decod"], ["decod", "unknown command", "did you mean decode?"]),
        ([], ["command is missing"]),
        (["trace"], ["command is missing", "verify"]),
        (["trace", "verify"], ["FILE"]),
        (["model", "make", "--out", "x"], ["--shape"]),
        (["model", "make", "--shape", "huge", "--out", "/tmp/none"], ["--shape", "huge"]),
        (["data", "make", "words", "--split", "dev", "--out", "/tmp/none"], ["--split"]),
        (["data", "make", "words", "--n", "0", "--out", "/tmp/none"], ["--n", "0"]),
        (["eval", "words", "--n", "many"], ["--n", "many"]),
    ],
)
def test_wrong_usage_is_one_line_and_2(nap: Nap, argv: list[str], parts: list[str]) -> None:
    one_line(nap(*argv), 2, *parts)


def test_what_only_the_model_can_tell_is_usage_too(nap: Nap, model: Path) -> None:
    long = nap("decode", "--model", model, "shirt " * 2000)
    one_line(long, 2, "PROMPT", "the model's context is 1024")
    one_line(nap("decode", "--model", model, "--steps", 31, QUESTION), 2, "--steps", "30 slots")
    one_line(nap("decode", "--model", model, "--path-tokens", 999, QUESTION), 2, "--path-tokens", "1024")
    one_line(nap("decode", "--model", model, "--path-tokens", "9,9,99999", QUESTION), 2, "--path-tokens", "1024")
    one_line(nap("decode", "--model", model, "--summary-tokens", 1024, QUESTION), 2, "--summary-tokens", "1024")
    for length in (1024, 100_000):
        plain = ["--layout", "plain", "--gen-length", length]
        one_line(nap("decode", "--model", model, *plain, QUESTION), 2, "--gen-length", "1024")
    one_line(nap("decode", "--model", model, "why " * 70_000), 2, "PROMPT", "1024")
    one_line(nap("decode", "--model", model, "--workers", 4, QUESTION), 2, "--workers", "at most 3")
    one_line(nap("decode", "--model", model, "--batch-size", 2, QUESTION), 2, "--batch-size", "--file")
    if not torch.cuda.is_available():
        one_line(nap("decode", "--model", model, "--device", "cuda", QUESTION), 2, "--device")


def test_a_damaged_model_is_usage(nap: Nap, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    one_line(nap("decode", "--model", folder, QUESTION), 2, "--model", "model.safetensors", "truncated")
    (folder / "config.json").unlink()
    one_line(nap("decode", "--model", folder, QUESTION), 2, "--model", "config.json")
    one_line(nap("model", "info", folder), 2, "config.json")
    one_line(nap("model", "info", tmp_path / "none"), 2, "none")


def test_an_unforeseen_error_is_one_line(nap: Nap, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by\nnought")

    monkeypatch.setattr("nap_runtime.cli.jobs.pick_held_out", broken)
    one_line(nap("decode"), 1, "ZeroDivisionError: by nought")


# --- one prompt ---


def test_json_has_the_contract_keys(nap: Nap, model: Path) -> None:
    ran = nap(
        "decode",
        "--model",
        model,
        "--workers",
        3,
        "--simulate",
        "--sync",
        "kv",
        "--every",
        4,
        "--json",
        QUESTION,
    )
    assert (ran.code, ran.err) == (0, "")
    (values,) = ran.objects
    assert list(values) == KEYS
    assert values["schema"] == "nap.decode/1"
    assert [worker["worker"] for worker in values["workers"]] == [0, 1, 2]
    assert set(values["workers"][0]) == {"worker", "process", "host", "device"}
    assert values["config"]["sync"] | {"mode": "kv", "every": 4, "topology": "full"} == values["config"]["sync"]
    assert len(values["paths"]) == 3
    assert values["steps"] == 30
    assert {worker for _, worker, *_ in values["order"]} == {0, 1, 2}
    for _, _, position, token, _ in values["order"]:
        assert values["tokens"][position] == token


NEW_WAYS = [
    ["--rule", "threshold", "--threshold", "0.3", "--scope", "path", "--sync", "kv", "--workers", "3", "--simulate"],
    ["--rule", "p2", "--rule-arg", "eta=2", "--steps", "12"],
    ["--layout", "plain", "--gen-length", "20", "--rule", "prophet", "--rule-arg", "answer=10:20", "--cfg", "1"],
    ["--layout", "plain", "--gen-length", "20", "--rule", "factor", "--block-length", "8", "--cache", "dual"],
    ["--layout", "plain", "--gen-length", "20", "--cache", "dkv", "--cache-every", "5", "--steps", "10"],
    ["--sync", "kv", "--every", "3", "--overlap", "--summary", "consensus", "--workers", "2", "--simulate"],
    ["--sync", "tokens", "--every", "3", "--summary", "live", "--settle", "2", "--workers", "3", "--simulate"],
]


@pytest.mark.parametrize("options", NEW_WAYS, ids=" ".join)
def test_traces_of_every_way_are_verified_decoded_again_and_measured(
    nap: Nap, model: Path, tmp_path: Path, options: list[str]
) -> None:
    trace = tmp_path / "t.nap"
    ran = nap("decode", "--model", model, *options, "--trace", trace, "--json", QUESTION)
    assert (ran.code, ran.err) == (0, "")
    (values,) = ran.objects
    again = nap("trace", "verify", trace, "--model", model)
    assert (again.code, again.err) == (0, "")
    assert "identical" in again.out
    assert values["arness"]["all"]["tokens"] == len(values["order"])
    assert nap("metrics", trace).code == 0
    assert nap("trace", "show", trace).code == 0
    order = tmp_path / "order.json"
    order.write_text(nap("trace", "export", trace, "--format", "order").out)
    assert nap("metrics", order).code == 0
    assert ("live" in values) == ("live" in options)
    for at in values.get("live", []):
        assert set(at) == {"step", "answer", "summary"}


def test_json_ids_do_not_depend_on_reports(nap: Nap, model: Path) -> None:
    often, seldom = (nap("decode", "--model", model, "--report-every", r, "--json", QUESTION) for r in (1, 50))
    assert often.objects[0]["tokens"] == seldom.objects[0]["tokens"]


def test_gold_adds_two_keys(nap: Nap, model: Path) -> None:
    (values,) = nap("decode", "--model", model, "--json", "--gold", "40", QUESTION).objects
    assert list(values) == [*KEYS, "gold", "correct"]
    assert (values["gold"], values["correct"]) == ("40", values["answer"] == "40")


def test_no_prompt_decodes_a_held_out_problem(nap: Nap, model: Path) -> None:
    ran = nap("decode", "--model", model)
    assert (ran.code, ran.err) == (0, "")
    assert QUESTION in ran.out
    assert "held-out problem 1 of 20" in ran.out
    for name in ("path 1", "path 3", "summary", "answer", "right answer is 40", "network", "ARness", "time"):
        assert name in ran.out
    assert "held-out problem 2 of 20" in nap("decode", "--model", model, "--seed", 21).out


def test_unknown_words_are_named(nap: Nap, model: Path) -> None:
    ran = nap("decode", "--model", model, "How many zebras sing?")
    assert ran.code == 0
    assert "has never seen: zebras, sing" in ran.err
    many = nap("decode", "--model", model, f"{'z' * 500} {' '.join(f'zebra{sign * 5}' for sign in 'abcdefghijkl')}")
    assert f"seen: {'z' * 40}…, zebraaaaaa" in many.err
    assert "zebraiiiii and 3 more\n" in many.err
    assert nap("decode", "--model", model, "--json", "How many zebras sing?").objects[0]["unknown_words"] == [
        "zebras",
        "sing",
    ]


def test_a_model_without_a_tokenizer_prints_ids(nap: Nap, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    assert nap("model", "make", "--shape", "dream-tiny", "--out", folder).code == 0
    ran = nap("decode", "--model", folder, "--path-tokens", "4,5,6", "--summary-tokens", 4, "hello")
    assert ran.code == 0
    assert "[worker 0] [" in ran.out
    one_line(nap("decode", "--model", folder, "--headers", "text", "hello"), 2, "--headers", "tokenizer")


def test_plain_layout(nap: Nap, model: Path) -> None:
    argv = [
        "--layout",
        "plain",
        "--gen-length",
        16,
        "--rule",
        "blockwise",
        "--block-length",
        8,
        "--json",
        QUESTION,
    ]
    (values,) = nap("decode", "--model", model, *argv).objects
    assert values["layout"]["kind"] == "plain"
    first = values["layout"]["prompt_tokens"]
    assert {place for _, _, place, *_ in values["order"][:8]} == set(range(first, first + 8))


def test_a_terminal_shows_the_canvas(nap: Nap, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    ran = nap("decode", "--model", model, "--workers", 3, "--simulate", "--sync", "kv", "--every", 4)
    assert ran.code == 0
    for part in ("path 3 · worker 2", "k kv", "G gather", "answer", "ARness"):
        assert part in ran.out


# --- print-config and config ---


def test_print_config_round_trips(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    argv = [
        "--workers",
        2,
        "--simulate",
        "--sync",
        "tokens",
        "--every",
        3,
        "--path-tokens",
        "5,6,7",
        "--gold",
        "4",
    ]
    printed = nap("decode", "--model", model, *argv, "--print-config", QUESTION)
    assert printed.code == 0
    file.write_text(printed.out)
    assert nap("decode", "--config", file, "--print-config").out == printed.out
    by_options = nap("decode", "--model", model, *argv, "--json", QUESTION).objects[0]
    by_file = nap("decode", "--config", file, "--json").objects[0]
    assert by_file["tokens"] == by_options["tokens"]
    assert by_file["config"] == by_options["config"]
    assert by_file["gold"] == "4"


def test_options_win_over_the_file(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"model: {model}\nsteps: 10\nsync: {{mode: kv, every: 2}}\n")
    values = nap("decode", "--config", file, "--every", 5, "--json", QUESTION).objects[0]["config"]
    assert (values["steps"], values["sync"]["mode"], values["sync"]["every"]) == (10, "kv", 5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("evry: 3", "evry: unknown key"),
        ("sync: {evry: 3}", "evry"),
        ("sync: {mode: kv, every: 0}", "every: 0 is not an integer"),
        ("sync: kv", "sync: not a mapping"),
        ("steps: many", "steps: 'many' is not an integer"),
        ("temperature: hot", "not a number"),
        ("workers: two", "workers: 'two'"),
        ("- 1", "not a mapping"),
        ("{a: ", "not YAML"),
        ("prompt: 4", "prompt is not a text"),
    ],
)
def test_a_wrong_config_file_is_one_line(nap: Nap, tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    one_line(nap("decode", "--config", file), 2, "job.yaml" if "type" not in part else "--config", part)


# --- batches ---


def test_bad_lines_do_not_stop_the_others(nap: Nap, model: Path, batch: Path) -> None:
    ran = nap("decode", "--model", model, "--file", batch, "--batch-size", 2, "--json")
    assert ran.code == 2
    values = ran.objects
    assert [value["index"] for value in values] == [0, 1, 3, 4, 5, 6, 7]
    assert [value["id"] for value in values] == ["first", "1", "3", "4", "5", "6", "7"]
    errors = {value["index"]: value["error"] for value in values if "error" in value}
    assert errors.keys() == {1, 3, 4, 5, 6}
    assert errors[1] == "line 2: not JSON"
    assert "question" in errors[3]
    assert "context" in errors[6]
    assert (values[0]["gold"], values[-1]["gold"]) == ("7", "8")
    assert values[0]["tokens"] != values[-1]["tokens"]


def test_bad_lines_are_named_by_number(nap: Nap, model: Path, batch: Path) -> None:
    ran = nap("decode", "--model", model, "--file", batch)
    assert ran.code == 2
    assert [number for number in range(1, 9) if f"batch.jsonl:{number}:" in ran.err] == [2, 4, 5, 6, 7]
    assert "7 lines: 2 decoded, 5 failed; 0 of 2 correct" in ran.out


def test_blank_lines_are_skipped(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "gaps.jsonl"
    file.write_text('\n{"question": "What is 3 + 4?"}\n\n  \n{"question": "What is 3 + 5?"}\n\n')
    ran = nap("decode", "--model", model, "--file", file, "--steps", 5)
    assert (ran.code, ran.err) == (0, "")
    assert "gaps.jsonl:2 " in ran.out
    assert "gaps.jsonl:5 " in ran.out
    assert "2 lines: 2 decoded, 0 failed" in ran.out


def test_a_decode_that_fails_is_1_whatever_else_is_wrong(
    nap: Nap, model: Path, batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(coordinator: Coordinator, jobs: list[DecodeJob], *_: object, **__: object) -> Iterator[JobFailure]:
        for job in jobs:
            yield JobFailure(job=job, error=DecodeError("no canvas"))

    monkeypatch.setattr(Coordinator, "decode", broken)
    assert nap("decode", "--model", model, "--file", batch).code == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_lone_surrogates_fail_their_line_alone(nap: Nap, model: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "batch.jsonl"
    lines = [
        {"question": "What\ud800?", "id": "\ud800"},
        {"question": "What is 3 + 4?", "id": "\udcff", "gold": "\udc80"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = nap("decode", "--model", model, "--file", file, "--steps", 5, *(["--json"] if form == "json" else []))
    assert ran.code == 2
    if form == "json":
        assert [value["id"] for value in ran.objects] == ["\ud800", "\udcff"]
        assert ran.objects[0]["error"] == "prompt: it is not valid Unicode text"
    else:
        assert "batch.jsonl:1: prompt: it is not valid Unicode text" in ran.err
        assert "1 decoded, 1 failed" in ran.out
        assert "\\udcff" in ran.out


def test_a_prompt_of_bytes_is_usage(model: Path) -> None:
    command = [sys.executable, "-m", "nap_runtime.cli", "decode", "--model", str(model), b"What\xff?"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "nap decode: PROMPT: it is not valid Unicode text\n")


# --- headers ---

_HEADERS: dict[str, Any] = {"paths": ["<think 1>", "<think 2>", "<think 3>"], "summary": "<summary>"}


def test_headers_from_a_file(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "headers.json"
    ends = {"path_ends": ["</think 1>", "</think 2>", "</think 3>"], "summary_end": "</summary>"}
    file.write_text(json.dumps(_HEADERS | ends))
    argv = ["decode", "--model", model, "--steps", 5, "--json", QUESTION]
    (ours,), (theirs,) = nap(*argv).objects, nap(*argv, "--headers", file).objects
    assert (ours["layout"], ours["tokens"]) == (theirs["layout"], theirs["tokens"])
    file.write_text(json.dumps(_HEADERS))
    assert nap(*argv, "--headers", file).code == 0, "ends may be left out"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ("{", "not JSON"),
        (b"\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "not {"),
        ({"paths": ["a"]}, "no 'summary'"),
        (_HEADERS | {"end": "x"}, "unknown key 'end'"),
        (_HEADERS | {"paths": "abc"}, "'paths' is not a list of texts"),
        (_HEADERS | {"paths": [1, 2, 3]}, "'paths' is not a list of texts"),
        (_HEADERS | {"paths": ["a", "b"]}, "2 path headers"),
        (_HEADERS | {"summary": None}, "'summary' is not a text"),
        (_HEADERS | {"summary": "\ud800"}, "'summary' is not a text"),
        (_HEADERS | {"summary": " "}, "no token"),
        (_HEADERS | {"summary": "<mask>"}, "the mask token"),
        (_HEADERS | {"path_ends": None}, "'path_ends' is not a list"),
        (_HEADERS | {"path_ends": ["</think 1>"]}, "1 path ends"),
        (_HEADERS | {"path_ends": ["</think>"] * 3}, "'</think>' is not one token"),
        (_HEADERS | {"summary_end": ""}, "'' is not one token"),
        (_HEADERS | {"summary_end": "<mask>"}, "'<mask>' is not one token"),
    ],
)
def test_wrong_headers_are_usage(nap: Nap, model: Path, tmp_path: Path, values: Any, part: str) -> None:
    file = tmp_path / "headers.json"
    if isinstance(values, bytes):
        file.write_bytes(values)
    else:
        file.write_text(values if isinstance(values, str) else json.dumps(values))
    one_line(nap("decode", "--model", model, "--headers", file, QUESTION), 2, "--headers", "headers.json", part)


def test_a_batch_decodes_as_its_prompts_do(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    questions = ["What is 3 + 4?", "How many apples are left in all?", "What is 5 + 9?"]
    file.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    together = nap("decode", "--model", model, "--file", file, "--batch-size", 3, "--dtype", "float64", "--json")
    assert (together.code, together.err) == (0, "")
    for question, values in zip(questions, together.objects, strict=True):
        (alone,) = nap("decode", "--model", model, "--dtype", "float64", "--json", question).objects
        assert values["tokens"] == alone["tokens"]


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 40,
        b"\x1f\x8b\x08" + b"\n\x00\xff" * 500,
        b"Some prose.\n\nAnd more.\n",
        "{}\n".encode("utf-16"),
    ],
    ids=["binary", "gzip", "prose", "utf-16"],
)
def test_a_file_that_is_no_batch_is_one_line(
    nap: Nap, model: Path, tmp_path: Path, content: bytes, options: tuple[str, ...]
) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    ran = nap("decode", "--model", model, "--file", file, *options)
    one_line(ran, 2, "--file", "photo.jpg is not a text file of one problem a line (JSON lines)")
    assert ran.out == ""


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_an_empty_file_is_usage(nap: Nap, model: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text(text)
    one_line(nap("decode", "--model", model, "--file", file), 2, "--file", "empty")


def test_a_file_of_bad_lines_alone_starts_nothing(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("[]\n")
    ran = nap("decode", "--model", model, "--file", file, "--json")
    assert ran.code == 2
    assert ran.objects[0]["error"] == "line 1: not a JSON object"
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "Why " * 2000}) + "\n")
    assert nap("decode", "--model", model, "--file", long).code == 2


# --- traces ---


@pytest.fixture(scope="module")
def trace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("traces") / "run.nap"
    argv = [
        "decode",
        "--model",
        model,
        "--workers",
        3,
        "--simulate",
        "--sync",
        "kv",
        "--every",
        4,
        "--trace",
        file,
    ]
    assert main([*map(str, argv), "--json", QUESTION]) == 0
    return file


def test_trace_verifies(nap: Nap, trace: Path, model: Path) -> None:
    ran = nap("trace", "verify", trace, "--model", model)
    assert (ran.code, ran.err) == (0, "")
    assert "the seal holds" in ran.out
    assert "identical" in ran.out


def test_trace_with_a_changed_byte_is_refused(nap: Nap, trace: Path, tmp_path: Path) -> None:
    data = bytearray(trace.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "changed.nap"
    changed.write_bytes(bytes(data))
    one_line(nap("trace", "verify", changed), 1, "changed.nap", "SHA-256")
    one_line(nap("metrics", changed), 1, "SHA-256")
    changed.write_bytes(trace.read_bytes()[:100])
    one_line(nap("trace", "verify", changed), 1, "changed.nap")
    changed.write_bytes(b"")
    one_line(nap("trace", "show", changed), 1, "changed.nap")


def test_trace_sealed_again_over_another_id_is_refused(nap: Nap, trace: Path, model: Path, tmp_path: Path) -> None:
    record = DecodeRecord.from_bytes(trace.read_bytes())
    record.deltas[0].ids[0] = (record.deltas[0].ids[0] + 1) % 400 + 60
    changed = tmp_path / "changed.nap"
    changed.write_bytes(record.to_bytes())
    one_line(nap("trace", "verify", changed), 1, "changed.nap")
    record.final_ids[record.deltas[0].positions[0]] = record.deltas[0].ids[0]
    changed.write_bytes(record.to_bytes())
    assert nap("trace", "verify", changed).code == 0, "consistent with itself, but not what the model decodes"
    ran = nap("trace", "verify", changed, "--model", model)
    assert ran.code == 1
    assert "not identical" in ran.out or "DIFFERS" in ran.out


def test_trace_of_another_model_is_refused(nap: Nap, trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert nap("model", "make", "--shape", "llada-tiny", "--out", other).code == 0
    ran = nap("trace", "verify", trace, "--model", other)
    assert ran.code == 1
    assert "other weights" in ran.err


def test_trace_show(nap: Nap, trace: Path, model: Path) -> None:
    ids = nap("trace", "show", trace)
    assert ids.code == 0
    assert "── kv ──" in ids.out
    assert "S:" in ids.out
    words = nap("trace", "show", trace, "--model", model)
    assert "a shirt costs $50" in words.out


def test_trace_export_feeds_metrics(nap: Nap, trace: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(nap("trace", "export", trace, "--format", "order").out)
    ours, foreign = nap("metrics", trace, "--json").objects[0], nap("metrics", order, "--json").objects[0]
    assert ours["syncs"] == {"kv": 5, "gather": 1}  # 24 path steps, the first needs no sync
    assert foreign["arness"]["all"]["set_based"] == ours["arness"]["all"]["set_based"]
    table = nap("metrics", trace, "-k", 2)
    assert "set@2" in table.out
    assert "path 3, content" in table.out
    rows = nap("trace", "export", trace, "--format", "csv").out.splitlines()
    assert rows[0] == "step,worker,position,id,confidence,kind"
    values = nap("trace", "export", trace, "--format", "json").objects[0]
    assert len(values["order"]) == sum(row.endswith("commit") for row in rows)
    one_line(nap("trace", "export", trace, "--format", "xml"), 2, "--format", "xml")


def test_traces_of_a_batch_are_numbered(nap: Nap, model: Path, batch: Path, tmp_path: Path) -> None:
    nap("decode", "--model", model, "--file", batch, "--trace", tmp_path / "t.nap", "--json")
    assert sorted(file.name for file in tmp_path.glob("t*")) == ["t.0.nap", "t.7.nap"]


def test_a_trace_makes_its_folders(nap: Nap, model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "new" / "one" / "t.nap"
    assert nap("decode", "--model", model, "--trace", trace, QUESTION).code == 0
    assert nap("trace", "verify", trace).code == 0
    page, picture = tmp_path / "pages" / "t.html", tmp_path / "pictures" / "t.svg"
    assert nap("trace", "render", trace, "--out", page, "--svg", picture).code == 0
    assert page.exists()
    assert picture.exists()
    file = tmp_path / "file"
    file.touch()
    one_line(
        nap("decode", "--model", model, "--trace", file / "t.nap", QUESTION), 2, "--trace", "is a file, not a folder"
    )


def test_a_trace_needs_a_folder_to_write_to(
    nap: Nap, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != shut)  # root may write everywhere
    one_line(nap("decode", "--model", model, "--trace", shut / "t.nap", QUESTION), 2, "--trace", "written")


def test_a_trace_that_cannot_be_written_costs_no_result(
    nap: Nap, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "t.nap")

    monkeypatch.setattr("nap_runtime.models.files.atomic_path", full)
    ran = nap("decode", "--model", model, "--trace", tmp_path / "t.nap", "--json", QUESTION)
    assert (ran.code, ran.err) == (1, "nap decode: t.nap: No space left on device\n")
    assert len(ran.objects) == 1


@pytest.mark.parametrize("text", ["{}", '{"slots": 2, "steps": [[0, 5]]}', "[1, 2", "\x00\x01"])
def test_a_malformed_order_is_a_failure(nap: Nap, tmp_path: Path, text: str) -> None:
    file = tmp_path / "order.json"
    file.write_text(text)
    one_line(nap("metrics", file), 1, "order.json")


@pytest.mark.parametrize("argv", [("trace", "verify"), ("trace", "show"), ("trace", "render"), ("metrics",)])
def test_a_missing_trace_is_a_wrong_argument(nap: Nap, tmp_path: Path, argv: tuple[str, ...]) -> None:
    one_line(nap(*argv, "none.nap"), 2, "none.nap", "No such file")
    one_line(nap(*argv, tmp_path), 2, str(tmp_path), "Is a directory")


def test_a_page_takes_no_trace_of_its_name(nap: Nap, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.html"
    file.write_bytes(trace.read_bytes())
    one_line(nap("trace", "render", file), 2, "--out", "is the file that is read")
    assert file.read_bytes() == trace.read_bytes()


def test_a_page_that_cannot_be_written_is_named(nap: Nap, trace: Path, tmp_path: Path) -> None:
    """As it was given, not by the temporary file beside it."""
    done = nap("trace", "render", trace, "--out", tmp_path)
    one_line(done, 2, "--out", f"{tmp_path} is a folder; give a file")


# --- the other commands ---


def test_eval_words(nap: Nap, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    argv = [
        "--model",
        model,
        "--n",
        6,
        "--tokens-per-step",
        6,
        "--batch-size",
        3,
        "--neighbours",
        200,
        "--seed",
        4,
    ]
    ran = nap("eval", "words", *argv, "--json", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    (values,) = ran.objects
    assert (values["schema"], values["n"], values["seed"], values["failed"]) == ("nap.eval/1", 6, 4, 0)
    assert values["config"]["steps"] == 5
    for name in ("accuracy", "majority", "paths_masked", "look_up"):
        low, high = values[name]["interval"]
        assert low <= values[name]["share"] <= high
    assert len(values["paths"]) == 3
    assert len(out.read_text().splitlines()) == 6
    text = nap("eval", "words", *argv).out
    assert "6 of the test split, seed 4" in text
    assert "This shows" in text
    one_line(nap("eval", "words", "--model", model, "--steps", 4, "--tokens-per-step", 2), 2, "--tokens-per-step")


def test_data_feeds_decode(nap: Nap, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.jsonl"
    assert nap("data", "make", "words", "--n", 2, "--split", "test", "--seed", 3, "--out", file).code == 0
    ran = nap("decode", "--model", model, "--file", file, "--steps", 5, "--json")
    assert ran.code == 0
    assert all(value["gold"] is not None for value in ran.objects)


def test_model_commands(nap: Nap, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert nap("model", "export", model, "--out", copy).code == 0
    ours, theirs = (nap("model", "info", folder, "--json").objects[0] for folder in (model, copy))
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert theirs["tokenizer"] == ["tokenizer.json"]
    assert (copy / "decode.json").read_text() == (model / "decode.json").read_text()
    assert "max_positions" in nap("model", "info", copy).out
    one_line(nap("model", "export", model, "--out", copy), 2, "--out", "already holds a model")


def test_doctor(nap: Nap) -> None:
    ran = nap("doctor", "--json")
    (values,) = ran.objects
    assert ran.code == (0 if values["ok"] else 1)
    names = [check["name"] for check in values["checks"]]
    assert names == ["python", "torch", "gpu", "ray", "ports", "memory", "shared memory", "model"]
    assert {check["state"] for check in values["checks"]} <= {"ok", "note", "fail"}
    assert len(nap("doctor").out.splitlines()) == len(names)


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nap_runtime.cli", "decode", "--model", str(model), "--json", QUESTION]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
