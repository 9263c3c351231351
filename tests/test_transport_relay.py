"""The relay between TLS and a plain socket, alone; and the contexts that the package makes."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading

import pytest

from certificates import Authority, locked_key
from nodes import WAIT_S
from snapstore.transport.relay import Relay
from snapstore.transport.tls import TlsFailed, client_context, server_context

#: A short time that a test has to wait out.
SHORT_S = 0.15

HOST = "127.0.0.1"

pytestmark = pytest.mark.usefixtures("nothing_lost")


@contextlib.contextmanager
def joined(node, background, **options):
    """Two relays that speak to each other; their plain ends."""
    ours, theirs = socket.socketpair()
    options = {"handshake_timeout_s": WAIT_S, "idle_timeout_s": WAIT_S, **options}
    with ours, theirs:
        serving = background(Relay, ours, node.server, host=None, **options)
        with Relay(theirs, node.client, host=HOST, **options) as client, serving.result(WAIT_S) as server:
            for plain in (client.plain, server.plain):
                plain.settimeout(WAIT_S)
            yield client, server


def read_all(plain):
    said = bytearray()
    while piece := plain.recv(100_000):
        said += piece
    return bytes(said)


def test_bytes_pass_both_ways_at_once_until_each_says_its_end(node, background):
    there, back = os.urandom(3 * 1024 * 1024 + 1), os.urandom(2 * 1024 * 1024 + 7)
    with joined(node, background) as (client, server):
        reading = [background(read_all, end.plain) for end in (server, client)]

        def write(plain, content):
            plain.sendall(content)
            plain.shutdown(socket.SHUT_WR)

        writing = [background(write, client.plain, there), background(write, server.plain, back)]
        for done in writing:
            done.result(WAIT_S)
        assert [heard.result(WAIT_S) for heard in reading] == [there, back]


def test_one_way_ends_and_the_other_goes_on(node, background):
    with joined(node, background) as (client, server):
        client.plain.shutdown(socket.SHUT_WR)
        assert server.plain.recv(1) == b""
        for size in (1, 16 * 1024, 1_000_000):
            content = os.urandom(size)
            sending = background(server.plain.sendall, content)
            heard = bytearray()
            while len(heard) < size:
                heard += client.plain.recv(size)
            assert bytes(heard) == content
            sending.result(WAIT_S)


def test_what_was_written_before_the_close_arrives(node, background):
    content = os.urandom(150_000)
    with joined(node, background) as (client, server):
        client.plain.sendall(content)
        client.close()
        assert read_all(server.plain) == content


def test_a_reader_that_is_slow_holds_the_writer(node, background):
    with joined(node, background) as (client, server):
        client.plain.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            # Between two attempts both relays have had time to take what they can.
            while sent < 64 * 1024 * 1024:
                sent += client.plain.send(bytes(64 * 1024))
        assert sent < 64 * 1024 * 1024
        assert len(server.plain.recv(1)) == 1
        client.cut()  # To take leave in good order it would wait for the reader.


def test_a_peer_that_takes_nothing_is_cut_when_its_time_is_over(node, background):
    ours, theirs = socket.socketpair()
    options = {"handshake_timeout_s": WAIT_S, "idle_timeout_s": SHORT_S}
    with ours, theirs:
        shaking = background(node.server.wrap_socket, theirs, server_side=True, suppress_ragged_eofs=False)
        relay = Relay(ours, node.client, host=HOST, **options)
        with shaking.result(WAIT_S):
            relay.plain.settimeout(WAIT_S)
            with pytest.raises(ConnectionError):
                relay.plain.sendall(bytes(64 * 1024 * 1024))
            relay.close()
            assert "took nothing for 0.15 s" in str(relay.failure)


@pytest.mark.parametrize("bit", [0, 100, 1000])
def test_a_bit_turned_on_the_line_is_an_error_and_not_an_end(node, background, bit):
    network, far = socket.socketpair()
    middle, theirs = socket.socketpair()

    def pass_on(source, target, turn):
        passed = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1000)):
                if turn.is_set() and passed <= bit < passed + len(data):
                    data[bit - passed] ^= 1
                passed += len(data) if turn.is_set() else 0
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    turn = threading.Event()
    options = {"handshake_timeout_s": WAIT_S, "idle_timeout_s": WAIT_S}
    with network, far, middle, theirs:
        passing = [
            background(pass_on, far, middle, turn),
            background(pass_on, middle, far, threading.Event()),
        ]
        serving = background(Relay, theirs, node.server, host=None, **options)
        with Relay(network, node.client, host=HOST, **options) as client, serving.result(WAIT_S) as server:
            server.plain.settimeout(WAIT_S)
            turn.set()
            client.plain.sendall(bytes(20_000))
            with contextlib.suppress(ConnectionError):
                assert len(read_all(server.plain)) < 20_000
            assert isinstance(server.failure, TlsFailed)
        for end in (network, theirs):
            end.shutdown(socket.SHUT_RDWR)
        for done in passing:
            done.result(WAIT_S)


# Contexts.


def test_files_that_are_wrong_are_named_with_what_is_wrong(node, tmp_path):
    empty, missing = tmp_path / "empty.pem", tmp_path / "missing.pem"
    empty.touch()
    other = Authority(tmp_path / "theirs").issue(HOST)
    locked = locked_key(node.key, tmp_path / "locked.key")
    for make in (server_context, client_context):
        with pytest.raises(FileNotFoundError) as raised:
            make(node.cert, missing, node.ca)
        assert raised.value.filename == str(missing)
        with pytest.raises(ValueError, match=r"empty\.pem has no certificates"):
            make(node.cert, node.key, empty)
        with pytest.raises(ValueError, match=r"and .*key: key values mismatch"):
            make(node.cert, other.key, node.ca)
        with pytest.raises(ValueError, match=r"empty\.pem and "):
            make(empty, node.key, node.ca)
        with pytest.raises(ValueError, match=r"locked\.key is encrypted"):
            make(node.cert, locked, node.ca)


def test_contexts_are_strict(node):
    server, client = node.server, node.client
    assert server.verify_mode == client.verify_mode == ssl.CERT_REQUIRED
    assert client.check_hostname
    for context in (server, client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
