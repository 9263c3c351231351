"""The bearer token: asked for before anything else, never told to anybody who has not said it."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import CONTENT, META, UNIT, WAIT_S, Follower, Impostor, RawPeer, frames, push, put_head, written
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected
from snapstore.transport.address import parse_url
from snapstore.transport.http import SnapshotClient, SnapshotServer
from snapstore.transport.patience import Deadlines
from snapstore.transport.token import TOKEN_LENGTH_MAX, check_token, shows_token, stays_here, token_headers

TOKEN = "a-Token.of~the+Cluster/0123="

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def guarded(tmp_path):
    with Follower(tmp_path / "follower", token=TOKEN) as follower:
        yield follower


def get_head(path="/v1/snapshots", authorization=None):
    shown = b"" if authorization is None else b"Authorization: " + authorization + b"\r\n"
    return b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + shown + b"\r\n"


def test_who_has_the_token_sends_lists_and_fetches(guarded, tmp_path):
    assert push(guarded, written(), token=TOKEN).size == len(CONTENT)
    client = SnapshotClient(token=TOKEN)
    assert [entry["index"] for entry in client.list(guarded.url)] == [7]
    with SnapshotDir(tmp_path / "fetched") as directory:
        assert client.fetch(guarded.url, 7, directory).path.read_bytes() == CONTENT


#: What a peer shows that has no right to come in.
WRONG = {
    "nothing": None,
    "empty": b"",
    "no token": b"Bearer",
    "empty token": b"Bearer ",
    "another": b"Bearer " + TOKEN[::-1].encode(),
    "a prefix": b"Bearer " + TOKEN[:-1].encode(),
    "longer": b"Bearer " + TOKEN.encode() + b"x",
    "other case": b"Bearer " + TOKEN.swapcase().encode(),
    "other scheme": b"Basic " + TOKEN.encode(),
    "no scheme": TOKEN.encode(),
    "twice": b"Bearer " + TOKEN.encode() + b", Bearer " + TOKEN.encode(),
    "not ASCII": b"Bearer " + TOKEN.encode() + b"\xe9",
    "nothing but bytes": b"\xff" * 40,
    "very long": b"Bearer " + b"x" * 10_000,
}


@pytest.mark.parametrize("shown", WRONG.values(), ids=WRONG)
def test_who_has_not_is_refused_before_anything_is_read_or_decided(guarded, caplog, shown):
    caplog.set_level("DEBUG")
    decided = []
    guarded.server.receiver.receive = lambda *arguments: decided.append(arguments)
    heads = [get_head("/v1/snapshots/7/manifest", shown), get_head("/nowhere", shown)]
    field = None if shown is None else shown.decode("latin-1")
    heads.append(put_head(Authorization=field, Snapstore_Term="not even a number"))
    heads.append(put_head(Authorization=field, expect=False) + frames())
    for head in heads:
        caplog.clear()
        with RawPeer(guarded.url) as peer:
            peer.say(head)
            status, headers, words = peer.hear()
            assert (status, headers["WWW-Authenticate"], headers["Connection"]) == (401, "Bearer", "close")
            assert "token" in json.loads(words)["error"]
        (record,) = caplog.records
        assert (record.levelname, "401" in record.message) == ("WARNING", True)
        assert TOKEN[:8] not in record.message
        assert TOKEN.encode()[:8] not in words
    assert not decided
    assert guarded.names() == []


def test_a_refused_sender_learns_why_and_the_follower_keeps_nothing(guarded):
    for options in ({}, {"token": TOKEN + "x"}):
        with pytest.raises(PeerRejected, match="token") as raised:
            push(guarded, written(), **options)
        assert raised.value.status == 401
        assert TOKEN not in str(raised.value)
    assert guarded.names() == []


def test_a_transfer_goes_on_while_others_are_refused(guarded):
    with RawPeer(guarded.url) as sender:
        sender.say(put_head(Authorization=f"Bearer {TOKEN}"))
        sender.hear_continue()
        sender.say(frames()[:UNIT])
        for _ in range(5):
            with pytest.raises(PeerRejected):
                SnapshotClient().list(guarded.url)
        sender.say(frames()[UNIT:])
        assert sender.hear()[0] == 201
    assert guarded.directory.verify(7).meta == META


def test_health_needs_no_token_and_nothing_beside_it_goes_without(guarded):
    with RawPeer(guarded.url) as peer:
        peer.say(get_head("/healthz"))
        assert peer.hear("GET")[0] == 200
        peer.say(get_head("/healthz").replace(b"GET", b"HEAD"))
        assert peer.hear("HEAD")[0] == 200
    for path in (
        "/healthz/",
        "/healthz/../v1/snapshots",
        "//healthz",
        "/healthz%2f",
        "http://x/healthz",
        "*",
    ):
        with RawPeer(guarded.url) as peer:
            peer.say(get_head(path))
            assert peer.hear("GET")[0] == 401
    with RawPeer(guarded.url) as peer:
        peer.say(put_head().replace(b"/v1/snapshots/7", b"/healthz"))
        assert peer.hear()[0] == 401


def test_each_request_on_a_line_has_to_show_it(guarded):
    right = b"Bearer " + TOKEN.encode()
    with RawPeer(guarded.url) as peer:
        peer.say(
            get_head(authorization=right), get_head(authorization=b"bearer   " + TOKEN.encode()), get_head()
        )
        assert [peer.hear("GET")[0] for _ in range(3)] == [200, 200, 401]


def test_the_token_is_in_no_log_and_no_answer_whatever_is_wrong_with_the_head(guarded, caplog):
    caplog.set_level("DEBUG")
    field = b"Authorization: Bearer " + TOKEN.encode()
    for head in (
        get_head().replace(b"\r\n\r\n", b"\r\nAuthorization : Bearer " + TOKEN.encode() + b"\r\n\r\n"),
        get_head().replace(b"\r\n\r\n", b"\r\n" + field + b"\0\r\n\r\n"),
        get_head().replace(b"\r\n\r\n", b"\r\nX: y\r\n " + field + b"\r\n\r\n"),
        get_head().replace(b"\r\n\r\n", b"\r\n" + field + b"\r\nnonsense\r\n\r\n"),
        get_head().replace(b"GET /v1", field + b" /v1"),
    ):
        with RawPeer(guarded.url) as peer:
            peer.say(head)
            status, _, words = peer.hear("GET")
        assert status in (400, 401)
        assert TOKEN.encode() not in words
    assert TOKEN not in caplog.text
    assert len(caplog.records) == 5


def test_a_failure_of_our_own_logs_no_token(guarded, caplog, monkeypatch):
    monkeypatch.setattr(guarded.directory, "list", lambda: 1 / 0)
    with pytest.raises(PeerRejected, match="its log says why"):
        SnapshotClient(token=TOKEN).list(guarded.url)
    assert "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x" * 15,
        "x" * (TOKEN_LENGTH_MAX + 1),
        "with a space in it",
        "line\nbreak-0123456789",
        "é" * 16,
        "\0" * 16,
    ],
)
def test_what_cannot_be_a_token_is_a_value_error_that_does_not_tell_it(tmp_path, token):
    with SnapshotDir(tmp_path / "stored") as directory:
        for make in (
            check_token,
            lambda token: SnapshotClient(token=token),
            lambda token: SnapshotServer(directory, token=token),
        ):
            with pytest.raises(ValueError, match="printable ASCII") as raised:
                make(token)
            assert not token or token not in str(raised.value)


def test_no_object_shows_it(guarded):
    client = SnapshotClient(token=TOKEN)
    assert TOKEN not in repr(client) + repr(guarded.server)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=64), st.text())
def test_any_token_shows_itself_and_only_itself(token, other):
    headers = {name.lower(): value for name, value in token_headers(check_token(token))}
    assert shows_token(headers, token)
    assert shows_token({"authorization": f"Bearer {other}"}, token) == (other.strip(" ") == token)


# In the clear.


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.8.9.10:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http+unix://%2Frun%2Fnode.sock", True),
        ("http://192.0.2.1:1", False),
        ("http://0.0.0.0:1", False),
        ("http://[2001:db8::1]:1", False),
        ("http://localhost.example.org:1", False),
        ("http://127.0.0.1.example.org:1", False),
    ],
)
def test_the_token_leaves_this_machine_by_tls_only(url, here):
    assert stays_here(parse_url(url)) == here
    client = SnapshotClient(token=TOKEN)
    if here:
        client.check_url(url)
        return
    for call in (client.check_url, client.list, lambda url: client.send_snapshot(url, stream)):
        with written() as stream, pytest.raises(ValueError, match="could read the token"):
            call(url)
    SnapshotClient(token=TOKEN, token_in_clear=True).check_url(url)
    SnapshotClient().check_url(url)


def test_a_redirect_is_not_followed(tmp_path):
    """Whoever answers in a peer's place must not be told the token by sending us on."""
    seen = []

    def redirect(connection):
        seen.append(connection.recv(65536))
        connection.sendall(
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        )

    with Impostor(redirect) as impostor, pytest.raises(PeerRejected) as raised:
        SnapshotClient(token=TOKEN, deadlines=Deadlines(connect_timeout_s=WAIT_S)).list(impostor.url)
    assert raised.value.status == 307
    assert len(seen) == 1


def test_a_token_on_a_unix_socket(tmp_path):
    with Follower(tmp_path / "follower", f"unix:{tmp_path}/node.sock", token=TOKEN) as follower:
        content = os.urandom(3 * UNIT)
        assert push(follower, written(content), token=TOKEN).size == len(content)
        with pytest.raises(PeerRejected):
            SnapshotClient().list(follower.url)
