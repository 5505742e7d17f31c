"""A host's first process: private mounts, hostname, sshd; then it collects orphans until its standard input ends.

Run as `python init.py SPEC` with SPEC in JSON: `name`, `etc` {file: path of its replacement}, `private` {folder: path
of the host's own}, `memory` [folders that get a tmpfs], `visible` [paths inside private folders that all hosts see],
`stage` (an empty folder), `sshd` [command]. Prints `ready`. Reads `stop` and `cont` as lines: halt all processes of
this host except this one, and let them go on. When it ends, the kernel ends every process of the host.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def mount(*arguments: str | Path) -> None:
    """`mount ARGUMENTS…`."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def bind_all(spec: dict[str, Any]) -> None:
    """Hide the machine's folders behind the host's own, and put what stays visible back into them."""
    staged = []
    for index, path in enumerate(spec["visible"]):
        stage = Path(spec["stage"], str(index))
        stage.mkdir()
        mount("--rbind", path, stage)
        staged.append((stage, Path(path)))
    for folder, own in spec["private"].items():
        mount("--bind", own, folder)
    for folder in spec["memory"]:
        mount("-t", "tmpfs", "-o", "mode=1777", "none", folder)
    for file, own in spec["etc"].items():
        mount("--bind", own, file)
    for stage, path in staged:
        path.mkdir(parents=True, exist_ok=True)
        mount("--rbind", stage, path)


def collect_orphans() -> None:
    """Wait for whatever ends, for ever."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)


def obey() -> None:
    """Follow the lines of standard input to their end."""
    for line in sys.stdin:
        orders = {"stop": signal.SIGSTOP, "cont": signal.SIGCONT}
        with contextlib.suppress(ProcessLookupError):  # nobody else is here
            os.kill(-1, orders[line.strip()])  # -1: all that this process sees, but itself
        print("done", flush=True)


def wait_for_sshd() -> None:
    """Until it listens; ten seconds at most."""
    for _ in range(1000):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 22), timeout=1).close()
            return
        time.sleep(0.01)


def main() -> None:
    """Start the host."""
    spec = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket.sethostname(spec["name"])
    mount("-t", "proc", "none", "/proc")
    bind_all(spec)
    os.chdir("/")
    Path("/run/sshd").mkdir(mode=0o755)
    Path("/run/lock").mkdir(mode=0o1777)
    subprocess.Popen(spec["sshd"], stdin=subprocess.DEVNULL)
    wait_for_sshd()
    threading.Thread(target=collect_orphans, daemon=True).start()
    print("ready", flush=True)
    obey()
    os._exit(0)


if __name__ == "__main__":
    main()
