"""Canvases made ahead by several processes, kept as one small table on the training device.

Shapes: n canvases, N positions of the longest one (a multiple of 8), B canvases of a batch.
"""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_runtime.errors import UsageError
from nap_runtime.models.tokenizer import UNK, Tokenizer
from nap_trainer.canvases import CanvasFormat, TrainingCanvas, token_id
from nap_trainer.words import Split, generate, tokens, vocabulary

SEED_STRIDE = 100_003
_GIVE_UP = 20  # times the wanted number of problems


@dataclass(frozen=True, slots=True)
class CanvasTable:
    """Filled canvases, right-padded: ids_nN (uint16) and prompt lengths; `dropped` exceeded a budget."""

    ids_nN: npt.NDArray[np.uint16]
    prompts_n: npt.NDArray[np.int64]
    dropped: int

    @property
    def width(self) -> int:
        """N, positions of each row."""
        return int(self.ids_nN.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRequest:
    """What to generate: `count` problems of a split, from one seed, in one process."""

    split: Split
    seed: int
    count: int
    error_rate: float
    form: CanvasFormat
    ids: dict[str, int]


def word_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Token to id for every word of the problems: a fast stand-in for `encode` on generated text."""
    return {word: token_id(tokenizer, word) for word in vocabulary()}


def make_table(request: TableRequest) -> CanvasTable:
    """Generate canvases in this process; a problem that exceeds a budget is dropped and counted."""
    rows: list[npt.NDArray[np.int64]] = []
    prompts: list[int] = []
    dropped = 0
    form, ids = request.form, request.ids
    problems = generate(request.split, seed=request.seed, paths=form.n_paths, error_rate=request.error_rate)
    for problem in islice(problems, _GIVE_UP * request.count):
        texts = [[ids[t] for t in tokens(text)] for text in (problem.question, *problem.paths, problem.summary)]
        try:
            canvas = TrainingCanvas.of_ids(texts[0], texts[1:-1], texts[-1], form)
        except UsageError:
            dropped += 1
            continue
        rows.append(canvas.ids)
        prompts.append(canvas.prompt_tokens)
        if len(rows) == request.count:
            return CanvasTable(_packed(rows, form.eos_id), np.array(prompts), dropped)
    raise UsageError("path_tokens: nearly every problem exceeds the budget; raise it", field="path_tokens")


def generate_table(
    tokenizer: Tokenizer,
    form: CanvasFormat,
    *,
    split: Split,
    seed: int,
    count: int,
    error_rate: float,
    processes: int = 1,
) -> CanvasTable:
    """Generate canvases in parallel; every process has its own seed (spawned: safe beside CUDA)."""
    processes = max(1, min(processes, count))
    ids = word_ids(tokenizer)
    shares = [count // processes + (i < count % processes) for i in range(processes)]
    requests = [
        TableRequest(split=split, seed=seed * SEED_STRIDE + i, count=share, error_rate=error_rate, form=form, ids=ids)
        for i, share in enumerate(shares)
    ]
    if processes == 1:
        return make_table(requests[0])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return _joined(pool.map(make_table, requests, chunksize=1), form.eos_id)


def _packed(rows: list[npt.NDArray[np.int64]], fill: int) -> npt.NDArray[np.uint16]:
    width = -(-max(map(len, rows)) // 8) * 8
    table = np.full((len(rows), width), fill, dtype=np.uint16)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _joined(tables: list[CanvasTable], fill: int) -> CanvasTable:
    width = max(table.width for table in tables)
    padded = [np.pad(t.ids_nN, ((0, 0), (0, width - t.width)), constant_values=fill) for t in tables]
    prompts = np.concatenate([t.prompts_n for t in tables])
    return CanvasTable(np.concatenate(padded), prompts, sum(t.dropped for t in tables))


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean canvases: ids_BN, region_BN (0 clamped, 1 … m paths, m + 1 summary) and real_BN (no padding)."""

    ids_BN: Tensor
    region_BN: Tensor
    real_BN: Tensor

    @property
    def attn_mask(self) -> Tensor:
        """Keys that any row may see, [B, 1, 1, N]."""
        return self.real_BN[:, None, None, :]


class DeviceData:
    """A table on the training device; rows are drawn and laid out there, without a copy per step."""

    def __init__(
        self,
        table: CanvasTable,
        form: CanvasFormat,
        tokenizer: Tokenizer,
        device: torch.device,
        width: int = 0,
    ) -> None:
        """Move a table (`width`: pad canvases to at least this many positions)."""
        self.device = device
        extra = max(0, width - table.width)
        ids = np.pad(table.ids_nN, ((0, 0), (0, extra)), constant_values=form.eos_id)
        self.ids_nN = torch.from_numpy(ids.astype(np.int16)).to(device)
        self.prompts_n = torch.from_numpy(table.prompts_n).to(device)
        self.template = torch.from_numpy(form.regions()).to(device)
        self.offsets = torch.arange(ids.shape[1], device=device)
        self.unk = token_id(tokenizer, UNK)
        size = 1 + max(self.unk, int(table.ids_nN.max()))
        letters = [i for word, i in word_ids(tokenizer).items() if re.fullmatch("[a-z]+", word) and i < size]
        self.is_word = torch.zeros(size, dtype=torch.bool)
        self.is_word[letters] = True
        self.is_word = self.is_word.to(device)

    def __len__(self) -> int:
        return int(self.ids_nN.shape[0])

    def draw(self, size: int, generator: torch.Generator, unknown: float = 0.0) -> Batch:
        """A random batch; prompt words become unknown with the given probability, digits and signs never."""
        rows_B = torch.randint(len(self), (size,), generator=generator, device=self.device)
        batch = self.rows(rows_B)
        if not unknown:
            return batch
        chance_BN = torch.rand(batch.ids_BN.shape, generator=generator, device=self.device) < unknown
        prompt_BN = self.offsets < self.prompts_n[rows_B, None]
        hit_BN = chance_BN & prompt_BN & self.is_word[batch.ids_BN]
        return Batch(batch.ids_BN.masked_fill(hit_BN, self.unk), batch.region_BN, batch.real_BN)

    def rows(self, rows_B: Tensor) -> Batch:
        """The canvases of the given table rows."""
        ids_BN = self.ids_nN[rows_B].long()
        after_BN = self.offsets - self.prompts_n[rows_B, None]
        last = len(self.template) - 1
        region_BN = self.template[after_BN.clamp(0, last)]
        real_BN = after_BN <= last
        return Batch(ids_BN, region_BN.where((after_BN >= 0) & real_BN, 0), real_BN)
