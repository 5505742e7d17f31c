"""The trainer's canvases of every arm are those that the miniature decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nap_trainer.batches.collate import collate
from nap_trainer.batches.formats import Marks, formed
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.miniature.arms import ARMS, Geometry, Tags
from nap_trainer.miniature.seam import TrainingSet
from nap_trainer.miniature.training import arm_data
from nap_trainer.miniature.words import source
from nap_trainer.prepare import model_card
from nap_trainer.settings import DataSection, ModelSection


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("prompt_tokens", [71, None])
def test_canvases_are_the_decoders(name: str, prompt_tokens: int | None, tmp_path: Path) -> None:
    words, arm = source({}), ARMS[name]
    geometry = Geometry(path_tokens=55, summary_tokens=8, prompt_tokens=prompt_tokens)
    tags = Tags.of(words.tokenizer(tmp_path / "ours"))
    problems = words.problems("train", 24, 3, 1)
    table = TrainingSet.of(problems, geometry, tags, tmp_path / "ours")
    data = DataSection.model_validate(arm_data(arm, geometry))
    marks = Marks.of(model_card(ModelSection(shape="nap-tiny", tokenizer="words-study"), tmp_path / "theirs"), 3)
    arrays = {key: getattr(table.problems, key).astype(np.int32) for key in ("prompt_nP", "paths_nmL", "summary_nS")}
    rows = np.arange(len(problems))
    batch = collate(
        formed(SegmentTable(**arrays), data, marks),
        rows,
        np.tile(np.arange(arm.blocks if arm.clamped else 1), (len(rows), 1)),
        budgets=geometry.budgets(arm),
        summary_budget=geometry.summary_tokens if arm.clamped else 0,
        marks=marks,
        index_B=rows,
    )
    ours = table.canvases(arm)
    width = ours.ids_nN.shape[1]
    assert np.array_equal(batch.ids_BN[:, :width], ours.ids_nN)
    assert (batch.ids_BN[:, width:] == tags.eos_id).all()
    for row, prompt in enumerate(ours.prompts_n):
        inside = batch.block_BN[row, prompt : prompt + geometry.rows]
        assert np.array_equal(inside, ours.region_R)
    assert batch.full == (prompt_tokens == 71)  # nothing outside the canvas: no attention mask is needed
