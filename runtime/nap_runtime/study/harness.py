"""This project's decoder as a model of lm-evaluation-harness.

    python -m nap_runtime.study.harness --model nap --model_args pretrained=nap-tiny,tokens_per_step=4 --tasks gsm8k

is `lm_eval` with one model more. The package lm-eval is no dependency: it is imported when this is run. It has no entry
point that models could hang on, so `lm_eval` itself knows `nap` only after `nap_runtime.study.harness.register()`.

`model_args` are the keys of `DecodeConfig`, those of its `sync` as `sync.mode`, `sync.every` and so on, and
`pretrained`, `workers`, `simulate`, `device`, `dtype`, `weights`, `kv`, `tokens_per_step`, `batch_size`.
Only generation is there: a masked diffusion model gives no likelihood of a continuation, so tasks that score choices
by likelihood are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, DecodeJob, DecodeResult
from nap_runtime.storage import Storage
from nap_runtime.study.budget import with_tokens_per_step

Complete = Callable[[Sequence[str]], list[str]]
_OWN = ("pretrained", "workers", "simulate", "device", "dtype", "weights", "kv", "tokens_per_step", "batch_size",
        "max_batch_size")  # fmt: skip
_ONLY_TEXT = "lm-eval: `nap` generates text; a masked diffusion model gives no likelihoods. Use a generate_until task"


def split_args(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model_args` as this module's own values and a mapping for `DecodeConfig.from_mapping`.

    Raises:
        UsageError: a key is unknown to both.
    """
    own = {key: value for key, value in values.items() if key in _OWN}
    config: dict[str, Any] = {}
    for key, value in values.items():
        if key in own:
            continue
        group, dot, name = key.partition(".")
        if dot and group == "sync":
            config.setdefault("sync", {})[name] = value
        else:
            config[key] = value
    DecodeConfig.from_mapping(config)
    return own, config


def completer(values: Mapping[str, Any]) -> Complete:
    """A function from prompts to texts: the summary's, or the region's with layout `plain`."""
    from nap_runtime.api import make_executor
    from nap_runtime.executor.coordinator import Coordinator
    from nap_runtime.models.loading import read_card

    own, mapping = split_args(values)
    storage = Storage(**{key: own[key] for key in ("weights", "kv") if key in own})
    storage.check(device=own.get("device", "cpu"), dtype=own.get("dtype", "float32"))
    card = read_card(str(own.get("pretrained", "nap-tiny")))
    where: dict[str, Any] = {key: own[key] for key in ("simulate", "device", "dtype") if key in own}
    executor = make_executor(card, workers=int(own.get("workers", 1)), storage=storage, **where)
    coordinator = Coordinator(card.stored(storage), executor)
    config = coordinator.resolve(DecodeConfig.from_mapping(mapping))
    config = with_tokens_per_step(config, own.get("tokens_per_step"))
    size = int(own.get("batch_size", 1)) if str(own.get("batch_size", 1)).isdigit() else 1

    def complete(prompts: Sequence[str]) -> list[str]:
        jobs = [DecodeJob(question=prompt, index=index) for index, prompt in enumerate(prompts)]
        texts = [""] * len(jobs)
        for result in coordinator.decode(jobs, config, batch_size=size):
            if not isinstance(result, DecodeResult):
                raise result.error
            texts[result.job.index] = result.summary
        return texts

    return complete


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop that is in it."""
    at = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(at)] if at else text


def register(make: Callable[[Mapping[str, Any]], Complete] = completer) -> Any:
    """Add the model `nap` to the harness; returns its class.

    Raises:
        UsageError: lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise UsageError("lm-eval is not installed: pip install lm-eval") from None

    class NapModel(LM):  # type: ignore[misc]
        """Generates with a coordinator of this project."""

        def __init__(self, **values: Any) -> None:
            super().__init__()
            self._complete = make({key: value for key, value in values.items() if value is not None})

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> NapModel:
            """From `key=value,key=value`."""
            return cls.create_from_arg_obj(parse_args(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> NapModel:
            """From a mapping, and the command line's batch size; its device is `cuda:0` unless given, so not read."""
            size = (additional_config or {}).get("batch_size")
            more = {} if size is None else {"batch_size": size}
            return cls(**{**more, **arg_dict})

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """One text a request, cut at its stops."""
            contexts, options = zip(*(request.args for request in requests), strict=True) if requests else ((), ())
            texts = self._complete(list(contexts))
            return [until_stop(text, _stops(option)) for text, option in zip(texts, options, strict=True)]

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            """Refused."""
            raise UsageError(_ONLY_TEXT)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            """Refused."""
            raise UsageError(_ONLY_TEXT)

    return register_model("nap")(NapModel)


def _stops(options: Mapping[str, Any]) -> list[str]:
    stops = options.get("until", [])
    return [stops] if isinstance(stops, str) else list(stops or [])


def parse_args(text: str) -> dict[str, Any]:
    """`a=1,b=x` as a mapping; numbers and true, false become themselves."""
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"model_args: '{part}' is not KEY=VALUE", field="model_args")
        values[key.strip()] = _typed(value.strip())
    return values


def _typed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    """`lm_eval` with `nap` among its models."""
    try:
        register()
    except UsageError as error:
        raise SystemExit(f"nap: {error}") from None
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
