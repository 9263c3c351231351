"""CRC32C: the numbers of RFC 3720, and that every way to them gives the same."""

from __future__ import annotations

import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore import _fastpipe

HEADER_FOLDER = Path(__file__).parent.parent / "src" / "snapstore" / "_native"

#: RFC 3720, B.4, and the check value of the CRC catalogues.
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]

#: As CRC32C_LANE in crc32c.h: three lanes make a round.
LANE = 2048
LENGTHS = sorted(
    {0, 1, 7, 8, 9, 15, 16, 17, 4095, 4096, 4097}
    | {lanes * LANE + more for lanes in (1, 2, 3, 4, 6, 9) for more in (-9, -8, -1, 0, 1, 7, 8, 9)}
)

#: Prints the implementation, then for each length the digest by the processor's way and by the tables.
PROGRAM = """
#include "crc32c.h"
#include <stdio.h>
static unsigned char data[1 << 15];
int main(void)
{
    static const size_t lengths[] = {%s};
    uint32_t state = 1;
    crc32c_prepare();
    printf("%%s\\n", crc32c_implementation);
    for (size_t at = 0; at < sizeof(data); at++) {
        state = state * 1664525u + 1013904223u;
        data[at] = (unsigned char)(state >> 24);
    }
    for (size_t at = 0; at < sizeof(lengths) / sizeof(*lengths); at++) {
        uint32_t first = crc32c_of(0, data, lengths[at] / 3);
        uint32_t second = crc32c_of(0, data + lengths[at] / 3, lengths[at] - lengths[at] / 3);
        printf("%%08x %%08x %%08x\\n", crc32c_of(0, data, lengths[at]),
               crc32c_of_portable(0, data, lengths[at]),
               crc32c_join(first, second, lengths[at] - lengths[at] / 3));
    }
    return 0;
}
"""


def program_data(size):
    """The bytes that PROGRAM makes for itself."""
    state, data = 1, bytearray()
    for _ in range(size):
        state = (state * 1664525 + 1013904223) % 2**32
        data.append(state >> 24)
    return bytes(data)


@pytest.mark.parametrize(("data", "digest"), VECTORS)
@pytest.mark.parametrize("crc32c", [_fastpipe.crc32c, _fastpipe.crc32c_portable])
def test_the_published_vectors_come_out(crc32c, data, digest):
    assert crc32c(data) == digest


@pytest.mark.parametrize("start", [0, 1, 5])
def test_the_processors_way_and_the_tables_agree_around_the_lanes(start):
    data = random.Random(start).randbytes(LENGTHS[-1] + start)
    view = memoryview(data)[start:]
    for length in LENGTHS:
        for value in (0, 1, 0xFFFFFFFF, 0x12345678):
            expected = _fastpipe.crc32c_portable(view[:length], value)
            assert _fastpipe.crc32c(view[:length], value) == expected, length


def test_this_machine_takes_the_way_of_its_processor():
    flags = Path("/proc/cpuinfo").read_text()
    if "sse4_2" in flags:
        assert _fastpipe.CRC32C_IMPLEMENTATION == "sse4.2"
    elif "crc32" in flags:
        assert _fastpipe.CRC32C_IMPLEMENTATION == "armv8"
    else:
        assert _fastpipe.CRC32C_IMPLEMENTATION == "portable"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_digests_combine_to_that_of_both(first, second):
    whole = _fastpipe.crc32c(first + second)
    one, other = _fastpipe.crc32c(first), _fastpipe.crc32c(second)
    assert _fastpipe.crc32c(second, one) == whole
    assert _fastpipe.crc32c_combine(one, other, len(second)) == whole


def test_lengths_beyond_32_bits_combine():
    at_once = _fastpipe.crc32c_combine(0xE3069283, zeros_of(40), 1 << 40)
    half = zeros_of(39)
    twice = _fastpipe.crc32c_combine(_fastpipe.crc32c_combine(0xE3069283, half, 1 << 39), half, 1 << 39)
    assert at_once == twice


def zeros_of(power):
    """The digest of 2^power zero bytes."""
    digest = _fastpipe.crc32c(bytes(1))
    for doubled in range(power):
        digest = _fastpipe.crc32c_combine(digest, digest, 1 << doubled)
    return digest


@pytest.mark.parametrize("data", [bytearray(b"123456789"), memoryview(b"123456789")])
def test_any_contiguous_buffer_is_taken(data):
    assert _fastpipe.crc32c(data) == 0xE3069283


def test_what_is_no_buffer_or_no_digest_is_refused():
    with pytest.raises(TypeError):
        _fastpipe.crc32c("text")
    with pytest.raises(TypeError):
        _fastpipe.crc32c(memoryview(b"abcd")[::2])
    for value in (-1, 2**32):
        with pytest.raises(OverflowError):
            _fastpipe.crc32c(b"", value)


def run_program(folder, compiler, *options, runner=()):
    if not HEADER_FOLDER.is_dir():
        pytest.skip("NOT TESTED: crc32c.h is in the source tree, and these tests run away from it")
    source, program = folder / "main.c", folder / "main"
    source.write_text(PROGRAM % ", ".join(map(str, LENGTHS)))
    strict = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
    subprocess.run(
        [compiler, *strict, *options, f"-I{HEADER_FOLDER}", str(source), "-o", str(program)], check=True
    )
    output = subprocess.run([*runner, str(program)], check=True, capture_output=True, text=True).stdout
    implementation, *lines = output.splitlines()
    data = program_data(LENGTHS[-1])
    digests = [_fastpipe.crc32c_portable(data[:length]) for length in LENGTHS]
    assert lines == [" ".join([f"{digest:08x}"] * 3) for digest in digests]
    return implementation


def test_the_header_stands_alone_without_asserts(tmp_path):
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler on PATH, so crc32c.h was not compiled by itself")
    assert run_program(tmp_path, compiler, "-DNDEBUG") == _fastpipe.CRC32C_IMPLEMENTATION


def test_arm64_gives_the_same_numbers_by_its_own_instruction(tmp_path):
    compiler, runner = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    if compiler is None or runner is None:
        pytest.skip(
            "NOT TESTED: arm64 needs aarch64-linux-gnu-gcc and qemu-aarch64-static on PATH "
            "(Debian: gcc-aarch64-linux-gnu, qemu-user-static)"
        )
    assert run_program(tmp_path, compiler, "-static", runner=[runner]) == "armv8"
