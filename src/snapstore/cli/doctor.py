"""The commands that look and tell: doctor, of a directory and what it stands on; explain, of a snapshot."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from snapstore.cli.exits import ExitCode
from snapstore.cli.screen import format_size, transfer_bar
from snapstore.doctor import Explanation, Finding, Level, examine
from snapstore.doctor import explain as explain_snapshot
from snapstore.doctor.explanation import data_shown, kind_of_data

if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager

    from snapstore._fastpipe import Progress
    from snapstore.cli.screen import Screen
    from snapstore.meta import ConfState

#: From the largest; a node's snapshots are hours old, an operator's leftovers weeks.
_TIME_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

#: What a store calls its parts, in the order in which people want them.
_IMAGE_WORDS = (
    ("data_format", "data format {}"),
    ("journal", "journal: {}"),
    ("pages", "{} pages"),
    ("page_size", "of {} bytes"),
    ("txn_id", "transaction {}"),
    ("change_counter", "change counter {}"),
    ("entries", "{} entries in its main database"),
    ("etcd_revision", "etcd revision {}"),
)


def doctor(args: argparse.Namespace, screen: Screen) -> int:
    """Examine a directory, and sweep it first with --fix; OUTCOME_BAD where there are problems."""
    path = _existing(args.dir)
    with _watched(screen, "read back", args.read) as progress:
        examination = examine(path, read=args.read, fix=args.fix, progress=progress)
    rows = [_row(found) for found in examination.findings]
    screen.table(examination.to_json(), ("WHAT", "SIZE", "AGE", "STATE", "IN WORDS"), rows)
    return ExitCode.OUTCOME_BAD if examination.problems else ExitCode.DONE


def explain(args: argparse.Namespace, screen: Screen) -> int:
    """Say all that is known of a snapshot; OUTCOME_BAD where it is broken."""
    path = _existing(args.dir)
    with _watched(screen, f"read back {args.index}", args.read) as progress:
        explanation = explain_snapshot(path, args.index, read=args.read, progress=progress)
    screen.table(explanation.to_json(), ("", ""), _explained(explanation))
    return ExitCode.OUTCOME_BAD if explanation.problem else ExitCode.DONE


def _existing(path: str) -> str:
    with suppress(FileNotFoundError):  # Another error says more, as that this user may not look there.
        os.stat(path)
    if not os.path.isdir(path):
        raise FileNotFoundError(errno.ENOENT, "no directory of snapshots is here", path)
    return path


def _watched(screen: Screen, label: str, read: bool) -> AbstractContextManager[Progress | None]:
    return transfer_bar(screen, label, None) if read else nullcontext()


def _row(found: Finding) -> tuple[str, ...]:
    words = found.seen
    if found.level is not Level.OK:
        words = f"{words}. It means: {found.means}. To do: {found.advice}."
    size = "" if found.size is None else format_size(found.size)
    age = "" if found.age_s is None else format_age(found.age_s)
    return ascii(found.subject)[1:-1], size, age, found.level.value, _shown(words)


def _shown(words: str) -> str:
    """On any terminal, in one row: a marker may have been written by anybody, and paths have any letters."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def format_age(age_s: float) -> str:
    """Return an age in seconds as people read it, in the largest unit that fits: `3 h`."""
    unit_s, unit = next((known for known in _TIME_UNITS if age_s >= known[0]), _TIME_UNITS[-1])
    return f"{age_s / unit_s:.0f} {unit}"


def _explained(explanation: Explanation) -> list[tuple[str, str]]:
    saved, meta, manifest = explanation.saved, explanation.saved.meta, explanation.saved.manifest
    rows = [("index", f"{saved.index} ({saved.index:#018x})")]
    if manifest:
        rows += [("term", str(meta.term)), ("members", _members(meta.conf_state)), ("data", _data(meta.data))]
        rows += [
            ("chunks", f"{len(manifest.chunk_digests)} of {format_size(manifest.chunk_size)}"),
            ("digest", saved.digest or "-"),
        ]
    rows += [
        ("size", f"{format_size(saved.size)} ({saved.size} bytes)"),
        ("saved", _moment(explanation.saved_at_s)),
        ("file", f"{_shown(str(saved.path))}, mode {explanation.mode:04o}, user {explanation.user}"),
        ("store", _image(explanation.image)),
        ("read back", _read_back(explanation)),
        ("state", _shown(explanation.problem or "ok")),
    ]
    return rows


def _moment(epoch_s: float) -> str:
    try:
        return f"{datetime.fromtimestamp(epoch_s, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{epoch_s:.0f} s after 1970, by a clock that was wrong"


def _members(conf_state: ConfState) -> str:
    told = conf_state.to_json()
    auto = "; it leaves the joint configuration by itself" if told.pop("auto_leave", False) else ""
    groups = (f"{name.replace('_', ' ')} {', '.join(map(str, ids))}" for name, ids in told.items())
    return ("; ".join(groups) or "not told") + auto


def _data(data: bytes) -> str:
    if not data:
        return "none"
    return f"{format_size(len(data))} of {kind_of_data(data)}: {data_shown(data)}"


def _image(image: dict[str, Any]) -> str:
    if image["store"] == "unknown":
        return "of no known kind: not LMDB, SQLite or bbolt"
    words = [words.format(image[key]) for key, words in _IMAGE_WORDS if key in image]
    return ", ".join([image["store"], *words]).replace("pages, of", "pages of")


def _read_back(explanation: Explanation) -> str:
    if explanation.read_back is None:
        return "not now; --read does, and `snapstore verify DIR INDEX`"
    return "every byte, and it is what was saved" if explanation.read_back else "it is not what was saved"
