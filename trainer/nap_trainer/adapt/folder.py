"""The folder of a run: what is on disk is done, and every file appears whole or not at all.

run.json                  configuration, arms, model, data, tokens at each point; a later call with others is refused
data.npz, tokenizer/      copies, so that a report needs the folder alone
points/ARM-sSTEP.json     a measured point: losses and seconds     points/ARM-sSTEP-kK.npz   ids and order of a decode
ledger.jsonl              seconds of every unit, as they were spent
states/ARM/               training state, where it is kept
models/ARM/               the model at the last point, where it is kept
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import DataError, UsageError
from nap_runtime.models.files import atomic_path, write_text_atomic
from nap_runtime.models.tokenizer import copy_tokenizer
from nap_trainer.adapt.config import AdaptConfig
from nap_trainer.adapt.table import AdaptData
from nap_trainer.miniature.decoding import Decoded


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and small files of a run."""

    root: Path

    # -- what the run is --------------------------------------------------------------------------------------------

    def begin(self, facts: dict[str, Any], *, data: Path, tokenizer: Path) -> None:
        """Write what a run is made of, or check that it is the run that was begun here.

        Raises:
            UsageError: the folder was begun with another model, data or configuration; the first difference is named.
        """
        if not self._facts_file.exists():
            with atomic_path(self.data_file) as temporary:
                shutil.copyfile(data, temporary)
            (self.root / "tokenizer").mkdir(parents=True, exist_ok=True)
            copy_tokenizer(tokenizer, self.root / "tokenizer")
            write_text_atomic(self._facts_file, json.dumps(facts, indent=1) + "\n")
            return
        found, given = self.facts(), json.loads(json.dumps(facts))
        for key in sorted({*found, *given}):
            if found.get(key) != given.get(key):
                text = f"run: {self.root} was begun with another '{key}'{_first(found.get(key), given.get(key))}"
                raise UsageError(f"{text}: use another folder", field="out")

    def facts(self) -> dict[str, Any]:
        """What `begin` wrote.

        Raises:
            UsageError: this is no run.
        """
        if not self._facts_file.is_file():
            raise UsageError(f"run: {self.root} holds no run.json: give the folder of a run", field="run")
        try:
            return dict(json.loads(self._facts_file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DataError(f"{self._facts_file}: not JSON ({error})") from None

    def config(self) -> AdaptConfig:
        """The run's configuration."""
        return AdaptConfig.from_mapping(self.facts()["config"])

    def data(self) -> AdaptData:
        """What the run reads."""
        return AdaptData.load(self.data_file)

    @property
    def data_file(self) -> Path:
        """The copy of the data."""
        return self.root / "data.npz"

    @property
    def tokenizer(self) -> Path:
        """The copy of the tokenizer."""
        return self.root / "tokenizer"

    @property
    def _facts_file(self) -> Path:
        return self.root / "run.json"

    def state(self, arm: str) -> Path:
        """Where an arm keeps its training state and log."""
        return self.root / "states" / arm

    def model(self, arm: str) -> Path:
        """Where an arm's last model lies."""
        return self.root / "models" / arm

    # -- points -----------------------------------------------------------------------------------------------------

    def done(self, arm: str, step: int) -> bool:
        """Whether a point is measured: its note is written last."""
        return self._note(arm, step).exists()

    def write_point(self, arm: str, step: int, note: dict[str, Any], decodes: dict[int, Decoded]) -> None:
        """Store a point: decodes by tokens a step, then the note."""
        for per_step, decoded in decodes.items():
            decoded.save(self._decode(arm, step, per_step))
        write_text_atomic(self._note(arm, step), json.dumps(note) + "\n")

    def note(self, arm: str, step: int) -> dict[str, Any]:
        """Losses and seconds of a measured point."""
        return dict(json.loads(self._note(arm, step).read_text(encoding="utf-8")))

    def decode(self, arm: str, step: int, per_step: int) -> Decoded | None:
        """A decode of a measured point; None where that number of tokens a step was not decoded."""
        path = self._decode(arm, step, per_step)
        return Decoded.load(path) if path.exists() else None

    def _note(self, arm: str, step: int) -> Path:
        return self.root / "points" / f"{arm}-s{step:06d}.json"

    def _decode(self, arm: str, step: int, per_step: int) -> Path:
        return self.root / "points" / f"{arm}-s{step:06d}-k{per_step}.npz"

    # -- costs ------------------------------------------------------------------------------------------------------

    def log(self, **values: Any) -> None:
        """Add a line to the ledger."""
        with (self.root / "ledger.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "at": round(time.time())}) + "\n")

    def ledger(self) -> Iterator[dict[str, Any]]:
        """The ledger's lines."""
        path = self.root / "ledger.jsonl"
        if path.exists():
            yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)


def _first(found: Any, given: Any) -> str:
    """The first differing key of two mappings, for a message."""
    if not isinstance(found, dict) or not isinstance(given, dict):
        return ""
    key = next(key for key in sorted({*found, *given}) if found.get(key) != given.get(key))
    return f" ({key}: {found.get(key)!r}, now {given.get(key)!r})"
