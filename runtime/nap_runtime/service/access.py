"""Who may call: bearer tokens with names and scopes, kept as hashes.

A tokens file has one JSON object a line: `{"name": "ada", "scopes": ["submit"], "sha256": "…", "queued": 100}`.
`queued` is the token's own quota of waiting jobs, and may be missing. `nap serve --new-token NAME:SCOPE` makes a line.

Tokens are 256 random bits, so one SHA-256 is as hard to turn back as any slow hash. No token is ever logged.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError

SCOPES = ("read", "submit", "admin")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEYS = {"name", "scopes", "sha256", "queued"}
_PREFIX = "nap_"
_MAX_TOKEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls. `submit` lets a caller submit, and see and cancel its own jobs; `read` see all jobs; `admin` all.

    Attributes:
        name: of the token; empty where the server has no tokens, and then everybody is `admin`.
        queued: quota of waiting jobs; None: the server's.
    """

    name: str = ""
    scopes: frozenset[str] = frozenset({"admin"})
    queued: int | None = None

    def may(self, scope: str) -> bool:
        """Whether a scope, or `admin`, is among the caller's."""
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, owner: str) -> bool:
        """Whether it may look at jobs of `owner`."""
        return self.may("read") or (self.may("submit") and owner == self.name)

    def cancels(self, owner: str) -> bool:
        """Whether it may stop jobs of `owner`."""
        return self.may("admin") or (self.may("submit") and owner == self.name)


LOCAL = Caller()


class Tokens:
    """The known tokens.

    Args:
        entries: callers by the SHA-256 of their token.
    """

    def __init__(self, entries: Iterable[tuple[bytes, Caller]]) -> None:
        self._entries = tuple(entries)

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """Read a tokens file.

        Raises:
            UsageError: it cannot be read, is empty, or a line is wrong; the line is named, its content is not shown.
        """
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UsageError(f"tokens: {file}: {reason}", field="tokens") from error
        entries = [_entry(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not entries:
            raise UsageError(f"tokens: {file} has no token; make one with nap serve --new-token", field="tokens")
        names = [caller.name for _, caller in entries]
        if len(set(names)) != len(names):
            raise UsageError(f"tokens: {file}: a name stands there twice", field="tokens")
        return cls(entries)

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; every entry is compared, each in constant time."""
        digest, found = _digest(token[:_MAX_TOKEN]), None
        for known, caller in self._entries:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def bearer(header: str | None) -> str | None:
    """The token of an `authorization` value."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def new_token(file: Path, name: str, scopes: Iterable[str], queued: int | None = None) -> str:
    """Add a token to a file, which only its owner can read, and return it: it is shown this once.

    Raises:
        UsageError: name or scopes are wrong, the name is taken, or the file cannot be written.
    """
    wanted = list(scopes)
    if file.exists() and file.stat().st_size:
        Tokens.read(file)
        if any(json.loads(line)["name"] == name for line in file.read_text("utf-8").splitlines() if line.strip()):
            raise UsageError(f"new_token: the name '{name}' is taken in {file}", field="new_token")
    token = _PREFIX + secrets.token_urlsafe(32)
    entry = {"name": name, "scopes": wanted, "sha256": _digest(token).hex()}
    line = json.dumps(entry if queued is None else {**entry, "queued": queued})
    _entry(file, 0, line)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as out:
            out.write(line + "\n")
    except OSError as error:
        raise UsageError(f"tokens: {file}: {error.strerror}", field="tokens") from error
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _entry(file: Path, number: int, line: str) -> tuple[bytes, Caller]:
    where = f"tokens: {file}:{number}" if number else "new_token"

    def wrong(what: str) -> UsageError:
        return UsageError(f"{where}: {what}", field="tokens" if number else "new_token")

    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise wrong("not JSON") from None
    if not isinstance(values, dict) or not {"name", "scopes", "sha256"} <= set(values) <= _KEYS:
        raise wrong('not {"name": …, "scopes": […], "sha256": …}')
    name, scopes, digest, queued = values["name"], values["scopes"], values["sha256"], values.get("queued")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong("a name has 1 to 64 letters, digits, dots, dashes or underscores")
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise wrong(f"scopes are some of {', '.join(SCOPES)}")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise wrong("sha256 is not 64 hexadecimal digits")
    if queued is not None and (type(queued) is not int or queued < 1):
        raise wrong("queued is not an integer of at least 1")
    return bytes.fromhex(digest), Caller(name=name, scopes=frozenset(scopes), queued=queued)
