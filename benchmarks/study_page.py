"""docs/study.md and its figures, from packed records.

    nap study pack out/full --out benchmarks/results/study/full        # and twin, mismatch, adapted, words-study
    python benchmarks/study_page.py

Reads benchmarks/results/study/NAME (packed studies), benchmarks/results/study/seqdep/NAME.json (`nap seqdep --json`)
and benchmarks/results/*scaling*.json (benchmarks/sync_scaling.py). What stands between the page's `links:begin` and
`links:end` is kept. --check writes nothing, and fails where the page is not what the records give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import study_overhead
import study_sections
from study_figures import draw
from study_numbers import table
from study_plain import STEP, plainly
from study_sections import Records, Section, step_text

from nap_runtime.errors import NapError, RecordError
from nap_runtime.models.files import write_text_atomic
from nap_runtime.study.pack import read_packed

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ("full", "twin", "mismatch", "adapted")
BEGIN, END = "<!-- links:begin -->", "<!-- links:end -->"
_MACHINE = ("device_name", "torch", "dtype", "commit")

_HEAD = """\
# The study: what the talking costs, and what it does to the order and to the answer

<!-- Written by `python benchmarks/study_page.py` from records: change those, not the page. -->

How often must the devices talk, what does it cost, and what does it do to the order of decoding and to the answer?
Every sentence with a number below is made from the records in `benchmarks/results/`. Intervals are 95%: Wilson's for
accuracies in tables, bootstraps over problems for all else; differences are paired by problem. There are many of them
and no adjustment for that: about one in twenty would leave out 0 where nothing is there. Where an interval holds 0, the
difference cannot be told from none, which does not say that there is none.

ARness is global ARness@1, set-based, content slots, mean of the paths ([metrics.md](metrics.md)). What is compared was
changed once after results were seen: the first draft took K's two ends alone, which hid that what lies between them is
lower, and compared raw ARness across canvases on which chance scores differently. Every K is shown now, and across
canvases the chance-corrected value.

That paths agree does
not show that they copy: [controls.md](controls.md) has the probes that could show it.
"""
_LIMITS = """\
## Limits

- Models of a few million weights on generated word problems, and one adapted model of 135 million: what holds here
  need not hold at 8 billion. One training of each model, one seed of problems.
- Before it was trained on, nap-tiny's summary was right on most problems with every path masked
  ([nap-tiny.md](nap-tiny.md)), and these weights were not probed. Its accuracy says little about what its paths, or the
  talk between them, are worth: look at single paths and their agreement.
- Paths here run on simulated workers: ids, orders and bytes are those of real ones; seconds come from benchmarks of
  real workers alone.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its figures; 1 where --check finds another page, 2 where there is nothing to write of."""
    args = _arguments(arguments)
    page = args.docs / "study.md"
    try:
        records, seqdep, scaling = read_records(args.results)
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        text = "\n".join(lines(records, seqdep, scaling, links=links_of(before))) + "\n"
    except NapError as error:
        print(f"study_page: {error}", file=sys.stderr)
        return 2
    if args.check:
        return int(before != text)
    draw(records, scaling, args.docs / "study")
    write_text_atomic(page, text)
    print(page)
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of study.md and study/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page differs")
    return parser.parse_args(arguments)


def read_records(results: Path) -> tuple[Records, Mapping[str, Mapping[str, Any]], list[Path]]:
    """Packed studies by name, SeqDep by text, files of scaling.

    Raises:
        RecordError: a file is damaged, or there is no packed study.
    """
    folder = results / "study"
    records = {name: read_packed(folder / name) for name in STUDIES if (folder / name).is_dir()}
    if not records:
        raise RecordError(f"{folder}: no packed study; `nap study pack` makes them")
    files = sorted((folder / "seqdep").glob("*.json"))
    seqdep = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return records, seqdep, study_overhead.scaling_files(results)


def links_of(page: str) -> str:
    """What stands between the marks of a page, without them."""
    return page.partition(BEGIN)[2].partition(END)[0] if BEGIN in page and END in page else "\n"


def lines(
    records: Records, seqdep: Mapping[str, Mapping[str, Any]], scaling: Sequence[Path], *, links: str
) -> Iterator[str]:
    """The page."""
    made = [make(records) for make in (study_sections.every, study_sections.modes, study_sections.paths,
            study_sections.twins, study_sections.adapted, study_sections.mismatch)]  # fmt: skip
    made += [study_sections.others(records), study_sections.across(records, seqdep)]
    sections = [section for section in made if section is not None]
    yield from _HEAD.splitlines()
    yield from (
        "",
        "## In plain words",
        "",
        f"nap-tiny, {step_text(STEP)}; the numbers behind each word stand below.",
        "",
    )
    yield from (f"- {said}" for said in plainly(records, scaling))
    yield from ("", "## The same with intervals", "")
    yield from (f"- {finding}" for section in sections for finding in section.findings)
    yield from (f"- **Time** ({where}). {said}" for file in scaling for where, said in study_overhead.findings(file))
    yield from ("", *_absent(records, scaling))
    for section in sections:
        yield from (f"## {section.title}", "", *_figures(section), *section.lines, "")
    yield from ("## What the talking costs in seconds", "")
    for file in scaling:
        yield from (*study_overhead.section(file), "")
    yield from ("![Seconds a step](study/overhead.svg)", "") if scaling else ("Not measured yet.", "")
    yield from (f"{BEGIN}{links}{END}", "", *_LIMITS.splitlines(), "", *_what_was_run(records))


def _absent(records: Records, scaling: Sequence[Path]) -> Iterator[str]:
    missing = [name for name in STUDIES if name not in records] + (["scaling"] if not scaling else [])
    unfinished = {name: _unfinished(packed.study, packed.rows) for name, packed in records.items()}
    missing += [f"{count} runs of {name}" for name, count in unfinished.items() if count]
    if missing:
        yield from (f"**Not run, and missing here:** {', '.join(missing)}.", "")


def _unfinished(study: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int:
    return len({run for sweep in study["sweeps"] for run in sweep["runs"]} - {row["run_id"] for row in rows})


_FIGURES = {
    "How often": ("every-accuracy", "every-agreement"),
    "Three paths or one chain": ("twins-accuracy", "twins-arness"),
}


def _figures(section: Section) -> Iterator[str]:
    for start, names in _FIGURES.items():
        if section.title.startswith(start):
            yield from (*(f"![{name}](study/{name}.svg)" for name in names), "")


def _what_was_run(records: Records) -> Iterator[str]:
    yield from ("## What was run", "")
    rows = []
    for name, packed in records.items():
        problems = {str(row["problems_set"]) for row in packed.rows}
        decodes = sum(row["n"] for row in packed.rows)
        machine = [", ".join(sorted({str(row.get(key)) for row in packed.rows}))[:60] for key in _MACHINE]
        rows.append([name, ", ".join(sorted(problems)), str(len(packed.rows)), f"{decodes:,}", *machine])
    yield from table(("study", "problems", "runs", "decodes", "device", "torch", "dtype", "commit or version"), rows)
    yield from (
        "",
        "Commands (each goes on where it was when it is run again; seconds of runs made at once are not used):",
    )
    yield from ("", *(f"    {line}" for line in COMMANDS))


COMMANDS = (
    "python -m nap_trainer.train --config examples/train/nap-tiny.yaml --set run.out=TINY",
    "python -m nap_trainer.train --config examples/train/nap-tiny-cot.yaml --set run.out=TWIN",
    "python examples/train/mismatch.py MODELS --set model.init=MINIATURE/models/nap-s0/model",
    "nap study run examples/studies/full.yaml --out out/full --jobs 5 --set device=cuda --set model=TINY/model",
    "nap study run examples/studies/twin.yaml --out out/twin --jobs 5 --set device=cuda --set model=TWIN/model",
    "nap study run examples/studies/mismatch.yaml --out out/mismatch --set run=MODELS --set n=128 --set dtype=bfloat16",
    "nap study run examples/studies/adapted.yaml --out out/adapted --set device=cuda --set model=M --set gsm8k=F.jsonl",
    "nap study pack out/NAME --out benchmarks/results/study/NAME",
    "OMP_NUM_THREADS=1 python benchmarks/sync_scaling.py --out benchmarks/results/scaling.json",
    "python benchmarks/study_page.py",
)


if __name__ == "__main__":
    sys.exit(main())
