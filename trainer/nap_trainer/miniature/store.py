"""The folder of a run: what is on disk is done, and every file appears whole or not at all.

study.yaml       the resolved study; a later call with another one is refused
data/SPLIT.npz   development and test problems       tokenizer/   the problem set's
models/ARM-sSEED/ and .json                          a trained model, and what its training cost
decodes/STAGE/MODEL/SETTING.npz                      ids and order of a decode
graded/…npz      per-problem records (what `report` reads; small enough to keep)
choices.json     what the development search chose    ledger.jsonl   seconds of every unit
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.files import write_text_atomic
from nap_trainer.miniature.decoding import Decoded, Setting
from nap_trainer.miniature.problems import Problems, Split
from nap_trainer.miniature.study import Decode, Model, Study

_SMALL = ("study.yaml", "choices/*.json", "ledger.jsonl", "data/dev.npz", "data/test.npz")


@dataclass(frozen=True, slots=True)
class Store:
    """Paths and small files of a run's folder."""

    root: Path

    # -- the study ------------------------------------------------------------------------------------------------

    @property
    def study_file(self) -> Path:
        """The resolved study."""
        return self.root / "study.yaml"

    def open(self, given: Study | None) -> Study:
        """The run's study: the one on disk, or the given one, which is then written.

        Raises:
            UsageError: there is none, or the given one is not the one on disk; the first differing key is named.
        """
        if not self.study_file.exists():
            if given is None:
                raise UsageError(f"run: {self.root} holds no study.yaml: give --config", field="run")
            write_text_atomic(self.study_file, yaml.safe_dump(given.to_mapping(), sort_keys=False))
            return given
        found = Study.read(self.study_file)
        if given is not None and given != found:
            ours, theirs = found.to_mapping(), given.to_mapping()
            key = next(key for key in ours if ours[key] != theirs[key])
            text = f"{key}: {theirs[key]!r}, but {self.root} was begun with {ours[key]!r}: use another folder"
            raise UsageError(text, field=key)
        return found

    # -- units ----------------------------------------------------------------------------------------------------

    def data(self, split: Split) -> Path:
        """Where a split's problems lie."""
        return self.root / "data" / f"{split}.npz"

    def problems(self, split: Split) -> Problems:
        """Stored problems; DataError if they are not there."""
        return Problems.load(self.data(split))

    def model(self, model: Model) -> Path:
        """A model's folder."""
        return self.root / "models" / model.name

    def trained(self, model: Model) -> bool:
        """Whether its training has ended."""
        return self._note(model).exists()

    def model_note(self, model: Model) -> dict[str, Any]:
        """What its training left in `models/NAME.json`; empty where it has not ended."""
        note = self._note(model)
        return dict(json.loads(note.read_text("utf-8"))) if note.exists() else {}

    def note_model(self, model: Model, values: dict[str, Any]) -> None:
        """Mark a training as done."""
        write_text_atomic(self._note(model), json.dumps(values) + "\n")

    def _notes(self) -> list[dict[str, Any]]:
        return [json.loads(note.read_text("utf-8")) for note in sorted((self.root / "models").glob("*.json"))]

    def _note(self, model: Model) -> Path:
        return self.root / "models" / f"{model.name}.json"

    def decode(self, unit: Decode) -> Path:
        """A decode's file."""
        return self.root / "decodes" / f"{unit.name}.npz"

    def graded(self, unit: Decode) -> Path:
        """Its per-problem records."""
        return self.root / "graded" / f"{unit.name}.npz"

    def decoded(self, unit: Decode) -> Decoded | None:
        """Its arrays; None where it has not run."""
        path = self.decode(unit)
        return Decoded.load(path) if path.exists() else None

    # -- choices and costs ------------------------------------------------------------------------------------------

    def choice_rows(self) -> list[dict[str, Any]]:
        """What every search that has ended chose, with the accuracies that led to it."""
        files = sorted((self.root / "choices").glob("*.json"))
        return [dict(json.loads(file.read_text("utf-8"))) for file in files]

    def choices(self) -> dict[tuple[str, int], Setting]:
        """(arm, tokens a step) → the chosen setting."""
        return {(row["arm"], row["per_step"]): Setting.parse(row["setting"]) for row in self.choice_rows()}

    def note_choice(self, row: dict[str, Any]) -> None:
        """Keep what one search chose, in a file of its own; a choice is never changed."""
        path = self.root / "choices" / f"{row['arm']}-k{row['per_step']}.json"
        if not path.exists():
            write_text_atomic(path, json.dumps(row, indent=1) + "\n")

    def log(self, kind: str, name: str, seconds: float, **values: Any) -> None:
        """Add a line to the ledger."""
        row = {"kind": kind, "name": name, "seconds": round(seconds, 3), "at": round(time.time()), **values}
        row["command"] = " ".join(["python -m nap_trainer.miniature", *sys.argv[1:]])
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "ledger.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def ledger(self) -> list[dict[str, Any]]:
        """Every line; DataError if one is malformed."""
        path = self.root / "ledger.jsonl"
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise DataError(f"{path}: not JSON lines ({error})") from error

    # -- travel -----------------------------------------------------------------------------------------------------

    def results(self, weights: Iterable[Model] = ()) -> Iterator[Path]:
        """Every file that a report needs, and of these models also what decoding needs."""
        for folder in sorted(str(self.model_note(model)["folder"]) for model in weights):
            yield from sorted(path for path in (self.root / folder).glob("*") if path.is_file())
        for pattern in (*_SMALL, "models/*.json", "tokenizer/*"):
            yield from sorted(self.root.glob(pattern))
        yield from sorted(self.root.glob("decodes/**/*.npz"))
        yield from sorted(self.root.glob("graded/**/*.npz"))

    def keep_records(self, out: Path) -> int:
        """Copy what a report needs, without the raw decodes, to another folder; returns its bytes."""
        total = 0
        for source in self.results():
            relative = source.relative_to(self.root)
            if relative.parts[0] in ("decodes", "tokenizer"):
                continue
            target = out / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            total += target.stat().st_size
        return total
