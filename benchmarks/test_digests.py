"""What the checksums cost: the C core against a twin of it that computes none.

There is no switch for them, and none is wanted. The twin is the core's own source, compiled for this run
with the same flags and a `crc32c_of` that looks at nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from built import leave_out, require
from snapstore import _fastpipe
from snapstore.bench.cache import load
from snapstore.bench.report import Line
from snapstore.bench.ways import Way

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there.

ROOT = Path(__file__).parents[1]

#: In crc32c.h, the one way to all implementations, and what it is in the twin.
COMPUTED = "return ~crc32c_update(~value, (const unsigned char *)data, size);"
SKIPPED = "return (void)data, (void)size, value;"


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The extension without checksums, beside the real one."""
    pytest.importorskip("Cython", reason="NOT MEASURED: Cython is not installed")
    if not (ROOT / "src" / "_fastpipe.pyx").exists():
        leave_out("the source of the extension is not here")
    source = tmp_path_factory.mktemp("twin") / "src"
    shutil.copytree(ROOT / "src", source)
    header = source / "snapstore" / "_native" / "crc32c.h"
    text = header.read_text()
    assert text.count(COMPUTED) == 1
    header.write_text(text.replace(COMPUTED, SKIPPED))
    library = _compiled(source)
    loader = importlib.machinery.ExtensionFileLoader("snapstore._fastpipe", str(library))
    spec = importlib.util.spec_from_file_location("snapstore._fastpipe", library, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    assert module.digest(b"something").digest == 0
    return module


def _compiled(source):
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    c_file, library = source / "_fastpipe.c", source / "_fastpipe.so"
    cython = [sys.executable, "-m", "cython", "-3", "--module-name", extension["name"], "-I", source]
    subprocess.run([*cython, source / "_fastpipe.pyx", "-o", c_file], check=True)
    includes = [f"-I{source / 'snapstore' / '_native'}", f"-I{sysconfig.get_paths()['include']}"]
    flags = [*extension["extra-compile-args"], "-shared", "-fPIC", *includes]
    compiler = require("cc", "gcc libc6-dev")
    subprocess.run(
        [compiler, *flags, c_file, "-o", library, *extension["extra-link-args"]],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return library


def save_way(name, core, source, target, size):
    """A file in the page cache into a durable one."""

    def save():
        with open(source, "rb") as file, open(target, "wb") as saved:
            assert core.save(file.fileno(), saved.fileno(), size=size).size == size
            os.fsync(saved.fileno())

    return Way(name, save, target.unlink)


def frames_way(name, core, source, size):
    """A file in the page cache, framed, over a pair of sockets to a thread that digests it, and no more."""

    def move():
        ours, theirs = socket.socketpair()
        with ours, theirs, open(source, "rb") as file:
            received = []

            def receive():
                body = core.Body(theirs.fileno(), b"", None)
                frames = core.Frames(body, chunk_size=core.CHUNK_SIZE_DEFAULT, size=size)
                received.append(core.digest(frames, size=size).size)

            receiver = threading.Thread(target=receive)
            receiver.start()
            core.send_frames(
                file.fileno(), ours.fileno(), size=size, chunk_size=core.CHUNK_SIZE_DEFAULT, http_chunked=True
            )
            receiver.join()
            assert received == [size]

    return Way(name, move)


def test_save_with_digests(race, twin, content, size, tmp_path):
    source = tmp_path / "source"
    content.write(source)
    load(source)
    digests, none = (
        save_way(name, core, source, tmp_path / "target", size)
        for name, core in (("digests", _fastpipe), ("none", twin))
    )
    race.run([digests, none])
    race.judge(Line("save-digests", digests.name, none.name))


def test_frames_with_digests(race, twin, content, size, tmp_path):
    source = tmp_path / "source"
    content.write(source)
    load(source)
    digests, none = (
        frames_way(name, core, source, size) for name, core in (("digests", _fastpipe), ("none", twin))
    )
    race.run([digests, none])
    race.judge(Line("frames-digests", digests.name, none.name))
