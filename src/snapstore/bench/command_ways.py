"""Durable copies as people make them at a shell: baselines for those who have the commands."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING

from snapstore.bench.ways import Way

if TYPE_CHECKING:
    from snapstore.bench.stage import Stage


def command_ways(stage: Stage) -> Mapping[str, Way]:
    """Return, by their commands, those that are here: `cp` and then `sync`, `dd` past the page cache."""
    source, target = os.fspath(stage.source), os.fspath(stage.target)

    def copy() -> None:
        # Bytes, and not a second name for them, as cp makes on btrfs and XFS.
        subprocess.run(["cp", "--reflink=never", source, target], check=True)
        subprocess.run(["sync", target], check=True)

    def write_direct() -> None:
        options = [f"if={source}", f"of={target}", "bs=4M", "oflag=direct", "conv=fsync", "status=none"]
        subprocess.run(["dd", *options], check=True)

    known = {"cp": ("cp, sync", copy, ("cp", "sync")), "dd": ("dd oflag=direct", write_direct, ("dd",))}
    return {
        command: Way(name, run, stage.check_target, stage.warm)
        for command, (name, run, needed) in known.items()
        if all(map(shutil.which, needed))
    }
