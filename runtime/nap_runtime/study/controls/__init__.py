"""Controls: what paths do for the summary, whether they copy each other, and what equal compute does without them.

`cases` (texts, right and wrong ones), `decoding` (paths that are given), then `reliance`, `copying`, `baselines`.
"""
