"""One decode as a page that plays it, step by step: one file, nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nap_runtime.decoding.state import Kind

if TYPE_CHECKING:
    from nap_runtime.decoding.layout import ThinkBlock
    from nap_runtime.decoding.record import CanvasDelta, DecodeRecord
    from nap_runtime.models.tokenizer import Tokenizer

PAGES = Path(__file__).parent / "pages"
Word = Callable[[int], str]


def trace_page(record: DecodeRecord, tokenizer: Tokenizer | None = None, *, title: str = "One decode") -> str:
    """The page. Without a tokenizer tokens are shown as their ids."""
    word = _words(tokenizer)
    prompt = tokenizer.decode(list(record.prompt_ids)) if tokenizer else " ".join(map(str, record.prompt_ids[:40]))
    values = {
        "TITLE": html.escape(title),
        "FACTS": html.escape(_facts(record)),
        "PROMPT": html.escape(prompt or "(special tokens only)"),
        "DATA": script_json(page_data(record, word)),
    }
    return page_of("trace", values)


def page_of(name: str, values: Mapping[str, str]) -> str:
    """One of the pages, filled, in the palette that all share: light or dark, as the reader's system is."""
    palette = (PAGES / "palette.css").read_text(encoding="utf-8").strip()
    return fill((PAGES / f"{name}.html").read_text(encoding="utf-8"), {"PALETTE": palette, **values})


def fill(page: str, values: Mapping[str, str]) -> str:
    """A page with every `@NAME@` replaced; what is put in is not looked at again."""
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], page)


def script_json(values: Any) -> str:
    """JSON that can stand in a script element: it cannot end it, nor begin a comment."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(record: DecodeRecord, word: Word) -> dict[str, Any]:
    """What the page plays: blocks, deltas as [step, worker, kind, positions, words, confidences], exchanges."""
    return {
        "steps": record.steps,
        "blocks": [_block(record, number, block) for number, block in enumerate(record.layout.blocks)],
        "deltas": [_delta(delta, word) for delta in sorted(record.deltas, key=lambda d: d.step)],
        "syncs": [[event.step, event.kind] for event in record.syncs],
    }


def _block(record: DecodeRecord, number: int, block: ThinkBlock) -> dict[str, Any]:
    summary = number >= record.layout.n_paths
    plain = record.layout.summary is None
    worker = "" if summary else f"worker {record.assignment.worker_of[number]}, "
    name = "Region" if plain else "Summary" if summary else f"Path {number + 1}"
    slots = block.slots
    note = f"{worker}{len(slots)} slots"
    return {"name": name, "note": note, "summary": summary, "start": slots.start, "stop": slots.stop}


def _delta(delta: CanvasDelta, word: Word) -> list[Any]:
    confidence = np.exp(np.minimum(delta.log_confidence, 0.0))
    words = [word(int(token)) if delta.kind in (Kind.COMMIT, Kind.PROVISIONAL) else "" for token in delta.ids]
    shown = [round(float(value), 4) if np.isfinite(value) else 0.0 for value in confidence]
    return [delta.step, delta.worker, int(delta.kind), delta.positions.tolist(), words, shown]


def _words(tokenizer: Tokenizer | None) -> Word:
    """A token as text: a blank one as ␣, a special one by its id."""

    def word(token: int) -> str:
        if tokenizer is None:
            return str(token)
        text = tokenizer.decode([token])
        return text.replace("\n", "⏎") if text.strip() else "⏎" if "\n" in text else "␣" if text else f"⟨{token}⟩"

    return word


def _facts(record: DecodeRecord) -> str:
    config = record.config
    sync: Mapping[str, Any] = config.get("sync") or {}
    every = f" every {sync['every']}" if sync.get("every") else ""
    mode = f"sync {sync.get('mode')}{every}, topology {sync.get('topology')}"
    workers = record.assignment.workers
    return (
        f"{record.model.get('name') or 'unnamed model'}; rule {config.get('rule')}; {mode}; "
        f"{workers} worker{'s' if workers > 1 else ''}; "
        f"{record.steps} steps, {record.path_steps} of them for the paths; "
        f"{len(record.syncs)} exchanges; network run at {record.nfe_steps} steps"
    )
