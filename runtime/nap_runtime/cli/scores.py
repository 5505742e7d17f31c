"""Shares of right answers, and what a path or several say: they live in `metrics.shares`."""

from __future__ import annotations

from nap_runtime.metrics.shares import Share, last_number, majority

__all__ = ["Share", "last_number", "majority"]
