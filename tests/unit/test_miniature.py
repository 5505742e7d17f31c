"""The miniature's parts: canvases, settings, decoding as arrays, answers, order, statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.placement import Assignment
from nap_runtime.errors import UsageError
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig
from nap_runtime.metrics.arness import ArnessReport
from nap_runtime.metrics.order import DecodeOrder
from nap_runtime.models.shapes import make_model
from nap_runtime.worker import Task
from nap_trainer.miniature import ordering, stats
from nap_trainer.miniature.arms import ARMS, Geometry, Tags, fill, padded_prompts, prompts_of, regions
from nap_trainer.miniature.decoding import Compiled, Decoded, Decoder, Setting
from nap_trainer.miniature.grading import read_answers
from nap_trainer.miniature.problems import NO_ANSWER, Problems

# ids: 0 mask, 1 end of text, 2 … 7 path tags (header, end), 8 and 9 the summary's, from 20 on words
TAGS = Tags(headers=(2, 4, 6), ends=(3, 5, 7), summary_header=8, summary_end=9, mask_id=0, eos_id=1)
GEOMETRY = Geometry(path_tokens=6, summary_tokens=4, prompt_tokens=5)
ROWS = 3 * 7 + 1 + 4


def two_problems() -> Problems:
    return Problems(
        prompt_nP=np.array([[20, 21, -1, -1], [22, 23, 24, 25]]),
        paths_nmL=np.array([[[30, 31, -1], [32, -1, -1], [33, 34, 35]], [[40, -1, -1], [41, 42, -1], [43, -1, -1]]]),
        summary_nS=np.array([[50, 51], [52, 53]]),
        depth_n=np.array([2, 3]),
        answer_n=np.array([7, 9]),
        path_answer_nm=np.array([[7, 7, 1], [9, 9, 9]]),
        wrong_nm=np.array([[0, 0, 1], [0, 0, 0]], dtype=bool),
    )


class LastToken:
    """A problem set whose answer is the last id of a text, minus 20."""

    def answer_of(self, ids_nS: np.ndarray) -> np.ndarray:
        return self.path_answer_of(ids_nS)

    def path_answer_of(self, ids_nS: np.ndarray) -> np.ndarray:
        found = []
        for row in ids_nS.tolist():
            ends = [at for at, token in enumerate(row) if token in (1, 3, 5, 7, 9)]
            words = [token for token in row[: min(ends, default=len(row))] if token >= 20]
            found.append(words[-1] - 20 if words else NO_ANSWER)
        return np.array(found)


# --- canvases ---


WRITTEN = {
    "nap": [2, 30, 31, 3, 1, 1, 1, 4, 32, 5, 1, 1, 1, 1, 6, 33, 34, 35, 7, 1, 1, 8, 50, 51, 9, 1],
    "cot-clamped": [2, 30, 31, 32, 33, 34, 35, 3, *[1] * 13, 8, 50, 51, 9, 1],
    "cot": [2, 30, 31, 32, 33, 34, 35, 3, 8, 50, 51, 9, *[1] * 14],
    "nap-free": [2, 30, 31, 3, 4, 32, 5, 6, 33, 34, 35, 7, 8, 50, 51, 9, *[1] * 10],
    "short": [2, 30, 31, 3, *[1] * 17, 8, 50, 51, 9, 1],
    "nap-2": [2, 30, 31, 3, *[1] * 7, 4, 32, 5, *[1] * 7, 8, 50, 51, 9, 1],
}


@pytest.mark.parametrize("name", ARMS)
def test_canvas_is_written_out(name: str) -> None:
    table = fill(two_problems(), ARMS[name], GEOMETRY, TAGS)
    assert table.ids_nN[0].tolist() == [1, 1, 1, 20, 21, *WRITTEN[name]]
    assert table.ids_nN.shape == (2, 5 + ROWS)
    assert table.prompts_n.tolist() == [5, 5]


@pytest.mark.parametrize("name", ARMS)
def test_canvas_agrees_with_the_layout(name: str) -> None:
    """Prompt and headers stand where the layout clamps them, and slots hold everything else."""
    arm, problems = ARMS[name], two_problems()
    table, layout = fill(problems, arm, GEOMETRY, TAGS), GEOMETRY.layout(arm, TAGS, 5)
    for row, prompt in zip(table.ids_nN, prompts_of(problems, GEOMETRY, TAGS), strict=True):
        initial = layout.initial_ids(prompt)
        clamped = initial != TAGS.mask_id
        assert np.array_equal(row[clamped], initial[clamped])
        assert TAGS.mask_id not in row[~clamped]
    assert np.array_equal(table.region_R > 0, ~clamped[5:])
    assert layout.size == 5 + ROWS


def test_targets_are_what_the_slots_hold_beside_padding() -> None:
    problems = two_problems()
    texts = [[3, 2, 4, 3], [2, 3, 2, 3]]  # path tokens and summary tokens, end tags included
    assert fill(problems, ARMS["nap"], GEOMETRY, TAGS).targets == np.mean([sum(row) for row in texts])
    free = fill(problems, ARMS["nap-free"], GEOMETRY, TAGS).targets
    assert free == np.mean([sum(row) + 4 for row in texts])  # there the headers are targets too


def test_prompts_keep_their_length_without_padding() -> None:
    geometry = Geometry(path_tokens=6, summary_tokens=4)
    table = fill(two_problems(), ARMS["nap"], geometry, TAGS)
    assert table.prompts_n.tolist() == [2, 4]
    assert table.ids_nN[0].tolist() == [20, 21, *WRITTEN["nap"], 1, 1]
    assert prompts_of(two_problems(), geometry, TAGS) == [(20, 21), (22, 23, 24, 25)]


def test_padding_prompts_twice_changes_nothing() -> None:
    once = padded_prompts(two_problems(), GEOMETRY, TAGS)
    assert once.prompt_nP.tolist() == [[1, 1, 1, 20, 21], [1, 22, 23, 24, 25]]
    twice = padded_prompts(once, GEOMETRY, TAGS)
    assert np.array_equal(once.prompt_nP, twice.prompt_nP)


@pytest.mark.parametrize(
    ("geometry", "field"),
    [
        (Geometry(path_tokens=3, summary_tokens=4), "path_tokens"),
        (Geometry(path_tokens=6, summary_tokens=2), "summary_tokens"),
        (Geometry(path_tokens=6, summary_tokens=4, prompt_tokens=3), "prompt_tokens"),
    ],
)
def test_texts_beyond_their_budget_name_it(geometry: Geometry, field: str) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        fill(two_problems(), ARMS["nap"], geometry, TAGS)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ARMS)
@given(path=st.integers(2, 60), summary=st.integers(1, 20))
def test_every_arm_has_the_same_rows(name: str, path: int, summary: int) -> None:
    geometry = Geometry(path_tokens=path, summary_tokens=summary)
    layout = geometry.layout(ARMS[name], TAGS, 3)
    assert layout.size == 3 + 3 * (path + 1) + 1 + summary
    assert max(layout.budgets) - min(layout.budgets) <= 1
    assert len(regions(layout)) == geometry.rows


# --- settings ---


@pytest.mark.parametrize("name", ["pf-e0-k4", "ao-e0.25-k1", "block16-e1-k8", "l2r-k2", "random-k1"])
def test_setting_has_one_name(name: str) -> None:
    assert Setting.parse(name).name == name


@pytest.mark.parametrize("name", ["pf-k4", "l2r-e0-k1", "block-e0-k1", "ao-e0", "nope-k1", "pf16-e0-k1", "pf-e0-k0"])
def test_setting_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Setting.parse(name)


# --- decoding ---


# end tags that the random model likes, so that paths close and fills happen
LIKELY = Tags(headers=(2, 4, 6), ends=(34, 36, 34), summary_header=8, summary_end=22, mask_id=0, eos_id=1)
SETTINGS = ("pf-e0-k1", "pf-e1-k4", "ao-e0-k2", "ao-e1-k1", "block8-e0.25-k2", "l2r-k4", "random-k2")


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model."""
    special = {"mask_id": 0, "eos_id": 1, "pad_id": 1, "end_ids": (1,)}
    return make_model("llada-tiny", seed=3, dtype=torch.float64, scale=10.0, **special)[1].requires_grad_(False)


def one_by_one(model: Any, layout: CanvasLayout, config: DecodeConfig, prompts: Any, collect: Any) -> Any:
    """Records as the normal way makes them: reports of deltas, replayed and checked against the final ids."""
    plan = Plan.of(layout, config, Assignment.even(layout.n_paths, 1))
    return collect(InlineExecutor(model, dtype=torch.float64), Task(plan=plan, prompts=tuple(prompts))).records


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_arrays_equal_the_records(name: str, setting: str, model: Any, collect: Callable[..., Any]) -> None:
    arm, wanted = ARMS[name], Setting.parse(setting)
    if not wanted.fits(arm):
        return
    geometry = Geometry(path_tokens=6, summary_tokens=4)
    prompts = [(20, 21, 22), (60, 33, 41), (5, 5, 5, 5), (88, 17, 25)]
    decoder = Decoder(model=model, dtype=torch.float64, device=torch.device("cpu"), batch=2)
    decoded = decoder.run(prompts, arm, geometry, LIKELY, wanted)
    for row, prompt in enumerate(prompts):
        layout = geometry.layout(arm, LIKELY, len(prompt))
        config = wanted.config(arm, geometry, slots=layout.n_slots)
        (record,) = one_by_one(model, layout, config, [prompt], collect)
        slots = list(layout.slots)
        expected = DecodeOrder.from_record(record)
        ours = ordering.Planned(layout=layout, config=config).order(
            decoded.ids_nS[row], decoded.step_mS[row], decoded.committed_mS[row]
        )
        assert decoded.ids_nS[row].tolist() == record.final_ids[slots].tolist()
        for field in ("positions", "step", "committed", "content", "region", "pool"):
            assert np.array_equal(getattr(ours, field), getattr(expected, field)), field


def test_some_of_those_decodes_fill(model: Any) -> None:
    """Else the comparison above would say nothing about fills."""
    decoder = Decoder(model=model, dtype=torch.float64, device=torch.device("cpu"), batch=8)
    prompts = [(20 + i, 21, 22) for i in range(8)]
    decoded = decoder.run(
        prompts, ARMS["nap"], Geometry(path_tokens=6, summary_tokens=4), LIKELY, Setting.parse("pf-e1-k4")
    )
    assert 0 < (~decoded.committed_mS).sum() < decoded.committed_mS.size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_the_same(model: Any) -> None:
    geometry, prompts = Geometry(path_tokens=6, summary_tokens=4), [(20 + i, 21, 22) for i in range(8)]
    setting, arm = Setting.parse("pf-e1-k4"), ARMS["nap"]
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    here = Decoder(model=model, dtype=torch.float64, device=cpu, batch=4).run(prompts, arm, geometry, LIKELY, setting)
    there = Decoder(model=copy.deepcopy(model).to(cuda), dtype=torch.float64, device=cuda, batch=8)
    decoded = there.run(prompts, arm, geometry, LIKELY, setting)
    for field in ("ids_nS", "step_mS", "committed_mS"):
        assert np.array_equal(getattr(decoded, field), getattr(here, field)), field


@pytest.mark.soak  # compiling takes half a minute
def test_compiled_rows_decode_the_same() -> None:
    overrides = {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "d_ff": 96}
    network = make_model("nap-tiny", seed=0, scale=10.0, vocab_size=100, **overrides)[1].requires_grad_(False)
    geometry, cpu = Geometry(path_tokens=6, summary_tokens=4), torch.device("cpu")
    prompts = [(20 + i, 21, 22) for i in range(20)]
    compiled = Compiled(network)
    for name, batch in (("nap", 8), ("cot", 20)):  # other layouts and batch sizes go through the same graph
        runs = [
            Decoder(model=model, dtype=torch.float32, device=cpu, batch=batch).run(
                prompts, ARMS[name], geometry, TAGS, Setting.parse("ao-e0-k2")
            )
            for model in (network, compiled)
        ]
        assert (runs[0].ids_nS == runs[1].ids_nS).mean() > 0.99  # near-ties may turn


def test_decode_survives_the_disk(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    decoded = Decoded(
        ids_nS=rng.integers(0, 60000, (5, 7)).astype(np.uint16),
        step_mS=rng.integers(-1, 300, (5, 7)).astype(np.int16),
        committed_mS=rng.random((5, 7)) < 0.5,
    )
    decoded.first(3).save(tmp_path / "a.npz")
    again = Decoded.load(tmp_path / "a.npz")
    assert np.array_equal(again.ids_nS, decoded.ids_nS)
    assert np.array_equal(again.step_mS, decoded.step_mS[:3])
    assert np.array_equal(again.committed_mS, decoded.committed_mS[:3])


# --- answers ---


def slots_of(name: str, rows: list[int]) -> np.ndarray:
    """The slots of a written-out canvas."""
    return np.array([rows])[:, regions(GEOMETRY.layout(ARMS[name], TAGS, 5)) > 0]


@pytest.mark.parametrize("name", ARMS)
def test_answers_are_read_from_their_places(name: str) -> None:
    answers = read_answers(slots_of(name, WRITTEN[name]), ARMS[name], GEOMETRY, TAGS, LastToken())
    paths = {"nap": [11, 12, 15], "nap-free": [11, 12, 15], "nap-2": [11, 12], "short": [11]}
    assert answers.summary_n.tolist() == [31]
    assert answers.path_nm.tolist() == [paths.get(name, [15])]


def test_a_free_answer_counts_wherever_it_falls() -> None:
    rows = [*WRITTEN["cot"]]
    rows[8] = 1  # end of text right behind the chain: the summary is not part of the text any more
    answers = read_answers(np.array([rows]), ARMS["cot"], GEOMETRY, TAGS, LastToken())
    assert answers.summary_n.tolist() == [15]


def test_a_missing_section_is_no_answer() -> None:
    rows = [30, *WRITTEN["nap-free"][1:]]  # the first path's tag was never written
    answers = read_answers(np.array([rows]), ARMS["nap-free"], GEOMETRY, TAGS, LastToken())
    assert answers.path_nm.tolist() == [[NO_ANSWER, 12, 15]]


@given(st.lists(st.lists(st.sampled_from([NO_ANSWER, 3, 4, 5]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_vote_is_the_first_most_frequent_answer(rows: list[list[int]]) -> None:
    from nap_trainer.miniature.grading import Answers

    votes = Answers(summary_n=np.zeros(len(rows)), path_nm=np.array(rows)).vote_n
    for row, vote in zip(rows, votes, strict=True):
        given_answers = [answer for answer in row if answer != NO_ANSWER]
        most = max((given_answers.count(answer) for answer in given_answers), default=0)
        first = [answer for answer in given_answers if given_answers.count(answer) == most]
        assert vote == (first[0] if first else NO_ANSWER)


# --- order ---


def test_figures_are_the_reports() -> None:
    """Each column is the field of `ArnessReport` that its name says, on orders made by hand."""
    arm, geometry = ARMS["nap"], Geometry(path_tokens=4, summary_tokens=3)
    layout, setting = geometry.layout(arm, TAGS, 1), Setting.parse("pf-e0-k2")
    config = setting.config(arm, geometry, slots=layout.n_slots)
    rng = np.random.default_rng(1)
    step = np.stack([rng.permutation(15) // 2 for _ in range(70)]).astype(np.int16)
    ids = rng.integers(20, 30, step.shape).astype(np.uint16)
    ids[:, 3] = 3  # an end tag ends the first path's content
    committed = np.ones(step.shape, dtype=bool)
    decoded, planned = (
        Decoded(ids_nS=ids, step_mS=step, committed_mS=committed),
        ordering.Planned(layout=layout, config=config),
    )
    figures = ordering.arness(decoded, planned)
    report = ArnessReport.of(planned.order(ids[66], step[66], committed[66]))
    row = dict(zip(ordering.FIGURES, figures[66], strict=True))
    assert row["set"] == pytest.approx(report.canvas.all.set_based)
    assert row["ordered_content"] == pytest.approx(report.canvas.content.step_ordered)
    assert row["corrected_content"] == pytest.approx(report.canvas.content.set_based_corrected)
    assert row["path_set"] == pytest.approx(report.path_mean["set_based"])
    assert row["path_corrected"] == pytest.approx(report.path_mean["set_based_corrected"])
    assert report.layout_null.all is not None
    assert row["null"] == pytest.approx(report.layout_null.all[0])
    assert row["content_tokens"] == 14
    assert len(figures) == 70


def test_left_to_right_scores_one_and_random_little(model: Any) -> None:
    arm, geometry = ARMS["cot"], Geometry(path_tokens=6, summary_tokens=4)
    decoder = Decoder(model=model, dtype=torch.float64, device=torch.device("cpu"), batch=8)
    scores = {}
    for name in ("l2r-k1", "random-k1"):
        setting = Setting.parse(name)
        layout = geometry.layout(arm, TAGS, 3)
        decoded = decoder.run([(20, 21, 22)], arm, geometry, TAGS, setting)
        planned = ordering.Planned(layout=layout, config=setting.config(arm, geometry, slots=layout.n_slots))
        scores[name] = ordering.arness(decoded, planned)[0, 0]
    assert scores["l2r-k1"] == 1.0
    assert scores["random-k1"] < 0.5


def test_random_has_many_orders_whatever_the_batch(model: Any) -> None:
    """Prompts 0 … 63 share an order, the next ones have another, and batches of another size change nothing."""
    arm, geometry, setting = ARMS["cot"], Geometry(path_tokens=2, summary_tokens=2), Setting.parse("random-k1")
    prompts = [(20 + i % 70, 21, 22) for i in range(70)]
    runs = [
        Decoder(model=model, dtype=torch.float64, device=torch.device("cpu"), batch=batch).run(
            prompts, arm, geometry, TAGS, setting
        )
        for batch in (17, 70)
    ]
    assert np.array_equal(runs[0].step_mS, runs[1].step_mS)
    assert len({tuple(row) for row in runs[0].step_mS.tolist()}) == 2
    assert not np.array_equal(runs[0].step_mS[0], runs[0].step_mS[69])


def test_heat_counts_commits_by_time() -> None:
    step = np.array([[0, 31, 63], [0, 0, 32]], dtype=np.int16)
    committed = np.array([[1, 1, 1], [1, 0, 1]], dtype=bool)
    counts = ordering.heat(Decoded(ids_nS=step, step_mS=step, committed_mS=committed))
    expected = np.zeros((3, ordering.BINS))
    expected[0, 0], expected[1, 15], expected[2, 31], expected[2, 16] = 2, 1, 1, 1
    assert np.array_equal(counts, expected)


# --- statistics ---


def test_wilson_by_hand() -> None:
    """Newcombe 1998, table I, no continuity correction: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = stats.wilson(hits, n)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_mcnemar_is_the_two_sided_binomial(b: int, c: int, both: int) -> None:
    one = np.array([True] * b + [False] * c + [True] * both, dtype=bool)
    other = np.array([False] * b + [True] * c + [True] * both, dtype=bool)
    n = b + c
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(b, c) + 1))
    assert stats.mcnemar(one, other) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_mcnemar_of_thousands_is_quick_and_finite() -> None:
    one, other = np.zeros(5000, bool), np.zeros(5000, bool)
    one[:2600], other[2600:] = True, True
    assert 0.004 < stats.mcnemar(one, other) < 0.006  # z = 200/√5000 = 2.83


def test_paired_bootstrap_equals_the_exact_distribution() -> None:
    """Three problems: all 27 resamples can be listed."""
    difference = np.array([-1.0, 0.0, 2.0])
    exact = np.sort([np.mean(draw) for draw in product(difference, repeat=3)])
    found = stats.paired_bootstrap(difference, resamples=40_000)
    assert found.value == pytest.approx(1 / 3)
    assert found.low == pytest.approx(np.quantile(exact, 0.025, method="inverted_cdf"), abs=1e-9)
    assert found.high == pytest.approx(np.quantile(exact, 0.975, method="inverted_cdf"), abs=1e-9)
    below = np.mean(exact <= 1e-12)
    assert found.p == pytest.approx(2 * min(below, np.mean(exact >= -1e-12)), abs=0.01)


def test_two_level_bootstrap_equals_the_exact_distribution() -> None:
    """Two seeds, two problems: four draws of seeds times four draws of problems."""
    difference = np.array([[0.0, 1.0], [2.0, 5.0]])
    exact = [
        np.mean([difference[s, i] for s in seeds for i in problems])
        for seeds in product((0, 1), repeat=2)
        for problems in product((0, 1), repeat=2)
    ]
    found = stats.two_level_bootstrap(difference, resamples=20_000)
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == (min(exact), max(exact))


def test_two_level_bootstrap_has_the_crossed_variance() -> None:
    """With independent seed and problem effects the interval is as wide as both variances together."""
    rng = np.random.default_rng(5)
    seeds, n = 8, 400
    difference = rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, (1, n))
    found = stats.two_level_bootstrap(difference, resamples=4000)
    spread = np.sqrt(difference.mean(1).var() / seeds + difference.mean(0).var() / n)
    assert (found.high - found.low) / (2 * stats.Z95) == pytest.approx(spread, rel=0.07)


def test_one_seed_leaves_the_problems_alone() -> None:
    rng = np.random.default_rng(2)
    difference = rng.normal(size=(1, 300))
    two, one = stats.two_level_bootstrap(difference), stats.paired_bootstrap(difference[0])
    assert two.low == pytest.approx(one.low, abs=0.01)
    assert two.high == pytest.approx(one.high, abs=0.01)


def test_holm_by_hand() -> None:
    """Wikipedia's example: 0.01, 0.04, 0.03, 0.005 → 0.03, 0.06, 0.06, 0.02."""
    adjusted = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]


def test_mean_interval_leaves_out_what_is_undefined() -> None:
    found = stats.mean_interval(np.array([1.0, np.nan, 3.0]))
    assert found.value == 2.0
    assert (found.low, found.high) == (1.0, 3.0)
