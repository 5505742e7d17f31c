"""The interface that gloo is told to use."""

from __future__ import annotations

import os

import pytest

from nap_runtime.executor.interfaces import interface_of, use_interface_of


def test_the_interface_with_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


def test_what_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_of("192.0.2.77")  # nobody's: gloo is left alone
    assert "GLOO_SOCKET_IFNAME" not in os.environ
