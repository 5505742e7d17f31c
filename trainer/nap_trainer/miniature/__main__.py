"""`python -m nap_trainer.miniature`."""

from __future__ import annotations

import sys

from nap_trainer.miniature.cli import main

if __name__ == "__main__":
    sys.exit(main())
