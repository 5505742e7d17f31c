"""A local teacher is known by what its files hold, so that a curation is never continued by another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from nap_runtime.errors import UsageError
from nap_trainer.data.journal import Journal
from nap_trainer.data.local import LocalModel, LocalTeacher


def teacher_of(folder: Path, weights: bytes, gguf_file: str | None = None) -> LocalTeacher:
    """A teacher whose weights are not loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / (gguf_file or "model.safetensors")).write_bytes(weights)
    teacher = object.__new__(LocalTeacher)
    teacher._settings = LocalModel(folder=folder, gguf_file=gguf_file)
    return teacher


@pytest.mark.parametrize("gguf_file", [None, "m.gguf"])
def test_the_same_name_and_size_are_not_the_same_model(tmp_path: Path, gguf_file: str | None) -> None:
    one, other, moved = (
        teacher_of(tmp_path / place / "model", weights, gguf_file).identity
        for place, weights in (("a", b"1234"), ("b", b"1235"), ("c", b"1234"))
    )
    assert one == moved
    assert one != other
    for identity in (one, moved):
        with Journal(tmp_path / "journal", identity):
            pass
    with pytest.raises(UsageError, match="begun with model contents"), Journal(tmp_path / "journal", other):
        pass
