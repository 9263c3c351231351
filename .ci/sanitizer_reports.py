"""What sanitizers' reports have against the core: `python sanitizer_reports.py DIRECTORY`.

Text in, verdict out. A report of a leak counts where the core stands in its stack, since CPython leaves
much behind on purpose; every other report counts, whoever is in it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CORE = "_fastpipe"

#: LSan's own words for an exit while a thread was running: what that thread holds looks leaked.
BUSY = "was not suspended. False leaks are possible"

_LEAKS = "ERROR: LeakSanitizer"
_FAULT = re.compile(r"ERROR: (?!LeakSanitizer)\w+Sanitizer|WARNING: ThreadSanitizer|runtime error:")


def complaints(report: str) -> list[str]:
    """Return the parts of one process's report that count."""
    blocks = re.split(r"\n(?:\s*\n|=+\n)", report)
    found = [block for block in blocks if _FAULT.search(block)]
    if _LEAKS in report and BUSY not in report:
        found += [block for block in blocks if "leak of" in block and CORE in block]
    return found


def main() -> int:
    """Print them; 1 where there are any."""
    paths = sorted(Path(sys.argv[1]).iterdir())
    found = [(path, part) for path in paths for part in complaints(path.read_text(errors="replace"))]
    for path, part in found:
        print(f"--- {path}\n{part}\n")
    print(f"{len(paths)} processes left a report; {len(found)} complaints about the core")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
