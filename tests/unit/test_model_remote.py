"""Models behind URLs: manifests, the cache, damage, locks between processes, bounds. Real files, a real HTTP server."""

from __future__ import annotations

import functools
import http.server
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.cli import main
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import load_model, read_card, resolve_model
from nap_runtime.models.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, sha256_of
from nap_runtime.models.remote import Reference, cache_folder, fetch, is_remote
from nap_runtime.models.shapes import make_model_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a manifest, as it lies on a shared disk. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("shared") / "tiny"
    make_model_dir("llada-tiny", folder, seed=3)
    Manifest.of(folder).write(folder)
    return folder


@pytest.fixture
def model(stored: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(stored, tmp_path / "shared" / "tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NAP_CACHE_GIB", raising=False)
    return tmp_path / "cache" / "models"


def url_of(folder: Path) -> str:
    return f"file://{folder}"


def entries(cache: Path) -> list[str]:
    """Whole models in the cache."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir() and len(path.name) == 64)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and counts what was asked for; `spoil` may change a body before it is sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.spoil: Callable[[str, bytes], bytes] = lambda _, body: body
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        whole = file.read_bytes()
        body = self.server.spoil(name, whole)
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    with Server(model.parent) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


# -- manifests -----------------------------------------------------------------------------------------------------


def test_manifest_agrees_with_sha256sum(stored: Path) -> None:
    """The oracle is coreutils, not this project's code."""
    manifest = Manifest.parse((stored / MANIFEST_NAME).read_bytes(), "here")
    lines = subprocess.run(["sha256sum", *manifest.files], cwd=stored, capture_output=True, text=True, check=True)
    assert {line.split()[1]: line.split()[0] for line in lines.stdout.splitlines()} == {
        name: entry.sha256 for name, entry in manifest.files.items()
    }
    own = subprocess.run(["sha256sum", MANIFEST_NAME], cwd=stored, capture_output=True, text=True, check=True)
    assert manifest.digest == own.stdout.split()[0]
    assert manifest.size == sum((stored / name).stat().st_size for name in manifest.files)
    assert set(manifest.files) == {path.name for path in stored.iterdir()} - {MANIFEST_NAME}


GOOD = {"config.json": {"size": 1, "sha256": "a" * 64}, "model.safetensors": {"size": 2, "sha256": "b" * 64}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"version": 2, "files": GOOD}, "version"),
        ({"version": 1, "files": GOOD, "more": 1}, "version"),
        ({"version": 1, "files": {"config.json": GOOD["config.json"]}}, "safetensors"),
        ({"version": 1, "files": GOOD | {"../evil.json": GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {"/etc/x.json": GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {".checked.json": GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {"model.bin": GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {"model.pkl": GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {MANIFEST_NAME: GOOD["config.json"]}}, "no file of a model"),
        ({"version": 1, "files": GOOD | {"a.json": {"size": True, "sha256": "a" * 64}}}, "size"),
        ({"version": 1, "files": GOOD | {"a.json": {"size": 1 << 50, "sha256": "a" * 64}}}, "size"),
        ({"version": 1, "files": GOOD | {"a.json": {"size": -1, "sha256": "a" * 64}}}, "size"),
        ({"version": 1, "files": GOOD | {"a.json": {"size": 1, "sha256": "A" * 64}}}, "SHA-256"),
        ({"version": 1, "files": GOOD | {"a.json": {"size": 1, "sha256": "a" * 64, "url": "x"}}}, "not size"),
        ([], "version"),
    ],
)
def test_malformed_manifests_are_refused_in_one_line(content: object, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        Manifest.parse(json.dumps(content).encode(), "s3://b/m/model.sha256.json")
    assert "\n" not in str(caught.value)
    assert "s3://b/m/model.sha256.json" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"version": 1, "version": 1, "files": {}}', b"[" * 100_000])
def test_bytes_that_are_no_json_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="no manifest"):
        Manifest.parse(data, "here")


@given(st.text(max_size=40))
def test_no_name_leaves_the_folder(name: str) -> None:
    """Whatever a manifest may name lies in its own folder and is no hidden file."""
    files = GOOD | {name: {"size": 1, "sha256": "c" * 64}}
    try:
        manifest = Manifest.parse(json.dumps({"version": 1, "files": files}).encode(), "here")
    except ModelError:
        return
    for found in manifest.files:
        assert (Path("/cache") / found).resolve().parent == Path("/cache")
        assert not found.startswith(".")


# -- references ----------------------------------------------------------------------------------------------------


def test_references() -> None:
    plain = Reference.parse("s3://bucket/models/llada-8b/")
    assert (plain.url, plain.pin, plain.protocol, plain.name) == ("s3://bucket/models/llada-8b", None, "s3", "llada-8b")
    pinned = Reference.parse(plain.pinned("d" * 64))
    assert (pinned.url, pinned.pin) == (plain.url, "d" * 64)
    assert not is_remote("nap-tiny")
    assert not is_remote(Path("/models/llada"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host/model", "unknown protocol; use one of s3://, gs://"),
        ("simplecache::s3://bucket/model", "unknown protocol"),
        ("s3://", "not the address of a folder"),
        ("s3://bucket/a::zip://b", "not the address of a folder"),
        ("https://host/m?X-Amz-Signature=1", "not the address of a folder"),
        ("https://ada:secret@host/m", "no passwords in a URL"),
        ("http://models.example/m", "http is not protected"),
        ("s3://bucket/m#sha256=12", "no SHA-256"),
        ("s3://bucket/m#main", "not the address of a folder"),
    ],
)
def test_references_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Reference.parse(text)


def test_pinned_http_is_taken() -> None:
    assert Reference.parse("http://models.example/m#sha256=" + "0" * 64).pin == "0" * 64


# -- fetching ------------------------------------------------------------------------------------------------------


def test_a_fetched_model_is_the_stored_one(model: Path, cache: Path) -> None:
    card = read_card(url_of(model))
    digest = sha256_of(model / MANIFEST_NAME)
    assert card.path == cache / digest
    assert card.name == "tiny"
    assert card.reference == f"{url_of(model)}#sha256={digest}"
    assert card.fingerprint == read_card(model).fingerprint
    ours, theirs = load_model(url_of(model)).model, load_model(model).model
    assert all((a == b).all() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_references_of_other_models_are_theirs(model: Path) -> None:
    assert read_card("nap-tiny").reference == "nap-tiny"
    assert read_card(model).reference == str(model)


def test_a_folder_of_the_bundled_name_is_not_the_bundled_model(stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "nap-tiny"))
    assert read_card(folder).reference == str(folder)


def test_memory_filesystem(stored: Path) -> None:
    """Any fsspec backend will do: nothing in the code is special to one."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in stored.iterdir():
        memory.pipe_file(f"/bucket/m/{file.name}", file.read_bytes())
    assert ModelConfig.from_dir(resolve_model("memory://bucket/m")) == ModelConfig.from_dir(stored)


def test_over_http_each_file_is_asked_for_once(server: Server, cache: Path) -> None:
    first = fetch(f"{server.url}/tiny")
    assert sorted(server.asked) == sorted(
        [MANIFEST_NAME, *Manifest.parse((first / MANIFEST_NAME).read_bytes(), "").files]
    )
    server.asked.clear()
    assert fetch(f"{server.url}/tiny") == first
    assert server.asked == [MANIFEST_NAME]
    assert entries(cache) == [first.name]


def test_what_is_pinned_and_here_needs_no_server(server: Server) -> None:
    folder = fetch(f"{server.url}/tiny")
    pinned = f"{server.url}/tiny#sha256={folder.name}"
    server.asked.clear()
    assert fetch(pinned) == folder
    assert server.asked == []


def test_one_model_at_two_places_is_kept_once(model: Path, server: Server, cache: Path) -> None:
    assert fetch(url_of(model)) == fetch(f"{server.url}/tiny")
    assert len(entries(cache)) == 1


def test_a_changed_model_is_another_entry_and_breaks_the_pin(model: Path, cache: Path) -> None:
    old = fetch(url_of(model))
    pinned = f"{url_of(model)}#sha256={old.name}"
    shutil.rmtree(old)
    shutil.rmtree(model)
    make_model_dir("llada-tiny", model, seed=4)
    Manifest.of(model).write(model)
    assert fetch(url_of(model)) != old
    with pytest.raises(ModelError, match="the model has been changed"):
        fetch(pinned)


def test_without_a_manifest_nothing_is_fetched(model: Path, server: Server, cache: Path) -> None:
    (model / MANIFEST_NAME).unlink()
    for url in (url_of(model), f"{server.url}/tiny"):
        with pytest.raises(ModelError, match=r"does not exist \(make it with `nap model manifest FOLDER`\)"):
            fetch(url)
    assert not cache.exists()


def test_a_host_that_does_not_answer_is_no_missing_file(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(ModelError, match=r"cannot be read: .*[Cc]onnect"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/tiny")
    assert not cache.exists()


def test_a_huge_manifest_is_not_read(model: Path) -> None:
    (model / MANIFEST_NAME).write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ModelError, match="larger than"):
        fetch(url_of(model))


def test_a_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, protocol in (("s3fs", "s3"), ("gcsfs", "gs")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModelError, match=rf"{protocol}:// needs {name}: pip install 'nap-runtime\[cloud\]'"):
            fetch(f"{protocol}://bucket/m")


def test_a_model_too_large_for_the_disk_is_refused_beforehand(model: Path, cache: Path) -> None:
    manifest = json.loads((model / MANIFEST_NAME).read_text())
    manifest["files"]["model.safetensors"]["size"] = 1 << 40  # a TiB
    (model / MANIFEST_NAME).write_text(json.dumps(manifest))
    if shutil.disk_usage(model).free > 1 << 40:
        pytest.skip("this disk has more than a TiB free")
    with pytest.raises(ModelError, match="set NAP_CACHE to a larger disk"):
        fetch(url_of(model))
    assert entries(cache) == []


# -- damage --------------------------------------------------------------------------------------------------------


def test_a_damaged_file_in_the_cache_is_one_line_and_fetched_again(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(url_of(model))
    file = folder / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert fetch(url_of(model)) == folder
    assert file.read_bytes() == good
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} in the model cache is damaged or missing: it is fetched again"
    ]


def test_rot_that_keeps_size_and_time_is_found_when_asked(model: Path) -> None:
    folder = fetch(url_of(model))
    file = folder / "model.safetensors"
    good, status = file.read_bytes(), file.stat()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    fetch(url_of(model))
    assert file.read_bytes() != good  # documented: only `nap model fetch` reads every byte
    fetch(url_of(model), thorough=True)
    assert file.read_bytes() == good


@pytest.mark.parametrize("name", ["config.json", MANIFEST_NAME, ".checked.json"])
def test_a_file_that_vanished_from_the_cache_comes_back(model: Path, name: str) -> None:
    folder = fetch(url_of(model))
    for reference in (url_of(model), f"{url_of(model)}#sha256={folder.name}"):
        (folder / name).unlink()
        assert Manifest.parse((fetch(reference) / MANIFEST_NAME).read_bytes(), "").damaged(folder) == []
        assert (folder / name).is_file()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "SHA-256"),
        (lambda body: body[: len(body) // 2], "model.safetensors: "),
        (lambda body: b"", "model.safetensors: "),
    ],
)
def test_a_transfer_that_stays_bad_fails_in_one_line_and_leaves_no_entry(
    server: Server, cache: Path, spoil: Callable[[bytes], bytes], words: str
) -> None:
    server.spoil = lambda name, body: spoil(body) if name == "model.safetensors" else body
    with pytest.raises(ModelError, match=words) as caught:
        fetch(f"{server.url}/tiny")
    assert "tried 3 times" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked.count("model.safetensors") == 3
    assert entries(cache) == []


def test_a_transfer_that_was_bad_once_is_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    bad = [True]
    server.spoil = lambda name, body: body[:-1] + b"?" if name == "model.safetensors" and bad and bad.pop() else body
    with caplog.at_level(logging.WARNING):
        folder = fetch(f"{server.url}/tiny")
    assert Manifest.parse((folder / MANIFEST_NAME).read_bytes(), "").damaged(folder) == []
    assert "SHA-256 is not the manifest's: it is fetched again" in caplog.text


def test_more_bytes_than_promised_are_not_stored(model: Path, cache: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"x" * 4096)
    with pytest.raises(ModelError, match="more than the"):
        fetch(url_of(model))
    partial = next(path for path in cache.iterdir() if path.suffix == ".partial")
    assert not (partial / "model.safetensors").exists()


def test_an_interrupted_fetch_goes_on_with_the_files_that_are_whole(server: Server, cache: Path) -> None:
    server.spoil = lambda name, body: b"" if name == "model.safetensors" else body
    with pytest.raises(ModelError):
        fetch(f"{server.url}/tiny")
    partial = next(path for path in cache.iterdir() if path.suffix == ".partial")
    (partial / ".left.by.a.killed.process").write_bytes(b"x")
    server.asked.clear()
    server.spoil = lambda _, body: body
    folder = fetch(f"{server.url}/tiny")
    assert server.asked == [MANIFEST_NAME, "model.safetensors"]
    assert not (folder / ".left.by.a.killed.process").exists()
    assert not partial.exists()


# -- several processes ---------------------------------------------------------------------------------------------

_CHILD = "import sys; from nap_runtime.models.remote import fetch; print(fetch(sys.argv[1]))"


def child(url: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
    return subprocess.Popen([sys.executable, "-c", _CHILD, url], env=environment, text=True, stdout=subprocess.PIPE)


def test_processes_that_want_one_model_fetch_it_once(server: Server, cache: Path) -> None:
    def slow(name: str, body: bytes) -> bytes:
        time.sleep(0.5 if name == "model.safetensors" else 0.0)
        return body

    server.spoil = slow
    children = [child(f"{server.url}/tiny") for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].strip() for process in children]
    assert [process.returncode for process in children] == [0] * 4
    assert outputs == [str(cache / entries(cache)[0])] * 4
    assert server.asked.count("model.safetensors") == 1


def test_a_killed_fetch_neither_blocks_nor_spoils_the_next(server: Server, cache: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def stall(name: str, body: bytes) -> bytes:
        if name == "model.safetensors" and not began.is_set():
            began.set()
            go_on.wait(30)
        return body

    server.spoil = stall
    process = child(f"{server.url}/tiny")
    assert began.wait(30)
    process.kill()
    process.wait(30)
    go_on.set()
    folder = fetch(f"{server.url}/tiny")
    assert Manifest.parse((folder / MANIFEST_NAME).read_bytes(), "").damaged(folder) == []
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == [folder.name]


# -- the bound -----------------------------------------------------------------------------------------------------


def test_the_longest_unused_models_go_first(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for seed in range(3):
        folder = tmp_path / f"m{seed}"
        make_model_dir("llada-tiny", folder, seed=seed)
        Manifest.of(folder).write(folder)
        folders.append(folder)
    old, used, new = (url_of(folder) for folder in folders)
    a, b = fetch(old), fetch(used)
    hours = time.time() - 7200
    for entry, seconds in ((a, 0), (b, 60)):
        os.utime(entry / MANIFEST_NAME, (hours + seconds, hours + seconds))
    size = sum(file.stat().st_size for file in a.iterdir())
    monkeypatch.setenv("NAP_CACHE_GIB", str(2.5 * size / 2**30))
    c = fetch(new)
    assert entries(cache) == sorted([b.name, c.name])
    monkeypatch.setenv("NAP_CACHE_GIB", "0")
    fetch(new)
    assert entries(cache) == [c.name]  # the one in use stays, whatever the bound
    fetch(used)
    assert entries(cache) == sorted([b.name, c.name])  # used a moment ago: somebody may be about to open it


def test_a_bound_that_is_no_number_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAP_CACHE_GIB", "much")
    with pytest.raises(UsageError, match="NAP_CACHE_GIB: 'much'"):
        fetch(url_of(model))


def test_the_cache_stands_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/nap-runtime/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/nap-runtime/models").expanduser()


# -- the command line ----------------------------------------------------------------------------------------------


def test_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "exported"
    assert main(["model", "export", str(model), "--out", str(out)]) == 0
    assert main(["model", "manifest", str(out), "--check"]) == 0
    pin = capsys.readouterr().out.splitlines()[-1]
    assert main(["model", "fetch", url_of(out) + pin]) == 0
    folder, reference = capsys.readouterr().out.split()
    assert reference == url_of(out) + pin
    assert main(["model", "info", reference]) == 0
    assert str(Path(folder)) in capsys.readouterr().out
    (out / "config.json").write_text("{}")
    assert main(["model", "manifest", str(out), "--check"]) == 2
    assert "config.json is not what model.sha256.json says" in capsys.readouterr().err
    assert main(["model", "fetch", str(out)]) == 2
    assert main(["model", "manifest", str(tmp_path / "none")]) == 2


def test_a_decode_by_url(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    assert main(["model", "export", "nap-tiny", "--out", str(out)]) == 0
    capsys.readouterr()
    question = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
    answers = []
    for model in (url_of(out), "nap-tiny"):
        assert main(["decode", question, "--model", model, "--steps", "12", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["tokens"] == answers[1]["tokens"]
    assert main(["decode", question, "--model", "ftp://host/m", "--steps", "12"]) == 2
    assert "unknown protocol" in capsys.readouterr().err
