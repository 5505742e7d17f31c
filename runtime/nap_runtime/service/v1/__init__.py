"""Generated from `proto/nap_runtime/service/v1` by `make stubs`; not to be edited."""
