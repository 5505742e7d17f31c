"""A teacher in this process: a local Hugging Face causal LM, plain or as a GGUF file. No remote code is run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_runtime.errors import ModelError, UsageError
from nap_runtime.models.contents import digest_of_model
from nap_trainer.data.teachers import Request, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model folder and how it is sampled.

    Args:
        folder: of a causal LM with its tokenizer.
        gguf_file: name of a GGUF file in it, which then holds weights and tokenizer both.
        temperature, max_tokens, seed: of sampling; nothing else (top-k, top-p) narrows it.
        batch_size: traces made at once.
        device: `cpu` or `cuda`.
    """

    folder: Path
    gguf_file: str | None = None
    temperature: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    batch_size: int = 8
    device: str = "cpu"


class LocalTeacher:
    """Samples traces in batches, one batch at a time."""

    concurrency = 1

    def __init__(self, settings: LocalModel) -> None:
        """Load tokenizer and weights; ModelError if they cannot be."""
        self._settings = settings
        self.batch_size = settings.batch_size
        self._tokenizer, self._model = _load(settings)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model, by what its files hold, and sampling."""
        s = self._settings
        held = digest_of_model(s.folder if s.gguf_file is None else s.folder / s.gguf_file)
        sampling = {"temperature": s.temperature, "max_tokens": s.max_tokens, "seed": s.seed}
        name = s.folder.resolve().name
        return {"teacher": "hf", "model": name, "gguf_file": s.gguf_file, "model_contents": held, **sampling}

    def stop(self) -> None:
        """A batch that is being made is not interrupted."""

    def sample(self, requests: Sequence[Request]) -> list[Trace]:
        """One trace each. The batch's seed is its first request's; the caller's own generator is left as it was."""
        import torch

        s = self._settings
        inputs = self._tokenizer(
            [self._prompt(request.prompt) for request in requests],
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self._tokenizer.chat_template,
        ).to(s.device)
        devices = [torch.cuda.current_device()] if s.device == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(requests[0].seed(s.seed))
            made = self._model.generate(**inputs, max_new_tokens=s.max_tokens, **_sampling(s.temperature))
        return [self._trace(row) for row in made[:, inputs["input_ids"].shape[1] :].tolist()]

    def _prompt(self, text: str) -> str:
        if not self._tokenizer.chat_template:
            return text
        turns = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _trace(self, ids: list[int]) -> Trace:
        """Up to the first end; without one the trace was cut."""
        end = next((at for at, token in enumerate(ids) if token in self._ends), None)
        text = str(self._tokenizer.decode(ids[:end], skip_special_tokens=True))
        return Trace(text, cut=end is None)

    @property
    def _ends(self) -> set[int]:
        named = self._model.generation_config.eos_token_id
        ends = set(named) if isinstance(named, list | tuple) else {named}
        return {int(end) for end in (*ends, self._tokenizer.eos_token_id) if end is not None}


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


def _load(settings: LocalModel) -> tuple[Any, Any]:
    folder = settings.folder
    if not folder.is_dir():
        raise UsageError(f"model: {folder} is no folder; give a Hugging Face checkpoint's", field="model")
    if settings.gguf_file is not None and not (folder / settings.gguf_file).is_file():
        raise UsageError(f"gguf_file: {folder} has no {settings.gguf_file}", field="gguf_file")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that no setting turns off
            return _loaded(settings)
    except Exception as error:  # transformers raises many kinds for a broken folder
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} cannot be loaded as a causal LM ({reason})") from None


def _loaded(settings: LocalModel) -> tuple[Any, Any]:
    import torch
    import transformers

    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if settings.gguf_file is not None:
        source["gguf_file"] = settings.gguf_file
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(settings.folder), padding_side="left", **source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = torch.float32 if settings.device == "cpu" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_pretrained(str(settings.folder), dtype=dtype, **source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.to(settings.device).eval()
