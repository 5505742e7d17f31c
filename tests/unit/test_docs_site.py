"""The documentation as a site: it builds under --strict (no broken link or anchor), and has what its nav says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="mkdocs is not installed (pip install 'nap-runtime[docs]')",
)


@pytest.fixture(scope="module")
def hook(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    pytest.importorskip("mkdocs")
    return load_script(ROOT / "scripts" / "docs_site.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, elsewhere."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def page(site: Path, address: str) -> str:
    return (site / address / "index.html").read_text()


@needs_mkdocs
def test_pages_are_there(site: Path) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    for address in re.findall(r"(\S+)\.md$", navigation, re.MULTILINE):
        folder = re.sub(r"(^|/)(index|README)$", "", address)
        assert (site / folder / "index.html").is_file(), address


@needs_mkdocs
def test_the_command_line_is_the_parser_s(site: Path, hook: ModuleType) -> None:
    from nap_runtime.cli.app import build_parser

    text = page(site, "reference/cli")
    commands = [parser.prog for parser in hook._commands(build_parser())]
    assert {"nap decode", "nap model fetch", "nap study run"} <= set(commands)
    for command in commands:
        assert f'<h2 id="{command.replace(" ", "-")}">' in text
    assert "--sync exact|tokens" in text


@needs_mkdocs
def test_the_references_have_what_the_code_has(site: Path) -> None:
    import nap_runtime

    python, grpc, config = (page(site, f"reference/{name}") for name in ("python", "grpc", "config"))
    for name in sorted(set(nap_runtime.__all__) - {"__version__", "DecodeJob", "Storage", "choose_sync"}):
        assert re.search(rf'<h\d id="nap_runtime\.[\w.]*\b{name}"', python), name
    proto = (ROOT / "proto/nap_runtime/service/v1/decoder.proto").read_text()
    for name in re.findall(r"^(?:message|service|enum) (\w+)", proto, re.MULTILINE):
        assert f'<h2 id="{name.lower()}">' in grpc
    for key in ("sync.mode", "steps", "model", "batch_size"):
        assert f"<code>{key}</code>" in config
    assert "ObjectiveSection" in config


@needs_mkdocs
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    text = (site / "index.html").read_text()
    sources = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
    assert sources == []


def test_a_page_that_the_navigation_does_not_name_is_not_lost(hook: ModuleType) -> None:
    config = SimpleNamespace(nav=[{"Home": "index.md"}])
    named = set(hook._leaves(hook.on_config(config).nav))
    assert {"index.md", "architecture.md", "cluster/aws.md", "project/README.md"} <= named


@pytest.mark.parametrize(
    ("page", "target", "address"),
    [
        ("docs/service.md", "architecture.md", "architecture.md"),
        ("docs/cluster/aws.md", "../service.md#limits", "service.md"),
        ("docs/cluster/on-prem.md", "../../examples/cluster/README.md", "project/examples/cluster/README.md"),
        ("docs/cluster/README.md", "../../cluster_configs/aws.yaml", "source/cluster_configs/aws.yaml"),
        ("README.md", "docs/limits.md", "limits.md"),
        ("README.md", "CONTRIBUTING.md", "project/CONTRIBUTING.md"),
        ("docs/index.md", "reference/cli.md", "reference/cli.md"),
    ],
)
def test_where_links_lead(hook: ModuleType, page: str, target: str, address: str) -> None:
    found, there = hook._on_site(ROOT / page, target)
    assert (found, there is not None) == (address, True)


@pytest.mark.parametrize("target", ["../nothing.md", "../../../outside.md", "../../examples"])
def test_links_to_nothing_are_named(hook: ModuleType, target: str) -> None:
    why, there = hook._on_site(ROOT / "docs" / "cluster" / "aws.md", target)
    assert there is None
    assert why


def test_what_looks_like_a_link_in_code_is_none(hook: ModuleType) -> None:
    assert hook._targets("[a](b.md)\n\n```sh\necho [c](d.md)\n```\n\n[e](f.md)\n") == ["b.md", "f.md"]


def test_the_navigation_names_no_page_twice() -> None:
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text())
    navigation = yaml.safe_load(text)["nav"]

    def leaves(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        inner = part.values() if isinstance(part, dict) else part
        return [leaf for each in inner for leaf in leaves(each)]

    found = leaves(navigation)
    assert len(found) == len(set(found))
