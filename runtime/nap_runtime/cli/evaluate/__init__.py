"""`nap eval`: how often the answers are right, on problems of a file or on generated ones."""

from __future__ import annotations

from nap_runtime.cli.evaluate import sets, words
from nap_runtime.cli.parser import Parser


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("eval", "Measure accuracy.")
    sets.register(group)
    words.register(group)
