"""What every benchmark shares: data, a busy thread, and pairs of timings taken in turn."""

import os
import statistics
import threading
import time

import pytest

#: Large enough that the last fsync and the threads' start are small beside the bytes.
SIZE = 256 * 1024 * 1024
ROUNDS = 5


@pytest.fixture(scope="session")
def data():
    # Random, so that nothing below can compress it; one MiB repeated, so that making it is quick.
    return os.urandom(1024 * 1024) * (SIZE // (1024 * 1024))


@pytest.fixture(params=["idle", "busy"])
def neighbour(request):
    """A process that does nothing else, or one that has a thread computing in Python all the time."""
    if request.param == "idle":
        yield request.param
        return
    ended = threading.Event()

    def compute():
        number = 0
        while not ended.is_set():
            number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=compute)
    thread.start()
    yield request.param
    ended.set()
    thread.join()


class Pairs:
    """Ours against a baseline, in turn, so that a drifting machine treats both alike."""

    def __init__(self, benchmark):
        self.benchmark = benchmark
        self.ratios = []

    def run(self, ours, baseline, size):
        """Time both `ROUNDS` times; the median of baseline's seconds by ours."""

        def once():
            # Each leaves nothing to be written for the other to wait on.
            os.sync()
            began = time.perf_counter()
            baseline()
            baseline_s = time.perf_counter() - began
            os.sync()
            began = time.perf_counter()
            ours()
            ours_s = time.perf_counter() - began
            self.ratios.append((baseline_s / ours_s, size / ours_s / 1e9, size / baseline_s / 1e9))

        self.benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
        ratios, ours_gb_s, baseline_gb_s = zip(*self.ratios[1:], strict=True)
        ratio = statistics.median(ratios)
        self.benchmark.extra_info.update(
            bytes=size,
            ratio_median=round(ratio, 2),
            ratio_min=round(min(ratios), 2),
            ratio_max=round(max(ratios), 2),
            ours_gb_s=round(statistics.median(ours_gb_s), 2),
            baseline_gb_s=round(statistics.median(baseline_gb_s), 2),
        )
        print(f"\n{self.benchmark.name}: {self.benchmark.extra_info}")
        return ratio


@pytest.fixture
def pairs(benchmark):
    return Pairs(benchmark)
