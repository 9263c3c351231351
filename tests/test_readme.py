"""The README keeps to the truth: tests that it names are there, and its PySyncObj node runs."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.skipif(
    not README.exists(), reason="NOT TESTED: these tests run away from the README"
)

#: Somebody may take a port between its look and the node's.
ATTEMPTS = 5

#: An election, some writes, and the end, on a busy machine.
NODE_S_MAX = 120.0

#: What a node tells of its store before it ends, in the place of its last line.
LAST_LINE = "    store.destroy_synchronous()\n"
TELL = """\
    with dumps.kv.reading() as kv, kv.env.begin() as txn:
        print(sorted(key.decode() for key, value in txn.cursor() if value == b"of-" + key))
"""


def code():
    """The block of the README that makes a node."""
    (block,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        if "TicketDumps" in block
    ]
    assert block.count(LAST_LINE) == 1
    return block.replace(LAST_LINE, TELL + LAST_LINE)


def free_address():
    """An address whose port and the next one are free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return f"127.0.0.1:{port}"


def test_every_test_that_is_named_is_there():
    text = README.read_text()
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", text)
    assert named
    for file, test in named:
        assert f"def {test}(" in (README.parent / "tests" / file).read_text(), (file, test)


def test_the_integration_has_thirty_lines():
    lines = [line for line in code().replace(TELL, "").splitlines() if line.strip()]
    assert len(lines) <= 36  # Imports and all.


def play(path):
    """Three nodes, three writes through each; what each has at its end, or None for a taken port."""
    addresses = [free_address() for _ in range(3)]
    nodes = []
    for number, address in enumerate(addresses):
        others = [other for other in addresses if other != address]
        command = [sys.executable, "-c", code(), str(path / f"node{number}"), address, *others]
        (path / f"node{number}").mkdir(parents=True)
        nodes.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": ":".join(filter(None, sys.path))},
            )
        )
    try:
        for number, node in enumerate(nodes):
            keys = [f"{number}{letter}" for letter in "abc"]
            node.stdin.write("".join(f"{key} of-{key}\n" for key in keys))
            node.stdin.flush()
        ended = [node.communicate(timeout=NODE_S_MAX) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    if any("Address already in use" in err for _, err in ended):
        return None
    assert [node.returncode for node in nodes] == [0, 0, 0], ended
    return [out for out, _ in ended]


@pytest.mark.slow
def test_its_node_runs(tmp_path):
    for attempt in range(ATTEMPTS):
        outs = play(tmp_path / str(attempt))
        if outs is not None:
            break
    assert len(outs) == 3
    for number, out in enumerate(outs):
        assert {f"{number}{letter}" for letter in "abc"} <= set(re.findall(r"\w+", out))
