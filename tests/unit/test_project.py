"""What holds for the whole tree: one version, stubs without drift, confined imports, no unsafe loading."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = (ROOT / "runtime", ROOT / "trainer")
MAX_LINES = 400

# Top-level or dotted module → the modules (and what lies under them) that may import it.
CONFINED = {
    "ray": tuple(f"nap_runtime.executor.ray_{name}" for name in ("executor", "actors", "cluster", "homes", "ending")),
    "grpc": ("nap_runtime.service",),
    "torch.distributed": ("nap_runtime.distributed", "nap_trainer.ranks", "nap_trainer.zero"),
    "deepspeed": ("nap_trainer.zero",),
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}


# --- the tree ---


@cache
def sources() -> tuple[Path, ...]:
    """Hand-written Python of both packages."""
    found = (path for root in SOURCE_ROOTS for path in root.rglob("*.py"))
    return tuple(sorted(path for path in found if not re.search(r"_pb2(_grpc)?\.py$", path.name)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """`runtime/nap_runtime/models/__init__.py` → `nap_runtime.models`."""
    root = next(root for root in SOURCE_ROOTS if path.is_relative_to(root))
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lies_under(name: str, *tops: str) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def listed_files() -> Iterator[Path]:
    """Every file that is, or would be, committed; in a tree without git, every file that is not hidden."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if git.returncode == 0:
        names = filter(None, git.stdout.split("\0"))
        yield from (ROOT / name for name in names if (ROOT / name).is_file())
        return
    for path in ROOT.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1]):
            yield path


# --- names in a syntax tree ---


def imported(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports, at any depth, by statement or by `import_module("…")`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            yield from ((arg.value, node) for arg in node.args if is_text(arg))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def dotted(node: ast.AST) -> str:
    """`torch.distributed.barrier` as text; empty where it is no plain chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def used(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """What a file imports, and the attribute chains that reach a submodule without importing it."""
    yield from imported(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield dotted(node), node


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; None where it is missing, or no constant."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else None
    return None


# --- version ---


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_changelog_begins_with_this_version() -> None:
    source = ROOT / pyproject()["tool"]["hatch"]["version"]["path"]
    version = re.search(r'^__version__ = "(.+)"$', source.read_text(encoding="utf-8"), re.MULTILINE)
    heading = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert heading is not None
    assert heading[1] == version[1]


def test_version_is_written_once() -> None:
    copies = [path for path in sources() if re.search(r"^__version__\b.*=", path.read_text("utf-8"), re.MULTILINE)]
    assert copies == [ROOT / pyproject()["tool"]["hatch"]["version"]["path"]]
    assert "version" not in pyproject()["project"]


def test_constraints_pin_every_direct_dependency() -> None:
    table = pyproject()["project"]
    wanted = [
        *table["dependencies"],
        *(line for extra in table["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[\[<>=!~ ;]", line)[0].lower() for line in wanted} - {"nap-runtime"}
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {match[1].lower() for match in re.finditer(r"^([\w.-]+)==", text, re.MULTILINE)}
    assert names == pinned


# --- stubs ---


def test_stubs_are_what_proto_generates() -> None:
    pytest.importorskip("grpc_tools")
    run = subprocess.run(
        [sys.executable, "scripts/stubs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_proto_enums_begin_with_unspecified() -> None:
    decoder = pytest.importorskip("nap_runtime.service.v1.decoder_pb2")
    enums = decoder.DESCRIPTOR.enum_types_by_name.values()
    assert [e.name for e in enums if not e.values_by_number[0].name.endswith("_UNSPECIFIED")] == []


def test_proto_offers_the_contract() -> None:
    decoder = pytest.importorskip("nap_runtime.service.v1.decoder_pb2")
    service = decoder.DESCRIPTOR.services_by_name["Decoder"]
    assert service.full_name == "nap.v1.Decoder"
    assert list(service.methods_by_name) == ["Submit", "Get", "List", "Cancel", "Watch", "Cluster"]


# --- imports ---


@pytest.mark.parametrize("name", CONFINED)
def test_import_is_confined(name: str) -> None:
    strays = {
        where(path, node)
        for path in sources()
        if not lies_under(module_name(path), *CONFINED[name])
        for use, node in used(path)
        if lies_under(use, name)
    }
    assert sorted(strays) == [], f"{name} may be used in {', '.join(CONFINED[name])} only"


def test_every_folder_is_a_package() -> None:
    """Import contracts and mypy pass over a folder without `__init__.py` in silence."""
    folders = {path.parent for root in SOURCE_ROOTS for path in root.rglob("*.py")} - set(SOURCE_ROOTS)
    assert sorted(str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()) == []


# --- safety ---


def test_nothing_is_unpickled() -> None:
    strays = [where(path, node) for path in sources() for name, node in imported(path) if lies_under(name, *UNPICKLERS)]
    for path in sources():
        for name, call in calls(path):
            if name == "torch.load" and keyword(call, "weights_only") is not True:
                strays.append(f"{where(path, call)} (torch.load without weights_only=True)")
            if keyword(call, "allow_pickle") is True:
                strays.append(f"{where(path, call)} (allow_pickle=True)")
    assert strays == []


def test_no_remote_code_is_trusted() -> None:
    strays = [
        where(path, call)
        for path in sources()
        for _, call in calls(path)
        if any(given.arg == "trust_remote_code" for given in call.keywords)
        and keyword(call, "trust_remote_code") is not False
    ]
    assert strays == []


# --- the tree as text ---


def test_no_file_refers_outside_the_tree() -> None:
    outside = "../" + "shared"
    strays = [
        str(path.relative_to(ROOT)) for path in listed_files() if outside in path.read_text("utf-8", errors="ignore")
    ]
    assert strays == []


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources()}
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert long == {}, f"more than {MAX_LINES} lines"
