"""The gRPC service `nap.v1.Decoder`: server, worker groups, clients, HTTP door. `docs/service.md` describes it."""
