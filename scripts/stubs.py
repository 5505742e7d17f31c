#!/usr/bin/env python3
"""Generate the gRPC stubs from `proto/` into `runtime/`, or with `--check` tell whether they have drifted."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
RUNTIME = ROOT / "runtime"


def sources() -> list[Path]:
    """Every .proto file, relative to `proto/`; its path mirrors its stubs' import path."""
    return sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))


def generate(out: Path) -> list[Path]:
    """Write the stubs under `out` and return their paths relative to it."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *map(str, sources()),
        ]
    )
    if code != 0:
        raise SystemExit(f"stubs: protoc failed with status {code}")
    return stubs(out)


def stubs(root: Path) -> list[Path]:
    """The generated files under `root`, relative to it."""
    return sorted(path.relative_to(root) for path in root.rglob("*_pb2*.py*") if path.suffix in (".py", ".pyi"))


def drift() -> list[str]:
    """One line for each stub that is not what `proto/` now generates."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        fresh = generate(fresh_root)
        lines = [f"{path}: no .proto generates it" for path in stubs(RUNTIME) if path not in fresh]
        for path in fresh:
            kept = RUNTIME / path
            if not kept.exists():
                lines.append(f"{path}: missing")
            elif kept.read_bytes() != (fresh_root / path).read_bytes():
                lines.append(f"{path}: differs")
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the stubs have drifted")
    if not parser.parse_args().check:
        for path in generate(RUNTIME):
            print(path)
        return
    lines = drift()
    if lines:
        print(*lines, "stubs: run `make stubs` and commit the result", sep="\n", file=sys.stderr)
        raise SystemExit(1)
    print(f"stubs: {len(sources())} .proto file(s), no drift")


if __name__ == "__main__":
    main()
