"""What every hostile peer is held against: a good push beside it, the log, and the directory.

Knows nothing of what the peers say; the tables of the tests do.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter

from nodes import CONTENT, META, RawPeer, frames, push, put_head, written
from snapstore.meta import SnapshotMeta

LOGGER = "snapstore.transport"

#: The index of the good push. Hostile ones offer 7, which is never stored, so neither makes the other stale.
GOOD_INDEX = 5

#: A line of the log is read by people: a peer must not fill it with what it said.
LOG_LINE_SIZE_MAX = 1000

#: Distinct hostile peers that were met in this run, by kind.
MET: Counter[str] = Counter()


def met(kind, count=1):
    """Note that `count` more hostile peers of `kind` were stood."""
    MET[kind] += count


@contextlib.contextmanager
def undisturbed(follower, **head):
    """A good push is under way meanwhile, half of it said; afterwards it comes to its end.

    `head` is what its head must have besides.
    """
    body = frames(CONTENT)
    with RawPeer(follower.url) as good:
        good.say(put_head(CONTENT, index=GOOD_INDEX, **head))
        good.hear_continue()
        good.say(body[: len(body) // 2])
        yield
        good.say(body[len(body) // 2 :])
        assert good.hear()[0] == 201
    assert_nothing_but_the_good(follower)


def heard_of(follower, *said, **head):
    """All that the server answers to somebody who says this and ends, beside a good push.

    `head` is what the good one's head must have besides.
    """
    with undisturbed(follower, **head), RawPeer(follower.url) as peer:
        peer.say(*said)
        peer.end()
        return peer.hear_all()


def push_the_good(follower):
    """A good push from its beginning to its end."""
    return push(follower, written(meta=SnapshotMeta(GOOD_INDEX, META.term, META.conf_state)))


def assert_nothing_but_the_good(follower):
    """The directory has the good snapshot, whole, and no name besides."""
    assert follower.directory.verify(GOOD_INDEX).size == len(CONTENT)
    assert follower.indexes == [GOOD_INDEX]
    assert len(follower.names()) == 2


def hostile_lines(caplog):
    """What the log says of anybody but the good push, each line with its level."""
    return [record for record in caplog.records if record.name == LOGGER]


def assert_one_line(caplog, words=""):
    """The log has one line on the hostile peer, not long, not of several lines, and no traceback."""
    (line,) = hostile_lines(caplog)
    text = line.getMessage()
    assert line.exc_info is None, text
    assert words in text
    assert len(text) <= LOG_LINE_SIZE_MAX, len(text)
    assert text.isprintable(), text


def statuses(heard):
    """The statuses of the final answers in what was heard until the line ended."""
    found = map(int, re.findall(rb"(?m)^HTTP/1\.1 ([0-9]{3}) ", heard))
    return [status for status in found if status >= 200]
