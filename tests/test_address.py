"""Addresses and URLs: read, written back, refused with words."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore.testing import FakeClock
from snapstore.transport.address import Address, connect, listen, parse_address, parse_url, peer_name


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:8080", Address("::1", 8080)),
        ("unix:/run/node.sock", Address("", 0, "/run/node.sock")),
        ("unix:relative", Address("", 0, "relative")),
    ],
)
def test_an_address_is_read_and_written_back(text, address):
    assert parse_address(text) == address
    assert str(address) == text
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "HOST:PORT"),
        ("localhost", "HOST:PORT"),
        ("localhost:", "HOST:PORT"),
        ("localhost:http", "HOST:PORT"),
        ("localhost:65536", "HOST:PORT"),
        ("localhost:\u0663", "HOST:PORT"),
        ("::1:80", "brackets"),
        (":80", "names no host"),
        ("[]:80", "names no host"),
        ("unix:", "needs a path"),
    ],
)
def test_a_wrong_address_is_refused_with_what_would_be_right(text, words):
    with pytest.raises(ValueError, match=words):
        parse_address(text)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "https+unix://%2Frun%2Fnode.sock",
        "ftp://127.0.0.1:80",
        "http://",
        "http://host:port",
        "http://host:70000",
        "http://user@host:80",
        "http://host:80/path",
        "http://host:80?query",
        "http://[::1",
        "http+unix://",
        "http+unix:///run/node.sock",
    ],
)
def test_a_wrong_url_is_a_value_error(url):
    with pytest.raises(ValueError, match=r".+"):
        parse_url(url)


def test_a_url_without_a_port_means_that_of_its_scheme():
    assert parse_url("http://host/") == Address("host", 80)
    assert parse_url("https://host/") == Address("host", 443, tls=True)


@pytest.mark.parametrize("url", ["https://host:8443", "https://[::1]:8443"])
def test_a_url_with_tls_is_read_and_written_back(url):
    address = parse_url(url)
    assert address.tls
    assert address.url == url
    assert address.http_host == url.removeprefix("https://")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_path_of_a_unix_socket_comes_through_a_url(path):
    assert parse_url(Address("", 0, path).url).path == path


def test_the_host_header_names_the_peer_and_for_unix_sockets_this_machine():
    assert parse_address("[::1]:80").http_host == "[::1]:80"
    assert parse_address("unix:/a").http_host == "localhost"


def test_the_other_end_of_a_connection_has_a_name_for_people(tmp_path):
    for place, name in (("127.0.0.1:0", "127.0.0.1:"), (f"unix:{tmp_path}/s", "a local process")):
        listener, address = listen(parse_address(place))
        with listener, connect(address, 5.0) as near, listener.accept()[0] as far:
            assert peer_name(far).startswith(name)
            near.shutdown(socket.SHUT_RDWR)
    assert peer_name(near) == "a peer that left"


def test_port_zero_takes_a_free_port_and_tells_which():
    listener, address = listen(parse_address("127.0.0.1:0"))
    with listener:
        assert address.port == listener.getsockname()[1] > 0
        with connect(address, 5.0) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_an_os_error():
    listener, address = listen(parse_address("127.0.0.1:0"))
    with listener, pytest.raises(OSError, match="in use"):
        listen(address)


def test_a_unix_name_that_a_killed_listener_left_is_taken_over(tmp_path):
    address = Address("", 0, str(tmp_path / "s"))
    listen(address)[0].close()
    assert os.path.exists(address.path)
    with listen(address)[0], connect(address, 5.0):
        pass


def test_a_unix_name_of_a_living_listener_or_of_a_file_is_left_alone(tmp_path):
    address = Address("", 0, str(tmp_path / "s"))
    with listen(address)[0]:
        with pytest.raises(OSError, match="in use") as raised:
            listen(address)
        assert raised.value.filename == address.path
        connect(address, 5.0).close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        listen(Address("", 0, str(file)))
    assert file.read_text() == "precious"


@pytest.mark.parametrize("answering", [0, 1, 3])
def test_all_addresses_of_a_name_share_the_time_for_a_connection(monkeypatch, answering):
    """A dead one does not eat that of those behind it; three dead ones take no longer than one."""
    clock, tries = FakeClock(), []

    class Silent(socket.socket):
        def connect(self, place):
            tries.append(self)
            if len(tries) - 1 != answering:
                clock.advance(self.gettimeout())
                raise TimeoutError("timed out")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))] * 3
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", Silent)
    began_s = clock.monotonic()
    if answering < 3:
        connect(Address("three", 1), 6.0, clock.monotonic).close()
        assert len(tries) == answering + 1
    else:
        with pytest.raises(TimeoutError):
            connect(Address("three", 1), 6.0, clock.monotonic)
    assert clock.monotonic() - began_s == 2.0 * answering
    assert all(tried.fileno() == -1 for tried in tries)


def test_nobody_at_an_address_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        connect(Address("", 0, str(tmp_path / "nobody")), 1.0)
