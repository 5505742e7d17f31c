"""The run driver from model folder to page: shift in loss and decode, resume, deadline; the trainer behind the seam."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from nap_runtime.errors import UsageError
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.inline import InlineExecutor
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.models.loading import load_model, load_weights, read_card
from nap_runtime.models.shapes import make_model, make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_runtime.models.transformer import DiffusionTransformer
from nap_trainer.adapt.__main__ import main
from nap_trainer.adapt.config import AdaptConfig, DecodeSection
from nap_trainer.adapt.decoding import batches, decode_questions
from nap_trainer.adapt.figures import score
from nap_trainer.adapt.folder import RunFolder
from nap_trainer.adapt.run import Budget, run
from nap_trainer.adapt.table import AdaptData, Sizes, tokenise
from nap_trainer.adapt.training import (
    ArmSetup,
    ArmTrainer,
    held_out_loss,
    make_loop_trainer,
    tokens_at,
    train_config,
    widened,
)
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.loader import Loader
from nap_trainer.objective.forward import DeviceBatch, ForwardProcess
from nap_trainer.objective.loss import DiffusionLoss
from nap_trainer.objective.views import Views

WORDS = ["how", "many", "are", "and", "she", "has", "the", "final", "answer", "is"]
GEN = 24
ARMS = ["pretrained-shifted", "pretrained-unshifted", "random-shifted", "random-unshifted"]
CONFIG = {
    "points": [0, 2, 3],
    "global_batch": 4,
    "micro_batch": 4,
    "held_batch": 4,
    "decode": {"dtype": "float64", "last_tokens_per_step": [4]},
    "seed": 5,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `model`, GSM8K-like `train.jsonl` and `test.jsonl`, and `data.npz`."""
    root: Path = tmp_path_factory.mktemp("adapt")
    shape = {"n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "d_ff": 48}
    (root / "model").mkdir()
    size = len(build_word_tokenizer(WORDS, root / "model"))
    vocab = -(-size // 64) * 64
    make_model_dir("nap-tiny", root / "made", seed=1, dtype=torch.float32, scale=12.0, vocab_size=vocab, **shape)
    for file in (root / "made").iterdir():
        file.rename(root / "model" / file.name)
    for name, count in (("train", 12), ("test", 8)):
        rows = [
            {
                "question": "how many are " + " and ".join("123456789"[: 1 + i % 3]) + " ?",
                "answer": f"she has {i} .\n#### {i}",
            }
            for i in range(count)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = str(root / "model")
    corpus = str(root / "corpus.jsonl")
    assert main(["corpus", "--gsm8k", str(root / "train.jsonl"), "--model", model, "--out", corpus]) == 0
    tokenise(
        root / "model",
        root / "corpus.jsonl",
        root / "test.jsonl",
        Sizes(gen_length=GEN, max_prompt=16, questions=6, held=8),
    ).save(root / "data.npz")
    return root


class StandIn:
    """A trainer that nudges the weights by noise of the step alone, and keeps its state in one file."""

    def __init__(self, setup: ArmSetup) -> None:
        card, self.folder = setup.card, setup.folder
        pretrained = setup.arm.start == "pretrained"
        self._model = load_weights(card) if pretrained else DiffusionTransformer(card.config)
        if not pretrained:
            with torch.no_grad():
                for param in self._model.parameters():
                    param.normal_(0, 0.3, generator=torch.Generator().manual_seed(setup.config.seed))
        self.step, self.taken = 0, 0

    @property
    def model(self) -> DiffusionTransformer:
        return self._model

    def resume(self) -> int:
        file = self.folder / "state.safetensors"
        if file.exists():
            values = load_file(file)
            self.step = int(values.pop("step"))
            self._model.load_state_dict(values)
        return self.step

    @torch.no_grad()
    def advance(self, until: int) -> float | None:
        for step in range(self.step, until):
            self.taken += 1
            for param in self._model.parameters():
                param.add_(torch.randn(param.shape, generator=torch.Generator().manual_seed(step)), alpha=0.05)
        moved, self.step = self.step < until, until
        return 1.0 if moved else None

    def export(self, out: Path) -> None:
        raise AssertionError("not asked for")

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file({**self._model.state_dict(), "step": torch.tensor(self.step)}, self.folder / "state.safetensors")


class Lab:
    """Makes stand-ins and remembers them; `fail_at` breaks off at the n-th advance."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[StandIn] = []
        self.fail_at, self.advances = fail_at, 0

    def __call__(self, setup: ArmSetup) -> ArmTrainer:
        made = StandIn(setup)
        advance = made.advance

        def counted(until: int) -> float | None:
            self.advances += 1
            if self.advances == self.fail_at:
                raise KeyboardInterrupt
            return advance(until)

        made.advance = counted  # type: ignore[method-assign]
        self.made.append(made)
        return made

    @property
    def taken(self) -> int:
        return sum(made.taken for made in self.made)


def arrays(out: Path) -> dict[str, np.ndarray]:
    return {file.name: np.load(file)["step_mS"] for file in sorted((out / "points").glob("*.npz"))}


# --- shift: a shifted model's row i − 1 scores position i ---


@pytest.mark.parametrize("shifted", [False, True])
def test_the_decode_reads_the_right_rows(place: Path, shifted: bool) -> None:
    """All slots at once: each gets what the row before it (shifted), or its own row, predicts."""
    data, card = AdaptData.load(place / "data.npz"), read_card(place / "model")
    card = replace(card, config=replace(card.config, shifted_logits=shifted))
    model = load_weights(card, dtype=torch.float64)
    settings = DecodeSection(eos_weight=1.0, dtype="float64")
    found = decode_questions(model, card, data.prompts, settings, gen_length=GEN, per_step=GEN)
    for prompt, ids_S in zip(data.prompts, found.ids_nS, strict=True):
        canvas_1N = torch.tensor([[*prompt, *[card.config.mask_id] * GEN]])
        with torch.no_grad():
            logits_NV = model(canvas_1N)[0]
        logits_NV[:, card.config.mask_id] = -torch.inf
        rows = slice(len(prompt) - shifted, len(canvas_1N[0]) - shifted)
        assert ids_S.tolist() == logits_NV[rows].argmax(-1).tolist()


@pytest.mark.parametrize("shifted", [False, True])
def test_the_loss_reads_the_right_rows(place: Path, shifted: bool) -> None:
    data, card = AdaptData.load(place / "data.npz"), read_card(place / "model")
    card = replace(card, config=replace(card.config, shifted_logits=shifted))
    model = load_weights(card)
    found = held_out_loss(model, data, card, size=len(data.held))
    config = train_config_of(place)
    loader = Loader(
        data.held, config.data.model_copy(update={"seed": 0}), Marks.of_text(card), global_batch=8, micro_batch=8
    )
    ((host,),) = loader.steps(0, 1)
    batch = DeviceBatch.of(host, torch.device("cpu"))
    process = ForwardProcess(config.objective, global_batch=8, learn_padding=True, mask_id=card.config.mask_id, seed=1)
    masked = process(batch, 0)
    every, text = [], []
    for row in range(8):
        real = int(batch.real_BN[row].sum())
        with torch.inference_mode():
            logits_NV = model(masked.noisy_BN[row : row + 1, :real])[0]
        for position in masked.hidden_BN[row].nonzero().flatten().tolist():
            loss = F.cross_entropy(logits_NV[position - shifted], batch.ids_BN[row, position]).item()
            every.append(loss)
            if batch.text_BN[row, position]:
                text.append(loss)
    assert found == pytest.approx({"all": np.mean(every), "text": np.mean(text)}, rel=1e-5)


def train_config_of(place: Path):  # type: ignore[no-untyped-def]
    data, card, config = (
        AdaptData.load(place / "data.npz"),
        read_card(place / "model"),
        AdaptConfig.from_mapping(CONFIG),
    )
    from nap_trainer.adapt.arms import Arm

    return train_config(
        ArmSetup(
            arm=Arm("pretrained", "shifted"),
            config=config,
            data=data,
            card=card,
            folder=place,
            device=torch.device("cpu"),
        )
    )


def test_wider_batches_are_the_same_batches(place: Path) -> None:
    """Columns outside the canvases change neither masks nor losses."""
    data, card, config = AdaptData.load(place / "data.npz"), read_card(place / "model"), train_config_of(place)
    loader = Loader(data.train, config.data, Marks.of_text(card), global_batch=4, micro_batch=4)
    ((host,),) = loader.steps(0, 1)
    wide = widened(host, host.ids_BN.shape[1] + 13)
    model, process = (
        load_weights(card),
        ForwardProcess(config.objective, global_batch=4, learn_padding=True, mask_id=card.config.mask_id, seed=1),
    )
    views, loss = Views(config.objective, mask_id=card.config.mask_id, seed=1), DiffusionLoss(model, head_chunk=10_000)
    sums = []
    for each in (host, wide):
        batch = DeviceBatch.of(each, torch.device("cpu"))
        masked = process(batch, 3)
        view = views(batch, masked, 3)
        with torch.no_grad():
            total, _ = loss(view.ids_BR, view.positions_R, view.mask, view.start, batch.ids_BN, masked.weight_BN)
        sums.append((total.item(), masked.hidden_BN.sum().item(), masked.slots_B.tolist()))
    assert sums[1][0] == pytest.approx(sums[0][0], rel=1e-5)
    assert sums[1][1:] == sums[0][1:]


def test_ids_order_and_arness_are_the_products_own(place: Path) -> None:
    """The same questions through `Coordinator`, record and metrics included."""
    data, loaded = AdaptData.load(place / "data.npz"), load_model(place / "model", dtype=torch.float64)
    settings = DecodeSection(eos_weight=0.3, dtype="float64")
    found = decode_questions(loaded.model, loaded.card, data.prompts, settings, gen_length=GEN, per_step=2)
    assert loaded.tokenizer is not None
    scores = score(found, loaded.config.end_ids, loaded.tokenizer, data.gold)
    questions = [json.loads(line)["question"] for line in (place / "test.jsonl").read_text().splitlines()]
    config = DecodeConfig(layout="plain", rule="confidence", gen_length=GEN, steps=GEN // 2, eos_weight=0.3)
    coordinator = Coordinator(loaded.card, InlineExecutor(loaded.model, dtype=torch.float64))
    jobs = [DecodeJob(question=questions[row - 1], index=i) for i, row in enumerate(data.rows)]
    for result in coordinator.decode(jobs, config):
        assert isinstance(result, DecodeResult)
        at = result.job.index
        assert result.record.final_ids[-GEN:].tolist() == found.ids_nS[at].tolist()
        report = result.metrics.arness.canvas
        assert report.all.set_based == scores.arness_all_Q[at]
        if report.content.set_based is None:
            assert np.isnan(scores.arness_Q[at])
        else:
            assert report.content.set_based == scores.arness_Q[at]
            assert report.content.local == scores.local_Q[at]


def test_batches_hold_one_length_each() -> None:
    prompts = [(1,) * n for n in (3, 5, 3, 3, 5)]
    assert batches(prompts, 2) == [[0, 2], [3], [1, 4]]


# --- the driver ---


def test_a_run_measures_every_point_of_every_arm(place: Path, tmp_path: Path) -> None:
    lab, config = Lab(), AdaptConfig.from_mapping(CONFIG)
    assert run(place / "model", place / "data.npz", config, tmp_path / "run", make_trainer=lab, say=lambda _: None)
    folder = RunFolder(tmp_path / "run")
    notes = sorted(file.name for file in (tmp_path / "run" / "points").glob("*.json"))
    assert notes == sorted(f"{arm}-s{step:06d}.json" for arm in ARMS for step in (0, 2, 3))
    assert folder.decode(ARMS[0], 3, 4) is not None
    assert folder.decode(ARMS[0], 2, 4) is None
    data = folder.data()
    sizes = [len(prompt[prompt >= 0]) + GEN for prompt in data.train.prompt_nP]
    assert folder.facts()["tokens"][0] == 0
    assert folder.facts()["tokens"][2] == sum(sizes)  # 3 steps of 4 are the 12 rows, each once
    assert lab.taken == 4 * 3
    assert not any((tmp_path / "run" / "states").rglob("*.safetensors"))
    page = tmp_path / "page.md"
    assert main(["report", str(tmp_path / "run"), "--out", str(page)]) == 0
    assert "## Start, shift, interaction" in page.read_text()


@pytest.mark.parametrize("states", [True, False])
def test_an_interrupted_run_goes_on_to_the_same_arrays(place: Path, tmp_path: Path, states: bool) -> None:
    config = AdaptConfig.from_mapping({**CONFIG, "states": states})

    def go(out: str, lab: Lab) -> bool:
        return run(place / "model", place / "data.npz", config, tmp_path / out, make_trainer=lab, say=lambda _: None)

    assert go("whole", Lab())
    with pytest.raises(KeyboardInterrupt):
        go("cut", Lab(fail_at=7))  # 4 arms at point 0, 2 of them at step 2, then cut
    assert len(list((tmp_path / "cut" / "points").glob("*.json"))) == 6
    rest = Lab()
    assert go("cut", rest)
    expected, found = arrays(tmp_path / "whole"), arrays(tmp_path / "cut")
    assert list(expected) == list(found)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    # With states the two arms at step 2 take one step more; without, all four begin anew.
    assert rest.taken == (1 + 1 + 3 + 3 if states else 4 * 3)
    done = Lab()
    assert go("cut", done)
    assert not done.made


def test_the_deadline_ends_a_run_evenly(place: Path, tmp_path: Path) -> None:
    """A clock that moves a second a look: a unit is begun only if one like it would still end in time."""
    ticks = iter(range(10_000))
    budget = Budget(seconds=5.5, started=0.0, clock=lambda: float(next(ticks)))
    said: list[str] = []
    config = AdaptConfig.from_mapping(CONFIG)
    out = tmp_path / "run"
    finished = run(place / "model", place / "data.npz", config, out, make_trainer=Lab(), budget=budget, say=said.append)
    assert not finished
    notes = sorted(file.name for file in (out / "points").glob("*.json"))
    assert len(notes) in (5, 6)
    assert [name for name in notes if "s000000" in name] == [f"{arm}-s000000.json" for arm in ARMS]
    assert "goes on from here" in said[-1]
    assert run(place / "model", place / "data.npz", config, out, make_trainer=Lab(), say=said.append)


def test_budgets_count_what_units_cost() -> None:
    now = [0.0]
    budget = Budget(seconds=100.0, started=0.0, clock=lambda: now[0])
    assert budget.allows(10**9)  # nothing is known yet
    budget.learn(steps=10, training=20.0, measuring=5.0)
    now[0] = 60.0
    assert budget.allows(17)  # 60 + 34 + 5
    assert not budget.allows(18)
    assert Budget(seconds=None).allows(10**9)


def test_another_run_in_the_folder_is_refused(place: Path, tmp_path: Path) -> None:
    config = AdaptConfig.from_mapping(CONFIG)
    with pytest.raises(KeyboardInterrupt):
        run(place / "model", place / "data.npz", config, tmp_path, make_trainer=Lab(fail_at=1), say=lambda _: None)
    other = AdaptConfig.from_mapping({**CONFIG, "seed": 6})
    with pytest.raises(UsageError, match=r"another 'config' \(seed: 5, now 6\)"):
        run(place / "model", place / "data.npz", other, tmp_path, make_trainer=Lab(), say=lambda _: None)


def test_data_of_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "model"
    make_model_dir("nap-tiny", other, seed=0, n_layers=1, vocab_size=128)
    build_word_tokenizer(["else"], other)
    with pytest.raises(UsageError, match="another tokenizer"):
        run(other, place / "data.npz", AdaptConfig.from_mapping(CONFIG), tmp_path / "run", make_trainer=Lab())


# --- the project's trainer behind the seam ---


def test_the_projects_trainer_runs_the_arms(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("deepspeed")
    if torch.cuda.is_available():
        pytest.skip("the trainer takes the GPU; this test compares on the CPU")
    data, base = AdaptData.load(place / "data.npz"), read_card(place / "model")
    config = AdaptConfig.from_mapping(
        {**CONFIG, "points": [0, 2, 4], "states": True, "models": True, "optimizer": {"lr": 1e-2}}
    )
    made: dict[str, ArmTrainer] = {}

    def make(setup: ArmSetup) -> ArmTrainer:
        made[setup.arm.name] = make_loop_trainer(setup)
        return made[setup.arm.name]

    assert run(place / "model", place / "data.npz", config, tmp_path / "run", make_trainer=make, say=lambda _: None)
    folder = RunFolder(tmp_path / "run")
    for arm in ARMS:
        losses = [folder.note(arm, step)["held_loss"]["all"] for step in config.points]
        assert losses[-1] < losses[0], arm
        assert made[arm].model.config.shifted_logits == arm.endswith("-shifted")
        kept = load_model(folder.model(arm), dtype=torch.float32).model
        assert kept.config == made[arm].model.config
        for name, value in made[arm].model.state_dict().items():
            assert torch.allclose(kept.state_dict()[name], value.float(), rtol=1e-2, atol=1e-6), (
                name
            )  # bfloat16 on disk
    # The random start is the shape's own; the pretrained one the folder's.
    fields = {
        name: getattr(base.config, name)
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")
    }
    random = make_model("nap-tiny", seed=config.seed, vocab_size=base.config.vocab_size, **fields)[1]
    expected = {"pretrained": load_weights(base), "random": random}
    for start, model in expected.items():
        first = held_out_loss(model, data, base, 4)
        assert folder.note(f"{start}-unshifted", 0)["held_loss"] == pytest.approx(first, rel=1e-4)
    assert tokens_at(data, base, config) == folder.facts()["tokens"]
