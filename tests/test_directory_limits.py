"""What a process may not have: long files, descriptors, memory. Each save is whole or nothing.

The limits belong to a process, so that each case has one of its own.
"""

from __future__ import annotations

import pytest

from processes import Process
from residue import names

#: Said by each case: what is open, and a save with its outcome in words.
PREAMBLE = """
    import errno, gc, io, resource
    from residue import descriptors, names

    CONTENT = os.urandom(100_003)
    path, mode = sys.argv[1:3]

    class Unsized:
        def __init__(self, content):
            self.read = io.BytesIO(content).read

    def limited(kind, value, call):
        '''What came of `call` under a limit: "saved", or why not, and that nothing is left then.'''
        before, opened = names(path), descriptors()
        soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value, hard))
        try:
            saved = call()
            outcome = "saved"
        except (OSError, MemoryError, RuntimeError) as error:
            outcome = error
        finally:
            resource.setrlimit(kind, (soft, hard))
        if outcome != "saved":
            words = [type(outcome).__name__]
            if isinstance(outcome, OSError):
                words += [errno.errorcode[outcome.errno], os.path.basename(outcome.filename or "nowhere")]
            outcome = " ".join(words)
            assert names(path) == before, names(path)
        gc.collect()
        assert descriptors() == opened, (descriptors(), opened)
        return outcome

    directory = SnapshotDir(path, nameless=mode == "nameless", chunk_size=4096)
"""


@pytest.fixture(params=["nameless", "named"])
def said(request, tmp_path):
    """What a case says that runs in a directory of its own; afterwards that has whole snapshots alone."""

    def said(script):
        with Process(PREAMBLE + script, tmp_path / "stored", request.param) as process:
            lines = process.finish()
        found = names(tmp_path / "stored")
        assert [name for name in found if name.startswith(".")] == []
        return lines

    return said


@pytest.mark.parametrize("source", ["CONTENT", "Unsized(CONTENT)"])
def test_a_file_size_limit_is_an_error_and_kills_nobody(said, source):
    """The kernel sends SIGXFSZ, too, which Python ignores."""
    lines = said(f"""
    for size in (0, 1, 4095, 4096, 50_000, 100_002):
        say(limited(resource.RLIMIT_FSIZE, size, lambda: directory.save_from({source}, 1)))
    say(limited(resource.RLIMIT_FSIZE, 200_000, lambda: directory.save_from({source}, 1)))
    say(directory.verify(1).size)
    """)
    assert lines == ["OSError EFBIG 0000000000000001.db"] * 6 + ["saved", "100003"]


def test_every_number_of_descriptors_is_enough_or_an_error(said):
    lines = said("""
    used = max(int(number) for number, _ in descriptors())
    for spare in range(16):
        say(limited(resource.RLIMIT_NOFILE, used + spare, lambda: directory.save_from(CONTENT, spare)))
    assert directory.verify(15).size == len(CONTENT)
    """)
    refused = lines.index("saved")
    assert 1 < refused < 10
    assert lines[refused:] == ["saved"] * (16 - refused)
    assert lines[:refused] == [f"OSError EMFILE {spare:016x}.db" for spare in range(refused)]


def test_every_amount_of_memory_is_enough_or_an_error(said):
    """From none more than the process has to plenty, in pages at first."""
    lines = said("""
    directory.save_from(CONTENT, 1000)
    def used():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * 4096
    for step in range(40):
        spare = 4096 * int(1.25 ** step)
        say(limited(resource.RLIMIT_AS, used() + spare, lambda: directory.save_from(Unsized(CONTENT), step)))
    say(directory.verify(39).size)
    """)
    assert lines[-2:] == ["saved", "100003"]
    outcomes = {" ".join(line.split()[:2]) for line in lines[:-1]}
    assert outcomes <= {"saved", "MemoryError", "OSError ENOMEM", "BlockingIOError EAGAIN"}
    assert len(outcomes) > 1
