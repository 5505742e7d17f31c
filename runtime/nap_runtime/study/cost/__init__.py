"""A cost model: what a sync policy costs on links and devices that are not at hand (docs/cost-model.md).

`scenario` (what is decoded), `counts` (rows and bytes, from the plan), `predict` (seconds), `calibrate` (from points).
"""
