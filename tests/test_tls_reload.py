"""Certificates renewed while all runs: the next connection has the new ones, or the old if those are bad."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import socket
import ssl
import threading

import pytest

from certificates import Authority
from nodes import CONTENT, META, UNIT, WAIT_S, Follower, written
from snapstore.errors import PeerUntrusted
from snapstore.transport.http import SnapshotClient, SnapshotServer
from snapstore.transport.tls import ReloadingContext, client_context, server_context

HOST = "127.0.0.1"

pytestmark = pytest.mark.usefixtures("nothing_lost")


class Place:
    """The files that a node was told of, and what is put there one after the other."""

    def __init__(self, path):
        path.mkdir()
        self.cert, self.key, self.ca = (path / name for name in ("cert.pem", "key.pem", "ca.pem"))
        self.files = (self.cert, self.key, self.ca)

    def put(self, node, parts=("cert", "key", "ca")):
        """Rename the files of `node` into place, as one should."""
        for part in parts:
            new = getattr(self, part).with_suffix(".new")
            shutil.copyfile(getattr(node, part), new)
            os.replace(new, getattr(self, part))
        return self


@pytest.fixture
def place(tmp_path, node):
    return Place(tmp_path / "files").put(node)


@pytest.fixture
def other(authority):
    """Another certificate of the same authority for the same host."""
    return authority.issue(HOST)


@pytest.fixture
def expired(authority):
    return authority.issue(HOST, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc))


def shown_by(url, node):
    """The certificate that the server at `url` shows to a new connection."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), WAIT_S) as line,
        node.client.wrap_socket(line, server_hostname=host) as peer,
    ):
        return peer.getpeercert(binary_form=True)


def own(node):
    """The certificate in a node's file."""
    pem = node.cert.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    return ssl.PEM_cert_to_DER_cert(pem)


@contextlib.contextmanager
def serving(tmp_path, place):
    tls = ReloadingContext(server_context, *place.files)
    with Follower(tmp_path / "follower", tls=tls) as follower:
        yield follower, tls


def warnings(caplog):
    return [record.message for record in caplog.records if "stay in use" in record.message]


def test_the_next_connection_gets_the_renewed_certificate(tmp_path, place, node, other, caplog):
    caplog.set_level("INFO")
    with serving(tmp_path, place) as (follower, _):
        assert shown_by(follower.url, node) == own(node)
        place.put(other)
        for _ in range(3):
            assert shown_by(follower.url, node) == own(other)
        assert own(node) != own(other)
    assert len([record for record in caplog.records if "read anew" in record.message]) == 1


def test_files_behind_a_link_that_moves_are_seen(tmp_path, node, other):
    """As secrets are mounted: links through a link to a directory, which alone is replaced."""
    for name, which in (("a", node), ("b", other)):
        Place(tmp_path / name).put(which)
    (tmp_path / "now").symlink_to("a")
    place = Place(tmp_path / "files")
    for file in place.files:
        file.symlink_to(tmp_path / "now" / file.name)
    with serving(tmp_path, place) as (follower, _):
        assert shown_by(follower.url, node) == own(node)
        (tmp_path / "next").symlink_to("b")
        os.replace(tmp_path / "next", tmp_path / "now")
        assert shown_by(follower.url, node) == own(other)


def test_a_transfer_under_way_goes_on_with_what_it_began_with(tmp_path, place, node, other):
    def pace(offset):
        if offset == UNIT:
            place.put(other)
            assert shown_by(follower.url, node) == own(other)

    with serving(tmp_path, place) as (follower, _), written(pace=pace) as stream:
        SnapshotClient(tls=node.client).send_snapshot(follower.url, stream, chunk_size=UNIT)
        assert follower.directory.verify(META.index).size == len(CONTENT)


def test_a_cluster_changes_its_authority_in_three_steps_without_a_restart(tmp_path, node):
    """Trust both, show the new one, trust the new one alone: client and server by the same files."""
    new = Authority(tmp_path / "new")
    renewed = new.issue(HOST)
    place = Place(tmp_path / "files").put(node)
    with serving(tmp_path, place) as (follower, _):
        client = SnapshotClient(tls=ReloadingContext(client_context, *place.files))
        assert client.list(follower.url) == []
        place.ca.write_bytes(node.ca.read_bytes() + new.file.read_bytes())
        assert client.list(follower.url) == []
        place.put(renewed, ("cert", "key"))
        assert client.list(follower.url) == []
        assert shown_by(follower.url, new.issue(HOST, trusting=new.file)) == own(renewed)
        place.put(renewed, ("ca",))
        assert client.list(follower.url) == []
        with pytest.raises(PeerUntrusted):  # The old authority is trusted no more.
            SnapshotClient(tls=client_context(node.cert, node.key, new.file)).list(follower.url)


def garbage(place, other):
    place.cert.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")


def half_a_pair(place, other):
    place.put(other, ("cert",))


def no_file(place, other):
    place.key.unlink()


def empty(place, other):
    place.ca.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, half_a_pair, no_file, empty])
def test_a_broken_pair_leaves_the_old_one_in_use_and_is_told_once(
    tmp_path, place, node, other, caplog, damage
):
    with serving(tmp_path, place) as (follower, tls):
        damage(place, other)
        for _ in range(5):
            assert shown_by(follower.url, node) == own(node)
        assert len(warnings(caplog)) == 1
        assert str(tmp_path) in warnings(caplog)[0]
        with pytest.raises((OSError, ValueError)):
            tls.reload()
        place.put(other)
        assert shown_by(follower.url, node) == own(other)
        damage(place, node)  # A new mistake is told again.
        assert shown_by(follower.url, node) == own(other)
        assert len(warnings(caplog)) == 2


def test_an_expired_certificate_replaces_none(tmp_path, place, node, other, expired, caplog):
    with serving(tmp_path, place) as (follower, tls):
        place.put(expired)
        assert shown_by(follower.url, node) == own(node)
        assert [message.count("certificate has expired") for message in warnings(caplog)] == [1]
        with pytest.raises(ValueError, match=r"cert\.pem: certificate has expired"):
            tls.reload()
        place.put(other)
        assert shown_by(follower.url, node) == own(other)


def test_one_that_expires_while_all_runs_is_replaced(tmp_path, node, other, expired):
    place = Place(tmp_path / "files").put(expired)
    with serving(tmp_path, place) as (follower, _):
        client = SnapshotClient(tls=node.client)
        with pytest.raises(PeerUntrusted, match="expired"):
            client.list(follower.url)
        place.put(other)
        assert client.list(follower.url) == []


def test_one_of_an_authority_that_only_the_peers_trust_is_taken(tmp_path, authority, place, node):
    """Our own trust is for theirs: that our certificate is not of that authority is no mistake."""
    elsewhere = Authority(tmp_path / "elsewhere")
    renewed = elsewhere.issue(HOST, trusting=authority.file)
    with serving(tmp_path, place) as (follower, _):
        place.put(renewed)
        trusting = authority.issue(HOST, trusting=elsewhere.file)
        assert shown_by(follower.url, trusting) == own(renewed)


def for_clients_only(place, days):
    """Put a certificate into place that signs itself and serves nobody, good until in so many days."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.timezone.utc)
    begin, end = now - datetime.timedelta(days=10), now + datetime.timedelta(days=days)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    place.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    place.key.write_bytes(key.private_bytes(*pem))


def test_one_that_is_for_clients_only_is_taken_by_a_client(place):
    tls = ReloadingContext(client_context, *place.files)
    for_clients_only(place, days=1)
    tls.reload()  # ValueError, where it is judged as a server's.


def test_an_expired_one_that_is_for_clients_only_is_not(place):
    tls = ReloadingContext(client_context, *place.files)
    before = tls.current()
    for_clients_only(place, days=-1)
    with pytest.raises(ValueError, match="certificate has expired"):
        tls.reload()
    assert tls.current() is before


def test_the_first_files_have_to_be_good(place):
    place.key.unlink()
    with pytest.raises(FileNotFoundError, match=r"key\.pem"):
        ReloadingContext(server_context, *place.files)


def test_the_wrong_side_is_seen_behind_it_too(place, tmp_path):
    with (
        Follower(tmp_path / "follower") as follower,
        pytest.raises(ValueError, match="server's side"),
    ):
        SnapshotServer(follower.directory, tls=ReloadingContext(client_context, *place.files))


def test_connections_do_not_wait_for_the_one_that_reads(place, other):
    reading, go_on = threading.Event(), threading.Event()

    def slow(*files):
        context = server_context(*files)
        if reading.is_set():
            slow_too.set()
            assert go_on.wait(WAIT_S)
        return context

    slow_too = threading.Event()
    tls = ReloadingContext(slow, *place.files)
    before = tls.current()
    place.put(other)
    reading.set()
    reader = threading.Thread(target=tls.current)
    reader.start()
    assert slow_too.wait(WAIT_S)
    assert tls.current() is before
    go_on.set()
    reader.join()
    assert tls.current() is not before


def test_serve_reads_them_anew_at_sighup_and_says_what_came_of_it(tmp_path, place, node, other):
    from command_line import spawn

    options = ("--tls-cert", place.cert, "--tls-key", place.key, "--tls-ca", place.ca)
    with spawn("serve", "--dir", tmp_path / "stored", *options, stdout=-1, stderr=-1, text=True) as child:
        try:
            url = child.stdout.readline().removeprefix("listening on ").rstrip("\n")
            child.stderr.readline()  # To whom it is open.
            place.key.unlink()
            child.send_signal(signal.SIGHUP)
            said = child.stderr.readline()
            assert "the certificates from before stay in use: " in said
            assert "key.pem" in said
            assert shown_by(url, node) == own(node)
            place.put(other)
            child.send_signal(signal.SIGHUP)
            told = child.stderr.readline()
            while "stay in use" in told:  # By the connection above.
                told = child.stderr.readline()
            assert told == "the certificates were read anew\n"
            assert shown_by(url, node) == own(other)
        finally:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
