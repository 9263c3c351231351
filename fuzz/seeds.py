"""Write the seeds of every target into `fuzz/corpus`: `python -m fuzz.seeds`.

A seed's name says what its target makes of it, `good-...` or `bad-...`; files with other names, such as
what a crash left, stay as they are.
"""

from __future__ import annotations

import importlib
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

TARGETS = (
    "body",
    "etcd_blobs",
    "etcd_database",
    "etcd_messages",
    "frames",
    "heads",
    "lmdb_file",
    "lmdb_pages",
    "manifest",
    "meta",
    "offer",
    "sqlite_file",
    "text",
)


def main() -> None:
    """Write them."""
    for name in TARGETS:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for seed, data in importlib.import_module(f"fuzz.{name}").seeds().items():
            (CORPUS / name / seed).write_bytes(data)


if __name__ == "__main__":
    main()
