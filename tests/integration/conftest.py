"""What integration tests share: `nap` in this process, and toy checkpoints of LLaDA's and Dream's kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from nap_runtime.cli import main
from nap_runtime.models.shapes import make_model_dir

TEXT = "How many apples are left? There are 3 boxes with 12 apples each, so 36 in all. The final answer is \\boxed{36}."
# Special tokens in the order of their ids, behind the byte pairs; which one plays which part.
SPECIALS = {
    "llada": ["<|startoftext|>", "<|endoftext|>", "[CLS]", "<|mdm_mask|>", "<|start_header_id|>", "<|eot_id|>"],
    "dream": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"],
}
ROLES = {"llada": ("<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"),
         "dream": ("<|beginoftext|>", "<|endoftext|>", "<|im_end|>", "<|mask|>")}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}assistant\n"


class Ran(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What it printed, where that is one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def nap(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`(*words)` → exit code, stdout and stderr of that `nap` command, run in this process."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ran(code, *capsys.readouterr())

    return run


def byte_pairs() -> Tokenizer:
    """A byte-level BPE of about 300 tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return inner


@cache
def ids_of(family: str) -> dict[str, int]:
    """Ids of a family's special tokens."""
    start = byte_pairs().get_vocab_size()
    return {token: start + at for at, token in enumerate(SPECIALS[family])}


def write_tokenizer(family: str, folder: Path) -> None:
    """LLaDA's files: a fast tokenizer that names no mask. Dream's: Qwen2's vocabulary and merges, no fast one."""
    inner, ids = byte_pairs(), ids_of(family)
    config: dict[str, Any] = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE, "model_max_length": 4096}
    if family == "llada":
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ids])
        inner.save(str(folder / "tokenizer.json"))
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>"}
    else:
        inner.model.save(str(folder))
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        added = {str(at): {"content": token, **flags} for token, at in ids.items()}
        config |= {"tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added, "mask_token": "<|mask|>"}
        config |= {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
        (folder / "tokenization_dream.py").write_text("raise SystemError('code of a checkpoint was run')\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def toy_checkpoint() -> Callable[..., Path]:
    """`(family, folder, rows=352, max_shard_bytes=100_000, **overrides)` → a checkpoint without NAP's tags."""

    def make(family: str, folder: Path, rows: int = 352, max_shard_bytes: int = 100_000, **overrides: Any) -> Path:
        bos, eos, end, mask = (ids_of(family)[token] for token in ROLES[family])
        make_model_dir(
            f"{family}-tiny", folder, seed=3, dtype=torch.bfloat16, max_shard_bytes=max_shard_bytes, vocab_size=rows,
            bos_id=bos, eos_id=eos, pad_id=eos, mask_id=mask, end_ids=(eos, end), **overrides,
        )  # fmt: skip
        write_tokenizer(family, folder)
        (folder / "generation_config.json").write_text("{}\n")
        return folder

    return make
