"""`nap bench`: our decodes and their peers, measured in one run on the same weights (docs/bench.md)."""
