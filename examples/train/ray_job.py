"""A training as a Ray job: one process for each GPU of a cluster, with the entry that the deepspeed launcher uses.

    python examples/train/ray_job.py --ranks 16 --config examples/train/llada-8b-nap.yaml
    ray job submit -- bash -c 'cd /shared/nap && python examples/train/ray_job.py --ranks 16 --config …'

What this script does not know goes to nap_trainer.train. Every node needs nap-runtime[train] and sees this folder, the
model, the data and `run.out` under the same paths. The log of the ranks is printed here. The exit code is that of the
training (0, 1, 2), or 130 after Ctrl-C; a training that ended early goes on from its last checkpoint when the job is
run again. Ranks are told texts and numbers only. Ray's own ports run code for whoever reaches them: set
RAY_AUTH_MODE=token for the cluster and for this command, and use a network of your own.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # every line of every rank; read when Ray is imported

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nap_trainer.train import parse


class Rank:
    """One process of the training."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.held: socket.socket | None = None

    def __repr__(self) -> str:
        """How Ray names this process in its log."""
        return f"rank {self.rank}"

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, which is held until the training opens it."""
        self.held = socket.socket()
        self.held.bind(("", 0))
        return ray.util.get_node_ip_address(), self.held.getsockname()[1]

    def train(self, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
        """Run the training in this process; its exit code."""
        os.chdir(folder)
        os.environ.update(environment)
        if self.held is not None:
            self.held.close()
        from nap_trainer.train import main

        return main(arguments)


def options(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """This script's options, and those of the training."""
    about = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="ray_job.py", description=about, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, required=True, metavar="N", help="processes, a GPU each")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a core each (default: cuda)")
    parser.add_argument("--address", metavar="HOST:PORT", help="a cluster (default: RAY_ADDRESS, else a local one)")
    parser.add_argument("--interface", metavar="NAME", help="network interface of NCCL and gloo, such as eth0")
    parser.add_argument("--spread", action="store_true", help="on as many hosts as there are, not as few as have room")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="for room on the cluster (default: 60)")
    args, rest = parser.parse_known_args(arguments)
    if args.ranks < 1:
        parser.error(f"--ranks: {args.ranks} is not a number of at least 1")
    return args, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Place the ranks, run them, end with their exit code."""
    args, rest = options(arguments)
    parse(rest)  # a wrong command line ends here, before a cluster is asked for
    try:
        connect(args.address or os.environ.get("RAY_ADDRESS"))
        return job(args, rest)
    except KeyboardInterrupt:
        return said("interrupted; the same command goes on from the last checkpoint, if there is one", 130)
    except (OSError, RuntimeError, ValueError) as error:
        return said(f"no cluster could be reached or started: {str(error).splitlines()[0]}", 1)
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    """Join a cluster, or start one here. Fails in seconds where nobody listens; Ray itself would try for minutes."""
    if address is None:
        ray.init(address="local", include_dashboard=False)  # without it Ray joins whatever ray start has left here
        return
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    ray.init(address=address)


def job(args: argparse.Namespace, rest: list[str]) -> int:
    """One training on the cluster."""
    need = {"GPU": 1} if args.device == "cuda" else {"CPU": 1}
    group = placement_group([need] * args.ranks, strategy="SPREAD" if args.spread else "PACK")
    try:
        if not group.wait(args.wait):
            kind = next(iter(need))
            have = ray.cluster_resources().get(kind, 0)
            return said(f"--ranks: the cluster has {have:g} {kind}, or too few are free: {args.ranks} are needed", 2)
        ranks = placed(group, need, args.ranks)
        return watched(ranks, rest, environments(args, ranks[0]))
    finally:
        remove_placement_group(group)


def placed(group: Any, need: dict[str, int], count: int) -> list[Any]:
    """An actor a bundle, those of one node with neighbouring ranks."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    print(f"{count} ranks on {len(set(nodes.values()))} hosts", flush=True)
    made = []
    for rank, bundle in enumerate(sorted(range(count), key=lambda index: (nodes[index], index))):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        resources = {"num_cpus": need.get("CPU", 0), "num_gpus": need.get("GPU", 0)}
        made.append(ray.remote(Rank).options(scheduling_strategy=strategy, **resources).remote(rank))
    return made


def environments(args: argparse.Namespace, first: Any) -> list[dict[str, str]]:
    """What a launcher tells each rank. Ray shows a process its own GPU only, so that each is local rank 0."""
    host, port = ray.get(first.address.remote())
    common = {"WORLD_SIZE": str(args.ranks), "MASTER_ADDR": host, "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    if args.device == "cpu":
        common |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if args.interface:
        common |= {"NCCL_SOCKET_IFNAME": args.interface, "GLOO_SOCKET_IFNAME": args.interface}
    return [{**common, "RANK": str(rank)} for rank in range(args.ranks)]


def watched(ranks: list[Any], rest: list[str], environments: list[dict[str, str]]) -> int:
    """Train until all ranks are done or one fails, which ends the others; the exit code."""
    folder = os.getcwd()
    waiting = [rank.train.remote(rest, folder, each) for rank, each in zip(ranks, environments, strict=True)]
    names = {task: number for number, task in enumerate(waiting)}
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            code = int(ray.get(done))
        except ray.exceptions.RayActorError as error:
            return ended(said(f"rank {names[done]} was lost: {first_line(error)}", 1))
        except ray.exceptions.RayTaskError as error:
            return ended(said(f"rank {names[done]} failed:\n{error}", 1))
        if code:
            return ended(code)
    return ended(0)


def first_line(error: BaseException) -> str:
    """What an error says, without its advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ended(code: int) -> int:
    """The code, once Ray has printed the last lines of the ranks."""
    time.sleep(1.0)
    return code


def said(text: str, code: int) -> int:
    """Print a line, return an exit code."""
    print(f"ray_job.py: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
