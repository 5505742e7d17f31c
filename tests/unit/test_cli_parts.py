"""Pieces of the command line: help, settings, held-out problems, scores, the canvas view."""

from __future__ import annotations

import json
from dataclasses import fields
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nap_runtime import places
from nap_runtime.cli.app import build_parser, main
from nap_runtime.cli.controls import look_up
from nap_runtime.cli.jobs import BadLine, held_out, pick_held_out, read_jobs
from nap_runtime.cli.live import CanvasView, timeline
from nap_runtime.cli.options import GROUPS, add_decode_options, read_settings
from nap_runtime.cli.output import dumps
from nap_runtime.cli.parser import Parser
from nap_runtime.cli.scores import Share, last_number, majority
from nap_runtime.cli.settings import DTYPES, Settings, merge
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.decoding.state import Kind
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, DecodeJob, SyncPolicy
from nap_runtime.models.prompting import DecodeDefaults
from nap_trainer.words import SHOWCASE, generate


def parser_of(*names: str) -> Parser:
    parser = build_parser()
    for name in names:
        parser = parser._commands.choices[name]
    return parser


def leaves(parser: Parser) -> list[Parser]:
    inner = [parser._commands.choices[name] for name in parser.commands()]
    return [leaf for child in inner for leaf in leaves(child)] if inner else [parser]


# --- help ---


@pytest.mark.parametrize("parser", leaves(build_parser()), ids=lambda parser: parser.prog)
def test_help_shows_every_default(parser: Parser) -> None:
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            assert "(default: " in str(action.help) or "(required)" in str(action.help), action.option_strings


@pytest.mark.parametrize(
    ("names", "usage"),
    [
        (("decode",), "nap decode [OPTION ...] [PROMPT]"),
        (("data", "curate"), "nap data curate [OPTION ...] QUESTIONS"),
        (("serve",), "nap serve [OPTION ...]"),
    ],
)
def test_short_usage_names_what_stands_without_an_option(names: tuple[str, ...], usage: str) -> None:
    assert parser_of(*names).format_usage() == f"usage: {usage}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve --drain nan", "nap serve: --drain: not a number of at least 0"),
        ("serve --keep -1", "nap serve: --keep: not a number of at least 0"),
        ("probe reliance --n 100001", "nap probe reliance: --n: 100001 is more than the 100,000"),
        ("model make --shape nap-tiny --out x --seed -1", "nap model make: --seed: -1 is not an integer of at least 0"),
    ],
)
def test_numbers_out_of_range_are_named_by_their_option(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_help_names_the_defaults_of_models_without_their_own() -> None:
    shown = {option.field: option.default for group in GROUPS.values() for option in group}
    for field in fields(DecodeDefaults):
        default = "hub for sync shared, full for others" if field.name == "topology" else f"{field.default:g}"
        assert shown[field.name].endswith(f"else {default}")


def test_every_config_key_has_an_option() -> None:
    keys = {option.field for group in GROUPS.values() for option in group}
    wanted = {f.name for cls in (DecodeConfig, SyncPolicy, Settings) for f in fields(cls)} - {
        "sync",
        "config",
        "auto",
    }
    assert keys == wanted | {"link", "overhead"}  # what `auto` is made of


def test_dtypes_are_those_of_the_api() -> None:
    from nap_runtime.api import DTYPES as OF_API

    assert tuple(OF_API) == DTYPES


# --- settings ---


def settings_of(*argv: str) -> Settings:
    parser = Parser("nap test", "about")
    add_decode_options(parser)
    return read_settings(parser.parse_args(argv))


def test_no_option_gives_the_defaults() -> None:
    assert settings_of() == Settings()


def test_options_reach_the_settings() -> None:
    canvas = "--paths 2 --path-tokens 3,4 --rule confidence --scope path --workers 2"
    settings = settings_of(*canvas.split(), "--sync", "kv", "--every", "4", "--warmup", "2")
    sync = SyncPolicy("kv", every=4, warmup=2)
    config = DecodeConfig(paths=2, path_tokens=(3, 4), rule="confidence", scope="path", sync=sync)
    assert settings == Settings(config=config, workers=2)


def test_rule_arguments_are_collected() -> None:
    settings = settings_of("--rule", "confidence", "--rule-arg", "schedule=dream")
    assert settings.config.rule_args == {"schedule": "dream"}


def test_settings_round_trip() -> None:
    settings = settings_of("--workers", "3", "--simulate", "--sync", "kv", "--path-tokens", "3,4,5")
    assert Settings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings


def test_unknown_key_is_an_error() -> None:
    with pytest.raises(UsageError, match="evry: unknown key"):
        Settings.from_mapping({"evry": 3})


def test_merge_goes_into_sync() -> None:
    assert merge({"a": 1, "sync": {"mode": "kv", "every": 2}}, {"sync": {"every": 3}}) == {
        "a": 1,
        "sync": {"mode": "kv", "every": 3},
    }


def test_an_empty_model_is_an_error() -> None:
    with pytest.raises(UsageError, match="model: it is empty"):
        Settings(model="")


@pytest.mark.parametrize("cache", ["closed", "dkv"])
def test_auto_does_not_go_with_caches_of_paths(cache: str) -> None:
    """What is refused is what was given: `exact`, which nobody gave, is not what the message is about."""
    with pytest.raises(UsageError) as caught:
        Settings.from_mapping({"sync": {"mode": "auto"}, "cache": cache, "workers": 2, "simulate": True})
    said = str(caught.value)
    assert said.startswith(f"cache: sync 'auto' does not go with cache '{cache}'")
    assert "give --sync tokens, shared or kv with --every 2 or more, or --sync none, or no --cache" in said
    assert "exact" not in said
    asked = Settings.from_mapping({"sync": {"mode": "auto"}, "layout": "plain", "rule": "confidence", "cache": "dkv"})
    assert asked.auto is not None, "a cache of a plain canvas, on one worker, has no sync to wait for"


# --- batches ---


def test_blank_lines_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text('\n{"question": "a"}\n \n[]\n')
    good, bad = read_jobs(file)
    assert isinstance(good, DecodeJob)
    assert good.index == 1
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.error) == (4, "not a JSON object")


def test_json_of_lone_surrogates_is_ascii() -> None:
    assert dumps({"a": "é"}) == '{"a": "é"}'
    assert dumps({"a": "é\ud800"}) == '{"a": "\\u00e9\\ud800"}'


# --- held-out problems ---


def test_held_out_problems_are_what_the_generator_makes() -> None:
    made = [*SHOWCASE, *islice(generate("test", seed=20, error_rate=0.0), 11)]
    assert list(held_out()) == [problem.to_json() for problem in made]


def test_seed_picks_a_held_out_problem() -> None:
    job, note = pick_held_out(21)
    assert job.question == held_out()[1]["question"]
    assert job.gold == held_out()[1]["answer"]
    assert "problem 2 of 20" in note


# --- scores ---


def test_wilson_interval() -> None:
    low, high = Share(8, 10).interval
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Brown, Cai and DasGupta's formula by hand
    assert Share(0, 10).interval[0] == 0.0
    assert Share(10, 10).interval[1] == 1.0
    assert Share(0, 0).interval == (0.0, 1.0)


def test_what_paths_say() -> None:
    assert last_number("50 - 10 = 40 .") == "40"
    assert last_number("x = -2") == "-2"
    assert last_number("none") is None
    assert majority(["3", "4", "4"]) == "4"
    assert majority(["3", "4", None]) == "3"
    assert majority([None]) is None


def test_look_up_finds_a_training_problem_itself() -> None:
    known = list(islice(generate("train", seed=5), 50))
    assert look_up([problem.question for problem in known], 50, seed=5) == [str(p.answer) for p in known]
    assert look_up(["what?"], 0, seed=5) is None


# --- the canvas view ---


class Letters:
    """Token 10 is a, 11 is b, …; words are joined by spaces."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(chr(ord("a") + token - 10) for token in ids)


def view() -> CanvasView:
    layout = CanvasLayout(
        kind="nap",
        prompt_tokens=1,
        headers=((2,), (3,)),
        budgets=(4, 4),
        summary_header=(4,),
        summary_budget=2,
        end_ids=((1,), (1,), (1,)),
        mask_id=0,
        fill_id=1,
    )
    return CanvasView(layout, (9,), Letters())  # type: ignore[arg-type]


def delta(kind: Kind, positions: list[int], ids: list[int]) -> CanvasDelta:
    return CanvasDelta(
        step=0,
        worker=0,
        kind=kind,
        positions=np.array(positions),
        ids=np.array(ids),
        log_confidence=np.zeros(len(ids)),
    )


def test_slots_fill_in_place() -> None:
    canvas = view()
    first = canvas.layout.paths[0]
    assert canvas.text(first, "red").plain == "░░░░"
    canvas.take(0, 1, (delta(Kind.COMMIT, [2, 4], [10, 12]),))
    text = canvas.text(first, "red")
    assert text.plain == "a ░ c ░"
    assert [span.style for span in text.spans].count("bold reverse red") == 2
    canvas.take(0, 2, (delta(Kind.COMMIT, [3], [11]), delta(Kind.FILL, [5], [1])))
    text = canvas.text(first, "red")
    assert text.plain == "a b c ·"
    assert [span.style for span in text.spans].count("bold reverse red") == 1
    assert canvas.text(canvas.layout.paths[1], "red").plain == "░░░░"


def test_timeline_marks_syncs() -> None:
    line = timeline(10, 5, [(2, "kv"), (8, "gather")], width=60)
    assert line.plain == "step  5/10 ──k─────G─ k kv, G gather"
    assert timeline(10, 10, [], width=60).plain.endswith("no syncs")
    assert len(timeline(1000, 3, [(999, "kv")], width=60).plain) < 100


# --- where files are written ---


def test_every_file_has_its_folders_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "c.json"
    places.prepare(file, "out")
    assert file.parent.is_dir()
    assert not file.exists()
    places.prepare(file, "out")  # what is there is fine


def test_a_file_without_a_place_is_refused_before_the_work(tmp_path: Path) -> None:
    read = tmp_path / "read"
    read.touch()
    for file, why in ((tmp_path, "is a folder"), (read / "x", "not a folder"), (read, "is the file that is read")):
        with pytest.raises(UsageError, match=why) as caught:
            places.prepare(file, "plot", read)
        assert caught.value.field == "plot"
    assert read.read_bytes() == b""
