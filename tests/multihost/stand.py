"""A Ray cluster and `nap serve` on hosts, for tests of what breaks: what is asked of it, and what it says.

The hosts are started as a supervisor would start them: `ray start --block` again and again, so that a host that Ray had
given up, or that was switched off and on, comes back by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts import Cluster, Host, HostProcess

CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
PORT = 6379
# Ray notices a host that is gone after three questions of two seconds; by default it takes a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RES_OPTIONS": "attempts:1 timeout:1",  # no name server answers here, and torch asks one for the names of its peers
    "PYTHONPATH": os.pathsep.join(str(CHECKOUT / part) for part in ("runtime", "trainer")),
}
_AGAIN = "while :; do {command} >> /tmp/ray.out 2>&1; sleep 1; done"
_ASK = """
import json, sys, time
from nap_runtime.job import DecodeConfig
from nap_runtime.service.client import Client
questions, config = json.loads(sys.argv[2]), DecodeConfig.from_mapping(json.loads(sys.argv[3]))
with Client(sys.argv[1], patience=240.0) as client:
    jobs = [client.submit(question, config, key=f"{sys.argv[4]} {n}") for n, question in enumerate(questions)]
    print(json.dumps({"submitted": len(jobs), "time": time.time()}), flush=True)
    for n, job in enumerate(jobs):
        tokens = list(client.result(job.id).tokens)
        print(json.dumps({"job": n, "tokens": tokens, "time": time.time()}), flush=True)
"""


class Lines:
    """JSON lines of a process, collected by a thread as they come; other lines are kept as text."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._news = threading.Condition()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            with self._news:
                try:
                    self.lines.append({"seen": time.time()} | json.loads(line))
                except (ValueError, TypeError):
                    self.text.append(line)
                self._news.notify_all()

    def wait(self, wanted: Any, seconds: float, since: int = 0) -> dict[str, Any]:
        """The first line, from the `since`-th on, for which `wanted(line)` holds."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for line in self.lines[since:]:
                    if wanted(line):
                        return line
                if not self._news.wait(max(deadline - time.monotonic(), 0.0)):
                    raise TimeoutError(f"not within {seconds} s; said: {self.lines[-5:]} {''.join(self.text[-20:])}")


class Stand:
    """Hosts with Ray, node0 its head, and a server there.

    Args:
        cluster: the hosts; all of them but `spared` have joined when the constructor returns.
        cpus: of each host, as Ray is told; the server's workers take one each.
        quick: Ray notices lost hosts quickly.
    """

    def __init__(self, cluster: Cluster, *, quick: bool = True, cpus: int = 1, without: int = 0) -> None:
        self.cluster, self._cpus = cluster, cpus
        self._env = QUICK if quick else {}
        self.server: HostProcess | None = None
        self.log: Lines
        self._supervisors: dict[str, HostProcess] = {}
        self.start_head()
        for host in list(cluster)[1 : len(cluster) - without]:
            self.join(host)
        self.wait_for_hosts(len(cluster) - without)

    @property
    def head(self) -> Host:
        """node0."""
        return self.cluster[0]

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{self.head.address}:{PORT}"

    def start_head(self) -> None:
        """Start Ray's head, and wait until it answers."""
        command = f"ray start --head --port={PORT} --node-ip-address={self.head.address} --include-dashboard=false"
        self._supervise(self.head, command)

    def join(self, host: Host) -> None:
        """Start Ray on a host, again and again."""
        self._supervise(host, f"ray start --address={self.address} --node-ip-address={host.address}")

    def _supervise(self, host: Host, command: str) -> None:
        command = f"{command} --num-cpus={self._cpus} --object-store-memory=100000000 --block"
        self._supervisors[host.name] = host.popen(_AGAIN.format(command=command), env=self._env)

    def stop_ray(self, host: Host) -> None:
        """End Ray on a host at once, and do not start it again."""
        self._supervisors.pop(host.name).kill()
        host.run("pkill -9 -x raylet; pkill -9 -x gcs_server; pkill -9 -f '[r]ay::|[r]ay start|[r]ay/_private'; true")

    def nodes(self) -> list[str]:
        """Addresses of the hosts that Ray counts as alive."""
        script = (
            "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False);"
            "print(*[node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']])"
        )
        done = self.head.run([BIN / "python", "-c", script], timeout=60, check=False)
        return done.stdout.split() if done.returncode == 0 else []

    def wait_for_hosts(self, n: int, seconds: float = 90.0) -> None:
        """Until Ray counts `n` hosts."""
        deadline = time.monotonic() + seconds
        while len(found := self.nodes()) != n:
            assert time.monotonic() < deadline, f"Ray counts {found}, not {n} hosts"
            time.sleep(0.5)

    def serve(self, *options: str) -> Lines:
        """Start `nap serve` on node0 and wait until it is ready; its log."""
        line = [BIN / "nap", "serve", "--listen", "127.0.0.1:50051", "--address", self.address, "--dtype", "float64"]
        line += ["--journal", "/tmp/jobs.db", "--log-level", "debug", *options]
        self.server = self.head.popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/tmp")
        self.log = Lines(self.server.stderr)
        self.log.wait(lambda line: line.get("event") == "server.ready", 120)
        return self.log

    def ask(self, questions: Sequence[str], config: Any, key: str) -> Lines:
        """Submit questions from node0; a line when all are acknowledged, and one for each result, in their order."""
        mapping = json.dumps(config.to_mapping())
        line = [BIN / "python", "-c", _ASK, "127.0.0.1:50051", json.dumps(list(questions)), mapping, key]
        return Lines(self.head.popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/tmp").stdout)

    def status(self) -> dict[str, Any]:
        """What `nap status --json` says."""
        shown = self.head.run([BIN / "nap", "status", "--server", "127.0.0.1:50051", "--json"], cwd="/tmp").stdout
        found: dict[str, Any] = json.loads(shown)
        return found
