"""Train every arm of mismatch.yaml in this process, one after another, on the same rows from the same weights.

python examples/train/mismatch.py RUN   leaves RUN/ARM/model; arms that are there are not trained again
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nap_runtime.errors import NapError, UsageError
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.settings import TrainConfig

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; 2 for a wrong option or configuration, 1 for another failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the models")
    parser.add_argument("--config", type=Path, default=HERE / "mismatch.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--only", action="append", metavar="ARM", help="of the arms, these (repeatable)")
    args = parser.parse_args(arguments)
    try:
        train(arm_settings(args.config, args.run, args.set, args.only))
    except NapError as error:
        print(f"mismatch: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def arm_settings(
    config: Path, run: Path, changes: Sequence[str] = (), only: Sequence[str] | None = None
) -> dict[str, TrainConfig]:
    """The training of each arm.

    Raises:
        UsageError: the file or a change is malformed, or there is no such arm.
    """
    try:
        values: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
        arms: Mapping[str, Mapping[str, Any]] = values.pop("arms")
    except (OSError, yaml.YAMLError, KeyError, AttributeError) as error:
        raise UsageError(f"config: {config}: no file with arms ({error})", field="config") from None
    for name in only or ():
        if name not in arms:
            raise UsageError(f"only: unknown arm '{name}'; known are {', '.join(arms)}", field="only")
    run.mkdir(parents=True, exist_ok=True)
    shared = run / "shared.yaml"
    shared.write_text(yaml.safe_dump(values), encoding="utf-8")
    chosen = {name: arm for name, arm in arms.items() if not only or name in only}
    return {
        name: TrainConfig.read(shared, [*changes, f"run.out={run / name}", *(_change(*item) for item in arm.items())])
        for name, arm in chosen.items()
    }


def _change(key: str, value: Any) -> str:
    return f"objective.{key}={json.dumps(value)}"  # JSON is YAML


def train(arms: Mapping[str, TrainConfig]) -> None:
    """Train the arms that have no model yet; rows are made once."""
    import torch

    from nap_trainer.batches.sources import training_table
    from nap_trainer.loop import Trainer
    from nap_trainer.prepare import model_card, prepare
    from nap_trainer.ranks import Ranks

    torch.set_float32_matmul_precision("high")
    ranks = Ranks.of_environment()
    ranks.connect()
    table: SegmentTable | None = None
    for name, settings in arms.items():
        out = Path(settings.run.out)
        if (out / "model" / "decode.json").is_file():  # the last thing that an export writes
            print(f"{name}: there already", flush=True)
            continue
        if table is None:
            tokenizer = model_card(settings.model, out / "tokenizer").tokenizer
            assert tokenizer is not None
            table = training_table(settings.data, tokenizer)
        print(f"{name}:", flush=True)
        trainer = Trainer(settings, ranks, prepare(settings, ranks.device, table))
        trainer.fit()
        trainer.engine.close()


if __name__ == "__main__":
    sys.exit(main())
