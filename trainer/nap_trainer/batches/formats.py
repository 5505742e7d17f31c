"""What is laid out of a row: its paths as blocks, or everything as one text.

::

    nap       clamped  <think 1> path 1 … | … | <think m> path m … | <summary> summary …
    long-cot  clamped  <think 1> path 1 path 2 … path m …          | <summary> summary …
    single    clamped  <think 1> path 1 …                          | <summary> summary …
    any       free     one region in which tags and texts follow each other
    text      free     one region with the row's own response

Clamped headers, end tags and line breaks are those that the decoder uses for the model (`models.prompting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError
from nap_runtime.job import DecodeConfig
from nap_runtime.models.loading import ModelCard
from nap_runtime.models.prompting import block_ids
from nap_trainer.batches.segments import PAD, Ids, SegmentTable, joined
from nap_trainer.settings import DataSection, Format

Piece = Ids | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The ids that frame texts on a model's canvases.

    Args:
        headers, ends: ids of each path's header and of what closes its text (line break and end tag).
        end_tags: the end tags alone; a block is closed by its own or by an end of text.
        summary_header, summary_end, summary_tag: the same of the summary.
        chain_header, chain_end: of a chain in a free region (`<think>`, or `<think 1>` where the vocabulary lacks it).
        gap: what stands between texts that follow each other.
        mask_id, eos_id, text_ends: special ids of the model.
    """

    headers: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]
    end_tags: tuple[int, ...]
    summary_header: tuple[int, ...]
    summary_end: tuple[int, ...]
    summary_tag: int
    chain_header: tuple[int, ...]
    chain_end: tuple[int, ...]
    gap: tuple[int, ...]
    mask_id: int
    eos_id: int
    text_ends: tuple[int, ...]

    @classmethod
    def of(cls, card: ModelCard, paths: int) -> Self:
        """The marks of a model for canvases of up to `paths` paths.

        Raises:
            ModelError: its tokenizer lacks one of NAP's tags.
        """
        tokenizer = card.tokenizer
        if tokenizer is None:
            raise ModelError(f"{card.path}: it has no tokenizer; training texts need one")
        headers, closers = block_ids(card, DecodeConfig(paths=paths, headers="nap"))
        bare = [f"<think {j}>" for j in range(1, paths + 1)] + ["<summary>"]
        for tag in (*bare, *(f"</{tag[1:]}" for tag in bare)):
            if tokenizer.token_id(tag) is None:
                mend = "add NAP's tags with `nap model tags`, or train with `format: text`"
                raise ModelError(f"{card.path}: its tokenizer lacks {tag!r}; {mend}")
        newline = () if card.config.family == "nap" else tuple(tokenizer.encode("\n"))
        tags = tuple(closer[0] for closer in closers)
        chain, chain_end = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
        return cls(
            headers=headers[:-1],
            ends=tuple((*newline, tag) for tag in tags[:-1]),
            end_tags=tags[:-1],
            summary_header=headers[-1],
            summary_end=(*newline, tags[-1]),
            summary_tag=tags[-1],
            chain_header=headers[0] if chain is None else (chain, *newline),
            chain_end=(*newline, tags[0] if chain_end is None else chain_end),
            gap=() if card.config.family == "nap" else tuple(tokenizer.encode("\n\n")),
            mask_id=card.config.mask_id,
            eos_id=card.config.eos_id,
            text_ends=card.config.end_ids,
        )

    @classmethod
    def of_text(cls, card: ModelCard) -> Self:
        """The marks of a model whose rows are plain texts: no tag is needed."""
        config = card.config
        none: tuple[int, ...] = ()
        return cls(
            headers=(none,), ends=(none,), end_tags=(config.eos_id,), summary_header=none, summary_end=none,
            summary_tag=config.eos_id, chain_header=none, chain_end=none, gap=none, mask_id=config.mask_id,
            eos_id=config.eos_id, text_ends=config.end_ids,
        )  # fmt: skip

    def layout(self, budgets: tuple[int, ...], summary: int, prompt_tokens: int) -> CanvasLayout:
        """The decoder's layout of these budgets; `summary` 0 makes a plain region of `budgets[0]` slots."""
        plain = summary == 0
        m = len(budgets)
        ends = (self.text_ends,) * 2 if plain else tuple((t, *self.text_ends) for t in self._tags(m))
        return CanvasLayout(
            kind="plain" if plain else "nap",
            prompt_tokens=prompt_tokens,
            headers=((),) if plain else self.headers[:m],
            budgets=budgets,
            summary_header=() if plain else self.summary_header,
            summary_budget=summary,
            end_ids=ends,
            mask_id=self.mask_id,
            fill_id=self.eos_id,
        )

    def _tags(self, m: int) -> tuple[int, ...]:
        return (*self.end_tags[:m], self.summary_tag)


def formed(table: SegmentTable, data: DataSection, marks: Marks) -> SegmentTable:
    """Rows as `data.format` and `data.answer` want them: what stands in the blocks, or in the one region.

    A row with fewer paths than one text is made of gets an empty one, which the loader drops and counts.
    """
    if data.format == "text":
        return table
    if data.format == "single" or data.plain or data.format == "long-cot":
        paths_nmL = table.paths_nmL[:, : data.paths[0]]
        table = SegmentTable(prompt_nP=table.prompt_nP, paths_nmL=paths_nmL, summary_nS=table.summary_nS)
    if data.plain:
        return _region(table, _whole(joined(_pieces(table, data.format, marks), len(table)), table, data))
    if data.format == "long-cot":
        chain = _whole(joined(_chain(table, marks), len(table)), table, data)
        return SegmentTable(prompt_nP=table.prompt_nP, paths_nmL=chain[:, None], summary_nS=table.summary_nS)
    return table


def _region(table: SegmentTable, text_nL: Ids) -> SegmentTable:
    return SegmentTable(prompt_nP=table.prompt_nP, paths_nmL=text_nL[:, None], summary_nS=table.summary_nS[:, :0])


def _whole(text_nL: Ids, table: SegmentTable, data: DataSection) -> Ids:
    """Texts of rows that have all of their paths; of the others nothing is left."""
    text_nL[table.path_counts_n < data.paths[0]] = PAD
    return text_nL


def _chain(table: SegmentTable, marks: Marks) -> list[Piece]:
    """The paths end to end."""
    pieces: list[Piece] = [table.paths_nmL[:, 0]]
    for path in range(1, table.paths_nmL.shape[1]):
        pieces += [marks.gap, table.paths_nmL[:, path]]
    return pieces


def _pieces(table: SegmentTable, form: Format, marks: Marks) -> list[Piece]:
    """Everything of a row as one text, tags included."""
    pieces: list[Piece] = []
    if form == "nap":
        for path in range(table.paths_nmL.shape[1]):
            pieces += [marks.headers[path], table.paths_nmL[:, path], marks.ends[path], marks.gap]
    else:
        pieces += [marks.chain_header, *_chain(table, marks), marks.chain_end, marks.gap]
    return [*pieces, marks.summary_header, table.summary_nS, marks.summary_end]
