"""Between protobuf and this package's own words: configurations, and which jobs are accepted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import NotBuiltError, UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import DecodeDefaults, build_layout, prompt_ids, resolve
from nap_runtime.service.settings import GroupSettings, Limits
from nap_runtime.service.v1 import decoder_pb2 as pb

CONFIG_VERSION = 1
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
_SYNC_PLAIN = ("every", "warmup", "overlap", "top")
_STYLES = {"nap": pb.HEADER_STYLE_NAP, "text": pb.HEADER_STYLE_TEXT}
_MAX_ARGS, _MAX_ARG = 16, 64
_MAX_NAME, _MAX_GOLD = 256, 4096


# -- configurations ---------------------------------------------------------------------------------------------------


def config_to_proto(config: DecodeConfig) -> pb.DecodeConfig:
    """The message of a config; what is None stays unset.

    Raises:
        UsageError: it holds what cannot be sent: a headers file, or an option that the interface does not have.
    """
    _check_sendable(config, (*_ENUMS, *_PLAIN, *_OTHER))
    _check_sendable(config.sync, (*_SYNC_ENUMS, *_SYNC_PLAIN))
    message = pb.DecodeConfig(version=CONFIG_VERSION)
    for name, enum in _ENUMS.items():
        _put_enum(message, name, enum, getattr(config, name))
    for name in _PLAIN:
        if getattr(config, name) is not None:
            setattr(message, name, getattr(config, name))
    budgets = config.path_tokens
    if budgets is not None:
        message.path_tokens.extend(budgets if isinstance(budgets, tuple) else (budgets,))
    if config.headers is not None:
        if config.headers not in _STYLES:
            raise UsageError("headers: a server takes 'nap' or 'text', no file", field="headers")
        message.headers.style = _STYLES[config.headers]
    message.rule_args.update(config.rule_args)
    for name, enum in _SYNC_ENUMS.items():
        _put_enum(message.sync, name, enum, getattr(config.sync, name))
    for name in _SYNC_PLAIN:
        if getattr(config.sync, name):
            setattr(message.sync, name, getattr(config.sync, name))
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
    """Inverse of `config_to_proto`.

    Raises:
        UsageError: a value is wrong, unused, or of a newer version. NotBuiltError: it is not built yet.
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
        values["sync"] = _sync_of(message.sync)
    return DecodeConfig(**values)


def _sync_of(message: pb.SyncPolicy) -> SyncPolicy:
    values = _enums_of(message, _SYNC_ENUMS)
    values |= {name: getattr(message, name) for name in ("every", "warmup", "top") if message.HasField(name)}
    return SyncPolicy(overlap=message.overlap, **values)


def _headers_of(message: pb.Headers) -> str:
    if message.WhichOneof("source") == "texts":
        raise NotBuiltError("headers: texts of your own are not built yet; use a style", field="headers")
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


# -- acceptance -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A job that was found to fit: everything a worker group needs to know of it.

    Attributes:
        config: resolved; layout: of its canvas.
        shape: equal for jobs that can share a batch.
    """

    question: str
    gold: str | None
    name: str
    prompt: tuple[int, ...]
    config: DecodeConfig
    layout: CanvasLayout
    shape: Hashable

    @property
    def cost(self) -> int:
        """Slots to fill."""
        return self.layout.n_slots


class Gate:
    """Checks jobs against the server's limits and model, what costs little first."""

    def __init__(self, card: ModelCard, group: GroupSettings, limits: Limits) -> None:
        self._card, self._group, self._limits = card, group, limits
        self._defaults = DecodeDefaults.of(card.path)

    def accept(self, spec: pb.JobSpec) -> Accepted:
        """Everything about a job that can be known before it is decoded.

        Raises:
            UsageError: a value is wrong or beyond a limit; NotBuiltError: it is not built yet.
        """
        self._check_frame(spec)
        self._check_prompt(spec.prompt)
        config = resolve(config_from_proto(spec.config), self._defaults)
        self._check_size(config)
        if config.headers == "text" and self._card.tokenizer is None:
            raise UsageError("headers: the model has no tokenizer; leave it out", field="headers")
        question, ids = self._prompt(spec.prompt)
        if len(ids) > self._limits.prompt_tokens:
            text = f"prompt: {len(ids)} tokens, at most {self._limits.prompt_tokens} are taken"
            raise UsageError(text, field="prompt")
        layout = build_layout(self._card, config, len(ids))
        if layout.size > self._limits.canvas:
            text = f"prompt: the canvas has {layout.size} positions, at most {self._limits.canvas} are taken"
            raise UsageError(text, field="prompt")
        Plan.of(layout, config, Assignment.even(config.n_paths, self._group.workers))
        shape = hashlib.sha256(json.dumps([config.to_mapping(), len(ids)], sort_keys=True).encode()).digest()
        gold = spec.gold if spec.HasField("gold") else None
        return Accepted(
            question=question, gold=gold, name=spec.id, prompt=ids, config=config, layout=layout, shape=shape
        )

    def _check_frame(self, spec: pb.JobSpec) -> None:
        if spec.model not in ("", self._card.name):
            raise UsageError(f"model: this server decodes with '{self._card.name}'", field="model")
        if spec.workers not in (0, self._group.workers):
            text = f"workers: this server's groups have {self._group.workers}; leave it out"
            raise UsageError(text, field="workers")
        if len(spec.id.encode()) > _MAX_NAME:
            raise UsageError(f"id: longer than {_MAX_NAME} bytes", field="id")
        if len(spec.gold.encode()) > _MAX_GOLD:
            raise UsageError(f"gold: longer than {_MAX_GOLD} bytes", field="gold")

    def _check_prompt(self, prompt: pb.Prompt) -> None:
        kind = prompt.WhichOneof("source")
        if kind is None:
            raise UsageError("prompt: it is missing", field="prompt")
        if kind == "text" and len(prompt.text.encode()) > self._limits.prompt_bytes:
            raise UsageError(f"prompt: longer than {self._limits.prompt_bytes} bytes", field="prompt")
        if kind == "token_ids" and not 0 < len(prompt.token_ids.ids) <= self._limits.prompt_tokens:
            raise UsageError(f"prompt: give 1 to {self._limits.prompt_tokens} ids", field="prompt")

    def _check_size(self, config: DecodeConfig) -> None:
        """Bound what a layout and a schedule would allocate."""
        limits, each = self._limits, config.path_tokens
        if config.n_paths > limits.paths:
            raise UsageError(f"paths: {config.n_paths}, at most {limits.paths} are taken", field="paths")
        paths = sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths
        slots = (config.gen_length or 0) if config.layout == "plain" else paths + (config.summary_tokens or 0)
        if slots > limits.canvas:
            name = "gen_length" if config.layout == "plain" else "path_tokens"
            raise UsageError(f"{name}: {slots} slots, at most {limits.canvas} positions are taken", field=name)
        if (config.steps or 0) > limits.steps:
            raise UsageError(f"steps: {config.steps}, at most {limits.steps} are taken", field="steps")

    def _prompt(self, prompt: pb.Prompt) -> tuple[str, tuple[int, ...]]:
        if prompt.WhichOneof("source") == "text":
            return prompt.text, prompt_ids(self._card, prompt.text)
        ids, model = tuple(prompt.token_ids.ids), self._card.config
        if max(ids) >= model.vocab_size or model.mask_id in ids:
            raise UsageError(f"prompt: an id is the mask, or not below {model.vocab_size}", field="prompt")
        text = "" if self._card.tokenizer is None else self._card.tokenizer.decode(list(ids))
        return text, ids
