"""List operations: problems whose answer is a list, its tokens depending on each other.

In the manner of ParallelBench's waiting line: some operations fix every place by itself (copy, reverse), some make
places depend on all of the list (sort, remove), some leave a choice that must be made once for all places (shuffle).
The first kind can be written at all places at once, the last only as far as the writers know of each other.

Read in this order: ``operations``, ``generate``.
"""

from nap_trainer.lists.generate import METHODS, SPLITS, ListProblem, Split, generate, split_of
from nap_trainer.lists.operations import OPERATIONS, Operation

__all__ = ["METHODS", "OPERATIONS", "SPLITS", "ListProblem", "Operation", "Split", "generate", "split_of"]
