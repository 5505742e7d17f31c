"""The `nap` command. Heavy imports wait for the command that needs them, so `nap --help` is quick."""

from nap_runtime.cli.app import main

__all__ = ["main"]
