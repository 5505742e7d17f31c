"""The arms: which traces a canvas shows, in how many blocks, and whether the answer has a place of its own.

All arms have the same prompt, the same number of rows behind it, the same vocabulary. Shapes: n canvases, N rows.

    nap          prompt | <think 1> t1 | <think 2> t2 | <think 3> t3 | <summary> s      three blocks, clamped slot
    nap-free     prompt | <think 1> t1 </think 1> … <summary> s </summary>              the same as text in one region
    cot-clamped  prompt | <think 1> t1 t2 t3 | <summary> s                              one chain, clamped slot
    cot          prompt | <think 1> t1 t2 t3 </think 1> <summary> s </summary>          the chain as text in one region
    short        prompt | <think 1> t1 | <summary> s                                    one trace, clamped slot
    nap-2        prompt | <think 1> t1 | <think 2> t2 | <summary> s                     two blocks, clamped slot
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.tokenizer import EOS, MASK, Tokenizer
from nap_trainer.batches.collate import collate
from nap_trainer.batches.formats import Marks, formed
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.miniature.problems import Array, Problems
from nap_trainer.settings import DataSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to show the same traces.

    Args:
        name: as in the tables; `title` what a reader sees.
        traces: indices of the traces shown.
        blocks: think-blocks; the traces are dealt to them in order, so one block holds the whole chain.
        clamped: whether tags are clamped and the summary has slots of its own; else all is text in one plain region.
    """

    name: str
    title: str
    traces: tuple[int, ...]
    blocks: int
    clamped: bool

    @property
    def layout_kind(self) -> str:
        """`nap` or `plain`."""
        return "nap" if self.clamped else "plain"


_ARMS = (
    Arm(name="nap", title="NAP, three paths", traces=(0, 1, 2), blocks=3, clamped=True),
    Arm(name="cot-clamped", title="one chain, clamped answer", traces=(0, 1, 2), blocks=1, clamped=True),
    Arm(name="cot", title="one chain, free (Long-CoT)", traces=(0, 1, 2), blocks=1, clamped=False),
    Arm(name="nap-free", title="three paths, free", traces=(0, 1, 2), blocks=3, clamped=False),
    Arm(name="short", title="one trace, clamped answer", traces=(0,), blocks=1, clamped=True),
    Arm(name="nap-2", title="NAP, two paths", traces=(0, 1), blocks=2, clamped=True),
)
ARMS = {arm.name: arm for arm in _ARMS}


def arm_of(name: str) -> Arm:
    """An arm by name; UsageError if there is none."""
    if name not in ARMS:
        raise UsageError(f"arm: unknown arm '{name}'; known are {', '.join(ARMS)}", field="arm")
    return ARMS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Ids of the tags: `headers` and `ends` of the paths, those of the summary, mask and end of text."""

    headers: tuple[int, ...]
    ends: tuple[int, ...]
    summary_header: int
    summary_end: int
    mask_id: int
    eos_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, paths: int = 3) -> Self:
        """The tags of a tokenizer; ModelError if one is missing."""

        def of(token: str) -> int:
            found = tokenizer.token_id(token)
            if found is None:
                raise ModelError(f"the tokenizer lacks {token!r}")
            return found

        numbers = range(1, paths + 1)
        return cls(
            headers=tuple(of(f"<think {j}>") for j in numbers),
            ends=tuple(of(f"</think {j}>") for j in numbers),
            summary_header=of("<summary>"),
            summary_end=of("</summary>"),
            mask_id=of(MASK),
            eos_id=of(EOS),
        )

    @property
    def marks(self) -> Marks:
        """The same as the trainer wants them: each a single token, nothing between texts."""
        return Marks(
            headers=tuple((header,) for header in self.headers),
            ends=tuple((end,) for end in self.ends),
            end_tags=self.ends,
            summary_header=(self.summary_header,),
            summary_end=(self.summary_end,),
            summary_tag=self.summary_end,
            chain_header=self.headers[:1],
            chain_end=self.ends[:1],
            gap=(),
            mask_id=self.mask_id,
            eos_id=self.eos_id,
            text_ends=(self.eos_id,),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The size of every canvas.

    Args:
        path_tokens: slots of each of `nap`'s three paths, end tag included; other arms share out the same rows.
        summary_tokens: slots of a summary, end tag included.
        prompt_tokens: prompts are padded on the left with end-of-text to this length (None: left as they are), so
            that all canvases have one layout and decode in one batch.
    """

    path_tokens: int
    summary_tokens: int
    prompt_tokens: int | None = None

    @property
    def think_rows(self) -> int:
        """Rows of headers and slots of all think-blocks: three of one header and `path_tokens` slots."""
        return 3 * (1 + self.path_tokens)

    @property
    def rows(self) -> int:
        """Rows behind the prompt, the same for every arm."""
        return self.think_rows + 1 + self.summary_tokens

    def budgets(self, arm: Arm) -> tuple[int, ...]:
        """Slots of each think-block (or of the plain region): what its headers leave of the rows, evenly."""
        if not arm.clamped:
            return (self.rows,)
        slots = self.think_rows - arm.blocks
        return tuple(slots // arm.blocks + (j < slots % arm.blocks) for j in range(arm.blocks))

    def layout(self, arm: Arm, tags: Tags, prompt_tokens: int) -> CanvasLayout:
        """The decoder's layout of an arm's canvas."""
        clamped, eos = arm.clamped, tags.eos_id
        ends = (*((end, eos) for end in tags.ends[: arm.blocks]), (tags.summary_end, eos))
        return CanvasLayout(
            kind="nap" if clamped else "plain",
            prompt_tokens=prompt_tokens,
            headers=tuple((h,) for h in tags.headers[: arm.blocks]) if clamped else ((),),
            budgets=self.budgets(arm),
            summary_header=(tags.summary_header,) if clamped else (),
            summary_budget=self.summary_tokens if clamped else 0,
            end_ids=ends if clamped else ((eos,), (eos,)),
            mask_id=tags.mask_id,
            fill_id=eos,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmTable:
    """What a training reads: every canvas of one arm with all its slots filled in.

    Attributes:
        ids_nN: prompt, then the rows; right-padded with end-of-text where prompts differ in length. uint16.
        prompts_n: prompt tokens of each canvas.
        region_R: of each row behind the prompt: 0 clamped, 1 … m path slots, m + 1 summary slots (plain: all 1).
        targets: mean tokens that a canvas asks for beyond end-of-text padding (end tags count).
    """

    ids_nN: Array
    prompts_n: Array
    region_R: Array
    targets: float

    def __len__(self) -> int:
        return len(self.prompts_n)


def fill(problems: Problems, arm: Arm, geometry: Geometry, tags: Tags) -> ArmTable:
    """The training canvases of an arm, as the trainer lays them out.

    Raises:
        UsageError: a text and its end tag exceed their budget; the field is named.
    """
    problems, marks = padded_prompts(problems, geometry, tags), tags.marks
    table = formed(segments(problems), DataSection.model_validate(arm_data(arm, geometry)), marks)
    _check_budgets(table, arm, geometry)
    rows = np.arange(len(table))
    batch = collate(
        table,
        rows,
        np.tile(np.arange(table.paths_nmL.shape[1]), (len(rows), 1)),
        budgets=geometry.budgets(arm),
        summary_budget=geometry.summary_tokens if arm.clamped else 0,
        marks=marks,
        index_B=rows,
        multiple=1,
    )
    return ArmTable(
        ids_nN=batch.ids_BN.astype(np.uint16),
        prompts_n=table.prompt_lengths_n,
        region_R=regions(geometry.layout(arm, tags, 1)),
        targets=float(batch.text_BN.sum(1).mean()),
    )


def _check_budgets(table: SegmentTable, arm: Arm, geometry: Geometry) -> None:
    end = int(arm.clamped)  # in a free region the tags are in the text
    longest = int(table.path_lengths_nm.max()) + end
    summary = int(table.summary_lengths_n.max(initial=0)) + end
    fields = (
        ("path_tokens", longest, min(geometry.budgets(arm))),
        ("summary_tokens", summary, geometry.summary_tokens),
    )
    for field, needed, budget in fields if arm.clamped else fields[:1]:
        if needed > budget:
            text = f"a text of {needed} tokens with its end tag exceeds {budget} slots"
            raise UsageError(f"{field}: {text}", field=field)


def segments(problems: Problems) -> SegmentTable:
    """The problems as the trainer's table."""
    arrays = {name: getattr(problems, name).astype(np.int32) for name in ("prompt_nP", "paths_nmL", "summary_nS")}
    return SegmentTable(**arrays)


def arm_data(arm: Arm, geometry: Geometry) -> dict[str, Any]:
    """The trainer's `data` section of an arm: the same rows on canvases of the same size."""
    one_trace = len(arm.traces) == 1
    return {
        "train": "words-study",
        "format": "single" if one_trace else "nap" if arm.blocks > 1 else "long-cot",
        "answer": "clamped" if arm.clamped else "free",
        "paths": [len(arm.traces)],
        "path_tokens": max(geometry.budgets(arm)),
        "summary_tokens": geometry.summary_tokens,
        "gen_length": geometry.rows,
    }


def regions(layout: CanvasLayout) -> Array:
    """Region of each row behind the prompt: 0 clamped, 1 … the blocks in order. uint8 [R]."""
    region = np.zeros(layout.size, dtype=np.uint8)
    for index, block in enumerate(layout.blocks, start=1):
        region[block.slots.start : block.slots.stop] = index
    return region[layout.prompt_tokens :]


def prompts_of(problems: Problems, geometry: Geometry, tags: Tags) -> list[tuple[int, ...]]:
    """The prompt ids of each problem, padded as the geometry asks."""
    rows_nP, lengths_n = _prompts(problems, geometry, tags)
    return [tuple(row[:length].tolist()) for row, length in zip(rows_nP, lengths_n, strict=True)]


def padded_prompts(problems: Problems, geometry: Geometry, tags: Tags) -> Problems:
    """The problems with prompts as they stand on the canvas; unchanged where the geometry pads none."""
    rows_nP, _ = _prompts(problems, geometry, tags)
    return replace(problems, prompt_nP=rows_nP.astype(np.int32))


def _prompts(problems: Problems, geometry: Geometry, tags: Tags) -> tuple[Array, Array]:
    """Prompts and their lengths, −1 behind each."""
    prompt_nP, wanted = problems.prompt_nP, geometry.prompt_tokens
    lengths_n = (prompt_nP >= 0).sum(1)
    if wanted is None:
        return prompt_nP, lengths_n
    if len(lengths_n) and lengths_n.max() > wanted:
        raise UsageError(f"prompt_tokens: a prompt of {lengths_n.max()} tokens exceeds {wanted}", field="prompt_tokens")
    out_nP = np.full((len(prompt_nP), wanted), tags.eos_id, dtype=np.int32)
    for length in np.unique(lengths_n):
        rows = np.flatnonzero(lengths_n == length)
        out_nP[rows, wanted - length :] = prompt_nP[rows, :length]
    return out_nP, np.full_like(lengths_n, wanted)
