"""`python -m magi_core.cli` is `magi`."""

import sys

from magi_core.cli import main

sys.exit(main())
