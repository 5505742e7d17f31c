"""Training canvases: laid out by the decoder's own `CanvasLayout`, with every slot filled in.

    prompt | <think 1> path 1 … | … | <think m> path m … | <summary> summary …

A block's slots are its text, its end tag, and end-of-text padding up to the budget; the padding
counts in the loss, because decoding has to fill it in too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.tokenizer import EOS, MASK, Tokenizer
from nap_trainer.words import Problem

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasFormat:
    """Tags and budgets that all canvases of one training share.

    Args:
        headers, ends: ids of `<think j>` and `</think j>`, one per path.
        summary_header, summary_end: ids of `<summary>` and `</summary>`.
        path_tokens, summary_tokens: slots of each path and of the summary.
        mask_id, eos_id: the mask, and the end-of-text that pads a block.
    """

    headers: tuple[int, ...]
    ends: tuple[int, ...]
    summary_header: int
    summary_end: int
    path_tokens: int
    summary_tokens: int
    mask_id: int
    eos_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, paths: int = 3, path_tokens: int = 40, summary_tokens: int = 12) -> Self:
        """The format of a tokenizer that has NAP's tags; ModelError if one is missing."""
        numbers = range(1, paths + 1)
        return cls(
            headers=tuple(token_id(tokenizer, f"<think {j}>") for j in numbers),
            ends=tuple(token_id(tokenizer, f"</think {j}>") for j in numbers),
            summary_header=token_id(tokenizer, "<summary>"),
            summary_end=token_id(tokenizer, "</summary>"),
            path_tokens=path_tokens,
            summary_tokens=summary_tokens,
            mask_id=token_id(tokenizer, MASK),
            eos_id=token_id(tokenizer, EOS),
        )

    @property
    def n_paths(self) -> int:
        """m, paths of each canvas."""
        return len(self.headers)

    def layout(self, prompt_tokens: int) -> CanvasLayout:
        """The decoder's layout for a prompt of this length."""
        return CanvasLayout(
            kind="nap",
            prompt_tokens=prompt_tokens,
            headers=tuple((header,) for header in self.headers),
            budgets=(self.path_tokens,) * self.n_paths,
            summary_header=(self.summary_header,),
            summary_budget=self.summary_tokens,
            end_ids=tuple((end, self.eos_id) for end in (*self.ends, self.summary_end)),
            mask_id=self.mask_id,
            fill_id=self.eos_id,
        )

    def regions(self) -> npt.NDArray[np.int64]:
        """Region of each row after the prompt: 0 clamped, 1 … m path slots, m + 1 summary slots."""
        layout = self.layout(1)
        regions = np.zeros(layout.size, dtype=np.int64)
        for index, block in enumerate(layout.blocks, start=1):
            regions[block.slots.start : block.slots.stop] = index
        return regions[1:]


@dataclass(frozen=True, slots=True)
class TrainingCanvas:
    """One canvas with all its slots filled in, and the layout that decoding would give it."""

    layout: CanvasLayout
    ids: Ids

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.layout.prompt_tokens

    @classmethod
    def of_ids(
        cls, prompt: Sequence[int], paths: Sequence[Sequence[int]], summary: Sequence[int], form: CanvasFormat
    ) -> Self:
        """Fill a canvas from token ids.

        Raises:
            UsageError: the number of paths is not the format's, or a text exceeds its budget.
        """
        if len(paths) != form.n_paths:
            raise UsageError(f"paths: {len(paths)} where the format has {form.n_paths}", field="paths")
        layout = form.layout(len(prompt))
        ids = layout.initial_ids(prompt)
        for block, text in zip(layout.blocks, (*paths, summary), strict=True):
            end = block.end_ids[0]
            name = "summary_tokens" if end == form.summary_end else "path_tokens"
            ids[block.slots.start : block.slots.stop] = _padded(text, end, form.eos_id, len(block.slots), name)
        return cls(layout, ids)

    @classmethod
    def of(cls, problem: Problem, tokenizer: Tokenizer, form: CanvasFormat) -> Self:
        """Fill a canvas from a problem's texts; UsageError if one exceeds its budget."""
        paths = [tokenizer.encode(path) for path in problem.paths]
        prompt = tokenizer.encode_prompt(problem.question)
        return cls.of_ids(prompt, paths, tokenizer.encode(problem.summary), form)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must be there; ModelError otherwise."""
    found = tokenizer.token_id(token)
    if found is None:
        raise ModelError(f"the tokenizer lacks {token!r}: build it with build_word_tokenizer")
    return found


def _padded(text: Sequence[int], end: int, eos: int, budget: int, field: str) -> list[int]:
    if len(text) + 1 > budget:
        raise UsageError(f"{field}: a text of {len(text)} tokens and its end tag exceed {budget}", field=field)
    return [*text, end, *[eos] * (budget - len(text) - 1)]
