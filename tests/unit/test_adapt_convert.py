"""Conversion of small causal checkpoints: the same logits, a larger vocabulary, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.cli import main
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.loading import load_model
from nap_trainer.adapt.convert import convert
from nap_trainer.adapt.vocabulary import MULTIPLE, SPREAD, TAGS, add_tokens, extended, padded_size

transformers: Any = pytest.importorskip("transformers")

WORDS = ["<end>", "<unk>", *"abcdefghij"]
SHAPE = {
    "vocab_size": len(WORDS) + 3,  # rows that no token uses, as Qwen has them
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5e4,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 0,
    "bos_token_id": None,
    "attn_implementation": "eager",
}
Make = Callable[..., tuple[Path, Any]]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")


@pytest.fixture
def source(tmp_path: Path) -> Make:
    """`(kind, **config)` → a checkpoint folder of random weights, and transformers' model."""

    def make(kind: str, **config: Any) -> tuple[Path, Any]:
        shape: Any = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind](**{**SHAPE, **config})
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(shape).eval()
        for param in model.parameters():  # biases begin at 0, where leaving them out would not show
            torch.nn.init.normal_(param, std=0.2)
        folder = tmp_path / kind
        model.save_pretrained(str(folder))
        tokenizer().save_pretrained(str(folder))
        return folder, model

    return make


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("qwen2", True)])
def test_logits_are_those_of_the_causal_model(source: Make, tmp_path: Path, kind: str, tied: bool) -> None:
    folder, theirs = source(kind, tie_word_embeddings=tied)
    config, _ = convert(folder, tmp_path / "out", dtype=torch.float32)
    assert (config.qkv_bias, config.tied_head, config.rope_theta) == (kind == "qwen2", tied, 5e4)
    ours = load_model(tmp_path / "out").model
    ids_BN = torch.randint(0, len(WORDS), (3, 17), generator=torch.Generator().manual_seed(0))
    causal_NN = torch.ones(17, 17, dtype=torch.bool).tril()
    with torch.inference_mode():
        expected = theirs(ids_BN).logits[..., : len(WORDS)]  # the rows behind them go to new tokens
        got = ours(ids_BN, causal_NN)[..., : len(WORDS)]
        whole = ours(ids_BN)[..., : len(WORDS)]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (whole - expected).abs().max() > 1e-2  # without the causal mask it is another model


@pytest.mark.parametrize("shifted", [False, True])
def test_the_folder_says_what_it_is(source: Make, tmp_path: Path, shifted: bool) -> None:
    folder, _ = source("llama")
    config, note = convert(folder, tmp_path / "out", shifted=shifted, max_positions=32)
    loaded = load_model(tmp_path / "out")
    assert loaded.config == config
    assert (config.shifted_logits, config.max_positions, config.end_ids) == (shifted, 32, (0,))
    assert config.vocab_size % MULTIPLE == 0
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.token_id("<mask>") == config.mask_id == note.added["<mask>"]
    assert loaded.tokenizer.encode("a <think 3> b </summary>") == [
        2,
        note.added["<think 3>"],
        3,
        note.added["</summary>"],
    ]
    assert set(note.added) == {"<mask>", *TAGS}
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["stored"] == {
        "F32": sum(note.stored.values())
    }
    assert loaded.model.embed.weight.dtype == torch.float32  # loaded as asked; stored as bfloat16
    assert note.dtype == "bfloat16"


def test_a_token_that_is_there_is_used_as_it_is(source: Make, tmp_path: Path) -> None:
    folder, theirs = source("llama")
    config, note = convert(folder, tmp_path / "out", mask_token="j", dtype=torch.float32)
    row = WORDS.index("j")
    assert config.mask_id == row
    assert "j" not in note.added
    ours = load_model(tmp_path / "out").model.embed.weight
    assert torch.equal(ours[row], theirs.get_input_embeddings().weight[row])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
)
def test_other_arithmetic_is_refused(source: Make, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    folder, _ = source("llama", **change)
    with pytest.raises(ModelError, match=named):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path / "gpt2"))
    tokenizer().save_pretrained(str(tmp_path / "gpt2"))
    with pytest.raises(ModelError, match="'gpt2' is not one of llama, qwen2"):
        convert(tmp_path / "gpt2", tmp_path / "out")


def test_damage_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ModelError, match=r"bad\.gguf") as caught:
        convert(tmp_path / "bad.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"neither a model folder nor a \.gguf file"):
        convert(tmp_path / "none", tmp_path / "out")


def test_command_line(source: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = source("qwen2")
    out = tmp_path / "out"
    assert main(["model", "convert", str(folder), "--out", str(out), "--shifted", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert "shifted logits" in printed
    assert "17 new tokens" in printed
    assert main(["model", "convert", str(folder), "--out", str(out)]) == 2
    assert "already holds a model" in capsys.readouterr().err
    assert main(["model", "convert", str(folder), "--out", str(tmp_path / "x"), "--mask-token", "<think 1>"]) == 2
    assert "mask-token" in capsys.readouterr().err


# --- vocabulary ---


def test_new_rows_lie_near_the_mean_and_differ() -> None:
    old_VD = torch.randn(500, 16, generator=torch.Generator().manual_seed(1)) * 3 + 5
    rows_VD = extended(old_VD, 576, {"<mask>": 500, "<think 1>": 501, "<think 2>": 502})
    mean_D, std_D = old_VD.mean(0), old_VD.std(0)
    assert torch.equal(rows_VD[:500], old_VD)
    assert torch.equal(rows_VD[503:], mean_D.expand(73, -1))
    distance = ((rows_VD[500:503] - mean_D) / std_D / SPREAD).square().mean(1).sqrt()
    assert ((distance > 0.5) & (distance < 1.6)).all()  # normal noise of 16 dimensions
    assert not torch.allclose(rows_VD[501], rows_VD[502])
    again = extended(old_VD, 576, {"<think 2>": 500})
    assert torch.equal(again[500], rows_VD[502])  # by the token's text, not by its place


def test_the_size_holds_the_old_rows_and_the_new_ids() -> None:
    assert padded_size(49152, range(49152, 49169)) == 49216
    assert padded_size(128, [100, 101]) == 128  # a source with unused rows
    assert padded_size(64, [64]) == 128


def test_tokens_are_added_once() -> None:
    made = tokenizer()
    first = add_tokens(made)
    assert list(first.values()) == list(range(len(WORDS), len(WORDS) + 17))
    assert add_tokens(made) == {}
    assert made.mask_token == "<mask>"
