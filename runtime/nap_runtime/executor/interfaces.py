"""Which network interface a process group's sockets use."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def use_interface_of(address: str) -> None:
    """Let gloo listen where this node's IPv4 `address` is, unless GLOO_SOCKET_IFNAME says otherwise.

    Left alone, gloo takes whatever the host's own name resolves to: 127.0.1.1 on Debian and Ubuntu, which no other
    host reaches.
    """
    name = None if "GLOO_SOCKET_IFNAME" in os.environ else interface_of(address)
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_of(address: str) -> str | None:
    """The interface with an IPv4 address; None where there is none, or where this is not Linux."""
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(any_socket, _GET_ADDRESS, request)
            except OSError:
                continue  # an interface without an address
            if answer[20:24] == wanted:
                return name
    return None
