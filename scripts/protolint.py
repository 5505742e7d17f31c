#!/usr/bin/env python3
"""Lint `proto/` by buf's STANDARD rules, and compare it with its baseline by buf's FILE rules of breaking changes.

Two rules are left out, here and in proto/buf.yaml: PACKAGE_DIRECTORY_MATCH (the paths mirror the stubs' import paths)
and SERVICE_SUFFIX (the contract's name is `nap.v1.Decoder`). `--write` makes the present state the baseline: at a
release, never to silence a finding.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc_tools
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.json_format import MessageToJson, Parse
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.json"
_PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UPPER = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


def compiled() -> FileDescriptorSet:
    """Every .proto under `proto/`, without comments."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        flags = [f"--proto_path={PROTO}", f"--proto_path={well_known}", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *flags, *sources]) != 0:
            raise SystemExit("protolint: protoc failed")
        return FileDescriptorSet.FromString(out.read_bytes())


# -- lint -------------------------------------------------------------------------------------------------------------


def lint(files: FileDescriptorSet) -> Iterator[str]:
    """One line for each finding."""
    for file in files.file:
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*\.v[1-9][0-9]*", file.package):
            yield f"{file.name}: PACKAGE_VERSION_SUFFIX: {file.package}"
        if file.syntax != "proto3":
            yield f"{file.name}: SYNTAX_SPECIFIED: {file.syntax or 'proto2'}"
        for message in file.message_type:
            yield from _lint_message(f"{file.name}: {message.name}", message)
        for enum in file.enum_type:
            yield from _lint_enum(f"{file.name}: {enum.name}", enum)
        yield from _lint_services(file)


def _lint_message(where: str, message: DescriptorProto) -> Iterator[str]:
    if not _PASCAL.fullmatch(message.name):
        yield f"{where}: MESSAGE_PASCAL_CASE"
    for field in message.field:
        if not _SNAKE.fullmatch(field.name):
            yield f"{where}.{field.name}: FIELD_LOWER_SNAKE_CASE"
    for oneof in message.oneof_decl:
        if not _SNAKE.fullmatch(oneof.name.lstrip("_")):
            yield f"{where}.{oneof.name}: ONEOF_LOWER_SNAKE_CASE"
    for inner in message.nested_type:
        if not inner.options.map_entry:
            yield from _lint_message(f"{where}.{inner.name}", inner)
    for enum in message.enum_type:
        yield from _lint_enum(f"{where}.{enum.name}", enum)


def _lint_enum(where: str, enum: EnumDescriptorProto) -> Iterator[str]:
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    if not _PASCAL.fullmatch(enum.name):
        yield f"{where}: ENUM_PASCAL_CASE"
    if enum.options.allow_alias:
        yield f"{where}: ENUM_NO_ALLOW_ALIAS"
    for value in enum.value:
        if not _UPPER.fullmatch(value.name):
            yield f"{where}.{value.name}: ENUM_VALUE_UPPER_SNAKE_CASE"
        if not value.name.startswith(prefix):
            yield f"{where}.{value.name}: ENUM_VALUE_PREFIX: {prefix}"
    if not enum.value or enum.value[0].number != 0 or not enum.value[0].name.endswith("_UNSPECIFIED"):
        yield f"{where}: ENUM_ZERO_VALUE_SUFFIX: _UNSPECIFIED"


def _lint_services(file: FileDescriptorProto) -> Iterator[str]:
    used: set[str] = set()
    for service in file.service:
        where = f"{file.name}: {service.name}"
        if not _PASCAL.fullmatch(service.name):
            yield f"{where}: SERVICE_PASCAL_CASE"
        for method in service.method:
            if not _PASCAL.fullmatch(method.name):
                yield f"{where}.{method.name}: RPC_PASCAL_CASE"
            for kind, full in (("Request", method.input_type), ("Response", method.output_type)):
                name = full.rpartition(".")[2]
                if name not in (f"{method.name}{kind}", f"{service.name}{method.name}{kind}"):
                    yield f"{where}.{method.name}: RPC_{kind.upper()}_STANDARD_NAME: {name}"
                if full in used:
                    yield f"{where}.{method.name}: RPC_REQUEST_RESPONSE_UNIQUE: {name}"
                used.add(full)


# -- breaking changes -------------------------------------------------------------------------------------------------


def breaking(before: FileDescriptorSet, after: FileDescriptorSet) -> Iterator[str]:
    """One line for each change that breaks clients or servers built with the baseline."""
    now = {file.name: file for file in after.file}
    for file in before.file:
        if file.name not in now:
            yield f"{file.name}: FILE_NO_DELETE"
            continue
        new = now[file.name]
        if file.package != new.package:
            yield f"{file.name}: FILE_SAME_PACKAGE: {file.package}"
        yield from _each(file.name, "MESSAGE", file.message_type, new.message_type, _message_breaks)
        yield from _each(file.name, "ENUM", file.enum_type, new.enum_type, _enum_breaks)
        yield from _each(file.name, "SERVICE", file.service, new.service, _service_breaks)


def _each(where: str, kind: str, before: Any, after: Any, compare: Any) -> Iterator[str]:
    now = {one.name: one for one in after}
    for one in before:
        if one.name not in now:
            yield f"{where}: {kind}_NO_DELETE: {one.name}"
        else:
            yield from compare(f"{where}: {one.name}", one, now[one.name])


def _message_breaks(where: str, before: DescriptorProto, after: DescriptorProto) -> Iterator[str]:
    now = {field.number: field for field in after.field}
    for field in before.field:
        new = now.get(field.number)
        if new is None:
            reserved = any(span.start <= field.number < span.end for span in after.reserved_range)
            if not reserved or field.name not in after.reserved_name:
                yield f"{where}.{field.name}: FIELD_NO_DELETE_UNLESS_NUMBER_AND_NAME_RESERVED"
            continue
        for rule, name in (("NAME", "name"), ("TYPE", "type"), ("TYPE", "type_name"), ("CARDINALITY", "label")):
            if getattr(field, name) != getattr(new, name):
                yield f"{where}.{field.name}: FIELD_SAME_{rule}"
        if field.proto3_optional != new.proto3_optional:
            yield f"{where}.{field.name}: FIELD_SAME_CARDINALITY"
        if _oneof(before, field) != _oneof(after, new):
            yield f"{where}.{field.name}: FIELD_SAME_ONEOF"
    yield from _reserved_breaks(where, before, after)
    yield from _each(where, "MESSAGE", before.nested_type, after.nested_type, _message_breaks)
    yield from _each(where, "ENUM", before.enum_type, after.enum_type, _enum_breaks)


def _oneof(message: DescriptorProto, field: Any) -> str:
    return message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""


def _reserved_breaks(where: str, before: Any, after: Any) -> Iterator[str]:
    kept = {(span.start, span.end) for span in after.reserved_range}
    if any((span.start, span.end) not in kept for span in before.reserved_range):
        yield f"{where}: RESERVED_MESSAGE_NO_DELETE"
    if set(before.reserved_name) - set(after.reserved_name):
        yield f"{where}: RESERVED_MESSAGE_NO_DELETE"


def _enum_breaks(where: str, before: EnumDescriptorProto, after: EnumDescriptorProto) -> Iterator[str]:
    now = {value.number: value.name for value in after.value}
    for value in before.value:
        if value.number not in now:
            if value.name not in after.reserved_name:
                yield f"{where}.{value.name}: ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED"
        elif now[value.number] != value.name:
            yield f"{where}.{value.name}: ENUM_VALUE_SAME_NAME: {now[value.number]}"


def _service_breaks(where: str, before: Any, after: Any) -> Iterator[str]:
    def method_breaks(at: str, old: Any, new: Any) -> Iterator[str]:
        rules = {
            "RPC_SAME_REQUEST_TYPE": "input_type",
            "RPC_SAME_RESPONSE_TYPE": "output_type",
            "RPC_SAME_CLIENT_STREAMING": "client_streaming",
            "RPC_SAME_SERVER_STREAMING": "server_streaming",
        }
        yield from (f"{at}: {rule}" for rule, name in rules.items() if getattr(old, name) != getattr(new, name))

    yield from _each(where, "RPC", before.method, after.method, method_breaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the present state the baseline")
    files = compiled()
    if parser.parse_args().write:
        BASELINE.write_text(MessageToJson(files, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    found = list(lint(files))
    found += breaking(Parse(BASELINE.read_text(encoding="utf-8"), FileDescriptorSet()), files)
    if found:
        print(*found, sep="\n", file=sys.stderr)
        raise SystemExit(1)
    print(f"protolint: {len(files.file)} .proto file(s), no finding, nothing broken since the baseline")


if __name__ == "__main__":
    main()
