"""What a throttle without a limit costs where nothing else does: bytes in memory, digested, written nowhere.

On a quiet machine it is less than one in a hundred. The floor only catches what is broken.
"""

from snapstore import Throttle, _fastpipe

#: A wait for each piece would cost far more.
THROTTLE_FLOOR = 0.7


def test_a_throttle_without_a_limit(pairs, neighbour, data):
    throttle = Throttle()
    size = len(data)

    def ours():
        _fastpipe.digest(data, size=size, throttle=throttle)

    def baseline():
        _fastpipe.digest(data, size=size)

    assert pairs.run(ours, baseline, size) > THROTTLE_FLOOR
    assert throttle.bytes >= size
