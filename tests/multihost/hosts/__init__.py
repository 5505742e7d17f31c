"""Several hosts on one Linux machine, for tests: own network, processes, hostname, /tmp, /run, home and sshd each.

```python
from hosts import Cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

with Cluster(3, path=[Path(sys.prefix) / "bin"], env={"RAY_AUTH_MODE": "token"}) as hosts:
    hosts[0].run(["ssh", hosts[1].address, "hostname"]).stdout   # "node1\n"
    server = hosts[2].popen(["python", "-m", "http.server"])     # ends with the host at the latest
    hosts[1].cut(), hosts[1].heal()                              # packets vanish; they come through again
    hosts[1].freeze(), hosts[1].thaw()                           # its kernel answers, its processes do not
    with hosts[1].slowed(0.1): ...                               # its processes run a tenth of the time
    hosts[1].shape("100mbit")                                    # token buckets on its link, both ways
    hosts[1].kill(), hosts[1].start()                            # all processes at once; it boots again, same address
    late = hosts.add()                                           # one host more, on the same network
```

Hosts share /mnt among themselves. What is shared with the machine: kernel, users, every file outside the private
folders, and the processors. Hosts see each other and nothing else: there is no way out, so no test needs a network.
All addresses are the same in every cluster, and clusters do not see each other; any number may run side by side.

Nothing outlives the process that made a cluster, even if that is killed: each host's first process ends at the end of
its standard input. Folders that a killed process left under /var/tmp/nap-hosts are removed by the next cluster.
"""

from __future__ import annotations

from hosts.cluster import Cluster, sweep
from hosts.host import HOME, Host, HostProcess
from hosts.probe import missing

__all__ = ["HOME", "Cluster", "Host", "HostProcess", "missing", "sweep"]
