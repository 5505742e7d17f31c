"""What is on a host before `ray up`: a Python environment with everything the project needs, but not the project.

A host that is really fresh gets its packages from an index, gigabytes of them; hosts of these tests reach no index.
So they find those packages already in ~/nap-env, as in a prepared disk image: links to what is installed here. The
project's own wheel is built and installed on each host by the same setup commands as everywhere.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from hosts import Host

# pip on a host: nothing from outside, and hatchling from the image.
ENVIRONMENT = {
    "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip
OURS = ("nap_runtime", "__editable__", "_nap_runtime")


def install(host: Host, place: Path) -> None:
    """Give a host ~/nap-env, which stands at `place` when seen from the host."""
    line = [f"{sys.base_prefix}/bin/python3", "-m", "venv", str(place)]
    host.run(line, timeout=120)
    environment = host.home / place.relative_to(Path.home())
    target = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    for source in Path(sysconfig.get_path("purelib")).iterdir():
        if not source.name.startswith(OURS) and source.suffix != ".pth" and not (target / source.name).exists():
            (target / source.name).symlink_to(source)
    for script in Path(sys.prefix, "bin").iterdir():
        copy_script(script, environment / "bin", f"{place}/bin/python")


def copy_script(script: Path, folder: Path, python: str) -> None:
    """A console script of this environment, for another interpreter; other files are left out."""
    if script.name == "nap" or (folder / script.name).exists() or not script.is_file():
        return
    head, _, rest = script.read_bytes().partition(b"\n")
    if head.startswith(b"#!" + sys.prefix.encode()):
        (folder / script.name).write_bytes(f"#!{python}\n".encode() + rest)
        (folder / script.name).chmod(0o755)


def copy(image: Host, host: Host) -> None:
    """Give a host the same ~/nap-env as another."""
    subprocess.run(["cp", "-a", str(image.home / "nap-env"), str(host.home)], check=True)
