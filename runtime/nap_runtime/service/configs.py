"""Configurations as protobuf, and back. Knows no model and no torch: clients use it too."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from nap_runtime.auto import OVERHEAD, AutoSync
from nap_runtime.errors import UsageError
from nap_runtime.headers import OwnHeaders, read_headers
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.service.v1 import decoder_pb2 as pb

CONFIG_VERSION = 2
_AUTO_VERSION = 2  # the first with SYNC_MODE_AUTO; all else is in 1
_ENUMS: dict[str, Any] = {
    "layout": pb.Layout,
    "rule": pb.Rule,
    "scope": pb.Scope,
    "confidence": pb.Confidence,
    "cache": pb.Cache,
}
_SYNC_ENUMS: dict[str, Any] = {"mode": pb.SyncMode, "topology": pb.Topology, "summary": pb.Summary}
_PLAIN = (
    *("paths", "summary_tokens", "gen_length", "block_length", "steps"),
    *("eos_weight", "temperature", "seed", "control_every"),
    *("threshold", "factor", "cfg", "cache_every"),
)
_OTHER = ("path_tokens", "headers", "rule_args", "sync")
_SYNC_PLAIN = ("every", "warmup", "overlap", "top", "settle")
_STYLES = {"nap": pb.HEADER_STYLE_NAP, "text": pb.HEADER_STYLE_TEXT}
_MAX_ARGS, _MAX_ARG = 16, 64


# -- configurations ---------------------------------------------------------------------------------------------------


def config_to_proto(config: DecodeConfig, auto: AutoSync | None = None) -> pb.DecodeConfig:
    """The message of a config; what is None stays unset. Its version is the first that has what is set.

    Args:
        auto: a sync that the server chooses, in place of the config's.

    Raises:
        UsageError: it holds what cannot be sent: headers that cannot be read, or an option that the interface does not
            have.
    """
    _check_sendable(config, (*_ENUMS, *_PLAIN, *_OTHER))
    _check_sendable(config.sync, (*_SYNC_ENUMS, *_SYNC_PLAIN))
    message = pb.DecodeConfig(version=1)
    for name, enum in _ENUMS.items():
        _put_enum(message, name, enum, getattr(config, name))
    for name in _PLAIN:
        if getattr(config, name) is not None:
            setattr(message, name, getattr(config, name))
    budgets = config.path_tokens
    if budgets is not None:
        message.path_tokens.extend(budgets if isinstance(budgets, tuple) else (budgets,))
    if config.headers in _STYLES:
        message.headers.style = _STYLES[config.headers]
    elif config.headers is not None:
        message.headers.texts.CopyFrom(_header_texts(read_headers(config.headers)))
    message.rule_args.update(config.rule_args)
    if auto is None:
        message.sync.CopyFrom(sync_to_proto(config.sync))
    else:
        message.version = _AUTO_VERSION
        message.sync.CopyFrom(_auto_to_proto(auto))
    return message


def sync_to_proto(sync: SyncPolicy) -> pb.SyncPolicy:
    """The message of a policy."""
    message = pb.SyncPolicy()
    for name, enum in _SYNC_ENUMS.items():
        _put_enum(message, name, enum, getattr(sync, name))
    for name in _SYNC_PLAIN:
        if getattr(sync, name):
            setattr(message, name, getattr(sync, name))
    return message


def _auto_to_proto(auto: AutoSync) -> pb.SyncPolicy:
    if auto.link is not None:
        text = "link: the server knows what its workers talk over; leave it out"
        raise UsageError(text, field="link")
    message = sync_to_proto(auto.stand_in())
    message.mode = pb.SYNC_MODE_AUTO
    if auto.overhead != OVERHEAD:
        message.overhead = auto.overhead
    return message


def _check_sendable(config: Any, known: tuple[str, ...]) -> None:
    for item in fields(config):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if item.name != "_" and item.name not in known and getattr(config, item.name) != default:
            text = f"{item.name}: a server does not take it yet; leave it out, or use nap decode"
            raise UsageError(text, field=item.name)


def _put_enum(message: Any, name: str, enum: Any, value: str | None) -> None:
    if value is not None:
        setattr(message, name, enum.Value(_prefix(enum) + value.upper().replace("-", "_")))


def config_from_proto(message: pb.DecodeConfig) -> DecodeConfig:
    """Inverse of `config_to_proto`; where the sync is to be chosen (`asked_of`), one stands in for it.

    Raises:
        UsageError: a value is wrong, unused, or of a newer version.
    """
    if not 1 <= message.version <= CONFIG_VERSION:
        text = f"config: version {message.version} is not one of 1 to {CONFIG_VERSION}, which this server reads"
        raise UsageError(text, field="config")
    values: dict[str, Any] = _enums_of(message, _ENUMS)
    values |= {name: getattr(message, name) for name in _PLAIN if message.HasField(name)}
    if message.path_tokens:
        budgets = tuple(message.path_tokens)
        values["path_tokens"] = budgets if len(budgets) > 1 else budgets[0]
    if message.HasField("headers"):
        values["headers"] = _headers_of(message.headers)
    if len(message.rule_args) > _MAX_ARGS or any(len(t) > _MAX_ARG for pair in message.rule_args.items() for t in pair):
        raise UsageError(f"rule_args: more than {_MAX_ARGS}, or longer than {_MAX_ARG} letters", field="rule_args")
    values["rule_args"] = dict(message.rule_args)
    if message.HasField("sync"):
        if (asked := asked_of(message)) is not None:
            asked.check_cache(values.get("layout"), values.get("cache"))
        values["sync"] = SyncPolicy(**_sync_values(message.sync)) if asked is None else asked.stand_in()
    return DecodeConfig(**values)


def asked_of(message: pb.DecodeConfig) -> AutoSync | None:
    """The sync that the server is to choose; None where a mode is given.

    Raises:
        UsageError: a value is wrong, or unused.
    """
    sync = message.sync
    own = {"overhead": sync.overhead} if sync.HasField("overhead") else {}
    if sync.mode == pb.SYNC_MODE_AUTO:
        return AutoSync.from_mapping(_sync_values(sync), own)
    if own:
        raise UsageError("overhead: only sync 'auto' uses it; leave it out", field="overhead")
    return None


def _sync_values(message: pb.SyncPolicy) -> dict[str, Any]:
    plain = ("every", "warmup", "top", "settle")
    values = {name: getattr(message, name) for name in plain if message.HasField(name)}
    return _enums_of(message, _SYNC_ENUMS) | values | {"overlap": message.overlap}


def _header_texts(own: OwnHeaders) -> pb.HeaderTexts:
    """Headers by their texts: a server opens no file of a client's choice."""
    ends = own.path_ends or ()
    return pb.HeaderTexts(paths=own.paths, summary=own.summary, path_ends=ends, summary_end=own.summary_end)


def _headers_of(message: pb.Headers) -> str:
    if message.WhichOneof("source") == "texts":
        texts = message.texts
        return OwnHeaders(
            name="the JSON",
            paths=tuple(texts.paths),
            summary=texts.summary,
            path_ends=tuple(texts.path_ends) or None,
            summary_end=texts.summary_end if texts.HasField("summary_end") else None,
        ).to_json()
    for name, style in _STYLES.items():
        if message.style == style:
            return name
    raise UsageError("headers: unknown style", field="headers")


def _enums_of(message: Any, enums: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, enum in enums.items():
        number = getattr(message, name)
        if number == 0:
            continue
        if number not in enum.values():
            raise UsageError(f"{name}: {number} is no value of this server's", field=name)
        found[name] = enum.Name(number).removeprefix(_prefix(enum)).lower().replace("_", "-")
    return found


def _prefix(enum: Any) -> str:
    """`RULE_` of `RULE_UNSPECIFIED`."""
    return str(enum.Name(0)).removesuffix("UNSPECIFIED")
