"""What a throttle without a limit costs where nothing else does: bytes in memory, digested, not written."""

from __future__ import annotations

from functools import partial

from snapstore import Throttle, _fastpipe
from snapstore.bench.report import Line
from snapstore.bench.ways import Way

#: Once over 256 MiB takes 0.02 s, and noise alone made single rounds of that 0.15 to 1.75 times as fast.
TIMES = 8


def test_a_throttle_without_a_limit(race, neighbour, content):
    throttle = Throttle()
    data, size = content.memory, content.size
    whole = _fastpipe.digest(data, size=size)
    digested = []

    def check():
        assert digested == TIMES * [whole]
        digested.clear()

    def digest(**options):
        digested.extend(_fastpipe.digest(data, size=size, **options) for _ in range(TIMES))

    ways = [
        Way("throttled", partial(digest, throttle=throttle), check),
        Way("not throttled", digest, check),
    ]
    race.run(ways, size=TIMES * size)
    assert throttle.bytes >= TIMES * size
    race.judge(Line("throttled-against-not", "throttled", "not throttled"))
