"""What a throttle without a limit costs where nothing else does: bytes in memory, digested, not written."""

from __future__ import annotations

from functools import partial

from snapstore import Throttle, _fastpipe
from snapstore.bench.report import Line
from snapstore.bench.ways import Way


def test_a_throttle_without_a_limit(race, neighbour, content):
    throttle = Throttle()
    data, size = content.memory, content.size
    whole = _fastpipe.digest(data, size=size)
    digested = []

    def check():
        assert digested.pop() == whole

    def digest(**options):
        digested.append(_fastpipe.digest(data, size=size, **options))

    ways = [
        Way("throttled", partial(digest, throttle=throttle), check),
        Way("not throttled", digest, check),
    ]
    race.run(ways)
    assert throttle.bytes >= size
    race.judge(Line("throttled-against-not", "throttled", "not throttled"))
