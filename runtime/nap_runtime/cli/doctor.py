"""`nap doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass

from nap_runtime import __version__
from nap_runtime.cli import output
from nap_runtime.cli.parser import FAILURE, Parser

_ABOUT = "Report torch, GPU, Ray, ports, memory and the bundled model; exit code 1 where one is missing."
_NEEDED_MEMORY = 2 << 30
_NEEDED_SHARED_MEMORY = 64 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `ok`, `note` (works without) or `fail` (needed)."""

    name: str
    state: str
    detail: str


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("doctor", _ABOUT, _run)
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")


def _run(args: argparse.Namespace) -> int:
    checks = [_guarded(check) for check in (_python, _torch, _gpu, _ray, _ports, _memory, _shared_memory, _model)]
    failed = any(check.state == "fail" for check in checks)
    if "json" in args:
        print(output.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        print(output.align([(check.name, f"{check.state:<5} {check.detail}") for check in checks]))
    return FAILURE if failed else 0


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that breaks is a finding, too."""
    try:
        return check()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(check.__name__.strip("_").replace("_", " "), "fail", text)


def _python() -> Check:
    machine = f"{os.cpu_count()} CPU cores, {platform.platform()}"
    detail = f"nap {__version__}, Python {platform.python_version()}, {machine}"
    return Check("python", "ok", detail)


def _torch() -> Check:
    import torch

    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "note", "torch sees none; --device cpu works")
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Check("gpu", "ok", ", ".join(f"{one.name} ({output.size_text(one.total_memory)})" for one in found))


def _ray() -> Check:
    from importlib import metadata

    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check("ray", "fail", "not installed; several workers need it: pip install ray")
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS is {address}" if address else "a local cluster is started when one is needed"
    return Check("ray", "ok", f"{version}; {where}")


def _ports() -> Check:
    """Workers listen on ports that the system picks, and reach each other by loopback on one machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    return Check("ports", "ok", "loopback listens and answers on a port that the system picked")


def _memory() -> Check:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free, total = pages * size, os.sysconf("SC_PHYS_PAGES") * size
    state = "ok" if total >= _NEEDED_MEMORY else "note"
    return Check("memory", state, f"{output.size_text(free)} free of {output.size_text(total)}")


def _shared_memory() -> Check:
    """Ray keeps its objects there; those of a decode are small."""
    if not os.path.isdir("/dev/shm"):
        return Check("shared memory", "note", "there is no /dev/shm; Ray uses files")
    free = shutil.disk_usage("/dev/shm").free
    return Check(
        "shared memory",
        "ok" if free >= _NEEDED_SHARED_MEMORY else "note",
        f"{output.size_text(free)} free in /dev/shm",
    )


def _model() -> Check:
    from nap_runtime.models.inspection import describe

    facts = describe("nap-tiny")
    return Check("model", "ok", f"nap-tiny, {facts['params']:,} weights, {facts['dtype']}")
