"""What an accuracy is compared with: a look-up among training problems, and the summary without its paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_runtime.decoding import confidence
from nap_runtime.metrics.answers import extract_boxed
from nap_runtime.metrics.order import config_of

if TYPE_CHECKING:
    from nap_runtime.decoding.layout import CanvasLayout
    from nap_runtime.decoding.record import DecodeRecord
    from nap_runtime.job import DecodeConfig, DecodeResult
    from nap_runtime.models.loading import LoadedModel

_BATCH = 32
_CHUNK = 2048
_WORD = re.compile(r"\d+|[a-z]+")


def look_up(questions: Sequence[str], n: int, *, seed: int) -> list[str] | None:
    """Answer of the most similar of `n` training problems, by shared words (cosine); None for n = 0.

    A problem's tokens are its words and whole numbers, each once.
    """
    if n < 1:
        return None
    from nap_trainer.words import generate

    training = list(islice(generate("train", seed=seed), n))
    vocabulary: dict[str, int] = {}
    for question in questions:
        for word in _WORD.findall(question.lower()):
            vocabulary.setdefault(word, len(vocabulary))
    asked = _bags(questions, vocabulary)
    best, score = np.zeros(len(questions), dtype=np.int64), np.full(len(questions), -1.0)
    for start in range(0, n, _CHUNK):
        known = _bags([problem.question for problem in training[start : start + _CHUNK]], vocabulary)
        cosines = asked @ known.T
        nearest = cosines.argmax(1)
        found = cosines[np.arange(len(questions)), nearest]
        better = found > score
        best[better], score[better] = start + nearest[better], found[better]
    return [str(training[index].answer) for index in best]


def _bags(texts: Sequence[str], vocabulary: dict[str, int]) -> npt.NDArray[np.float32]:
    """One row a text, of length 1 over all its words, in the columns of the vocabulary. Shape [T, V]."""
    bags = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for row, text in enumerate(texts):
        words = set(_WORD.findall(text.lower()))
        columns = [vocabulary[word] for word in words if word in vocabulary]
        bags[row, columns] = len(words) ** -0.5 if words else 0.0
    return bags


def answers_without_paths(loaded: LoadedModel, results: Sequence[DecodeResult]) -> list[str | None]:
    """For each result the answer of a summary that the same model writes while every path stays masked.

    Same prompt, headers, topology and scoring; one token a step, the most confident first.
    """
    answers: list[str | None] = [None] * len(results)
    by_layout: dict[CanvasLayout, list[int]] = {}
    for index, result in enumerate(results):
        by_layout.setdefault(result.record.layout, []).append(index)
    for layout, indices in by_layout.items():
        for start in range(0, len(indices), _BATCH):
            some = indices[start : start + _BATCH]
            texts = _summaries(loaded, layout, [results[index].record for index in some])
            for index, text in zip(some, texts, strict=True):
                answers[index] = extract_boxed(text)
    return answers


@torch.inference_mode()
def _summaries(loaded: LoadedModel, layout: CanvasLayout, records: Sequence[DecodeRecord]) -> list[str]:
    assert layout.summary is not None, "word problems have a summary"
    config, device = config_of(records[0]), next(loaded.model.parameters()).device
    ids_BN = torch.stack([torch.from_numpy(layout.initial_ids(record.prompt_ids)) for record in records]).to(device)
    sees = None
    if config.sync.sees != "full":
        sees = torch.from_numpy(layout.visible(config.sync.sees)).to(device)
    slots_S = torch.tensor(list(layout.summary.slots), device=device)
    for _ in layout.summary.slots:
        _commit_one(loaded, ids_BN, slots_S, layout, config, sees)
    return [_until_end(loaded, row, layout) for row in ids_BN[:, slots_S].tolist()]


def _commit_one(
    loaded: LoadedModel,
    ids_BN: Tensor,
    slots_S: Tensor,
    layout: CanvasLayout,
    config: DecodeConfig,
    sees: Tensor | None,
) -> None:
    """Fix, in place, the most confident of the masked summary slots."""
    logits_BSV = loaded.model(ids_BN, sees)[:, slots_S - int(loaded.config.shifted_logits)].float()
    logits_BSV[..., layout.mask_id] = -torch.inf
    guess_BS = logits_BSV.argmax(-1)
    scores_BS = confidence.log_confidence(config.confidence, logits_BSV, guess_BS)
    ends_E = torch.tensor(layout.end_ids[-1], device=ids_BN.device)
    weight = 1.0 if config.eos_weight is None else config.eos_weight
    scores_BS = confidence.weigh_ends(scores_BS, guess_BS, ends_E, weight)
    open_BS = ids_BN[:, slots_S] == layout.mask_id
    at_B1 = scores_BS.masked_fill(~open_BS, -torch.inf).argmax(-1, keepdim=True)
    ids_BN.scatter_(1, slots_S[at_B1], guess_BS.gather(1, at_B1))


def _until_end(loaded: LoadedModel, ids: list[int], layout: CanvasLayout) -> str:
    assert loaded.tokenizer is not None, "word problems have words"
    ends = [at for at, token in enumerate(ids) if token in layout.end_ids[-1]]
    return loaded.tokenizer.decode(ids[: ends[0]] if ends else ids)
