"""SeqDep of a file: which texts a row gives, scored one by one so that a run can be taken up again, summed up.

A form says what the segments of a text are:

    within     a path's sentences, given prompt and path (NAP rows)
    across     the paths of a row, given prompt and other paths, orders averaged, headers left out (NAP rows)
    long-cot   the sentences of all paths as one chain (NAP rows)
    chain      the sentences of a solution or document
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics import seqdep
from nap_runtime.metrics.seqdep import Dependence, Scorer
from nap_runtime.study.rows import RowFile

FORMS = ("within", "across", "long-cot", "chain")
EDGES = (32, 64, 128, 256, 512, 1024)
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_ENDING = re.compile(r"\n?####.*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A kind of data: the forms it has, how it is segmented, and where the hub has it."""

    forms: tuple[str, ...]
    unit: str = "sentence"
    hub: tuple[str, str | None, str] | None = None


PRESETS: Mapping[str, Preset] = {
    "nap": Preset(forms=("within", "across", "long-cot")),
    "gsm8k": Preset(forms=("chain",), unit="line", hub=("openai/gsm8k", "main", "test")),
    "openr1-math": Preset(forms=("chain",), hub=("open-r1/OpenR1-Math-220k", "default", "train")),
    "fineweb": Preset(forms=("chain",), hub=("HuggingFaceFW/fineweb", "sample-10BT", "train")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text of a row: a prompt and its segments. `key` tells it apart, `row` is its row's number."""

    key: str
    row: int
    form: str
    prompt: str
    segments: tuple[str, ...]


# -- texts -----------------------------------------------------------------------------------------


def texts_of(
    preset: str, rows: Iterable[Mapping[str, Any]], *, forms: Sequence[str], unit: str, where: str
) -> Iterator[Text]:
    """The texts of rows, numbered from 0; those with a single segment among them.

    Raises:
        DataError: a row lacks what the preset reads.
    """
    for number, row in enumerate(rows):
        try:
            yield from _texts(preset, number, row, forms, unit)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: row {number + 1}: not a row of '{preset}' ({error})") from None


def _texts(preset: str, number: int, row: Mapping[str, Any], forms: Sequence[str], unit: str) -> Iterator[Text]:
    if preset == "nap":
        yield from _nap_texts(number, row, forms, unit)
        return
    prompt, body = _solution(preset, row)
    segments = seqdep.split(body, unit)
    lead = "\n" if prompt else ""
    yield Text(key=f"chain:{number}", row=number, form="chain", prompt=prompt, segments=_led(segments, lead))


def _solution(preset: str, row: Mapping[str, Any]) -> tuple[str, str]:
    if preset == "gsm8k":
        return _words(row, "question"), _ENDING.sub("", _CALCULATOR.sub("", _words(row, "answer")))
    if preset == "openr1-math":
        written = row.get("generations") or [row.get("solution")]
        return _words(row, "problem"), _words({"generations": written[0]}, "generations")
    return "", _words(row, "text")


def _words(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is no text")
    return value


def _nap_texts(number: int, row: Mapping[str, Any], forms: Sequence[str], unit: str) -> Iterator[Text]:
    prompt, given = _words(row, "question"), row["paths"]
    paths = [given[key] for key in sorted(given, key=int)] if isinstance(given, Mapping) else list(given)
    paths = [_words({"paths": path}, "paths").strip() for path in paths]
    if "within" in forms:
        for place, path in enumerate(paths, start=1):
            segments = _led(seqdep.split(path, unit), "\n")
            yield Text(key=f"within:{number}:{place}", row=number, form="within", prompt=prompt, segments=segments)
    if "across" in forms:
        whole = tuple(f"\n{path}" for path in paths)
        yield Text(key=f"across:{number}", row=number, form="across", prompt=prompt, segments=whole)
    if "long-cot" in forms:
        chain = tuple(part for path in paths for part in _led(seqdep.split(path, unit), "\n"))
        yield Text(key=f"long-cot:{number}", row=number, form="long-cot", prompt=prompt, segments=chain)


def _led(segments: Sequence[str], lead: str) -> tuple[str, ...]:
    return tuple(f"{lead if at == 0 else ''}{segment}" for at, segment in enumerate(segments))


def read_rows(file: Path | None, preset: str, n: int | None) -> Iterator[Mapping[str, Any]]:
    """Rows of a JSONL or parquet file, or of the preset's data set on the hub (None)."""
    from nap_runtime.study import problems

    if file is not None:
        return islice(problems.file_rows(file, field="file"), n)
    hub = PRESETS[preset].hub
    if hub is None:
        raise UsageError(f"file: preset '{preset}' has no data on the hub; give a file", field="file")
    return islice(problems.hub_rows(*hub, field="file", streaming=True), n)


# -- scoring ---------------------------------------------------------------------------------------


def score_rows(scorer: Scorer, texts: Iterable[Text], rows: RowFile, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Score the texts that have no row yet; yields every row as it is written.

    A text longer than the scorer's context keeps the segments that fit; one with fewer than two is `skipped`. The
    control `shuffled` has the segments in a random order, `foreign` those of the last text of that form in another row.
    """
    others = _Others()
    for text in texts:
        prompt, segments = scorer.encode(text.prompt), [scorer.encode(segment) for segment in text.segments]
        kept = _fitting(scorer, prompt, segments)
        other = others.before(text, kept)
        if text.key in rows.rows:
            continue
        values = {"key": text.key, "row": text.row, "form": text.form, "segments": len(segments)}
        if len(kept) < 2:
            yield rows.add({**values, "skipped": True})
            continue
        yield rows.add({**values, **_measure(scorer, text, prompt, kept, len(segments), other, seed)})


class _Others:
    """The last text of each form in an earlier row: what a text's own row says would be no foreign text."""

    def __init__(self) -> None:
        self._now: dict[str, tuple[int, list[list[int]]]] = {}
        self._earlier: dict[str, list[list[int]]] = {}

    def before(self, text: Text, kept: list[list[int]]) -> list[list[int]] | None:
        """Segments of the other text, None where there is none; remembers this one."""
        if text.form in self._now and self._now[text.form][0] != text.row:
            self._earlier[text.form] = self._now[text.form][1]
        if len(kept) > 1:
            self._now[text.form] = (text.row, kept)
        return self._earlier.get(text.form)


def _fitting(scorer: Scorer, prompt: Sequence[int], segments: Sequence[list[int]]) -> list[list[int]]:
    room = scorer.context - len(scorer.start) - len(prompt)
    sizes = np.cumsum([len(segment) for segment in segments])
    return [segment for segment in segments[: int(np.searchsorted(sizes, room, side="right"))] if segment]


def _measure(
    scorer: Scorer, text: Text, prompt: list[int], kept: list[list[int]], count: int, other: Any, seed: int
) -> dict[str, Any]:
    if text.form == "across":
        found, shuffled = seqdep.across(scorer, prompt, kept, seed=seed), None
    else:
        found = seqdep.dependence(scorer, prompt, kept)
        shuffled = seqdep.ordered(scorer, prompt, kept, [_shuffle(len(kept), seed, text.row)])
    joined = scorer.encode(text.prompt + "".join(text.segments[: len(kept)])) if len(kept) == count else None
    values: dict[str, Any] = {
        "length": sum(map(len, kept)),
        "characters": sum(map(len, text.segments[: len(kept)])),
        "cut": len(kept) < count,
        "joined": None if joined is None else joined == [*prompt, *(token for segment in kept for token in segment)],
        "own": asdict(found),
        "shuffled": None if shuffled is None else asdict(shuffled),
        "foreign": None,
    }
    if other is not None and _fits(scorer, prompt, kept, other):
        values["foreign"] = asdict(seqdep.foreign(scorer, prompt, kept, other))
    return values


def _shuffle(n: int, seed: int, row: int) -> tuple[int, ...]:
    """A random order that is not the given one."""
    generator = np.random.default_rng([seed, row])
    while True:
        order = tuple(generator.permutation(n).tolist())
        if order != tuple(range(n)):
            return order


def _fits(scorer: Scorer, prompt: Sequence[int], kept: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    before = sum(len(other[at % len(other)]) for at in range(len(kept) - 1))
    return len(scorer.start) + len(prompt) + before + max(map(len, kept)) <= scorer.context


# -- sums ------------------------------------------------------------------------------------------


def summarise(rows: Iterable[Mapping[str, Any]], *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """By form: SeqDep with its controls, by place and by length; and how the tokenizer suits the data."""
    scored = [row for row in rows if not row.get("skipped")]
    values: dict[str, Any] = {}
    for form in dict.fromkeys(row["form"] for row in scored):
        some = [row for row in scored if row["form"] == form]
        values[form] = _form(some, resamples, seed)
    return values


def _form(rows: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    own = _pairs(rows, "own")
    whole = [row["joined"] for row in rows if row["joined"] is not None]
    values: dict[str, Any] = {
        "seqdep": seqdep.Measured.of(own, resamples=resamples, seed=seed).to_json(),
        "by_segment": seqdep.by_place(own),
        "by_length": seqdep.by_length(own, [row["length"] for row in rows], EDGES, resamples=resamples, seed=seed),
        "cut": sum(row["cut"] for row in rows),
        "characters_per_token": sum(row["characters"] for row in rows) / sum(row["length"] for row in rows),
        "tokenised_alike": sum(whole) / len(whole) if whole else None,
    }
    for control in ("shuffled", "foreign"):
        pairs = _pairs(rows, control)
        values[control] = seqdep.Measured.of(pairs, resamples=resamples, seed=seed).to_json() if pairs else None
    return values


def _pairs(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[Any, Dependence]]:
    return [(row["row"], seqdep.read_dependence(row[key])) for row in rows if row[key] is not None]
