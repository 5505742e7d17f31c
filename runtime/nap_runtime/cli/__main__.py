"""`python -m nap_runtime.cli` is `nap`."""

import sys

from nap_runtime.cli.app import main

sys.exit(main())
