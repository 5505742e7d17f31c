"""Shell commands of the documentation, to be run by tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ("account", "cluster")
SHELL = ("sh", "bash", "shell", "console", "")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ((?:run by|needs): .+?) -->\n$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fenced piece of shell: where it begins, what the comment before it says, its commands on a line each."""

    line: int
    mark: str
    commands: tuple[str, ...]


def fences(text: str) -> list[Fence]:
    """The shell fences of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        language, body = match.groups()
        mark = _MARK.search(text[: match.start()])
        if language in SHELL:
            line = text[: match.start()].count("\n") + 1
            commands = tuple(_commands(body, console=language == "console"))
            found.append(Fence(line=line, mark=mark[1] if mark else "", commands=commands))
    return found


def commands(page: str, test: str) -> list[str]:
    """Those commands of a page, a path from the root, that are marked to be run by `test`, in order."""
    text = (ROOT / page).read_text()
    return [command for fence in fences(text) if fence.mark == f"run by: {test}" for command in fence.commands]


def _commands(body: str, *, console: bool) -> list[str]:
    """Lines of shell without prompts, output, comments and continuations."""
    joined = re.sub(r"\s*\\\n\s*", " ", body)
    lines = [line.strip() for line in joined.splitlines()]
    if console:
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    bare = [re.sub(r"(^|\s+)#\s.*$", "", line) for line in lines]
    return [line for line in bare if line]
