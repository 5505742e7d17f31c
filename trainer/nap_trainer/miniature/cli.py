"""`python -m nap_trainer.miniature VERB RUN …`: train and decode where the accelerator is, report anywhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nap_trainer.miniature.driver import Driver, Machine
    from nap_trainer.miniature.study import Model

_ABOUT = """The paper's result in miniature.

  train    train what is missing, most wanted first            decode   search, test and order settings, likewise
  probe    one decode of development problems (for a pilot)    report   tables, plots and the page, from stored arrays
  status   what is done and what is missing                    pack     results as few tar files

Every verb goes on from what is in RUN. Exit code 0: done; 3: stopped at the deadline, call again; 2: usage; 1: failure.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="nap_trainer.miniature", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = made.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    common.add_argument("--config", type=Path, help="study (YAML); written into RUN by the first call")
    common.add_argument("--processes", type=int, default=0, help="processes for data and grading (default: all cores)")
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--deadline", type=float, metavar="SECONDS", help="begin nothing that would end later")
    decodes = argparse.ArgumentParser(add_help=False)
    decodes.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    decodes.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), help="default: the study's")
    decodes.add_argument("--compile", action="store_true", help="torch.compile the network")
    decodes.add_argument("--batch", type=int, metavar="N", help="canvases at once (default: the study's)")
    train = verbs.add_parser("train", parents=[common, timed])
    train.add_argument("--only", action="append", metavar="ARM:SEED", help="this training only; repeatable")
    train.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings side by side (default 1)")
    decode = verbs.add_parser("decode", parents=[common, timed, decodes])
    decode.add_argument(
        "--arms", nargs="+", metavar="ARM", help="these arms only: several processes can share a device"
    )
    probe = verbs.add_parser("probe", parents=[common, decodes])
    probe.add_argument("--model", default="cot-clamped:0", metavar="ARM:SEED", help="default: cot-clamped:0")
    probe.add_argument("--setting", default="pf-e0-k1", help="default: pf-e0-k1")
    report = verbs.add_parser("report", parents=[common])
    report.add_argument("--out", type=Path, required=True, metavar="PAGE", help="the page (Markdown); plots beside it")
    report.add_argument("--records", type=Path, metavar="DIR", help="also keep what the page is made of there")
    verbs.add_parser("status", parents=[common])
    pack = verbs.add_parser("pack", parents=[common])
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for part-N.tar")
    pack.add_argument(
        "--models",
        choices=("needed", "all", "none"),
        default="needed",
        help="whose weights go along: what is still to be decoded, all, none (default: needed)",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb."""
    args = parser().parse_args(arguments)
    from nap_runtime.errors import NapError, UsageError

    try:
        return int(_VERBS[args.verb](args))
    except KeyboardInterrupt:
        print("miniature: interrupted; call it again to go on", file=sys.stderr)
        return 130
    except (NapError, OSError) as error:
        print(f"miniature: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _driver(args: argparse.Namespace) -> Driver:
    from nap_trainer.miniature.driver import Driver
    from nap_trainer.miniature.seam import source_of
    from nap_trainer.miniature.store import Store
    from nap_trainer.miniature.study import Study

    store = Store(args.run)
    study = store.open(None if args.config is None else Study.read(args.config))
    source = source_of(study.source, study.problem_set)
    return Driver(store, study, source, processes=args.processes, say=_say)


def _machine(args: argparse.Namespace) -> Machine:
    from nap_trainer.miniature.driver import Machine

    return Machine(device=args.device, dtype=args.dtype, batch=args.batch, compiled=args.compile)


def _say(text: str) -> None:
    print(text, flush=True)


def _model(text: str) -> Model:
    from nap_runtime.errors import UsageError
    from nap_trainer.miniature.arms import arm_of
    from nap_trainer.miniature.study import Model

    arm, colon, seed = text.partition(":")
    if not colon or not seed.isdigit():
        raise UsageError(f"only: '{text}' is not ARM:SEED, e.g. nap:0", field="only")
    return Model(arm=arm_of(arm).name, seed=int(seed))


def _train(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.driver import Deadline

    deadline, driver = Deadline(args.deadline), _driver(args)
    only = [_model(text) for text in args.only] if args.only else None
    left = driver.train(deadline, only=only, jobs=args.jobs)
    print(f"train: {left} left" if left else "train: all done")
    return 3 if left else 0


def _decode(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.arms import arm_of
    from nap_trainer.miniature.driver import Deadline

    deadline, driver = Deadline(args.deadline), _driver(args)
    arms = None if args.arms is None else {arm_of(arm).name for arm in args.arms}
    done = driver.decode(deadline, _machine(args), arms)
    print("decode: nothing left that can run" if done else "decode: stopped at the deadline")
    return 0 if done else 3


def _probe(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.decoding import Setting
    from nap_trainer.miniature.study import Decode

    driver, model = _driver(args), _model(args.model)
    unit = Decode(
        stage="probe", model=model, canvas=model.arm, setting=Setting.parse(args.setting), split="dev",
        count=driver.study.dev,
    )  # fmt: skip
    accuracy = driver.probe(unit, _machine(args))
    print(f"{unit.name}: accuracy {accuracy:.4f} on {unit.count} development problems")
    return 0


def _report(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.report.page import render

    driver = _driver(args)
    render(driver, args.out, processes=args.processes)
    if args.records:
        size = driver.store.keep_records(args.records)
        print(f"records: {size / 1e6:.1f} MB in {args.records}")
    print(f"report: {args.out}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.status import lines

    for line in lines(_driver(args)):
        print(line)
    return 0


def _pack(args: argparse.Namespace) -> int:
    from nap_trainer.miniature.status import pack

    driver = _driver(args)
    for path in pack(driver, args.out, models=args.models):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


_VERBS = {
    "train": _train,
    "decode": _decode,
    "probe": _probe,
    "report": _report,
    "status": _status,
    "pack": _pack,
}
