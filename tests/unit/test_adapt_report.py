"""ARness from stored arrays by hand-made orders, the 2 × 2 contrast, and the page of a synthetic run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nap_runtime.errors import UsageError
from nap_runtime.models.tokenizer import WordTokenizer, build_word_tokenizer
from nap_trainer.adapt.arms import Arm, arms_of
from nap_trainer.adapt.config import AdaptConfig
from nap_trainer.adapt.figures import Point, Scores, contrast, read_points, score
from nap_trainer.adapt.folder import RunFolder
from nap_trainer.adapt.report import write_report
from nap_trainer.adapt.table import AdaptData
from nap_trainer.batches.segments import SegmentTable
from nap_trainer.miniature.decoding import Decoded

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "train"
EOS = 1
SLOTS = 8


@pytest.fixture
def words(tmp_path: Path) -> WordTokenizer:
    folder = tmp_path / "words"
    folder.mkdir()
    return build_word_tokenizer(["the", "answer", "is"], folder)


def decoded(ids: list[list[int]], steps: list[list[int]]) -> Decoded:
    table = np.array(ids, dtype=np.int32)
    return Decoded(
        ids_nS=table, step_mS=np.array(steps, dtype=np.int16), committed_mS=np.ones(table.shape, dtype=np.bool_)
    )


def boxed(words: WordTokenizer, number: str, length: int = SLOTS) -> list[int]:
    ids = words.encode(f"the \\boxed{{{number}}}")
    return ids + [EOS] * (length - len(ids))


# --- scores ---


def test_hand_made_orders(words: WordTokenizer) -> None:
    """Content is 5 slots (the, \\boxed{, digit, }): 4 of 8, the rest end of text."""
    text = boxed(words, "7")
    content = len(text) - text.count(EOS)
    assert content == 4
    orders = [
        [0, 1, 2, 3, 4, 5, 6, 7],  # left to right
        [7, 6, 5, 4, 3, 2, 1, 0],  # right to left: the last commit only is the leftmost
        [4, 5, 6, 7, 0, 1, 2, 3],  # end of text first, then the content from left to right
        [1, 0, 2, 3, 4, 5, 6, 7],  # one swap
    ]
    scores = score(decoded([text] * 4, orders), [EOS], words, ["7", "8", "7.0", "7"])
    assert scores.arness_Q.tolist() == [1.0, 0.25, 1.0, 0.75]
    assert scores.arness_all_Q.tolist() == [1.0, 1 / 8, 0.5, 7 / 8]
    # Chance on 4 slots at one a step is (1/4 + 1/3 + 1/2 + 1) / 4.
    chance = (1 / 4 + 1 / 3 + 1 / 2 + 1) / 4
    assert scores.corrected_Q == pytest.approx(
        [1.0, (0.25 - chance) / (1 - chance), 1.0, (0.75 - chance) / (1 - chance)]
    )
    # Local: the commit before is the slot to the left. The first commit has none.
    assert scores.local_Q.tolist() == [0.75, 0.0, 0.75, 0.25]
    assert scores.content_Q.tolist() == [4] * 4
    assert scores.correct_Q.tolist() == [True, False, True, True]


def test_several_tokens_a_step_are_a_set(words: WordTokenizer) -> None:
    text = boxed(words, "7")
    scores = score(
        decoded([text, text], [[0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 0, 0, 2, 2, 3, 3]]), [EOS], words, ["7", "7"]
    )
    assert scores.arness_Q.tolist() == [1.0, 0.5]


def test_a_canvas_without_content_counts_for_nothing(words: WordTokenizer) -> None:
    text = boxed(words, "7")
    scores = score(decoded([[EOS] * SLOTS, text], [list(range(SLOTS))] * 2), [EOS], words, ["7", "7"])
    assert np.isnan(scores.arness_Q[0])
    assert scores.defined == 1
    assert scores.interval("arness").value == 1.0
    assert scores.accuracy.value == 0.5  # it counts as wrong
    assert 0 < scores.accuracy.low < 0.5 < scores.accuracy.high < 1


# --- the contrast ---


def cell(arm: Arm, arness: np.ndarray) -> Point:
    nan, zero = np.full(len(arness), np.nan), np.zeros(len(arness), dtype=np.int64)
    scores = Scores(
        arness_Q=arness, corrected_Q=nan, local_Q=nan, arness_all_Q=nan, content_Q=zero, correct_Q=zero.astype(bool)
    )
    return Point(arm=arm, step=5, tokens=50, held_loss={"text": 1.0}, train_loss=None, scores={1: scores})


def test_effects_are_those_that_were_put_in() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, 200)
    start, shift, both = 0.2, 0.1, 0.05
    points = [
        cell(arm, base + start * (arm.start == "pretrained") + shift * arm.shifted
             + both * (arm.start == "pretrained" and arm.shifted) + rng.normal(0, 0.02, 200))
        for arm in arms_of(AdaptConfig())
    ]  # fmt: skip
    found = contrast(points, 5, 1)
    assert found is not None
    for effect, true in (
        (found.start, start + both / 2),
        (found.shift, shift + both / 2),
        (found.interaction, both),
        (found.both, start + shift + both),
    ):
        assert effect.low < true < effect.high
        assert effect.high - effect.low < 0.02  # paired: the questions' own spread of 0.2 does not count


def test_questions_undefined_in_one_arm_are_left_out_of_all() -> None:
    points = [cell(arm, np.array([0.5, 0.5, 0.5])) for arm in arms_of(AdaptConfig())]
    points[2].scores[1].arness_Q[0] = np.nan
    found = contrast(points, 5, 1)
    assert found is not None
    assert found.questions == 2
    assert contrast(points[:3], 5, 1) is None


# --- the page ---


@pytest.fixture
def run_folder(tmp_path: Path, words: WordTokenizer) -> Callable[..., Path]:
    """`(right)` → a run of two points; pretrained arms go left to right, random ones mostly backwards."""

    def make(right: int = 1) -> Path:
        questions = 12
        config = AdaptConfig.from_mapping({"points": [0, 5], "decode": {"last_tokens_per_step": [2]}})
        none = SegmentTable.of_lists([([3, 4], [[5]], [])])
        facts = {
            "gen_length": SLOTS,
            "max_prompt": 4,
            "tokenizer": "x",
            "corpus": {"file": "corpus.jsonl", "sha256": "x", "rows": 10},
            "test": {"file": "test.jsonl", "sha256": "x", "rows": 1234},
            "train": {
                "rows": 1,
                "dropped": {"max_prompt": 8, "gen_length": 1},
                "prompt_tokens": 2,
                "response_tokens": 1,
            },
            "held": {"rows": 1},
            "questions": {"count": questions, "by_length": {"2": questions}},
        }
        data = AdaptData(
            train=none, held=none, prompts=((3, 4),) * questions, rows=tuple(range(questions)),
            gold=("7",) * questions, facts=facts,
        )  # fmt: skip
        data.save(tmp_path / "data.npz")
        folder = RunFolder(tmp_path / "run")
        model = {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 64, "tied_head": True}
        folder.begin(
            {
                "config": config.to_mapping(), "model": {**model, "end_ids": [EOS]}, "data": facts,
                "conversion": {
                    "source": "x.gguf", "stored": {"Q4_1": 2, "F32": 1}, "dtype": "bfloat16", "added": {"<mask>": 60},
                    "spread": 0.1,
                },
                "arms": [], "tokens": [0, 4321],
            },
            data=tmp_path / "data.npz", tokenizer=tmp_path / "words",
        )  # fmt: skip
        folder.log(event="begin", device="test device", torch="0.0")
        folder.log(arm="x", step=0, steps=0, training=1.0, measuring=2.5)
        for arm in arms_of(config):
            for step, tokens in ((0, 0), (5, 4321)):
                order = list(range(SLOTS)) if arm.start == "pretrained" else list(range(SLOTS))[::-1]
                ids = [boxed(words, "7" if i < right else "8") for i in range(questions)]
                one = decoded(ids, [order] * questions)
                note = {"tokens": tokens, "held_loss": {"text": 2.5, "all": 1.0}, "train_loss": None}
                folder.write_point(arm.name, step, note, {1: one, **({2: one} if step else {})})
        return folder.root

    return make


def test_the_page_says_what_the_arrays_say(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    page_file, figure = write_report(run_folder(), tmp_path / "docs" / "page.md")
    page = page_file.read_text()
    assert "| pretrained, shifted | 4,321 | 1.000 [1.000, 1.000] |" in page
    assert "| random, unshifted | 4,321 | 0.250 [0.250, 0.250] |" in page
    assert "| 4,321 | +0.750 [+0.750, +0.750] | +0.000 [+0.000, +0.000] |" in page
    assert "Starting from pretrained weights raises ARness by +0.750" in page
    assert "Shifted logits: no effect on ARness can be told from zero" in page
    assert "No model reaches 20% accuracy" in page  # 1 of 12
    assert "8.3% [1.5%, 35.4%]" in page  # Wilson, 1 of 12
    assert "x.gguf (2 tensors Q4_1, 1 F32; dequantised and kept as bfloat16)" in page
    assert "## More tokens a step" in page
    assert "test device" in page
    assert f"]({figure.name})" in page
    assert max(map(len, re.sub(r"\|.*\||<!--.*-->", "", page).splitlines())) < 1200
    assert figure.read_text().count("<path") > 8


def test_accurate_models_are_not_called_weak(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    page = write_report(run_folder(right=12), tmp_path / "page.md")[0].read_text()
    assert "No model reaches" not in page


def test_a_run_without_points_is_refused(run_folder: Callable[..., Path], tmp_path: Path) -> None:
    run = run_folder()
    for note in (run / "points").glob("*.json"):
        note.unlink()
    with pytest.raises(UsageError, match="no measured point"):
        write_report(run, tmp_path / "page.md")
    with pytest.raises(UsageError, match=r"run\.json"):
        write_report(tmp_path, tmp_path / "page.md")


def test_points_come_arm_by_arm(run_folder: Callable[..., Path], words: WordTokenizer) -> None:
    points = read_points(RunFolder(run_folder()), words)
    assert [(point.arm.name, point.step) for point in points[:3]] == [
        ("pretrained-shifted", 0), ("pretrained-shifted", 5), ("pretrained-unshifted", 0),
    ]  # fmt: skip
    assert [sorted(point.scores) for point in points[:2]] == [[1], [1, 2]]


# --- the configuration ---


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"point": [1]}, "point: unknown key"),
        ({"points": [5, 3]}, "ascend"),
        ({"points": [0]}, "at least one step"),
        ({"starts": ["random", "random"]}, "each value once"),
        ({"decode": {"eos_weight": -1}}, "decode.eos_weight"),
        ({"objective": {"topology": "hub"}}, "no topology"),
    ],
)
def test_wrong_configurations_name_the_key(values: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        AdaptConfig.from_mapping(values)


@pytest.mark.parametrize("name", ["smollm2-adapt", "smollm2-smoke"])
def test_the_examples_are_configurations(name: str) -> None:
    config = AdaptConfig.read(EXAMPLES / f"{name}.yaml")
    assert config.points[0] == 0
    assert config.global_batch % config.micro_batch == 0


def test_configurations_survive_their_mapping() -> None:
    config = AdaptConfig.from_mapping({"points": [0, 3], "optimizer": {"lr": 1e-3}})
    assert AdaptConfig.from_mapping(config.to_mapping()) == config
