"""The miniature end to end on a CPU: random models in place of trained ones, everything else as it will run."""

from __future__ import annotations

import json
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nap_runtime.errors import UsageError
from nap_trainer.miniature.cli import main
from nap_trainer.miniature.decoding import Decoded
from nap_trainer.miniature.driver import Deadline, Driver, Machine
from nap_trainer.miniature.problems import Problems
from nap_trainer.miniature.schedule import Schedule, chosen_tests
from nap_trainer.miniature.seam import source_of
from nap_trainer.miniature.store import Store
from nap_trainer.miniature.study import Model, Study

# In a file of its own, because trainings side by side import it in their own processes.
FAKE = """
from nap_runtime.errors import UsageError
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import copy_tokenizer

def trainer(values):
    def train_arm(arm, seed, table, folder):
        if arm.name == values.get("fails"):
            raise UsageError("lr: it diverged")
        canvases = table.canvases(arm)
        assert len(canvases) == len(table.problems)
        make_model_dir(
            "nap-tiny", folder, seed=seed, scale=10.0, n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16,
            d_ff=96, vocab_size=int(canvases.ids_nN.max()) + 1, mask_id=table.tags.mask_id, eos_id=table.tags.eos_id,
            pad_id=table.tags.eos_id, end_ids=(table.tags.eos_id,),
        )
        copy_tokenizer(table.tokenizer, folder)
        return folder
    return train_arm
"""
SMALL: dict[str, Any] = {
    "trainer": "fake_miniature_trainer:trainer",
    "problem_set": {"min_depth": 2, "max_depth": 3, "distractors": 0},
    "path_tokens": 27,
    "summary_tokens": 8,
    "prompt_tokens": 33,
    "train": 64,
    "dev": 6,
    "test": 12,
    "order": 6,
    "screen": 4,
    "keep": 2,
    "seeds": {"nap": 2, "cot-clamped": 2, "cot": 1},
    "per_step": [4, 16],
    "order_per_step": [16],
    "rules": ["pf", "ao", "l2r"],
    "eos": [0.0],
    "order_rules": ["ao-e0", "pf-e0", "random"],
    "dtype": "float32",
    "resamples": 200,
}


@pytest.fixture
def fake_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that both this process and its children can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fake_miniature_trainer.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    sys.modules.pop("fake_miniature_trainer", None)


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "study-in.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


def driver_of(root: Path, **changes: Any) -> Driver:
    store = Store(root)
    study = store.open(Study.from_mapping(SMALL | changes))
    return Driver(store, study, source_of(study.source, study.problem_set), processes=1, say=lambda _: None)


def test_the_whole_way(tmp_path: Path, fake_trainer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, decode with an interruption, report, keep the records, and report again from those alone."""
    run, config = str(tmp_path / "run"), str(written(tmp_path))
    assert main(["train", run, "--config", config]) == 0
    assert main(["decode", run, "--deadline", "0"]) == 3
    assert main(["decode", run]) == 0
    store = Store(Path(run))
    decodes = sorted((store.root / "decodes").rglob("*.npz"))
    stamps = {path: path.stat().st_mtime_ns for path in decodes}
    assert main(["decode", run]) == 0  # everything is there: nothing runs again
    assert {path: path.stat().st_mtime_ns for path in decodes} == stamps

    study = store.open(None)
    assert len(store.choices()) == len(study.seeds) * len(study.per_step)
    assert all(store.decode(unit).exists() for unit in [*chosen_tests(study, store), *study.orders()])
    assert len(chosen_tests(study, store)) == sum(study.seeds.values()) * len(study.per_step)
    assert "test decodes 10 of 10" in (main(["status", run]), capsys.readouterr().out)[1]

    page, records = tmp_path / "docs" / "results.md", tmp_path / "records"
    assert main(["report", run, "--out", str(page), "--records", str(records), "--processes", "1"]) == 0
    first = page.read_text()
    assert not (records / "decodes").exists()
    again = tmp_path / "again" / "results.md"
    assert main(["report", str(records), "--out", str(again), "--processes", "1"]) == 0
    assert again.read_text() == first
    assert "missing" in first  # one token a step has not been asked for
    for number in range(1, 6):
        assert f"Table {number}" in first
    assert {path.suffix for path in (tmp_path / "docs" / "results").iterdir()} == {".png", ".svg"}


def test_search_chooses_by_development_accuracy(tmp_path: Path, fake_trainer: Path) -> None:
    """The choice is the best of the searched settings, which are the best of the screened ones; ties by grid order."""
    driver = driver_of(tmp_path / "run")
    driver.train(Deadline(), only=[Model(arm="nap", seed=0)])
    rng = np.random.default_rng(4)
    told: dict[str, float] = {}

    def score(unit: Any) -> float:
        return told.setdefault(unit.name, float(rng.integers(0, 4)) / 4)

    ran = []
    for unit in Schedule(driver.study, driver.store, score).units():
        ran.append(unit)
        empty = np.zeros((1, 1), np.int16)
        Decoded(ids_nS=empty, step_mS=empty, committed_mS=empty > 0).save(driver.store.decode(unit))
    screens = [unit for unit in ran if unit.stage == "screen" and unit.setting.per_step == 4]
    searches = [unit for unit in ran if unit.stage == "search" and unit.setting.per_step == 4]
    assert [unit.setting for unit in screens] == driver.study.grid(screens[0].arm, 4)
    by_score = sorted(screens, key=lambda unit: -told[unit.name])
    assert [unit.setting for unit in searches] == [unit.setting for unit in by_score[:2]]
    best = max(searches, key=lambda unit: told[unit.name])
    assert driver.store.choices()["nap", 4] == best.setting
    assert [unit.setting for unit in ran if unit.stage == "test" and unit.setting.per_step == 4] == [best.setting]


def test_arms_can_be_decoded_apart(tmp_path: Path, fake_trainer: Path) -> None:
    """Two processes with different arms share nothing but the folder, and together they do all of it."""
    driver = driver_of(tmp_path / "run")
    driver.train(Deadline())
    machine = Machine()
    assert driver.decode(Deadline(), machine, {"cot"})
    assert {arm for arm, _ in driver.store.choices()} == {"cot"}
    assert driver.decode(Deadline(), machine, {"nap", "cot-clamped"})
    assert list(Schedule(driver.study, driver.store, driver.score).units()) == []


def test_test_units_wait_for_their_search(tmp_path: Path, fake_trainer: Path) -> None:
    driver = driver_of(tmp_path / "run")
    assert chosen_tests(driver.study, driver.store) == []
    driver.train(Deadline(), only=[Model(arm="nap", seed=1)])  # not the seed that searches
    units = list(Schedule(driver.study, driver.store, lambda unit: 0.0).units())
    assert units == []


def test_trainings_side_by_side(tmp_path: Path, fake_trainer: Path) -> None:
    driver = driver_of(tmp_path / "run")
    wanted = [Model(arm="nap", seed=0), Model(arm="cot", seed=0)]
    assert driver.train(Deadline(), only=wanted, jobs=2) == 0
    notes = [driver.store.model_note(model) for model in wanted]
    assert all(note["seconds"] >= 0 and note["targets"] > 0 for note in notes)
    assert notes[1]["targets"] == notes[0]["targets"]  # two headers more as text, two end tags less


def test_a_failed_training_is_one_clear_line(
    tmp_path: Path, fake_trainer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(written(tmp_path, training={"fails": "cot"}))
    assert main(["train", str(tmp_path / "run"), "--config", config, "--only", "cot:0"]) == 2
    assert capsys.readouterr().err == "miniature: lr: it diverged\n"


def test_a_deadline_is_kept(tmp_path: Path, fake_trainer: Path) -> None:
    """A unit that took longer than what is left is not begun."""
    driver = driver_of(tmp_path / "run")
    driver.store.log("train", "nap-s9", 1000.0)
    assert driver.train(Deadline(60.0)) == len(driver.study.models())


def test_another_study_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    driver_of(tmp_path / "run")
    with pytest.raises(UsageError, match="dev: 11"):
        driver_of(tmp_path / "run", dev=11)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nope": 1}, "nope"),
        ({"dev": "many"}, "dev"),
        ({"seeds": {"nope": 1}}, "nope"),
        ({"rules": ["nope"]}, "nope"),
        ({"order": 100}, "order"),
        ({"per_step": ["x"]}, "per_step"),
        ({"trainer": "nowhere"}, "nowhere"),
        ({"problem_set": {"nope": 1}}, "nope"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_a_wrong_study_is_one_clear_line(
    tmp_path: Path, fake_trainer: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], field: str
) -> None:
    config = str(written(tmp_path, **changes))
    assert main(["train", str(tmp_path / "run"), "--config", config]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert field in error


def test_a_study_survives_its_file(tmp_path: Path) -> None:
    study = Study.from_mapping(SMALL)
    assert Study.from_mapping(yaml.safe_load(yaml.safe_dump(study.to_mapping()))) == study


def test_pack_splits_and_can_leave_models_out(tmp_path: Path, fake_trainer: Path) -> None:
    from nap_trainer.miniature.status import pack

    driver = driver_of(tmp_path / "run")
    driver.train(Deadline(), only=[Model(arm="nap", seed=0)])
    driver.problems("dev")
    limit = 40_000
    parts = pack(driver, tmp_path / "out", limit, models="none")
    for part in parts:
        with tarfile.open(part) as tar:
            tar.extractall(tmp_path / "there", filter="data")
        assert part.stat().st_size <= limit + 10_240
    store = Store(tmp_path / "there")
    assert store.open(None) == driver.study
    assert store.model_note(Model(arm="nap", seed=0)) == driver.store.model_note(Model(arm="nap", seed=0))
    assert not list((tmp_path / "there").rglob("*.safetensors"))
    assert not store.data("train").exists()


def test_packed_models_decode_elsewhere(tmp_path: Path, fake_trainer: Path) -> None:
    from nap_trainer.miniature.status import pack, undecoded

    driver = driver_of(tmp_path / "run")
    driver.train(Deadline(), only=[Model(arm="nap", seed=0)])
    for part in pack(driver, tmp_path / "out"):  # its weights are still needed
        with tarfile.open(part) as tar:
            tar.extractall(tmp_path / "there", filter="data")
    there = driver_of(tmp_path / "there")
    assert there.train(Deadline(), only=[Model(arm="nap", seed=0)]) == 0
    assert there.decode(Deadline(), Machine())
    assert set(there.store.choices()) == {("nap", 4), ("nap", 16)}
    assert not list(undecoded(there))
    names = []
    for part in pack(there, tmp_path / "again"):
        with tarfile.open(part) as tar:
            names += tar.getnames()
    assert any(name.startswith("decodes/test/") for name in names)
    assert not any(name.endswith(".safetensors") for name in names)


def test_the_problem_set_is_disjoint_and_fits(tmp_path: Path) -> None:
    driver = driver_of(tmp_path / "run", dev=200, test=200, train=400)
    tables = {split: driver.problems(split) for split in ("train", "dev", "test")}  # type: ignore[arg-type]
    keys = {split: {tuple(row) for row in table.prompt_nP.tolist()} for split, table in tables.items()}
    assert not keys["train"] & keys["test"]
    assert not keys["dev"] & keys["test"]
    again = Problems.load(driver.store.data("test"))
    assert np.array_equal(again.answer_n, tables["test"].answer_n)


def test_right_canvases_are_graded_right(tmp_path: Path) -> None:
    """The training canvases of every arm, read back as if decoded: summaries are right, paths as the table says."""
    from nap_trainer.miniature.arms import ARMS, fill
    from nap_trainer.miniature.grading import accuracy, read_answers

    driver = driver_of(tmp_path / "run", dev=64)
    problems, geometry = driver.problems("dev"), driver.study.geometry
    for arm in ARMS.values():
        table = fill(problems, arm, geometry, driver.tags)
        slots = table.ids_nN[:, geometry.prompt_tokens :][:, table.region_R > 0]
        answers = read_answers(slots, arm, geometry, driver.tags, driver.source)
        assert accuracy(answers, problems) == 1.0
        dealt = np.array_split(np.array(arm.traces), arm.blocks)
        last = [traces[-1] for traces in dealt]  # a chain ends with its last trace
        assert np.array_equal(answers.path_nm, problems.path_answer_nm[:, last])


def test_the_ledger_names_its_commands(tmp_path: Path, fake_trainer: Path) -> None:
    run, config = tmp_path / "run", str(written(tmp_path))
    assert main(["train", str(run), "--config", config, "--only", "nap:0"]) == 0
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["data", "train"]
    assert all(row["seconds"] >= 0 and row["command"].startswith("python -m nap_trainer.miniature") for row in rows)
