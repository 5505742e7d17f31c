"""The trainer's own batches of every arm are the canvases that the miniature decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nap_trainer.batches.formats import formed
from nap_trainer.batches.loader import Loader
from nap_trainer.miniature.arms import ARMS, Geometry, Tags, arm_data, segments
from nap_trainer.miniature.seam import TrainingSet
from nap_trainer.miniature.words import source
from nap_trainer.settings import DataSection


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("prompt_tokens", [71, None])
def test_batches_are_the_decoders_canvases(name: str, prompt_tokens: int | None, tmp_path: Path) -> None:
    words, arm = source({}), ARMS[name]
    geometry = Geometry(path_tokens=55, summary_tokens=8, prompt_tokens=prompt_tokens)
    tags = Tags.of(words.tokenizer(tmp_path))
    table = TrainingSet.of(words.problems("train", 24, 3, 1), geometry, tags, tmp_path)
    data = DataSection.model_validate(arm_data(arm, geometry))
    rows = formed(segments(table.problems), data, tags.marks)
    [batch] = Loader(rows, data, tags.marks, global_batch=24, micro_batch=24).step(0)
    canvases = table.canvases(arm)
    ends = canvases.prompts_n + geometry.rows
    wanted = {tuple(row[:end]) for row, end in zip(canvases.ids_nN.tolist(), ends, strict=True)}
    found = {tuple(ids[owner > -2].tolist()) for ids, owner in zip(batch.ids_BN, batch.owner_BN, strict=True)}
    assert found == wanted
    for ids, block, owner in zip(batch.ids_BN, batch.block_BN, batch.owner_BN, strict=True):
        inside = block[owner > -2]
        layout = geometry.layout(arm, tags, int((owner == -1).sum()))
        initial = layout.initial_ids(ids[: layout.prompt_tokens].tolist())
        np.testing.assert_array_equal(inside[layout.prompt_tokens :], canvases.region_R)
        np.testing.assert_array_equal(inside > 0, initial == tags.mask_id)
    assert batch.full == (prompt_tokens == 71)  # nothing outside the canvas: no attention mask is needed
