"""Whether hosts can be made here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

# Command → the Debian package that brings it.
NEEDED = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "util-linux",
    "ip": "iproute2",
    "tc": "iproute2",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ps": "procps",
}
# Commands of administrators are not always on the PATH of a shell that did not log in.
SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_TRY = """
mount -t tmpfs none /tmp && ip link set lo up && ip link add br0 type bridge && ip link add a0 type veth peer name b0
tc qdisc add dev a0 root tbf rate 1mbit burst 16kb latency 50ms && echo fine
"""


def find(command: str) -> str:
    """The path of a command that `missing` has found.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = shutil.which(command, path=SEARCH)
    if path is None:
        raise FileNotFoundError(command)
    return path


@cache
def missing(*also: str) -> str | None:
    """Why hosts cannot be made here, as the reason of a skip; None where they can.

    Args:
        also: further commands that a test wants on its hosts, such as `rsync`.
    """
    if not sys.platform.startswith("linux"):
        return "hosts are made of Linux namespaces"
    if os.geteuid() != 0:
        return "hosts need root (namespaces, a bridge, sshd)"
    absent = [name for name in (*NEEDED, *also) if shutil.which(name, path=SEARCH) is None]
    if absent:
        packages = sorted({NEEDED.get(name, name) for name in absent})
        return f"hosts need {', '.join(absent)}: apt-get install {' '.join(packages)}"
    return _namespaces()


def _namespaces() -> str | None:
    """Make one set of namespaces, with all that a host does in them."""
    line = [find("unshare"), "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", _TRY]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, env=os.environ | {"PATH": SEARCH})
    if "fine" in done.stdout:
        return None
    why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"hosts need namespaces, a bridge and token buckets, which this machine does not give: {why}"
