"""Several hosts on one network."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hosts.host import HOME, Host, Machine
from hosts.network import Switch, Wire
from hosts.probe import find

ROOT = Path("/var/tmp/nap-hosts")
CHECKOUT = Path(__file__).parents[3]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOST = 99
_SSHD = """
Port 22
HostKey {folder}/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv {environment}
"""
_numbers = itertools.count()


class Cluster:
    """`n` hosts named node0, node1, …, with addresses 10.77.0.1, 10.77.0.2, …; a context manager.

    Everybody may ssh from every host to every host as root, by name or address, without a question. Within a cluster
    `hosts[i]`, `len(hosts)` and iteration give the hosts.

    Args:
        n: how many to begin with.
        path: folders that come first on every host's PATH, in login shells, ssh and `Host.run` alike.
        env: further environment of every host, in the same places.
        visible: paths below the home or /tmp of this machine that hosts see at the same place. The checkout and the
            Python that runs this always are.

    /mnt is one folder that all hosts share, as they would share a disk of the network; `mnt` is where it lies here.
    """

    def __init__(
        self,
        n: int = 3,
        *,
        path: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
        visible: Sequence[str | Path] = (),
    ) -> None:
        self._first = n
        path_line = os.pathsep.join([*map(str, path), SYSTEM_PATH])
        self._env = {"PATH": path_line, "HOME": str(HOME), "LANG": "C.UTF-8", **(env or {})}
        self._visible = [*map(Path, visible), CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)]
        self._hosts: list[Host] = []
        self._switch: Switch | None = None
        self._folder = ROOT / f"{os.getpid()}-{next(_numbers)}"
        self.mnt = self._folder / "mnt"

    def __enter__(self) -> Cluster:
        sweep()
        try:
            self._prepare()
            self._switch = Switch(str(self._folder))
            for _ in range(self._first):
                self.add()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, index: int) -> Host:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts)

    def add(self) -> Host:
        """One host more."""
        assert self._switch is not None
        number = len(self._hosts)
        assert number < MOST, "the list of names in /etc/hosts ends here"
        name, address = f"node{number}", f"10.77.0.{number + 1}"
        machine = self._machine(name, address)
        wire = Wire(str(self._folder))
        host = Host(machine, wire, self._switch.plug(wire, f"port{number}", address))
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """End all hosts and remove their files."""
        for host in self._hosts:
            host.close()
        self._hosts = []
        if self._switch is not None:
            self._switch.close()
            self._switch = None
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- files --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What all hosts share: keys, sshd's settings, names, the login environment."""
        self.mnt.mkdir(parents=True)
        for key in ("host_key", "id_ed25519"):
            line = [find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self._folder / key)]
            subprocess.run(line, check=True, stdin=subprocess.DEVNULL)
        environment = " ".join(f'{name}="{value}"' for name, value in self._env.items())
        (self._folder / "sshd_config").write_text(_SSHD.format(folder=self._folder, environment=environment))
        (self._folder / "profile.d").mkdir()
        login = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self._env.items())
        (self._folder / "profile.d" / "hosts.sh").write_text(login)

    def _machine(self, name: str, address: str) -> Machine:
        folder = self._folder / name
        for part in ("home", "tmp", "stage"):
            (folder / part).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        self._write_home(folder / "home")
        (folder / "hostname").write_text(f"{name}\n")
        # As Debian and Ubuntu have it: a host's own name is not the address that others reach.
        others = "".join(f"10.77.0.{at + 1} node{at}\n" for at in range(MOST) if name != f"node{at}")
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others}")
        own = {"/etc/hosts": folder / "hosts", "/etc/hostname": folder / "hostname"}
        etc = {**own, "/etc/profile.d": self._folder / "profile.d"}
        sshd = [find("sshd"), "-D", "-f", str(self._folder / "sshd_config"), "-E", str(folder / "sshd.log")]
        hidden = [Path("/tmp"), Path("/mnt"), HOME]
        visible = [path for path in self._visible if any(path.is_relative_to(top) for top in hidden)]
        return Machine(
            name=name, address=address, folder=folder, mnt=self.mnt, visible=visible, sshd=sshd, env=self._env,
            etc={file: own for file, own in etc.items() if Path(file).exists()},
        )  # fmt: skip

    def _write_home(self, home: Path) -> None:
        """Keys for ssh both ways."""
        home.chmod(0o700)
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700)
        shutil.copy(self._folder / "id_ed25519", ssh)
        shutil.copy(self._folder / "id_ed25519.pub", ssh / "authorized_keys")
        host_key = (self._folder / "host_key.pub").read_text()
        (ssh / "known_hosts").write_text(f"node*,10.77.0.* {host_key}")


def sweep() -> None:
    """Remove what clusters of processes that are no more have left behind."""
    for folder in ROOT.iterdir() if ROOT.is_dir() else ():
        owner = folder.name.partition("-")[0]
        if owner != str(os.getpid()) and not Path("/proc", owner).exists():
            _end_processes_of(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _end_processes_of(folder: Path) -> None:
    """First processes and wires of a cluster have its folder in their command line. As a rule none is left."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(process.name)
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            if f"{folder}\0" in words or f"{folder}/" in words:
                os.kill(pid, signal.SIGKILL)
