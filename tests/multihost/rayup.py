"""Three hosts, the machine of the person who sets them up, and the pages that this person follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import image
from hosts import HOME, Cluster, Host
from pages import ROOT, section

# What the pages call the hosts, and what they are here.
EDITS = {"192.0.2.11": "10.77.0.1", "192.0.2.12": "10.77.0.2", "192.0.2.13": "10.77.0.3"}
CHECKOUT = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "runtime", "trainer", "examples",
            "cluster_configs", "scripts"]  # fmt: skip
ENVIRONMENT = {
    "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin", "TERM": "dumb", "NO_COLOR": "1",
    "COLUMNS": "120", "RAY_DISABLE_IMPORT_WARNING": "1",
}  # fmt: skip


@dataclass(slots=True)
class Site:
    """Three hosts and a fourth machine in front of which somebody sits.

    Attributes:
        hosts: the three; the first becomes the head.
        person: the fourth, with this checkout in ~/nap, edited as the page says.
        mnt: the disk that all share, as it is seen from here.
        exports: variables that pages have set.
        first: what the page's two commands printed.
        times: (what was done, seconds).
    """

    hosts: list[Host]
    person: Host
    mnt: Path
    exports: list[str] = field(default_factory=list)
    first: str = ""
    times: list[tuple[str, float]] = field(default_factory=list)

    def follow(self, page: str, heading: str, *, timeout: float = 800.0) -> str:
        """Run the commands below a heading, one shell for all, in the checkout; what they print, without colours.

        What an earlier section exported is still there.
        """
        lines = [_edited(line) for line in section(page, heading)]
        what = f"{Path(page).name}: {heading}"
        said = self.shell("\n".join([*self.exports, *lines]), what=what, timeout=timeout)
        self.exports += [line for line in lines if line.startswith("export ")]
        return said

    def shell(self, script: str, *, what: str, timeout: float = 800.0) -> str:
        """Run a script on the person's machine; fails with all that it printed. It may leave processes behind."""
        began = time.monotonic()
        with (self.person.tmp / "out").open("w+") as out, (self.person.tmp / "err").open("w+") as err:
            process = self.person.popen(
                ["bash", "-euc", script], env=ENVIRONMENT, cwd=HOME / "nap", stdout=out, stderr=err
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            said, complaints = Path(out.name).read_text(), Path(err.name).read_text()
        seconds = time.monotonic() - began
        self.times.append((what, seconds))
        self._record(f"{what}: {seconds:.1f} s, exit code {code}", script, said, complaints)
        assert code == 0, f"{script}\n{said}\n{complaints}"
        return said

    def _record(self, title: str, script: str, said: str, complaints: str) -> None:
        """Append to the file that NAP_MULTIHOST_LOG names: docs/cluster/multi-host.md is made from it."""
        if name := os.environ.get("NAP_MULTIHOST_LOG"):
            commands = "".join(f"$ {line}\n" for line in script.splitlines())
            with Path(name).open("a") as log:
                log.write(f"=== {title}\n{commands}{said}\n--- stderr\n{complaints}\n")


def _edited(line: str) -> str:
    for written, here in EDITS.items():
        line = line.replace(written, here)
    return line


@contextmanager
def site() -> Iterator[Site]:
    """The three hosts, prepared as disk images might be, and the person's machine."""
    began = time.monotonic()
    with Cluster(4, path=[f"{sys.base_prefix}/bin"], env=image.ENVIRONMENT) as cluster:
        head, *others, person = cluster
        image.install(head, HOME / "nap-env")
        for host in others:
            image.copy(head, host)
        checkout(person.home / "nap")
        here = Site(hosts=[head, *others], person=person, mnt=cluster.mnt)
        here.times.append(("hosts made and prepared", time.monotonic() - began))
        yield here


def checkout(folder: Path) -> None:
    """The files that `ray up` takes along, with the addresses of these hosts."""
    folder.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skip)
        else:
            shutil.copy(source, folder / name)
    for name in ("on-prem.yaml", "hostfile"):
        file = folder / "cluster_configs" / name
        file.write_text(_edited(file.read_text()))


def answers(text: str) -> list[dict[str, Any]]:
    """The JSON objects that `nap decode --json` printed, somewhere in a text."""
    lines = [line.strip() for line in text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{"schema"')]
