"""From rows to batches: tokenised segments, the decoder's own layouts, deterministic order.

Read in this order: ``segments`` (a set as arrays), ``sources`` (where sets come from), ``formats`` (what is laid out of
a row), ``collate`` (canvases of a batch), ``loader`` (which rows, when).
"""

from nap_trainer.batches.collate import HostBatch
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.loader import Loader
from nap_trainer.batches.segments import SegmentTable

__all__ = ["HostBatch", "Loader", "Marks", "SegmentTable"]
