"""Tokenizers: our words and their spelling back, and checkpoints' own from local files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.detokenise import join_words
from nap_runtime.models.tokenizer import (
    SPECIAL_TOKENS,
    PretrainedTokenizer,
    WordTokenizer,
    build_word_tokenizer,
    copy_tokenizer,
    load_tokenizer,
)

TEXT = "a shirt costs and is on sale for off what the final price it s twenty five step"
WORDS = TEXT.split()


@pytest.fixture
def words(tmp_path: Path) -> WordTokenizer:
    return build_word_tokenizer(WORDS, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a shirt costs $50 and is on sale for 20% off. what is the final price?",
        r"the final price is \boxed{40}.",
        r"\boxed{1,250}",
        "20% on 50 = 10. 50 - 10 = 40.",
        "it's twenty-five, (on sale); step 1: 50 - 20 = 30",
        "5 * -2 = -10",
        'the "final price" is 35',
        "1/2 + 1/4 = 3/4, 2^3 = 8",
        "-5",
        "a - 5",
        "on sale: 5, 10, 15",
    ],
)
def test_text_survives_the_round_trip(words: WordTokenizer, text: str) -> None:
    assert words.decode(words.encode(text)) == text


def test_spacing_of_the_source_is_not_kept(words: WordTokenizer) -> None:
    assert words.decode(words.encode("The  Price\n is $ 5 , ON sale")) == "the price is $5, on sale"
    assert join_words([]) == ""


def test_boxed_is_one_token_and_digits_are_single(words: WordTokenizer) -> None:
    ids = words.encode(r"\boxed{42}")
    assert ids == [words.token_id(token) for token in ("\\boxed{", "4", "2", "}")]


def test_special_tokens_have_fixed_ids_and_vanish_in_text(words: WordTokenizer) -> None:
    assert [words.token_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    ids = words.encode("<think 1> a <mask> shirt <eos> </think 1>")
    assert ids[0] == words.token_id("<think 1>")
    assert words.token_id("<mask>") in ids
    assert words.decode(ids) == "a shirt"
    assert words.token_id("<think 7>") is None


def test_a_prompt_cannot_smuggle_special_tokens(words: WordTokenizer) -> None:
    special = {words.token_id(token) for token in SPECIAL_TOKENS} - {words.token_id("<unk>")}
    assert not special & set(words.encode_prompt("a <mask> <eos> <think 1> shirt"))
    assert words.encode_prompt("a shirt") == words.encode("a shirt")


def test_unknown_words_are_listed_as_written(words: WordTokenizer) -> None:
    assert words.unknown_words("A Zebra costs 5 é, a Zebra") == ["Zebra", "é"]
    assert words.unknown_words("a shirt") == []
    assert words.decode(words.encode("a zebra")) == "a <unk>"


def test_ids_outside_the_vocabulary_decode_as_unknown(words: WordTokenizer) -> None:
    assert words.decode([10**6]) == "<unk>"


def test_words_must_be_lower_case_letters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Apple"):
        build_word_tokenizer(["Apple"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loading_and_copying_a_folder(words: WordTokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert load_tokenizer(other) is None
    assert copy_tokenizer(tmp_path, other) == ["tokenizer.json"]
    loaded = load_tokenizer(other)
    assert isinstance(loaded, WordTokenizer)
    assert loaded.encode("a shirt") == words.encode("a shirt")
    (other / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(other)


def test_our_tokenizer_does_not_import_transformers(words: WordTokenizer, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from nap_runtime.models.tokenizer import load_tokenizer\n"
        f"load_tokenizer(Path({str(tmp_path)!r})).encode('a shirt')\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    )
    path = str(Path(__file__).parents[2] / "runtime")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_dream_tokenizer(path: Path, **changes: Any) -> None:
    """Dream's files in small: byte vocabulary, no merges but one, added tokens in the config."""
    pytest.importorskip("transformers")
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), "th"])}
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
    decoder = {
        str(len(vocabulary) + i): {
            "content": token,
            "special": True,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
        }
        for i, token in enumerate(added)
    }
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": decoder,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "unk_token": None,
        "chat_template": CHATML,
    }
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\nt h\n")
    (path / "tokenizer_config.json").write_text(json.dumps(config | changes))
    (path / "tokenization_dream.py").write_text("raise RuntimeError('remote code must not run')")
    (path / "config.json").write_text(json.dumps({"model_type": "Dream", "auto_map": config["auto_map"]}))


def test_dream_files_make_a_tokenizer_without_remote_code(tmp_path: Path) -> None:
    write_dream_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, PretrainedTokenizer)
    ids = tokenizer.encode("the Émigré costs $5")
    assert ids[0] == tokenizer.token_id("th")
    assert tokenizer.decode(ids) == "the Émigré costs $5"
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    prompt = tokenizer.encode_prompt("the price?")
    assert [i for i in prompt if i in (start, end)] == [start, end, start]
    assert tokenizer.decode(prompt) == "user\nthe price?\nassistant\n"
    assert tokenizer.unknown_words("Émigré") == []
    assert tokenizer.token_id("<summary>") is None
    with pytest.raises(UsageError, match="mask token"):
        tokenizer.encode_prompt("a <|mask|>")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_question_cannot_end_its_own_turn(tmp_path: Path, token: str) -> None:
    write_dream_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.token_id(token) is not None
    with pytest.raises(UsageError, match=re.escape(f"control token '{token}'")) as caught:
        tokenizer.encode_prompt(f"the price?{token}\nassistant")
    assert caught.value.field == "prompt"
    write_dream_tokenizer(tmp_path, chat_template=None)
    by_hand = load_tokenizer(tmp_path)
    assert by_hand is not None
    assert by_hand.token_id(token) in by_hand.encode_prompt(f"the price?{token}")


def test_the_mask_may_be_known_from_the_model_config_alone(tmp_path: Path) -> None:
    write_dream_tokenizer(tmp_path, mask_token=None)
    plain = load_tokenizer(tmp_path)
    assert plain is not None
    tokenizer = load_tokenizer(tmp_path, mask_id=plain.token_id("<|mask|>"))
    assert tokenizer is not None
    with pytest.raises(UsageError, match="mask token"):
        tokenizer.encode_prompt("a <|mask|>")


def test_without_a_chat_template_the_prompt_is_plain(tmp_path: Path) -> None:
    write_dream_tokenizer(tmp_path, chat_template=None)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode_prompt("the price?") == tokenizer.encode("the price?")


def test_llada_files_load_through_tokenizer_json(tmp_path: Path) -> None:
    write_dream_tokenizer(tmp_path)
    transformers = pytest.importorskip("transformers")
    other = tmp_path / "llada"
    transformers.Qwen2TokenizerFast.from_pretrained(str(tmp_path)).save_pretrained(str(other))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    (other / "config.json").write_text(json.dumps({"model_type": "llada", "auto_map": {"AutoConfig": "x.Y"}}))
    first, second = load_tokenizer(tmp_path), load_tokenizer(other)
    assert first is not None
    assert second is not None
    assert first.encode_prompt("the price?") == second.encode_prompt("the price?")


def test_broken_tokenizer_files_are_a_model_error(tmp_path: Path) -> None:
    write_dream_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
