"""What mkdocs is told besides docs/: pages made from the code, and files that stand elsewhere in the repository.

A hook of mkdocs (mkdocs.yml). Markdown outside docs/ is shown under project/, other files that a page links to are
copied under source/; links are rewritten to where their targets are on the site. A link to nothing is a warning, and
warnings end the build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("mkdocs.hooks.docs_site")

_OUTSIDE = ("*.md", "cluster_configs/**/*.md", "examples/**/*.md")
_FENCE = re.compile(r"(^ {0,3}(`{3,}).*?^ {0,3}\2`*\s*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
_MADE = ("reference/cli.md", "reference/config.md", "reference/grpc.md")


# -- events of mkdocs ----------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name under "More"."""
    named = set(_leaves(config.nav))
    docs = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    rest = sorted((docs | set(_outside())) - named)
    if rest:
        config.nav.append({"More": rest})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what is not under docs/."""
    for address, text in zip(_MADE, (command_line(), configuration(), grpc()), strict=True):
        files.append(File.generated(config, address, content=text))
    for address, path in _outside().items():
        files.append(File.generated(config, address, content=path.read_text(encoding="utf-8")))
    copied: set[str] = set()
    for path in _pages():
        for target in _targets(path.read_text(encoding="utf-8")):
            address, there = _on_site(path, target)
            if there is not None and address.startswith("source/") and address not in copied:
                copied.add(address)
                files.append(File.generated(config, address, content=there.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at where their targets are on the site."""
    own = page.file.src_uri
    source = _outside().get(own, ROOT / "docs" / own)
    if not source.is_file():
        return markdown

    def rewritten(match: re.Match[str]) -> str:
        address, there = _on_site(source, match[1])
        if there is None:
            if address:
                log.warning("%s: %s: %s", source.relative_to(ROOT), match[1], address)
            return match[1]
        _, hash_mark, anchor = match[1].partition("#")
        return os.path.relpath(address, posixpath.dirname(own) or ".") + hash_mark + anchor

    parts = _FENCE.split(markdown)  # text, fence, its marks, text, …
    return "".join(_LINK.sub(rewritten, part) if index % 3 == 0 else part for index, part in _kept(parts))


def _kept(parts: list[str]) -> list[tuple[int, str]]:
    return [(index, part) for index, part in enumerate(parts) if index % 3 != 2]


# -- links ---------------------------------------------------------------------------------------------------------


def _outside() -> dict[str, Path]:
    """Markdown outside docs/: its address on the site, and where it is."""
    found = [path for pattern in _OUTSIDE for path in ROOT.glob(pattern)]
    return {f"project/{path.relative_to(ROOT)}": path for path in sorted(found)}


def _pages() -> list[Path]:
    return [*sorted((ROOT / "docs").rglob("*.md")), *_outside().values()]


def _targets(markdown: str) -> list[str]:
    text = "".join(part for index, part in _kept(_FENCE.split(markdown)) if index % 3 == 0)
    return _LINK.findall(text)


def _on_site(page: Path, target: str) -> tuple[str, Path | None]:
    """Where a link leads on the site, and to which file; no file where it is left as it is, and why if amiss."""
    name = target.partition("#")[0]
    if not name or "://" in name or name.startswith("mailto:"):
        return "", None
    there = (page.parent / name).resolve()
    inside = os.path.relpath(there, ROOT)
    if inside.removeprefix("docs/") in _MADE:
        return inside.removeprefix("docs/"), there
    if inside.startswith("..") or not there.exists():
        return "it links to what is not there", None
    if there.is_dir():
        return "it links to a folder; name a file of it", None
    if inside.startswith("docs/"):
        return inside.removeprefix("docs/"), there
    return (f"project/{inside}" if f"project/{inside}" in _outside() else f"source/{inside}"), there


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in parts for leaf in _leaves(part)]


# -- pages that are made -------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its help, from the parser itself."""
    sys.path.insert(0, str(ROOT / "runtime"))
    sys.path.insert(0, str(ROOT / "trainer"))
    os.environ["COLUMNS"] = "110"
    from nap_runtime.cli.app import build_parser

    lines = ["# Command line", "", "Made from the parser: this is what `--help` prints.", ""]
    for parser in _commands(build_parser()):
        lines += [f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def _commands(parser: Any) -> list[Any]:
    """A parser and all below it, in the order of the help."""
    found = [parser]
    for name in parser.commands():
        found += _commands(parser._commands.choices[name])
    return found


def configuration() -> str:
    """The keys of a decode's configuration, and the sections of a training's."""
    sys.path.insert(0, str(ROOT / "runtime"))
    from nap_runtime.cli.options import GROUPS
    from nap_runtime.cli.settings import sync_keys

    lines = [
        "# Configuration",
        "",
        "## A decode",
        "",
        "`nap decode --print-config` writes these keys, `--config FILE` reads them; the command line wins.",
        "In a study they are the keys of a run ([studies](../studies.md)). An unknown key is an error, and so is one",
        "that the chosen rule or sync does not use.",
        "",
    ]
    for title, options in GROUPS.items():
        lines += [f"### {title.capitalize()}", "", "| key | option | default | what |", "|---|---|---|---|"]
        for option in options:
            key = f"sync.{option.field}" if option.field in sync_keys() else option.field
            lines.append(f"| `{key}` | `--{option.name}` | {_cell(option.default)} | {_cell(option.help)} |")
        lines.append("")
    lines += ["`sync.KEY` stands for a key of the mapping `sync`: `sync: {mode: kv, period: 8}`.", "", _TRAINING]
    return "\n".join(lines)


_TRAINING = """## A training

The sections of the file that `nap_trainer.train --config` reads ([training](../training.md)).

::: nap_trainer.settings
    options:
      show_root_heading: false
      show_root_toc_entry: false
      heading_level: 3
      members_order: source
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def grpc() -> str:
    """The .proto file, a section for each service, message and enumeration."""
    text = (ROOT / "proto/nap_runtime/service/v1/decoder.proto").read_text(encoding="utf-8")
    about = re.match(r"(//.*\n)+", text)
    lines = [
        "# gRPC",
        "",
        "From `proto/nap_runtime/service/v1/decoder.proto`. [The service](../service.md) says how it is used.",
        "",
    ]
    lines += [re.sub(r"^// ?", "", line) for line in (about[0] if about else "").splitlines()]
    for match in re.finditer(
        r"((?:^//(?!-).*\n)*)^(service|message|enum) (\w+) (?:\{\}|\{\n(?:.*\n)*?^\})\n", text, re.MULTILINE
    ):
        lines += ["", f"## {match[3]}", "", "```protobuf", match[0].rstrip(), "```"]
    return "\n".join(lines) + "\n"
