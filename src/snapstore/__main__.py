"""`python -m snapstore`: the same as the command `snapstore`."""

from __future__ import annotations

import sys

from snapstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
