"""Configurations as protobuf: every option travels, and what the interface lacks is refused, not dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nap_runtime.auto import AutoSync
from nap_runtime.cli.auto import chooser
from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.models.loading import read_card
from nap_runtime.service import configs as spec
from nap_runtime.service.configs import asked_of, config_from_proto, config_to_proto
from nap_runtime.service.gate import Gate
from nap_runtime.service.settings import GroupSettings, Limits
from nap_runtime.service.v1 import decoder_pb2 as pb

CONFIGS = [
    DecodeConfig(),
    DecodeConfig(paths=4, path_tokens=(1, 2, 3, 4), summary_tokens=5, headers="text", steps=7, seed=2**63 - 1),
    DecodeConfig(path_tokens=9, eos_weight=0.0, temperature=0.7, control_every=3, confidence="entropy"),
    DecodeConfig(rule="confidence", scope="canvas", confidence="margin", rule_args={"schedule": "dream"}),
    DecodeConfig(layout="plain", gen_length=64, rule="blockwise", block_length=16, cache="dual"),
    DecodeConfig(layout="plain", gen_length=64, rule="confidence", cache="dkv", cache_every=4),
    DecodeConfig(cache="closed", sync=SyncPolicy("kv", every=8)),
    DecodeConfig(rule="threshold", threshold=0.8, scope="path", cfg=1.5),
    DecodeConfig(rule="factor", factor=2.0, scope="path"),
    DecodeConfig(rule="p2", rule_args={"eta": "0.5"}),
    DecodeConfig(sync=SyncPolicy("kv", every=8, warmup=2, overlap=True)),
    DecodeConfig(sync=SyncPolicy("shared", topology="hub")),
    DecodeConfig(sync=SyncPolicy("none", topology="isolated")),
    DecodeConfig(sync=SyncPolicy("tokens", every=3, summary="consensus", top=7)),
    DecodeConfig(sync=SyncPolicy("tokens", summary="live")),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_configs_travel(config: DecodeConfig) -> None:
    message = config_to_proto(config)
    assert config_from_proto(pb.DecodeConfig.FromString(message.SerializeToString())) == config


def test_every_option_is_in_the_interface() -> None:
    """An option that is added to the configuration must be added to the .proto, or named here."""
    known = {*spec._ENUMS, *spec._PLAIN, *spec._OTHER}
    assert {f.name for f in fields(DecodeConfig)} - known == set()
    assert {f.name for f in fields(SyncPolicy)} - {*spec._SYNC_ENUMS, *spec._SYNC_PLAIN, "_"} == set()
    message = set(pb.DecodeConfig.DESCRIPTOR.fields_by_name) - {"version"}
    assert message == known


def test_every_value_is_in_the_interface() -> None:
    """Each word of each choice has an enum value, and each enum value is such a word."""
    import typing

    hints: dict[str, Any] = {**typing.get_type_hints(DecodeConfig), **typing.get_type_hints(SyncPolicy)}
    for name, enum in {**spec._ENUMS, **spec._SYNC_ENUMS}.items():
        literal = next((a for a in typing.get_args(hints[name]) if typing.get_args(a)), hints[name])
        prefix = spec._prefix(enum)
        sent = {key.removeprefix(prefix).lower().replace("_", "-") for key in enum.keys()} - {"unspecified"}  # noqa: SIM118
        more = {"auto"} if name == "mode" else set()  # a policy has a mode: the server chooses it
        assert sent == set(typing.get_args(literal)) | more, name


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.DecodeConfig(), "config"),
        (pb.DecodeConfig(version=3), "config"),
        (pb.DecodeConfig(version=1, rule=99), "rule"),
        (pb.DecodeConfig(version=1, rule_args={"k" * 65: ""}), "rule_args"),
        (pb.DecodeConfig(version=1, headers=pb.Headers(style=9)), "headers"),
        (pb.DecodeConfig(version=1, seed=2**63), "seed"),
        (pb.DecodeConfig(version=1, steps=0), "steps"),
        (pb.DecodeConfig(version=1, paths=7), "paths"),
        (pb.DecodeConfig(version=1, temperature=float("inf")), "temperature"),
        (pb.DecodeConfig(version=1, gen_length=5), "gen_length"),
        (pb.DecodeConfig(version=1, sync=pb.SyncPolicy(mode=pb.SYNC_MODE_EXACT, every=2)), "every"),
    ],
)
def test_wrong_messages_name_their_field(message: pb.DecodeConfig, field: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_from_proto(message)
    assert caught.value.field == field


def test_headers_travel_as_texts(tmp_path: Path) -> None:
    """A file's name means nothing to a server, and must not: only texts are sent."""
    values: dict[str, Any] = {"paths": ["a", "b"], "summary": "s"}
    for ends in ({}, {"path_ends": ["x", "y"], "summary_end": ""}):
        file = tmp_path / "headers.json"
        file.write_text(json.dumps(values | ends))
        message = config_to_proto(DecodeConfig(headers=str(file)))
        assert str(file).encode() not in message.SerializeToString()
        received = config_from_proto(message).headers
        assert received is not None
        assert json.loads(received) == values | ends
        assert config_to_proto(DecodeConfig(headers=received)) == message


def test_what_cannot_travel_is_refused() -> None:
    for headers in ("my.json", "{", "{}", '{"paths": [], "summary": 1}'):
        with pytest.raises(UsageError, match="headers"):
            config_to_proto(DecodeConfig(headers=headers))


def test_a_sync_that_the_server_chooses_travels() -> None:
    config = DecodeConfig(paths=3, seed=4)
    assert config_to_proto(config).version == 1  # older servers take what they know
    for auto in (AutoSync(), AutoSync(overhead=0.3, topology="hub"), AutoSync(summary="consensus", top=3)):
        message = pb.DecodeConfig.FromString(config_to_proto(config, auto).SerializeToString())
        assert (message.version, message.sync.mode) == (2, pb.SYNC_MODE_AUTO)
        assert asked_of(message) == auto
        assert config_from_proto(message) == config.with_values(sync=auto.stand_in())
    assert asked_of(config_to_proto(config)) is None


@pytest.mark.parametrize(
    ("sync", "message"),
    [
        (pb.SyncPolicy(mode=pb.SYNC_MODE_AUTO, every=4), "every: sync 'auto' chooses it"),
        (pb.SyncPolicy(mode=pb.SYNC_MODE_AUTO, overlap=True), "overlap: sync 'auto' chooses it"),
        (pb.SyncPolicy(mode=pb.SYNC_MODE_AUTO, overhead=2.0), "overhead: 2.0 is no share"),
        (pb.SyncPolicy(mode=pb.SYNC_MODE_KV, overhead=0.1), "overhead: only sync 'auto' uses it"),
    ],
)
def test_what_a_choice_does_not_use_is_refused(sync: pb.SyncPolicy, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_from_proto(pb.DecodeConfig(version=2, sync=sync))


def test_a_client_names_no_link() -> None:
    with pytest.raises(UsageError, match="link: the server knows"):
        config_to_proto(DecodeConfig(), AutoSync(link="25g"))


# --- the gate ---


def spec_of(auto: AutoSync) -> pb.JobSpec:
    return pb.JobSpec(prompt=pb.Prompt(text="What is 2 plus 3?"), config=config_to_proto(DecodeConfig(), auto))


def gate_of(group: GroupSettings, link: str | None = None, found: Sequence[LinkProbe] = ()) -> Gate:
    gate = Gate(read_card("nap-tiny"), group, Limits(), chooser(group, link))
    gate.links = lambda: found
    return gate


FAST, SLOW = LinkProbe(latency=1e-9, bandwidth=1e15), LinkProbe(latency=1.0, bandwidth=1e4)


def test_the_gate_chooses_once() -> None:
    group = GroupSettings(workers=3)
    fresh = gate_of(group, found=[FAST]).accept(spec_of(AutoSync()))
    assert (fresh.config.sync.mode, fresh.spec.config.sync.mode) == ("exact", pb.SYNC_MODE_EXACT)
    assert fresh.chosen.startswith("sync auto: exact, 3 workers measured 0.00 ms and ")
    stale = gate_of(group, found=[FAST, SLOW]).accept(spec_of(AutoSync()))  # a job may come to either group
    assert stale.config.sync.mode == "none"
    again = Gate(read_card("nap-tiny"), group, Limits()).accept(stale.spec)  # after a restart, from the journal
    assert (again.config, again.shape, again.chosen) == (stale.config, stale.shape, "")
    hub = gate_of(group, found=[FAST]).accept(spec_of(AutoSync(topology="hub")))
    assert hub.config.sync.topology == "hub"
    told = gate_of(group, "wan").accept(spec_of(AutoSync()))
    assert told.chosen.startswith("sync auto: none, 3 workers over link wan")
    alone = gate_of(GroupSettings()).accept(spec_of(AutoSync()))
    assert alone.chosen == "sync auto: exact, 1 worker in one process: one worker has nobody to talk to"


def test_the_gate_says_where_nothing_is_known() -> None:
    group = GroupSettings(workers=3)
    with pytest.raises(UsageError, match="sync: no group has measured its link; start the server with --link, or give"):
        gate_of(group).accept(spec_of(AutoSync()))
    with pytest.raises(UsageError, match="sync: this server chooses none; give a mode"):
        Gate(read_card("nap-tiny"), group, Limits()).accept(spec_of(AutoSync()))
    with pytest.raises(UsageError, match="link: '7g' is neither a file nor one of nvlink"):
        chooser(group, "7g")
