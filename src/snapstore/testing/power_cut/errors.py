"""What ends a run without a verdict. Names only; whether a save is sound is a report's to say."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from snapstore.errors import SnapstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


class PowerCutUnavailable(SnapstoreError):
    """This machine cannot cut power: no root, no FUSE, no loop devices, no such file system."""


class WorkloadFailed(SnapstoreError):
    """The workload, the check or the harness itself raised, or took too long; carries the traceback."""


@contextlib.contextmanager
def needed(what: str) -> Iterator[None]:
    """Let an OSError inside say that this machine does not have `what`."""
    try:
        yield
    except OSError as error:
        raise PowerCutUnavailable(f"{what} cannot be had here: {error}") from error
