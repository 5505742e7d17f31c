"""Every option of a decode through the service: the ids are those of the decode in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_runtime import api
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.shapes import make_model_dir
from nap_runtime.models.tokenizer import build_word_tokenizer
from nap_runtime.service.client import Client
from nap_runtime.service.local import LocalServer
from nap_trainer.words import vocabulary

pytestmark = pytest.mark.timeout(180)
QUESTION = "A shirt costs $50 and is on sale for 20% off."
_NAP = {"paths": 3, "path_tokens": 6, "summary_tokens": 4}
_PLAIN = {"layout": "plain", "gen_length": 16}
HEADERS = json.dumps(
    {"paths": ["<think 2>", "<think 3>", "<think 1>"], "summary": "<summary>", "path_ends": ["</think 1>"] * 3}
)
# On three workers
NAP: list[dict[str, Any]] = [
    {"path_tokens": (6, 4, 8), "steps": 9, "control_every": 3},
    {"rule": "threshold", "threshold": 0.25, "scope": "path", "block_length": 3},
    {"rule": "factor", "factor": 3.0, "scope": "path", "sync": SyncPolicy("tokens")},
    {"rule": "prophet", "scope": "path", "steps": 11},
    {"rule": "p2", "rule_args": {"eta": "0.5", "score": "token"}},
    {"rule": "random", "seed": 7, "sync": SyncPolicy("tokens")},
    {"rule": "confidence", "scope": "path", "confidence": "margin", "eos_weight": 0.0},
    {"cfg": 0.75, "temperature": 0.5, "seed": 3},
    {"sync": SyncPolicy("kv", every=3, warmup=2, overlap=True)},
    {"sync": SyncPolicy("shared", every=2, topology="hub")},
    {"sync": SyncPolicy("none", summary="consensus", top=5)},
    {"path_tokens": 14, "sync": SyncPolicy("tokens", every=2, summary="live", settle=2)},
]
# On one
ONE: list[dict[str, Any]] = [
    {**_PLAIN, "rule": "threshold", "threshold": 0.3, "block_length": 8, "cache": "dual"},
    {**_PLAIN, "rule": "factor", "factor": 2.0, "block_length": 4, "cache": "prefix"},
    {**_PLAIN, "rule": "confidence", "cache": "dkv", "cache_every": 3, "rule_args": {"schedule": "dream"}},
    {**_PLAIN, "rule": "blockwise", "block_length": 4, "steps": 8},
    {**_PLAIN, "rule": "prophet", "rule_args": {"answer": "4:9"}, "steps": 8},
    {"headers": "text"},
    {"headers": HEADERS},
]


def config_of(options: dict[str, Any]) -> DecodeConfig:
    return DecodeConfig(**({} if "layout" in options else _NAP) | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    make_model_dir("nap-tiny", folder, seed=1, dtype=torch.float64, scale=3.0, n_layers=2, d_model=64, d_ff=96)
    build_word_tokenizer(vocabulary(), folder)
    return folder


@pytest.fixture(scope="module")
def client_of(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Client]]:
    """`(workers)` → a client of a server with groups of so many."""
    open_: dict[int, tuple[LocalServer, Client]] = {}

    def make(workers: int) -> Client:
        if workers not in open_:
            journal = tmp_path_factory.mktemp("journal") / "jobs.db"
            options = ["--model", str(model), "--dtype", "float64", "--threads", "1", "--journal", str(journal)]
            server = LocalServer([*options, *(["--workers", str(workers), "--simulate"] if workers > 1 else [])])
            server.start()
            open_[workers] = (server, Client(server.address, patience=10.0))
        return open_[workers][1]

    yield make
    for server, client in open_.values():
        client.close()
        server.kill()


@pytest.mark.parametrize(
    ("workers", "options"), [(3, o) for o in NAP] + [(1, o) for o in ONE], ids=lambda v: str(v)[:60]
)
def test_the_service_gives_what_decode_gives(
    client_of: Callable[[int], Client], model: Path, workers: int, options: dict[str, Any]
) -> None:
    config = config_of(options)
    result = client_of(workers).decode(QUESTION, config)
    local = api.decode(QUESTION, config, model=model, workers=workers, simulate=workers > 1, dtype="float64")
    assert list(result.tokens) == local.record.final_ids.tolist()
    assert (result.summary, result.paths) == (local.summary, local.paths)
    assert result.metrics["nfe_steps"] == local.metrics.nfe.steps


def test_no_option_is_left_out() -> None:
    """Whatever option is added to a config must be given in one of the cases above."""
    configs = [config_of(options) for options in (*NAP, *ONE)]
    for kind, values in ((DecodeConfig, configs), (SyncPolicy, [config.sync for config in configs])):
        for item in fields(kind):
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            if item.name != "_":
                assert any(getattr(value, item.name) != default for value in values), item.name


def test_the_file_of_headers_stays_with_its_owner(
    client_of: Callable[[int], Client], model: Path, tmp_path: Path
) -> None:
    """A client reads its file and sends the texts; what is wrong with them is found by either side."""
    file = tmp_path / "headers.json"
    file.write_text(HEADERS)
    client, small = client_of(1), config_of({})
    sent = client.decode(QUESTION, small.with_values(headers=str(file)))
    assert sent.tokens == client.decode(QUESTION, small.with_values(headers=HEADERS)).tokens
    assert sent.tokens != client.decode(QUESTION, small).tokens, "other headers, other canvas"
    values = json.loads(HEADERS)
    for wrong, part in (
        ({"paths": ["a"], "summary": "b"}, "1 path headers, the canvas has 3"),
        (values | {"summary": "<mask>"}, "the mask token"),
        (values | {"summary_end": "no token"}, "is not one token"),
        (values | {"more": 1}, "unknown key"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UsageError, match=part):
            client.submit(QUESTION, small.with_values(headers=str(file)))
    with pytest.raises(UsageError, match="cannot be read"):
        client.submit(QUESTION, small.with_values(headers=str(tmp_path / "none.json")))
