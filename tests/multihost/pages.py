"""Shell commands of the documentation, to be run by tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ("account", "cluster", "root")
SHELL = ("sh", "bash", "shell", "console", "")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- ((?:run by|needs): .+?) -->\n$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A fenced piece of shell: its line, the heading above it, the comment before it, its commands."""

    line: int
    heading: str
    mark: str
    commands: tuple[str, ...]


def fences(text: str) -> list[Fence]:
    """The shell fences of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        language, body = match.groups()
        mark = _MARK.search(text[: match.start()])
        if language in SHELL:
            before = text[: match.start()]
            headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", before, flags=re.M | re.S), re.M)
            commands = tuple(_commands(body, console=language == "console"))
            found.append(
                Fence(
                    line=before.count("\n") + 1,
                    heading=headings[-1] if headings else "",
                    mark=mark[1] if mark else "",
                    commands=commands,
                )
            )
    return found


def section(page: str, heading: str) -> list[str]:
    """Commands below a heading of a page (a path from the root) that a test runs, in order."""
    marked = [fence for fence in fences((ROOT / page).read_text()) if fence.heading == heading]
    found = [command for fence in marked if fence.mark.startswith("run by: ") for command in fence.commands]
    assert found, f"{page} has no commands to run below {heading!r}"
    return found


def _commands(body: str, *, console: bool) -> list[str]:
    """Lines of shell without prompts, output, comments and continuations."""
    joined = re.sub(r"\s*\\\n\s*", " ", body)
    lines = [line.strip() for line in joined.splitlines()]
    if console:
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    bare = [re.sub(r"(^|\s+)#\s.*$", "", line) for line in lines]
    return [line for line in bare if line]
