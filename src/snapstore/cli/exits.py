"""What errors mean to a shell: an exit code each, and a word on what to do next.

One table, read from the top: the first class that fits counts.
"""

from __future__ import annotations

import enum
import errno
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore import errors

if TYPE_CHECKING:
    from typing_extensions import Self


class UsageError(Exception):
    """The command line is wrong; `usage` says how it should be."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class ExitCode(enum.IntEnum):
    """The exit codes of `snapstore`; `--help` lists them with these words."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member that is its number, and knows its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = 0, "done"
    OUTCOME_BAD = 1, "a comparison or a verification failed: bytes are not what was promised"
    USAGE = 2, "the command line is wrong"
    NOT_FOUND = 3, "no such snapshot, store or file"
    EXISTS = 4, "it exists already; nothing was changed"
    PEER = 5, "the peer refused, or cannot be reached"
    UNAVAILABLE = 6, "busy or not available now; try again later"
    SYSTEM = 7, "the system failed: disk full, permission denied, something is not installed"
    INTERRUPTED = 130, "interrupted"
    READER_LEFT = 141, "the reader of our output left (SIGPIPE)"


#: Error, exit code, and what to do about it.
_MEANINGS: tuple[tuple[type[BaseException], ExitCode, str], ...] = (
    (errors.SnapshotTruncated, ExitCode.OUTCOME_BAD, "the bytes are not all here: take or fetch it anew"),
    (errors.SnapshotCorrupt, ExitCode.OUTCOME_BAD, "do not restore from it: take or fetch it anew"),
    (errors.SnapshotTooLarge, ExitCode.OUTCOME_BAD, "was the source written to meanwhile?"),
    (errors.SnapshotNotFound, ExitCode.NOT_FOUND, "`snapstore ls DIR` lists what is stored"),
    (FileNotFoundError, ExitCode.NOT_FOUND, "check the path"),
    (errors.SnapshotExists, ExitCode.EXISTS, "give another --index, or use the stored one"),
    (FileExistsError, ExitCode.EXISTS, "name another target"),
    (errors.PeerUnreachable, ExitCode.PEER, "is it running there, and is the port right?"),
    (errors.TransportError, ExitCode.PEER, ""),
    (errors.SnapshotTemporarilyUnavailable, ExitCode.UNAVAILABLE, "try again"),
    (errors.SnapshotBusy, ExitCode.UNAVAILABLE, "try again when it is done"),
    (errors.CaptureTimeout, ExitCode.UNAVAILABLE, "try again"),
    (errors.MissingExtra, ExitCode.SYSTEM, ""),
    (errors.SnapstoreError, ExitCode.SYSTEM, ""),
    (PermissionError, ExitCode.SYSTEM, "run it as the user who owns the files"),
    (OSError, ExitCode.SYSTEM, ""),
)


def exit_code_of(error: BaseException) -> ExitCode | None:
    """Return the exit code for `error`; None for what is no outcome but a fault of the program."""
    if isinstance(error, errors.PeerRejected) and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return ExitCode.UNAVAILABLE
    return next((code for kind, code, _ in _MEANINGS if isinstance(error, kind)), None)


def explain(error: BaseException) -> str:
    """Return one line for people: what happened, and what to do."""
    text, advice = str(error), _advice(error)
    if isinstance(error, errors.PeerRejected):
        text = f"the peer refused: {error.reason} (HTTP status {error.status})"
    elif isinstance(error, OSError) and not isinstance(error, errors.SnapstoreError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(text.split())
    return f"{text}; {advice}" if advice else text


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or use another directory"
    if isinstance(error, errors.PeerRejected):
        return "" if error.retry_after_s is None else f"try again in {error.retry_after_s:g} s"
    return next(advice for kind, _, advice in _MEANINGS if isinstance(error, kind))


def exit_code_table() -> str:
    """Return the codes and their meanings, a line each."""
    return "\n".join(f"  {code.value:<4} {code.meaning}" for code in ExitCode)
