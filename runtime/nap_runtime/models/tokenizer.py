"""Text to ids and back: our word tokenizer, or a checkpoint's own through transformers.

transformers is imported only when a checkpoint's tokenizer needs it: it costs seconds at start-up.
No remote code is ever run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.job import MAX_PATHS
from nap_runtime.models.detokenise import BOXED, join_words
from nap_runtime.models.files import atomic_path

MASK, EOS, UNK = "<mask>", "<eos>", "<unk>"
SPECIAL_TOKENS = (
    MASK,
    EOS,
    UNK,
    *(tag for i in range(1, MAX_PATHS + 1) for tag in (f"<think {i}>", f"</think {i}>")),
    "<summary>",
    "</summary>",
)
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
BASE_WORDS = (BOXED, *"0123456789", *_PUNCTUATION)
_WORD_PATTERN = r"\\boxed\{|[a-z]+|[0-9]|[^\sa-z0-9]"

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (*_FILES, "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")


class Tokenizer(Protocol):
    """What decoding needs of a tokenizer."""

    def __len__(self) -> int:
        """Ids of the vocabulary, added tokens included."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens written in it become their ids. Nothing is added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of one token (``"<summary>"``), None when the vocabulary lacks it."""
        ...

    def encode_prompt(self, question: str) -> list[int]:
        """Ids of a user's question, in the chat template when there is one.

        A question that contains the mask, or where there is a template one of its control tokens, raises UsageError.
        """
        ...

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks, each once, in order."""
        ...


class WordTokenizer:
    """The nap family's tokenizer: lower-case words, single digits, single signs, no transformers."""

    def __init__(self, path: Path) -> None:
        """Read a ``tokenizer.json`` of :func:`build_word_tokenizer`; ModelError if it is another kind."""
        self._marked = _read_tokenizer_json(path)
        if not isinstance(self._marked.model, WordLevel):
            raise ModelError(f"{path} is no word tokenizer: add the checkpoint's tokenizer_config.json")
        self._literal = _read_tokenizer_json(path)
        self._literal.encode_special_tokens = True
        self._unk: int | None = self._marked.token_to_id(UNK)
        specials = (self._marked.token_to_id(token) for token in SPECIAL_TOKENS if token != UNK)
        self._special_ids = frozenset(token for token in specials if token is not None)

    def __len__(self) -> int:
        """Ids of the vocabulary."""
        return int(self._marked.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens written in it become their ids."""
        return list(self._marked.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids by :func:`join_words`; special tokens left out, unknown ids as ``<unk>``."""
        kept = (self._marked.id_to_token(int(i)) or UNK for i in ids if int(i) not in self._special_ids)
        return join_words(list(kept))

    def token_id(self, token: str) -> int | None:
        """The id of one token, None when the vocabulary lacks it."""
        return self._marked.token_to_id(token)  # type: ignore[no-any-return]

    def encode_prompt(self, question: str) -> list[int]:
        """Ids of a question; special tokens written in it are read as plain signs and letters."""
        return list(self._literal.encode(question).ids)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks, as written there."""
        encoded = self._marked.encode(text)
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        return list(dict.fromkeys(text[a:b] for token, (a, b) in pairs if token == self._unk))


class PretrainedTokenizer:
    """A checkpoint's own tokenizer (LLaDA, Dream), read from local files by transformers."""

    def __init__(self, path: Path, *, mask_id: int | None = None) -> None:
        """Load the folder's tokenizer; ModelError if transformers cannot.

        ``mask_id`` is the model's mask, which LLaDA's tokenizer does not name.
        """
        self._inner = _load_pretrained(path)
        self._mask_id: int | None = self._inner.mask_token_id if mask_id is None else mask_id
        added = self._inner.added_tokens_decoder
        self._control_ids = {token for token, entry in added.items() if entry.special} - {self._inner.unk_token_id}

    @property
    def inner(self) -> Any:
        """The transformers tokenizer itself."""
        return self._inner

    def __len__(self) -> int:
        """Ids of the vocabulary, added tokens included."""
        return len(self._inner)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without added begin or end tokens."""
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of one token, None when the vocabulary lacks it."""
        found = self._inner.get_vocab().get(token)
        return None if found is None else int(found)

    def encode_prompt(self, question: str) -> list[int]:
        """Ids of a question as one user turn of the chat template, the assistant's turn opened.

        A question's own control tokens could end its turn and open another: they are refused. Without a template they
        have no such meaning, and a prompt may be laid out with them by hand.
        """
        ids = self.encode(question)
        if self._mask_id is not None and self._mask_id in ids:
            raise UsageError("the prompt contains the mask token: remove it", field="prompt")
        if not self._inner.chat_template:
            return ids
        control = next((token for token in ids if token in self._control_ids), None)
        if control is not None:
            name = self._inner.convert_ids_to_tokens(control)
            raise UsageError(f"the prompt contains the control token {name!r}: remove it", field="prompt")
        turns = [{"role": "user", "content": question}]
        text = self._inner.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self.encode(str(text))

    def unknown_words(self, text: str) -> list[str]:
        """Words that need the unknown token; byte-level vocabularies have none."""
        unk = self._inner.unk_token_id
        if unk is None:
            return []
        words = dict.fromkeys(text.split())
        return [word for word in words if unk in self.encode(word)]


def load_tokenizer(path: Path, *, mask_id: int | None = None) -> Tokenizer | None:
    """The tokenizer of a model folder, None when the folder has no tokenizer files.

    ``mask_id``: the model's mask, which no prompt may contain.
    """
    if (path / "tokenizer_config.json").is_file():
        return PretrainedTokenizer(path, mask_id=mask_id)
    if (path / "tokenizer.json").is_file():
        return WordTokenizer(path / "tokenizer.json")
    return None


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer files of one model folder into another; return their names."""
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def build_word_tokenizer(words: Iterable[str], path: str | Path) -> WordTokenizer:
    """Write ``tokenizer.json`` for a word list into a folder and return the tokenizer.

    Ids: special tokens first, then digits and signs, then the words in the given order, each once.
    A word that is not ``[a-z]+`` raises UsageError.
    """
    vocabulary = dict.fromkeys((*SPECIAL_TOKENS, *BASE_WORDS))
    for word in words:
        if word not in vocabulary and not re.fullmatch("[a-z]+", word):
            raise UsageError(f"vocabulary word {word!r} must be letters a to z in lower case", field="words")
        vocabulary[word] = None
    inner = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="removed", invert=True)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    target = Path(path) / "tokenizer.json"
    with atomic_path(target) as temporary:
        inner.save(str(temporary))
    return WordTokenizer(target)


def _read_tokenizer_json(path: Path) -> Any:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _load_pretrained(path: Path) -> Any:
    """A transformers tokenizer from local files; Dream's own class is Qwen2's with other tokens."""
    try:
        import transformers
    except ImportError:
        raise ModelError(f"{path} has a transformers tokenizer: pip install transformers") from None
    try:
        config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        name = str(config.get("tokenizer_class", ""))
        loader: Any = transformers.AutoTokenizer
        if name.startswith(("DreamTokenizer", "Qwen2Tokenizer")):
            loader = transformers.Qwen2TokenizerFast
        elif name.startswith("PreTrainedTokenizer"):
            loader = transformers.PreTrainedTokenizerFast
        return _quietly(transformers, loader, path)
    except Exception as error:  # transformers raises many kinds for a broken folder
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: its tokenizer cannot be loaded ({reason}): check the tokenizer files") from None


def _quietly(transformers: Any, loader: Any, path: Path) -> Any:
    """Load without transformers' advice about the checkpoint's own tokenizer class."""
    logging = transformers.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    finally:
        logging.set_verbosity(before)
