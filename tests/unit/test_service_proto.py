"""The interface keeps buf's rules, and the check that says so finds what breaks them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("grpc_tools")
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "protolint.py"


@pytest.fixture(scope="module")
def protolint(load_script: Callable[[Path], ModuleType]) -> Any:
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def files(protolint: Any) -> FileDescriptorSet:
    return protolint.compiled()  # type: ignore[no-any-return]


def test_the_interface_has_no_finding() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def message(files: FileDescriptorSet, name: str) -> Any:
    return next(m for m in files.file[0].message_type if m.name == name)


def enum(files: FileDescriptorSet, name: str) -> Any:
    return next(e for e in files.file[0].enum_type if e.name == name)


def field(files: FileDescriptorSet, name: str, number: int) -> Any:
    return next(f for f in message(files, name).field if f.number == number)


def drop(many: Any, name: str) -> None:
    del many[next(i for i, one in enumerate(many) if one.name == name)]


BREAKING: list[tuple[Callable[[FileDescriptorSet], Any], str]] = [
    (lambda f: drop(f.file[0].message_type, "Group"), "MESSAGE_NO_DELETE"),
    (lambda f: drop(f.file[0].enum_type, "Rule"), "ENUM_NO_DELETE"),
    (lambda f: drop(message(f, "Job").field, "labels"), "FIELD_NO_DELETE"),
    (lambda f: setattr(field(f, "Job", 1), "name", "other"), "FIELD_SAME_NAME"),
    (lambda f: setattr(field(f, "Job", 1), "type", FieldDescriptorProto.TYPE_BYTES), "FIELD_SAME_TYPE"),
    (lambda f: setattr(field(f, "Job", 1), "label", FieldDescriptorProto.LABEL_REPEATED), "FIELD_SAME_CARDINALITY"),
    (lambda f: setattr(field(f, "Job", 1), "number", 99), "FIELD_NO_DELETE"),
    (lambda f: field(f, "Event", 4).ClearField("oneof_index"), "FIELD_SAME_ONEOF"),
    (lambda f: drop(enum(f, "Rule").value, "RULE_P2"), "ENUM_VALUE_NO_DELETE"),
    (lambda f: setattr(enum(f, "Rule").value[1], "name", "RULE_X"), "ENUM_VALUE_SAME_NAME"),
    (lambda f: drop(f.file[0].service[0].method, "List"), "RPC_NO_DELETE"),
    (lambda f: setattr(f.file[0].service[0].method[0], "server_streaming", True), "RPC_SAME_SERVER_STREAMING"),
    (lambda f: setattr(f.file[0].service[0].method[0], "input_type", ".nap.v1.Job"), "RPC_SAME_REQUEST_TYPE"),
    (lambda f: setattr(f.file[0], "package", "nap.v2"), "FILE_SAME_PACKAGE"),
    (lambda f: f.file.pop(), "FILE_NO_DELETE"),
]


@pytest.mark.parametrize(("change", "rule"), BREAKING, ids=[rule for _, rule in BREAKING])
def test_breaking_changes_are_found(protolint: Any, files: FileDescriptorSet, change: Any, rule: str) -> None:
    changed = FileDescriptorSet.FromString(files.SerializeToString())
    change(changed)
    assert any(rule in line for line in protolint.breaking(files, changed))
    assert list(protolint.breaking(files, files)) == []


def test_additions_break_nothing(protolint: Any, files: FileDescriptorSet) -> None:
    grown = FileDescriptorSet.FromString(files.SerializeToString())
    message(grown, "Job").field.add(name="more", number=500, type=FieldDescriptorProto.TYPE_STRING)
    enum(grown, "Rule").value.add(name="RULE_MORE", number=500)
    assert list(protolint.breaking(files, grown)) == []
    drop(message(grown, "Job").field, "labels")
    message(grown, "Job").reserved_range.add(start=6, end=7)
    message(grown, "Job").reserved_name.append("labels")
    assert list(protolint.breaking(files, grown)) == []
    assert list(protolint.breaking(grown, files)) != [], "what is reserved stays so"


LINT: list[tuple[Callable[[FileDescriptorSet], Any], str]] = [
    (lambda f: setattr(f.file[0], "package", "nap"), "PACKAGE_VERSION_SUFFIX"),
    (lambda f: setattr(message(f, "Job"), "name", "job"), "MESSAGE_PASCAL_CASE"),
    (lambda f: setattr(field(f, "Job", 1), "name", "jobId"), "FIELD_LOWER_SNAKE_CASE"),
    (lambda f: setattr(enum(f, "Rule").value[0], "name", "RULE_NONE"), "ENUM_ZERO_VALUE_SUFFIX"),
    (lambda f: setattr(enum(f, "Rule").value[1], "name", "CONFIDENCE"), "ENUM_VALUE_PREFIX"),
    (lambda f: setattr(f.file[0].service[0].method[0], "name", "submit"), "RPC_PASCAL_CASE"),
    (lambda f: setattr(f.file[0].service[0].method[0], "output_type", ".nap.v1.Job"), "RPC_RESPONSE_STANDARD_NAME"),
    (lambda f: setattr(f.file[0].service[0].method[1], "input_type", ".nap.v1.SubmitRequest"), "UNIQUE"),
]


@pytest.mark.parametrize(("change", "rule"), LINT, ids=[rule for _, rule in LINT])
def test_lint_finds(protolint: Any, files: FileDescriptorSet, change: Any, rule: str) -> None:
    changed = FileDescriptorSet.FromString(files.SerializeToString())
    change(changed)
    assert any(rule in line for line in protolint.lint(changed))
