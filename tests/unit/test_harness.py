"""The model for lm-evaluation-harness, against a stand-in for the parts of that package which it uses."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from nap_runtime import DecodeConfig, decode
from nap_runtime.errors import UsageError
from nap_runtime.storage import Storage
from nap_runtime.study import harness
from nap_runtime.study.harness import completer, parse_args, register, split_args, until_stop


@dataclass
class Instance:
    """What the harness hands a model."""

    args: tuple[str, dict[str, Any]]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The stand-in: `LM`, `register_model`, and a command line."""
    known: dict[str, Any] = {}

    class LM:
        pass

    def register_model(name: str) -> Any:
        def add(kind: type) -> type:
            assert issubclass(kind, LM)
            known[name] = kind
            return kind

        return add

    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry", "lm_eval.__main__")
    modules = {name: types.ModuleType(name) for name in names}
    modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]
    modules["lm_eval.api.registry"].register_model = register_model  # type: ignore[attr-defined]
    modules["lm_eval.__main__"].cli_evaluate = lambda: known.setdefault("ran", True)  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return known


def test_it_generates_with_the_decoder(registry: dict[str, Any]) -> None:
    register()
    model = registry["nap"].create_from_arg_string(
        "pretrained=nap-tiny,tokens_per_step=8,batch_size=2", {"batch_size": 1, "max_gen": 3, "device": "cuda:0"}
    )
    question = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
    stops = [Instance((question, {"until": ["\n\n"]})), Instance((question, {"until": "answer"}))]
    whole, cut = model.generate_until(stops)
    assert "\\boxed{" in whole
    assert cut == whole[: whole.index("answer")]
    with pytest.raises(UsageError, match="no likelihoods"):
        model.loglikelihood([])
    with pytest.raises(UsageError, match="no likelihoods"):
        model.loglikelihood_rolling([])


def test_what_the_model_is_given(registry: dict[str, Any]) -> None:
    given: list[Mapping[str, Any]] = []

    def make(values: Mapping[str, Any]) -> harness.Complete:
        given.append(values)

        def complete(prompts: Sequence[str]) -> list[str]:
            return [prompt.upper() for prompt in prompts]

        return complete

    model = register(make)(paths=2, steps=None)
    assert given == [{"paths": 2}]
    assert model.generate_until([Instance(("a stop b", {"until": [" STOP"]}))]) == ["A"]
    assert model.generate_until([]) == []


def test_main_runs_the_harness(registry: dict[str, Any]) -> None:
    harness.main()
    assert registry["ran"] is True
    assert "nap" in registry


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(SystemExit, match="pip install lm-eval"):
        harness.main()


def test_with_the_real_package() -> None:
    """The registry of lm-eval itself takes the model, and finds it by its name."""
    registry = pytest.importorskip("lm_eval.api.registry")
    kind = register(lambda values: lambda prompts: [str(values) for _ in prompts])
    assert registry.get_model("nap") is kind
    model = kind.create_from_arg_obj({"paths": 3}, {"batch_size": 2, "device": "cuda:0", "max_batch_size": None})
    assert model.generate_until([Instance(("a", {}))]) == ["{'batch_size': 2, 'paths': 3}"]


def test_arguments() -> None:
    assert parse_args("a=1,b=0.5,c=true,d=x") == {"a": 1, "b": 0.5, "c": True, "d": "x"}
    own, config = split_args({"pretrained": "m", "paths": 2, "sync.mode": "kv", "sync.every": 4})
    assert own == {"pretrained": "m"}
    assert config == {"paths": 2, "sync": {"mode": "kv", "every": 4}}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_args("a")
    with pytest.raises(UsageError, match="pats: unknown key"):
        split_args({"pats": 2})


def test_a_prompt_that_does_not_fit_is_an_error() -> None:
    complete = completer({"pretrained": "nap-tiny", "tokens_per_step": 50})
    with pytest.raises(UsageError, match="prompt"):
        complete(["word " * 5000])


def test_stops() -> None:
    assert until_stop("abcdef", ["e", "c"]) == "ab"
    assert until_stop("abc", ["x", ""]) == "abc"


def test_numbers_are_held_as_asked() -> None:
    storage, asked = Storage(weights="fp8", kv="fp8"), {"weights": "fp8", "kv": "fp8", "paths": 2, "steps": 12}
    question = "A shirt costs $50 and is on sale for 20% off. What is the final price?"
    (text,) = completer(asked)([question])
    assert text == decode(question, DecodeConfig(paths=2, steps=12), storage=storage).summary
    with pytest.raises(UsageError, match="weights: unknown value 'int4'"):
        completer({"weights": "int4"})
    with pytest.raises(UsageError, match="weights: 'fp8' on a GPU gives bfloat16"):
        completer({"weights": "fp8", "device": "cuda"})
