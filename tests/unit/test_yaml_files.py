"""YAML that people write: read strictly, with file and line in the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from nap_runtime.cli.settings import read_yaml as read_config
from nap_runtime.errors import UsageError
from nap_runtime.study.spec import read_study
from nap_runtime.yaml_files import read_yaml, yaml_value
from nap_trainer.adapt.config import AdaptConfig
from nap_trainer.miniature.study import Study
from nap_trainer.settings import TrainConfig


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 33\nrule: random\nsteps: 20\n", "key 'steps' stands twice, again at line 3"),
        ("a: {b: 1, b: 2}\n", "key 'b' stands twice, again at line 1"),
        ("a: [1, 2\n", "not YAML at line 2"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML at line 1"),
        ("[" * 20_000, "not YAML"),
        ("a: \xff", "not YAML"),
        ("x: *nobody\n", "found undefined alias 'nobody' at line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        read_yaml(file, field="config")
    assert str(caught.value) == f"config: {file}: {message}"
    assert caught.value.field == "config"


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("-2E3", -2000.0), (".5e1", 5.0), ("1.5e+2", 150.0)])
def test_numbers_with_an_exponent_are_numbers(text: str, value: float) -> None:
    """PyYAML's own loader makes the text '1e-4' of the first."""
    assert yaml_value(text) == value
    assert isinstance(yaml_value(text), float)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("0x1f", 31),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.5.2", "1.5.2"),
        ("true", True),
        ("2e3x", "2e3x"),
        ("a", "a"),
    ],
)
def test_other_values_are_what_they_were(text: str, value: object) -> None:
    assert yaml_value(text) == value
    assert type(yaml_value(text)) is type(value)


def test_merged_keys_are_no_repeats(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


@pytest.mark.parametrize(
    "read", [read_config, read_study, TrainConfig.read, AdaptConfig.read, Study.read], ids=lambda one: one.__qualname__
)  # fmt: skip
def test_every_reader_refuses_a_key_that_stands_twice(tmp_path: Path, read: object) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("model: a\nmodel: b\n")
    with pytest.raises(UsageError, match=r"f\.yaml: key 'model' stands twice, again at line 2"):
        read(file)  # type: ignore[operator]
