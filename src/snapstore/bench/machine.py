"""The machine that something was measured on: read from /proc and /sys, and nothing that names its owner."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import snapstore
from snapstore._fastpipe import CRC32C_IMPLEMENTATION
from snapstore.doctor.mount import mount_of

#: What the kernel says of a block device, below its directory in /sys, and how people call it.
_DEVICE_FILES = (
    ("model", "device/model"),
    ("scheduler", "queue/scheduler"),
    ("write cache", "queue/write_cache"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What it is made of. `memory` in bytes; `cores` are those that this process may use."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    python: str
    snapstore: str
    crc32c: str
    file_system: str
    mount_options: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return what people read: a name and a value each."""
        return [
            (
                "machine",
                f"{self.cpu}, {self.cores} cores, {self.memory / 2**30:.1f} GiB, Linux {self.kernel}",
            ),
            ("Python", f"{self.python}, snapstore {self.snapstore}, CRC32C by {self.crc32c}"),
            ("file system", f"{self.file_system} ({self.mount_options})"),
            ("device", self.device),
        ]


def look_at_machine(directory: str | os.PathLike[str]) -> Machine:
    """Return this machine, and what lies below `directory`. Raises OSError where that is none."""
    mount = mount_of(directory)
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory=memory_size(),
        kernel=platform.release(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        snapstore=snapstore.__version__,
        crc32c=CRC32C_IMPLEMENTATION,
        file_system=mount.kind if mount else "unknown",
        mount_options=",".join(mount.options) if mount else "unknown",
        device=_device(mount.source if mount else "unknown", os.stat(directory).st_dev),
    )


def memory_size() -> int:
    """Return how much memory this machine has, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as told:
        found = re.search(r"^model name\s*:\s*(.+)$", told.read(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()  # Arm's kernel gives its cores no names.


def _device(source: str, number: int) -> str:
    """The device by its name, and what the kernel knows of it; of a partition, what it knows of its disk."""
    there = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if (there / "partition").exists():
        there = there.parent
    facts = [source]
    for name, file in _DEVICE_FILES:
        with suppress(OSError):
            told = (there / file).read_text().strip()
            # Of the schedulers, the one in brackets is used.
            chosen = re.search(r"\[(.+)\]", told)
            facts.append(f"{name} {chosen[1] if chosen else told}")
    with suppress(OSError):
        facts.append(
            "rotating" if (there / "queue/rotational").read_text().strip() == "1" else "not rotating"
        )
    return ", ".join(facts)
