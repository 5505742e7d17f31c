#!/usr/bin/env python3
"""The health check of the container images: exit code 0 where what runs in the container answers.

That is the server of `nap serve` on NAP_HEALTH (default 127.0.0.1:50051), by the standard gRPC health service, which
needs no token; with TLS, NAP_HEALTH_CA names the authority's certificate. Where none listens there, it is Ray's node.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from pathlib import Path

SECONDS = 3.0


def main() -> int:
    """Print what was found out in one line."""
    address = os.environ.get("NAP_HEALTH", "127.0.0.1:50051")
    try:
        answer = server(address) if listens(address) else ray_node(os.environ.get("NAP_HEALTH_RAY", "127.0.0.1:52365"))
    except Exception as error:  # whatever it is, the container is not healthy
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        return 1
    print(answer)
    return 0 if answer == "healthy" else 1


def listens(address: str) -> bool:
    """Whether anything does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError:
        return False
    return True


def server(address: str) -> str:
    """What the server says of itself."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    authority = os.environ.get("NAP_HEALTH_CA")
    if authority:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(authority).read_bytes()))
    else:
        channel = grpc.insecure_channel(address)
    with channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return "healthy"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def ray_node(address: str) -> str:
    """What Ray's agent on this node says; it answers this without a token."""
    with urllib.request.urlopen(f"http://{address}/api/local_raylet_healthz", timeout=SECONDS) as reply:
        return "healthy" if reply.status == 200 else f"status {reply.status}"


if __name__ == "__main__":
    sys.exit(main())
