"""Models behind a URL (``s3://``, ``gs://``, ``https://``, ``file://``): fetched once a host, checked, kept in a cache.

The folder behind the URL has a manifest (``models/manifest.py``). The cache is addressed by the manifest's digest, so
one model from two places is kept once::

    $NAP_CACHE/models/DIGEST/          a whole model: the manifest's files and the manifest
                      DIGEST.partial/  one that is being fetched; an interrupted fetch goes on from here
                      DIGEST.lock      held by the process that fetches, repairs or removes it

``$NAP_CACHE`` is by default ``$XDG_CACHE_HOME/nap-runtime`` or ``~/.cache/nap-runtime``. ``$NAP_CACHE_GIB`` bounds it:
the longest unused models go when a new one came. Each host of a cluster resolves the reference by itself.

No torch here: the command line imports it early.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.files import atomic_path, write_text_atomic
from nap_runtime.models.manifest import (
    CHUNK_BYTES,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    is_digest,
    matches,
    sha256_of,
)

LOCK_SECONDS = 3600.0
TRIES = 3

_log = logging.getLogger(__name__)
_NEEDS = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp", "http": "aiohttp", "file": "fsspec", "memory": "fsspec"}
_PIN = "#sha256="
_STATE = ".checked.json"  # size and time of each file when its checksum was last compared
_FREE_BYTES = 256 << 20  # left free on the cache's disk
_GRACE_SECONDS = 600.0  # a model used that recently is not evicted: somebody may be about to open its files


def is_remote(name: object) -> bool:
    """Whether a model is named by a URL, not by a folder or a bundled name."""
    return "://" in str(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where a model lies. ``pin`` is the digest that its manifest must have, or None: whatever stands there."""

    url: str
    pin: str | None = None

    @property
    def protocol(self) -> str:
        """``s3``, ``gs``, ``https``, ``http``, ``file`` or ``memory``."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of the URL: what people call the model."""
        return self.url.rpartition("/")[2]

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``URL`` or ``URL#sha256=DIGEST``.

        Raises:
            UsageError: the URL cannot be used, or must not be.
        """
        url, mark, pin = text.partition(_PIN)
        protocol, _, rest = url.partition("://")
        url = url.rstrip("/")
        wrong = _wrong_with(protocol, rest)
        if mark and not is_digest(pin):
            wrong = "what follows #sha256= is no SHA-256"
        elif protocol == "http" and not mark and not _is_loopback(url):
            wrong = "http is not protected: use https, or add #sha256= and the digest of its manifest"
        if wrong:
            raise UsageError(f"model: {url}: {wrong}", field="model")
        return cls(url=url, pin=pin or None)

    def pinned(self, digest: str) -> str:
        """The reference of exactly this content, for other processes and later."""
        return f"{self.url}{_PIN}{digest}"


def _wrong_with(protocol: str, rest: str) -> str:
    if protocol not in _NEEDS:
        return f"unknown protocol; use one of {', '.join(f'{name}://' for name in _NEEDS if name != 'memory')}"
    if "::" in rest or "?" in rest or "#" in rest or not rest.strip("/"):
        return "not the address of a folder"
    if protocol != "file" and "@" in rest.partition("/")[0]:
        return "no passwords in a URL: give them as the storage's own client expects them"
    return ""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cache_folder() -> Path:
    """Where fetched models are kept."""
    own = os.environ.get("NAP_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(own) if own else Path(base) / "nap-runtime").expanduser() / "models"


def fetch(reference: str, *, thorough: bool = False) -> Path:
    """The local folder of a model behind a URL: fetched unless it is there, whole either way.

    A file whose size or time changed since it was checked (``thorough``: every file) is hashed again, and fetched again
    where it is damaged. Several processes may call this at once.

    Raises:
        UsageError: the reference cannot be used.
        ModelError: there is no model or no manifest, it cannot be reached, or it does not fit the disk.
    """
    where = Reference.parse(reference)
    cache = cache_folder()
    entry = None if where.pin is None else cache / where.pin
    if entry is None or not (entry / MANIFEST_NAME).is_file():
        manifest = _remote_manifest(where)
        entry = cache / manifest.digest
    else:  # what is pinned and here needs no network
        manifest = _local_manifest(entry, where)
    with _locked(entry):
        _complete(where, manifest, entry, thorough)
        os.utime(entry / MANIFEST_NAME)  # the time of its last use
    _evict(cache, keep=entry)
    return entry


def reference_of(reference: str, folder: Path) -> str:
    """The pinned reference of what ``fetch(reference)`` returned."""
    return Reference.parse(reference).pinned(sha256_of(folder / MANIFEST_NAME))


def _complete(where: Reference, manifest: Manifest, entry: Path, thorough: bool) -> None:
    if entry.is_dir():
        _repair(where, manifest, entry, thorough)
        return
    partial = entry.with_name(f"{entry.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for stray in partial.iterdir():  # what a killed process left
        if stray.name not in manifest.files:
            stray.unlink()
    wanted = {name: file for name, file in manifest.files.items() if not matches(partial / name, file)}
    _check_room(where, sum(file.size for file in wanted.values()), partial)
    for name, file in wanted.items():
        _fetch_file(where, name, file, partial / name)
    manifest.write(partial)
    _remember(manifest, partial)
    partial.rename(entry)


def _repair(where: Reference, manifest: Manifest, entry: Path, thorough: bool) -> None:
    known = {} if thorough else _remembered(entry)
    suspects = [name for name in manifest.files if known.get(name) != _stamp(entry / name)]
    for name in suspects:
        if not matches(entry / name, manifest.files[name]):
            _log.warning("%s in the model cache is damaged or missing: it is fetched again", entry / name)
            _fetch_file(where, name, manifest.files[name], entry / name)
    if not (entry / MANIFEST_NAME).is_file() or sha256_of(entry / MANIFEST_NAME) != manifest.digest:
        manifest.write(entry)
    if suspects:
        _remember(manifest, entry)


def _stamp(file: Path) -> list[int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _remember(manifest: Manifest, folder: Path) -> None:
    write_text_atomic(folder / _STATE, json.dumps({name: _stamp(folder / name) for name in manifest.files}))


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


# -- what comes over the network ---------------------------------------------------------------------------------


def _remote_manifest(where: Reference) -> Manifest:
    url = f"{where.url}/{MANIFEST_NAME}"
    with _reading(where, MANIFEST_NAME) as stream:
        data = _read_at_most(stream, MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ModelError(f"{url} is larger than {MAX_MANIFEST_BYTES} bytes: it is no manifest")
    manifest = Manifest.parse(data, url)
    if where.pin not in (None, manifest.digest):
        raise ModelError(f"{url} has SHA-256 {manifest.digest}, not the one asked for: the model has been changed")
    return manifest


def _local_manifest(entry: Path, where: Reference) -> Manifest:
    data = (entry / MANIFEST_NAME).read_bytes()
    manifest = Manifest.parse(data, str(entry / MANIFEST_NAME)) if len(data) <= MAX_MANIFEST_BYTES else None
    if manifest is None or manifest.digest != where.pin:
        _log.warning("%s in the model cache is damaged: it is fetched again", entry / MANIFEST_NAME)
        return _remote_manifest(where)
    return manifest


def _read_at_most(stream: IO[bytes], limit: int) -> bytes:
    """Streams of a network may return less than they are asked for."""
    pieces: list[bytes] = []
    while limit > 0 and (piece := stream.read(limit)):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _fetch_file(where: Reference, name: str, entry: FileEntry, target: Path) -> None:
    """Fetch one file; what is wrong is tried again, and never takes the target's place."""
    for attempt in range(1, TRIES + 1):
        try:
            with atomic_path(target) as temporary:
                _copy(where, name, entry, temporary)
            return
        except _TransferError as error:
            if attempt == TRIES:
                raise ModelError(f"{where.url}/{name}: {error}; tried {TRIES} times") from None
            _log.warning("%s/%s: %s: it is fetched again", where.url, name, error)
            time.sleep(0.2 * attempt)


class _TransferError(Exception):
    """What another try may mend."""


def _copy(where: Reference, name: str, entry: FileEntry, target: Path) -> None:
    size = 0
    with _reading(where, name, retry=True) as stream, target.open("wb") as out:
        while piece := stream.read(CHUNK_BYTES):
            size += len(piece)
            if size > entry.size:
                raise _TransferError(f"it has more than the {entry.size} bytes of its manifest")
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    if size < entry.size:
        raise _TransferError(f"it ended after {size} of {entry.size} bytes")
    if sha256_of(target) != entry.sha256:
        raise _TransferError("its SHA-256 is not the manifest's")


@contextlib.contextmanager
def _reading(where: Reference, name: str, *, retry: bool = False) -> Iterator[IO[bytes]]:
    """A file behind the URL, opened for reading; storage clients raise what they like, one line comes out."""
    url = f"{where.url}/{name}"
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        # Over HTTP one request a file: servers need not know ranges.
        options = {"block_size": 0} if where.protocol in ("http", "https") else {}
        with system.open(path, "rb", **options) as stream:
            yield stream
    except (ModelError, _TransferError):
        raise
    except ImportError:
        text = f"{where.protocol}:// needs {_NEEDS[where.protocol]}: pip install 'nap-runtime[cloud]'"
        raise ModelError(f"{where.url}: {text}") from None
    except Exception as error:  # botocore's, aiohttp's and google's errors have no common base
        cause = _real_cause(error)
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
            mend = " (make it with `nap model manifest FOLDER`)" if name == MANIFEST_NAME else ""
            raise ModelError(f"{url} does not exist{mend}") from None
        if retry:
            raise _TransferError(_one_line(cause)) from error
        raise ModelError(f"{url} cannot be read: {_one_line(cause)}") from None


def _real_cause(error: Exception) -> Exception:
    """What fsspec met: over HTTP it calls every failure, a refused connection too, a missing file."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return cause if isinstance(cause, Exception) else error


def _one_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


# -- the cache ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(entry: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold an entry's lock, which the system gives back when its holder dies."""
    from filelock import FileLock, Timeout

    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        text = f"another process has fetched {entry.name} for {seconds:g} s"
        raise ModelError(f"{entry.parent}: {text}: see what holds {lock.lock_file}") from None
    try:
        yield
    finally:
        lock.release()


def _check_room(where: Reference, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free - _FREE_BYTES
    if size > free:
        text = f"the model takes {size} bytes, {folder.parent} has {max(free, 0)}"
        raise ModelError(f"{where.url}: {text}: set NAP_CACHE to a larger disk")


def _limit() -> int | None:
    text = os.environ.get("NAP_CACHE_GIB")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UsageError(f"NAP_CACHE_GIB: {text!r} is no number of GiB", field="model")
    return int(value * 2**30)


def _evict(cache: Path, *, keep: Path) -> None:
    """Remove the longest unused models while the cache is above its bound."""
    limit = _limit()
    if limit is None:
        return
    entries = sorted((path for path in cache.iterdir() if path.is_dir() and is_digest(path.name)), key=_last_used)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    total = sum(sizes.values())
    for path in entries:
        if total <= limit:
            return
        if path != keep and time.time() - _last_used(path) > _GRACE_SECONDS and _remove(path):
            total -= sizes[path]


def _last_used(entry: Path) -> float:
    with contextlib.suppress(OSError):
        return (entry / MANIFEST_NAME).stat().st_mtime
    return 0.0


def _remove(entry: Path) -> bool:
    """Remove an entry unless somebody works on it; it vanishes in one rename."""
    with contextlib.suppress(ModelError), _locked(entry, seconds=0):
        gone = entry.with_name(f"{entry.name}.partial")
        shutil.rmtree(gone, ignore_errors=True)
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True
    return False
