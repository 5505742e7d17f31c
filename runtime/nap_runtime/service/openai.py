"""OpenAI's completion requests as jobs, and results as its answers. Pure: no web framework, no network.

What a decoder of whole canvases cannot do is refused, not ignored. `nap` in the body holds the options of
`DecodeConfig`, such as `{"nap": {"steps": 33, "sync": {"mode": "kv", "every": 8}}}`. The text of an answer is the
summary's; the paths come beside it as `reasoning_content`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.headers import STYLES, is_json
from nap_runtime.job import DecodeConfig
from nap_runtime.service.answers import JobResult
from nap_runtime.service.telling import MASKED

_DONE: Mapping[str, tuple[Any, ...]] = {
    # Values of known options that mean: nothing special is wanted.
    "n": (1,),
    "best_of": (1,),
    "stop": ([], ""),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_FREE = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # marks of the caller's, of no consequence
_OURS = ("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stream", "nap")
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request as a job. `usage` asks for a last chunk with the counts."""

    prompt: str | tuple[int, ...]
    config: DecodeConfig
    model: str
    stream: bool
    usage: bool
    chat: bool


def parse(body: bytes, *, chat: bool) -> Wanted:
    """A request's body.

    Raises:
        UsageError: it is malformed, or asks for what is not done here.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise UsageError("body: it is not JSON", field="body") from None
    if not isinstance(values, dict):
        raise UsageError("body: it is no JSON object", field="body")
    options = values.pop("stream_options", None) or {}
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise UsageError("stream_options: only include_usage is known", field="stream_options")
    for name, value in values.items():
        _check_known(name, value)
    return Wanted(
        prompt=_messages(values.get("messages")) if chat else _prompt(values.get("prompt")),
        config=_config(values),
        model=_text(values, "model"),
        stream=_flag(values, "stream"),
        usage=bool(options.get("include_usage")),
        chat=chat,
    )


def _check_known(name: str, value: Any) -> None:
    if name in _OURS or name in _FREE or value is None:
        return
    if name not in _DONE:
        raise UsageError(f"{name[:64]}: unknown option", field=name[:64])
    if not any(value == fine and isinstance(value, bool) == isinstance(fine, bool) for fine in _DONE[name]):
        raise UsageError(f"{name}: not done here; leave it out", field=name)


def _config(values: Mapping[str, Any]) -> DecodeConfig:
    given = values.get("nap") or {}
    if not isinstance(given, dict):
        raise UsageError("nap: it is no object of options", field="nap")
    mapping = dict(given)
    headers = mapping.get("headers")
    if isinstance(headers, dict):
        headers = mapping["headers"] = json.dumps(headers)
    if headers not in (None, *STYLES) and not (isinstance(headers, str) and is_json(headers)):
        raise UsageError("headers: a server takes 'nap', 'text' or an object of texts, no file", field="headers")
    for name in ("temperature", "seed"):
        if values.get(name) is not None:
            mapping[name] = values[name]
    most = values.get("max_completion_tokens") or values.get("max_tokens")
    if most is not None:
        mapping.setdefault("gen_length" if mapping.get("layout") == "plain" else "summary_tokens", most)
    try:
        return DecodeConfig.from_mapping(mapping)
    except (TypeError, AttributeError) as error:  # values of JSON may have any type
        raise UsageError(f"nap: a value has the wrong type ({error})", field="nap") from error


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token) is int and 0 <= token < 2**32 for token in value):
        return tuple(value)
    raise UsageError("prompt: give one text, or one list of token ids", field="prompt")


def _messages(value: Any) -> str:
    """A conversation as one question: the model's own template knows a single turn."""
    if not isinstance(value, list) or not value:
        raise UsageError("messages: give a list of messages", field="messages")
    texts = [_message(message) for message in value]
    if value[-1].get("role") != "user":
        raise UsageError("messages: the last one must be the user's", field="messages")
    return "\n\n".join(text for text in texts if text.strip())


def _message(message: Any) -> str:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise UsageError(f"messages: a role is none of {', '.join(_ROLES)}", field="messages")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise UsageError("messages: only text is read", field="messages")


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str) or len(value) > 256:
        raise UsageError(f"{name}: it is no text of at most 256 letters", field=name)
    return value


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name) or False
    if not isinstance(value, bool):
        raise UsageError(f"{name}: it is neither true nor false", field=name)
    return value


# -- answers ----------------------------------------------------------------------------------------------------------


class Answer:
    """Bodies of one job's answer, whole or in chunks."""

    def __init__(self, job_id: str, model: str, *, chat: bool) -> None:
        self._chat, self._sent = chat, ""
        kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat else "")
        self._chunk = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{job_id}", "object": kind, "created": int(time.time())}
        self._chunk["model"] = model

    def whole(self, result: JobResult) -> dict[str, Any]:
        """The answer at once."""
        if self._chat:
            message = {"role": "assistant", "content": result.summary, "reasoning_content": "\n\n".join(result.paths)}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        else:
            choice = {"index": 0, "text": result.summary, "finish_reason": "stop", "logprobs": None}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._chunk, "object": kind, "choices": [choice], "usage": usage(result), "nap": _extra(result)}

    def first(self) -> dict[str, Any] | None:
        """The chunk that names the role."""
        return self._piece({"role": "assistant", "content": ""}) if self._chat else None

    def grown(self, text: str) -> dict[str, Any] | None:
        """A chunk with what is new and final of a summary in the making: up to its first masked slot, whole words."""
        known = text.partition(MASKED)[0] if MASKED in text else text
        return self._send(known[: known.rfind(" ") + 1].rstrip())

    def rest(self, result: JobResult) -> dict[str, Any] | None:
        """A chunk with what is left when the job is done."""
        return self._send(result.summary)

    def _send(self, text: str) -> dict[str, Any] | None:
        if not text.startswith(self._sent) or len(text) == len(self._sent):
            return None
        new, self._sent = text[len(self._sent) :], text
        return self._piece({"content": new} if self._chat else {"text": new})

    def last(self) -> dict[str, Any]:
        """The chunk that says why it ended."""
        return self._piece({} if self._chat else {"text": ""}, "stop")

    def counts(self, result: JobResult) -> dict[str, Any]:
        """The chunk with the counts, which a caller may ask for."""
        return {**self._chunk, "choices": [], "usage": usage(result)}

    def _piece(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        content = {"delta": delta} if self._chat else delta
        return {**self._chunk, "choices": [{"index": 0, **content, "finish_reason": reason, "logprobs": None}]}


def usage(result: JobResult) -> dict[str, int]:
    """Counts: a canvas is decoded whole, headers and what is behind an end included."""
    total = len(result.tokens)
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": total - result.prompt_tokens,
        "total_tokens": total,
    }


def _extra(result: JobResult) -> dict[str, Any]:
    return {"job": result.job.id, "answer": result.answer, "paths": list(result.paths), "metrics": dict(result.metrics)}
