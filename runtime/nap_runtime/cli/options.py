"""The options that decide a decode: one table for help, settings and errors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from nap_runtime import job
from nap_runtime.auto import OVERHEAD
from nap_runtime.cli.parser import Parser, budgets, integer, key_value, number
from nap_runtime.cli.settings import Settings, merge, read_yaml, sync_keys
from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, DTYPES
from nap_runtime.numerics import NUMERICS
from nap_runtime.policy import CONSENSUS_TOP, Placement
from nap_runtime.storage import STORED

_TINY = Path(__file__).resolve().parents[1] / "models" / "nap_tiny" / "decode.json"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: `--name`, and with underscores the key of the config.
        parse: from text to value; None for a switch.
        default: what holds where it is not given, for the help.
        key: the config key, where it is another.
    """

    name: str
    help: str
    default: str
    parse: Callable[[str], Any] | None = str
    metavar: str | None = None
    key: str = ""

    @property
    def field(self) -> str:
        """The key of the config."""
        return self.key or self.name.replace("-", "_")

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Declare it."""
        text = f"{self.help} (default: {self.default})"
        if self.parse is None:
            group.add_argument(f"--{self.name}", dest=self.field, action="store_true", help=text)
        elif self.parse is key_value:
            metavar = self.metavar
            group.add_argument(
                f"--{self.name}",
                dest=self.field,
                action="append",
                type=self.parse,
                metavar=metavar,
                help=text,
            )
        else:
            group.add_argument(
                f"--{self.name}", dest=self.field, type=self.parse, metavar=self.metavar or "X", help=text
            )


@cache
def _bundled_defaults() -> dict[str, Any]:
    """`decode.json` of the bundled model; nothing where it is not installed."""
    try:
        return dict(json.loads(_TINY.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _model_default(name: str, otherwise: str) -> str:
    """A default that a model's folder states, what nap-tiny's states, and what holds for a folder without."""
    tiny = _bundled_defaults().get(name)
    return f"the model's{'' if tiny is None else f', nap-tiny {tiny:g}'}; else {otherwise}"


def _choices(kind: Any) -> str:
    return "|".join(get_args(kind))


_D, _S = job.DecodeConfig(), job.SyncPolicy()

CANVAS = (
    Option(
        "layout",
        "prompt, paths and summary; or prompt and one region",
        _D.layout,
        metavar=_choices(job.LayoutKind),
    ),
    Option("paths", "think-blocks, 1 to 6", _model_default("paths", "3"), integer, "M"),
    Option(
        "path-tokens",
        "slots of each path; N,N,N for each its own",
        _model_default("path_tokens", "330"),
        budgets,
        "N",
    ),
    Option("summary-tokens", "slots of the summary", _model_default("summary_tokens", "32"), integer, "N"),
    Option("gen-length", "slots of the region of layout plain", _model_default("gen_length", "128"), integer, "N"),
    Option("headers", "NAP's tags, the paper's wording, or a JSON file", "nap", metavar="nap|text|FILE"),
)
RULE = (
    Option("steps", "denoising steps T", "one a slot", integer, "T"),
    Option(
        "rule",
        "which slots are committed",
        "parallel-forced; with layout plain, confidence",
        metavar=_choices(job.Rule),
    ),
    Option(
        "scope",
        "what a rule picks over",
        "path for parallel-forced, else canvas",
        metavar=_choices(job.Scope),
    ),
    Option("confidence", "how candidates are scored", _D.confidence, metavar=_choices(job.Confidence)),
    Option(
        "eos-weight",
        "factor on the confidence of end-of-text; 0: last of all",
        _model_default("eos_weight", "1"),
        number,
    ),
    Option(
        "block-length",
        "slots of one block, of the rules blockwise, threshold, factor and prophet",
        "the largest divisor of the slots up to 32 for blockwise, 32 for threshold and factor, all for prophet",
        integer,
        "N",
    ),
    Option("threshold", "probability from which rule threshold commits", "0.9", number),
    Option("factor", "of rule factor: the n-th surest needs a probability of 1 - X/(n + 1)", "1", number),
    Option("cfg", "classifier-free guidance: un + (X + 1)(cond - un), un without the prompt", "0: none", number),
    Option(
        "cache",
        "rows that are not computed at every step: of layout plain prefix and dual (Fast-dLLM), dkv (dKV-Cache); "
        "of paths, between two syncs, closed (those of closed paths), dkv (those of committed tokens)",
        "none",
        metavar=_choices(job.CacheKind),
    ),
    Option(
        "cache-every", "steps between full refreshes of cache dkv of layout plain", str(job.CACHE_EVERY), integer, "N"
    ),
    Option(
        "rule-arg",
        "further option of the rule, repeatable: schedule=llada|dream (scope canvas); of prophet "
        "answer=START:STOP (slots it watches, layout plain); of p2 eta=X and score=candidate|token",
        "none; schedule is llada, answer the summary or all slots, eta 1, score candidate",
        key_value,
        "KEY=VALUE",
        "rule_args",
    ),
    Option("temperature", "Gumbel noise on the logits; 0 is greedy", f"{_D.temperature:g}", number),
    Option("seed", "key of the noise; without a prompt also picks the problem", str(_D.seed), integer, "S"),
)
SYNC = (
    Option(
        "sync",
        "what workers exchange; auto: the freshest that costs little enough, by the cost model",
        _S.mode,
        metavar=f"{_choices(job.SyncMode)}|auto",
        key="mode",
    ),
    Option(
        "link",
        "what workers talk over, of --sync auto: nvlink, 100g, 25g, 10g, 1g, wan, or a file of nap cost calibrate",
        "measured when the workers are up",
        metavar="NAME|FILE",
    ),
    Option("overhead", "share of the time that syncs may take, of --sync auto", f"{OVERHEAD:g}", number),
    Option("every", "steps between syncs, of tokens, shared and kv", str(_S.period), integer, "K"),
    Option("warmup", "steps that are exact before --every applies", str(_S.warmup), integer, "N"),
    Option("overlap", "exchange beside the next step, of tokens and kv, or beside attention, of exact", "off", None),
    Option(
        "topology",
        "who sees whom",
        "the model's; else hub for sync shared, full for others",
        metavar=_choices(job.Topology),
    ),
    Option(
        "summary",
        "how the summary is decoded: by one worker, by all as they agree, or as by one and scored at each sync too",
        "gather",
        metavar=_choices(job.SummaryMode),
    ),
    Option(
        "settle",
        "syncs in a row at which the summary must be the same to stop the paths early, of summary live",
        "paths are not stopped early",
        integer,
        "N",
    ),
    Option(
        "top", "ids of a summary slot that each worker names, of summary consensus", str(CONSENSUS_TOP), integer, "N"
    ),
)
PLACE = (
    Option("model", "a bundled model's name, a checkpoint folder or its URL", "nap-tiny", metavar="nap-tiny|PATH|URL"),
    Option("workers", "workers; more than one run through Ray", "1", integer, "W"),
    Option("simulate", "run the workers as threads of this process, with the same result", "off", None),
    Option("address", "a Ray cluster that runs already", "a local one is started", metavar="HOST:PORT"),
    Option(
        "placement",
        "hosts of the workers: all on one or none (strict-pack), one where it has room, few (pack), many (spread)",
        "one-host for --sync exact and kv, else spread; pack until --sync auto has measured",
        metavar=_choices(Placement),
    ),
    Option("device", "where the network runs", "cpu", metavar="|".join(DEVICES)),
    Option("dtype", "precision of weights and activations", "float32", metavar="|".join(DTYPES)),
    Option(
        "compile",
        "compile steps, or capture them in CUDA graphs too (its first steps are slow; not with --simulate)",
        "none",
        metavar="|".join(job.COMPILE_MODES),
    ),
    Option(
        "numerics",
        "bits that depend neither on the batch nor, under exact, on the workers (invariant; compiled, on GPUs)",
        "fast",
        metavar="|".join(NUMERICS),
    ),
    Option("weights", "numbers of the layers' matrices, made at load", "native", metavar="|".join(STORED)),
    Option("kv", "numbers of keys and values, and of what syncs carry of them", "native", metavar="|".join(STORED)),
    Option("batch-size", "prompts of nearly one length decoded together, as each alone", "1", integer, "N"),
    Option("bucket", "prompt lengths that round up to one multiple of it share a batch", "32", integer, "N"),
    Option(
        "report-every",
        "steps between reports, off the critical path; without --settle the ids do not depend on it",
        f"{job.CONTROL_EVERY}; 1 for threshold, factor and prophet, and with --settle",
        integer,
        "R",
        "control_every",
    ),
)
GROUPS = {"canvas": CANVAS, "rule": RULE, "synchronisation": SYNC, "where it runs": PLACE}
_ALL = tuple(option for group in GROUPS.values() for option in group)
_NAMES = {option.field: f"--{option.name}" for option in _ALL} | {"sync": "--sync", "prompt": "PROMPT"}
_NAMES |= {"keep_seconds": "--keep", "drain_seconds": "--drain"}  # of nap serve


def add_decode_options(parser: Parser, *, without: tuple[str, ...] = ()) -> None:
    """Declare every option of the table but some."""
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            if option.name not in without:
                option.add_to(group)
    text = "read keys from a YAML file, as --print-config writes it; options win over it (default: none)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)


def read_settings(args: argparse.Namespace, extra: Mapping[str, Any] | None = None) -> Settings:
    """The settings that a command line, over its `--config` file, asks for.

    Args:
        extra: keys put over both.

    Raises:
        UsageError: a value is wrong or unused.
    """
    given = _given(args)
    file = read_yaml(args.config) if "config" in args else {}
    if not isinstance(file.get("sync", {}), Mapping):
        raise UsageError("sync: not a mapping such as {mode: kv, every: 8}", field="sync")
    values = merge(merge({k: v for k, v in file.items() if k not in _JOB_KEYS}, _nested(given)), extra or {})
    try:
        return Settings.from_mapping(values)
    except (TypeError, AttributeError) as error:  # values of a file may have any type
        raise UsageError(f"config: a value has the wrong type ({error})", field="config") from error


_JOB_KEYS = ("prompt", "file", "gold")


def read_job_keys(args: argparse.Namespace) -> dict[str, str]:
    """`prompt`, `file` and `gold` of the `--config` file, as far as they are there."""
    file = read_yaml(args.config) if "config" in args else {}
    values = {key: file[key] for key in _JOB_KEYS if file.get(key) is not None}
    for key, value in values.items():
        if not isinstance(value, str):
            raise UsageError(f"config: {args.config}: {key} is not a text", field="config")
    return values


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line gives, by config key."""
    values = {option.field: getattr(args, option.field) for option in _ALL if option.field in args}
    if "rule_args" in values:
        values["rule_args"] = dict(values["rule_args"])
    return values


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    sync = {key: value for key, value in values.items() if key in sync_keys()}
    flat = {key: value for key, value in values.items() if key not in sync}
    return {**flat, "sync": sync} if sync else flat


def line_of(error: UsageError, args: argparse.Namespace | None) -> str:
    """The error's message with the option in place of the config key, or the file that sets it."""
    field = (error.field or "").split(":")[0].strip()
    message = str(error)
    if args is None or not field:
        return message
    where = _where(field, args)
    rest = message.removeprefix(f"{field}: ")
    return f"{where}: {rest}" if where else message


def _where(field: str, args: argparse.Namespace) -> str:
    """How the user calls a config key: the option, or the file that sets it."""
    key = "mode" if field == "sync" else field
    if field != "config" and "config" in args and key not in args:
        stated = _keys_of(args.config)
        if field in stated:
            return f"--config {args.config}: {field}"
    if field in _NAMES:
        return _NAMES[field]
    option = f"--{field.replace('_', '-')}"
    return option if option in args.parser.options() else ""


def _keys_of(file: Path) -> set[str]:
    """Keys that a config file states, those of its `sync` among them."""
    try:
        values = read_yaml(file)
    except UsageError:
        return set()
    sync = values.get("sync")
    return set(values) | (set(sync) if isinstance(sync, dict) else set())
