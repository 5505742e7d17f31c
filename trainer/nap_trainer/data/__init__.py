"""NAP data: rows, where they come from, what is wrong with them.

Read in this order: ``schema`` (what a row is), ``read``, ``questions``, ``teachers`` and its two kinds ``openai`` and
``local``, ``journal``, ``judge``, ``curate``, ``serialize``, ``check``.
"""

from nap_trainer.data.read import read_examples, read_rows
from nap_trainer.data.schema import BadRow, NapExample, Row
from nap_trainer.data.serialize import long_cot_response, nap_response

__all__ = [
    "BadRow",
    "NapExample",
    "Row",
    "long_cot_response",
    "nap_response",
    "read_examples",
    "read_rows",
]
