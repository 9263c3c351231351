"""The file systems that a power cut is tried on: how each is made, and mounted after a cut.

One table, and the two commands' worth of knowledge behind it. No logs, no states.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore.testing.power_cut.errors import PowerCutUnavailable

if TYPE_CHECKING:
    from pathlib import Path

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`size` in bytes, the smallest that is comfortable; `make` is the command, without the image."""

    name: str
    size: int
    make: tuple[str, ...]
    mount_options: str = ""

    def format(self, image: Path) -> None:
        """Make an empty file system in a new file at `image`."""
        if shutil.which(self.make[0]) is None:
            raise PowerCutUnavailable(f"there is no {self.make[0]} here")
        with image.open("xb") as file:
            file.truncate(self.size)
        done = subprocess.run([*self.make, str(image)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PowerCutUnavailable(f"{self.make[0]} failed: {done.stderr.strip()}")


#: The kernel would go on writing zeros to ext4's inode tables beside the workload: noinit_itable.
#: Two images of one xfs may be mounted at once by two processes: nouuid.
FILE_SYSTEMS = {
    kind.name: kind
    for kind in (
        FileSystem("ext4", 64 * _MIB, ("mkfs.ext4", "-q", "-F", "-E", "nodiscard"), "noinit_itable"),
        FileSystem("xfs", 300 * _MIB, ("mkfs.xfs", "-q", "-f", "-K"), "nouuid"),
        FileSystem("btrfs", 128 * _MIB, ("mkfs.btrfs", "-q", "-f", "-K")),
    )
}
