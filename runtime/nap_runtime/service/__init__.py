"""The gRPC service `nap.v1.Decoder`: generated stubs now, server and client in a later release."""
