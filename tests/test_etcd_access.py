"""How a pull shows who it is to an etcd server: users, passwords, TLS."""

import os
import subprocess
import sys

import pytest

from certificates import Authority, locked_key
from etcd_databases import store
from etcd_server import TOKEN, EtcdServer, grpc, sent
from processes import unmeasured
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, PeerUnreachable, TransportError
from snapstore.etcd.dial import EtcdTls, parse_endpoint
from snapstore.etcd.pull import EtcdClient

DATABASE = store(7)
USERS = {"root": "sesame", "guest": "guest"}


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def serve(**options):
    return EtcdServer(lambda *_: sent(DATABASE), **options)


def credentials_of(node, *, ask=False):
    pair = (node.key.read_bytes(), node.cert.read_bytes())
    return grpc.ssl_server_credentials([pair], node.ca.read_bytes() if ask else None, ask)


def test_a_user_with_the_right_password_may_pull(directory):
    with serve(users=USERS) as server:
        assert EtcdClient(server.url, user="root", password="sesame").pull(directory).index == 7
    assert server.called == ["Authenticate", "Status", "Snapshot"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({}, 400, "user name is empty .*it wants a user and a password"),
        ({"user": "root", "password": "wrong"}, 400, "authentication failed, invalid user ID or password"),
        ({"user": "guest", "password": "guest"}, 403, "permission denied .*only users with the role root"),
    ],
)
def test_others_are_refused_in_etcd_s_words(directory, options, status, words):
    with serve(users=USERS) as server, pytest.raises(PeerRejected, match=words) as refusal:
        EtcdClient(server.url, **options).pull(directory)
    assert refusal.value.status == status
    assert "wrong" not in str(refusal.value)
    assert not directory.list()


def test_a_user_where_there_are_none(directory):
    with serve() as server, pytest.raises(PeerRejected, match="leave the user out"):
        EtcdClient(server.url, user="root", password="sesame").pull(directory)


def test_a_password_goes_to_another_machine_under_tls_only(node):
    with pytest.raises(ValueError, match="in the clear"):
        EtcdClient("etcd://192.0.2.1:2379", user="root", password="sesame")
    EtcdClient("etcd://192.0.2.1:2379", user="root", password="sesame", tls=EtcdTls(node.ca))
    EtcdClient("etcd://192.0.2.1:2379", user="root", password="sesame", password_in_clear=True)


@pytest.mark.parametrize("half", [{"user": "root"}, {"password": "sesame"}])
def test_half_a_user_is_refused(half):
    with pytest.raises(ValueError, match="go together"):
        EtcdClient("etcd://127.0.0.1:2379", **half)


def test_a_user_that_is_no_text_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="text, in UTF-8") as refusal:
        EtcdClient("etcd://127.0.0.1:2379", user="root", password="se\udcffsame")
    assert "same" not in str(refusal.value)


def test_a_token_that_cannot_be_shown_is_none(directory):
    with (
        serve(users={"ro\not": "sesame"}) as server,
        pytest.raises(TransportError, match="its token is none") as refusal,
    ):
        EtcdClient(server.url, user="ro\not", password="sesame").pull(directory)
    assert TOKEN not in str(refusal.value)


def test_a_server_with_a_certificate(directory, node):
    with serve(credentials=credentials_of(node)) as server:
        assert EtcdClient(server.url, tls=EtcdTls(node.ca)).pull(directory).index == 7


def test_a_server_that_asks_for_one(directory, node):
    with serve(credentials=credentials_of(node, ask=True)) as server:
        with pytest.raises(PeerUnreachable):
            EtcdClient(server.url, tls=EtcdTls(node.ca)).pull(directory)
        saved = EtcdClient(server.url, tls=EtcdTls(node.ca, node.cert, node.key)).pull(directory)
    assert saved.index == 7


def test_a_server_with_another_authority_s_certificate_is_left(directory, node, tmp_path):
    stranger = Authority(tmp_path / "strangers").issue("localhost")
    with (
        serve(credentials=credentials_of(stranger)) as server,
        pytest.raises(PeerUnreachable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        EtcdClient(server.url, tls=EtcdTls(node.ca), user="root", password="sesame").pull(directory)
    assert server.called == []


def test_a_server_with_another_host_s_certificate_is_left(directory, authority):
    other = authority.issue("elsewhere.example")
    with serve(credentials=credentials_of(other)) as server, pytest.raises(PeerUnreachable):
        EtcdClient(server.url, tls=EtcdTls(other.ca)).pull(directory)
    assert server.called == []


def test_plain_words_to_a_server_of_tls(directory, node):
    with serve(credentials=credentials_of(node)) as server, pytest.raises(PeerUnreachable):
        EtcdClient(server.url).pull(directory)


def test_files_that_are_no_certificates(node, tmp_path):
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(FileNotFoundError, match="missing"):
        EtcdClient("etcd://127.0.0.1", tls=EtcdTls(tmp_path / "missing.pem"))
    with pytest.raises(ValueError, match="has no certificates in PEM"):
        EtcdClient("etcd://127.0.0.1", tls=EtcdTls(empty))
    with pytest.raises(ValueError, match="go together"):
        EtcdClient("etcd://127.0.0.1", tls=EtcdTls(node.ca, cert=node.cert))
    with pytest.raises(ValueError, match="are not a certificate in PEM and its key"):
        EtcdClient("etcd://127.0.0.1", tls=EtcdTls(node.ca, node.cert, empty))
    locked = tmp_path / "locked.key"
    locked_key(node.key, locked)
    with pytest.raises(ValueError, match="is encrypted"):
        EtcdClient("etcd://127.0.0.1", tls=EtcdTls(node.ca, node.cert, locked))


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf"])
def test_without_its_extra_the_message_names_it(missing):
    code = f"import sys; sys.modules['{missing}'] = None; import snapstore.etcd.pull"
    environment = {**unmeasured(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert outcome.stderr.splitlines()[-1].startswith("snapstore.errors.MissingExtra: etcd's ")
    assert outcome.stderr.rstrip().endswith("pip install 'snapstore[etcd]'")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("etcd://127.0.0.1:2379", "127.0.0.1", 2379),
        ("etcd://db.example", "db.example", 2379),
        ("etcd://[::1]:1/", "::1", 1),
    ],
)
def test_endpoints(text, host, port):
    address = parse_endpoint(text)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:2379",
        "http://127.0.0.1:2379",
        "etcd://",
        "etcd://:2379",
        "etcd://host/path",
        "etcd://host?query",
        "etcd://root:sesame@host",
        "etcd://host:port",
        "etcd://host:65536",
    ],
)
def test_what_is_no_endpoint(text):
    with pytest.raises(ValueError, match=r"endpoint|[Pp]ort"):
        parse_endpoint(text)
