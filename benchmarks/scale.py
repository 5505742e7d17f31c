"""The service with many groups of scripted workers: what a job, a report and a sync cost coordinators and server.

    python benchmarks/scale.py                                   # 1, 4, 16 and 64 groups of 4 workers, 1,000 jobs at 16
    python benchmarks/scale.py --groups 16 --profile             # and where the server's time goes

Server, journal, gRPC, groups and their coordinators are the real ones; each group is a process. Only the workers are
scripted (`scale_group.py`): they sleep for `--step-ms` a step and run no network. So this measures everything but the
network, the exchanges between workers, and Ray's delivery of reports.

Each row is a server of its own, with `--jobs-per-group` jobs a group on canvases of the paper's size; every job is
watched by a client in another process unless `--no-watch`. CPU seconds are of threads or processes: they depend little
on who else uses the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scale_group
from origin import head

from nap_runtime import DecodeConfig, SyncPolicy
from nap_runtime.models.loading import BUNDLED
from nap_runtime.service import writer
from nap_runtime.service.client import AsyncClient
from nap_runtime.service.groups import Group
from nap_runtime.service.journal import Journal
from nap_runtime.service.logs import Log
from nap_runtime.service.server import Server
from nap_runtime.service.settings import GroupSettings, ServerSettings

QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
_LIVENESS = 60.0  # seconds: on few cores many processes start at once
_SUBMITTERS = 16


def main() -> None:
    """Measure every number of groups, each in a process of its own."""
    args = _arguments()
    if args.client is not None:  # a client's line has --one too
        print(json.dumps(asyncio.run(_submit_all(args, args.client))))
        return
    if args.one is not None:
        print(json.dumps(asyncio.run(_measure(args, args.one))))
        return
    rows = []
    for groups in args.groups:
        rows.append(_child(args, "--one", str(groups)))
        print(_table(rows[-1:]), file=sys.stderr, flush=True)
    print(_table(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**head(), "arguments": _shown(args), "rows": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    integers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--groups", type=integers, default=[1, 4, 16, 64], help="numbers of groups, one row each")
    parser.add_argument("--workers", type=int, default=4, help="workers of a group, one path each")
    parser.add_argument("--jobs-per-group", type=float, default=62.5, help="jobs, times the groups")
    parser.add_argument("--most-jobs", type=int, default=1000, help="jobs of a row at most")
    parser.add_argument("--batch", type=int, default=8, help="jobs that a group decodes together")
    parser.add_argument("--step-ms", type=float, default=30.0, help="what a scripted step takes")
    parser.add_argument("--path-tokens", type=int, default=330)
    parser.add_argument("--summary-tokens", type=int, default=32)
    parser.add_argument("--every", type=int, default=8, help="K of sync kv")
    parser.add_argument("--report-every", type=int, default=8, help="R")
    parser.add_argument("--no-watch", dest="watch", action="store_false", help="nobody follows the jobs")
    parser.add_argument("--profile", action="store_true", help="say where the server's threads spend their time")
    parser.add_argument("--scratch", type=Path, help="folder for journals (default: the system's)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """This program once more, with a part to play; what it prints last."""
    done = subprocess.run([sys.executable, *sys.argv, *more], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def config_of(args: argparse.Namespace) -> DecodeConfig:
    """One path a worker, a token of each path a step."""
    paths = args.workers
    return DecodeConfig(
        paths=paths,
        path_tokens=args.path_tokens,
        summary_tokens=args.summary_tokens,
        steps=-(-(paths * args.path_tokens + args.summary_tokens) // paths),
        control_every=args.report_every,
        sync=SyncPolicy("kv", every=args.every),
    )


# -- one row: a server ------------------------------------------------------------------------------------------------


async def _measure(args: argparse.Namespace, groups: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        os.environ |= {scale_group.STATS: scratch, scale_group.STEP_SECONDS: str(args.step_ms / 1000)}
        Group.module = "scale_group"
        jobs = min(round(args.jobs_per_group * groups), args.most_jobs)
        with _counted_transactions() as transactions, _profiled(args.profile) as profiles:
            server = Server(_settings(args, groups, folder), Log(as_json=True, level="error"))
            await server.start()
            before, began = _cpu(), time.monotonic()
            transactions.clear()
            client = await _client(args, server.address, jobs)
            seconds, after = time.monotonic() - began, _cpu()
            counted = transactions.copy()
            ended = {state: server.figures.ended.labels(state)._value.get() for state in ("done", "failed")}
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            await server.stop()
        row = {"groups": groups, "workers": groups * args.workers, "jobs": jobs, "ended": ended, "seconds": seconds}
        row |= {"server": {f"{name}_cpu_seconds": after[name] - before[name] for name in after} | {"rss_mb": rss}}
        row |= {"client": client, "groups_sum": _groups(folder), "journal": _journal(folder / "jobs.db", counted)}
        row["profile"] = {name: _hot(profile) for name, profile in profiles.items()}
        return row | {"per": _per(row)}


def _settings(args: argparse.Namespace, groups: int, folder: Path) -> ServerSettings:
    model = folder / "model"
    shutil.copytree(BUNDLED["nap-tiny"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_positions": 1 << 14}))
    return ServerSettings(
        listen="127.0.0.1:0",
        journal=folder / "jobs.db",
        groups=groups,
        batch=args.batch,
        group=GroupSettings(model=str(model), workers=args.workers, simulate=args.workers > 1, liveness=_LIVENESS),
    )


async def _client(args: argparse.Namespace, address: str, jobs: int) -> dict[str, Any]:
    """Run the client's process; it returns when every job has ended."""
    command = [sys.executable, *sys.argv, "--jobs-per-group", str(jobs), "--client", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("the client failed")
    found: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return found


def _cpu() -> dict[str, float]:
    """CPU seconds of this process and of its threads that matter."""
    found = {"process": time.process_time(), "loop": 0.0, "journal": 0.0, "accept": 0.0}
    for thread in threading.enumerate():
        name = "loop" if thread is threading.main_thread() else thread.name.split("_")[0]
        if name in found and thread.ident is not None:
            found[name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return found


@contextmanager
def _counted_transactions() -> Iterator[Counter[str]]:
    """Commits of the journal while the block runs, and the operations in them."""
    counts: Counter[str] = Counter()
    do = writer._Thread._do

    def counted(self: Any, batch: list[Any]) -> None:
        kind = "reads" if self._read_only else "writes"
        counts.update({kind: len(batch), f"{kind}_together": 1})
        do(self, batch)

    writer._Thread._do = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        writer._Thread._do = do  # type: ignore[method-assign]


@contextmanager
def _profiled(wanted: bool) -> Iterator[dict[str, cProfile.Profile]]:
    """Profiles of the event loop and of the journal's threads."""
    profiles: dict[str, cProfile.Profile] = {}
    if not wanted:
        yield profiles
        return
    run = writer._Thread._run

    def profiled(self: Any) -> None:
        name = "journal, reading" if self._read_only else "journal, writing"
        profiles[name] = cProfile.Profile(time.thread_time)
        profiles[name].runcall(run, self)

    writer._Thread._run = profiled  # type: ignore[method-assign]
    profiles["event loop"] = cProfile.Profile(time.thread_time)
    profiles["event loop"].enable()
    try:
        yield profiles
    finally:
        profiles["event loop"].disable()
        writer._Thread._run = run  # type: ignore[method-assign]


def _hot(profile: cProfile.Profile, most: int = 25) -> list[dict[str, Any]]:
    """The functions in which most time was spent, their callees apart (`own`) and with them (`total`)."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    rows = [
        {"function": f"{Path(file).name}:{line} {name}", "calls": calls, "own": own, "total": total}
        for (file, line, name), (_, calls, own, total, _) in stats.items()
    ]
    return sorted(rows, key=lambda row: -row["own"])[:most]


def _groups(folder: Path) -> dict[str, Any]:
    """What the groups measured, summed; memory is the largest one's."""
    total: Counter[str] = Counter()
    messages: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    largest = 0.0
    for file in folder.glob("group-*.json"):
        values = json.loads(file.read_text())
        messages.update(values.pop("messages"))
        sizes.update(values.pop("bytes"))
        largest = max(largest, values.pop("rss_mb"))
        total.update(values)
    return {**total, "messages": dict(messages), "bytes": dict(sizes), "rss_mb": largest}


def _journal(file: Path, counted: Counter[str]) -> dict[str, Any]:
    with Journal(file):
        pass  # the last connection to close writes the log back into the file
    with sqlite3.connect(file) as db:
        events, size = db.execute("SELECT count(*), sum(length(body) + length(extra)) FROM events").fetchone()
    return {"events": events, "event_bytes": size, "file_bytes": file.stat().st_size, **counted}


def _per(row: dict[str, Any]) -> dict[str, float]:
    """The figures that say how it grows."""
    jobs, group, server = row["jobs"], row["groups_sum"], row["server"]
    told = {name: sum(n for kind, n in group[name].items() if kind != "beat") for name in ("messages", "bytes")}
    return {
        "coordinator_ms_per_job": 1e3 * group["coordinator_cpu_seconds"] / jobs,
        "coordinator_ms_per_report": 1e3 * group["report_cpu_seconds"] / group["reports"],
        "coordinator_ms_per_sync": 1e3 * group["coordinator_cpu_seconds"] / group["syncs"],
        "server_ms_per_job": 1e3 * server["process_cpu_seconds"] / jobs,
        "loop_ms_per_job": 1e3 * server["loop_cpu_seconds"] / jobs,
        "journal_ms_per_job": 1e3 * server["journal_cpu_seconds"] / jobs,
        "loop_busy": server["loop_cpu_seconds"] / row["seconds"],
        "server_busy": server["process_cpu_seconds"] / row["seconds"],
        "jobs_per_second": jobs / row["seconds"],
        "messages_per_job": told["messages"] / jobs,
        "bytes_per_job": told["bytes"] / jobs,
        "events_per_job": row["journal"]["events"] / jobs,
        "journal_bytes_per_job": row["journal"]["file_bytes"] / jobs,
        "journal_writes_per_second": row["journal"].get("writes_together", 0) / row["seconds"],
        "writes_in_a_commit": row["journal"].get("writes", 0) / max(row["journal"].get("writes_together", 0), 1),
    }


# -- one row: the client's process ------------------------------------------------------------------------------------


async def _submit_all(args: argparse.Namespace, address: str) -> dict[str, Any]:
    """Submit every job, follow all of them, and say how long they took."""
    jobs, config = round(args.jobs_per_group), config_of(args)
    room, counts = asyncio.Semaphore(_SUBMITTERS), Counter[str]()
    async with AsyncClient(address, patience=600.0) as client:

        async def one(number: int) -> float:
            began = time.monotonic()
            async with room:
                job = await client.submit(QUESTION, config, key=str(number))
            counts["submitted_ms"] += round(1e3 * (time.monotonic() - began))
            if not args.watch:
                while not (await client.get(job.id)).ended:
                    await asyncio.sleep(5.0)
            else:
                async for _ in client.watch(job.id):
                    counts["events"] += 1
            return time.monotonic() - began

        took = sorted(await asyncio.gather(*map(one, range(jobs))))
    middle, last = took[len(took) // 2], took[-1]
    return {"events": counts["events"], "cpu_seconds": time.process_time(), "median_s": middle, "longest_s": last}


# -- output -----------------------------------------------------------------------------------------------------------

_COLUMNS = (
    ("coordinator_ms_per_report", "coordinator ms/report", "{:.2f}"),
    ("coordinator_ms_per_sync", "ms/sync", "{:.2f}"),
    ("coordinator_ms_per_job", "ms/job", "{:.1f}"),
    ("server_ms_per_job", "server ms/job", "{:.1f}"),
    ("loop_ms_per_job", "loop", "{:.1f}"),
    ("journal_ms_per_job", "journal", "{:.1f}"),
    ("loop_busy", "loop busy", "{:.1%}"),
    ("jobs_per_second", "jobs/s", "{:.2f}"),
    ("messages_per_job", "messages/job", "{:.1f}"),
    ("bytes_per_job", "bytes/job", "{:.0f}"),
    ("journal_writes_per_second", "commits/s", "{:.1f}"),
    ("journal_bytes_per_job", "journal bytes/job", "{:.0f}"),
)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("groups", "workers", "jobs", *(title for _, title, _ in _COLUMNS), "server MB", "group MB")]
    for row in rows:
        cells = [shape.format(row["per"][name]) for name, _, shape in _COLUMNS]
        memory = (f"{row['server']['rss_mb']:.0f}", f"{row['groups_sum']['rss_mb']:.0f}")
        lines.append((*map(str, (row["groups"], row["workers"], row["jobs"])), *cells, *memory))
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ("--:",) * len(lines[0]), *lines[1:]))


def _shown(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("one", "client", "out", "scratch")}


if __name__ == "__main__":
    main()
