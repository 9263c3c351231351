"""An etcd that we did not write, run for a test: `etcd` and `etcdctl` as the machine has them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

#: No call of etcdctl here takes longer on a slow disk.
CALL_S_MAX = 120.0

#: What etcd says, in all versions, when clients may come.
READY = "ready to serve client requests"

#: Read at a time of all keys; an answer must fit gRPC's limit of 4 MiB.
PAGE_KEYS = 1000

#: What a member that joins another's cluster is called there.
JOINING = "joining"

#: Somebody may take the free port that was found before etcd does.
ATTEMPTS = 5


def require_etcd():
    """Skip, and say so, where there is no etcd."""
    for program in ("etcd", "etcdctl"):
        if shutil.which(program) is None:
            reason = (
                f"ETCD ITSELF IS NOT TESTED: there is no {program} (apt-get install etcd-server etcd-client)"
            )
            assert not os.environ.get("CI"), reason
            pytest.skip(reason)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Etcd:
    """One member on the data in `path`, a cluster by itself unless it joins one; ended with `with`.

    `node` makes it speak TLS and ask for a certificate: credentials, of the server and ours alike.
    `joins` makes it the member of another's cluster that was added there as `peer_url`, by which the
    others reach it; such a one is ready when it has caught up, and `wait_ready` waits for that.
    """

    def __init__(self, path, *, node=None, options=(), joins=None, peer_url=None):
        self._path, self._node, self._options = path, node, options
        self._joins, self._advertised = joins, peer_url
        self._start()
        if joins is None:
            self.wait_ready()

    def _start(self):
        self._port = free_port()
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self._said, self._silent, self._news = [], False, threading.Condition()
        self._process = subprocess.Popen(
            self._command(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._path.parent,
        )
        # Read on to its end: a full pipe would hold it up.
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self):
        for line in self._process.stderr:
            with self._news:
                self._said.append(line)
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

    def wait_said(self, words):
        """Wait until it has said these words; False where it ended without them."""
        with self._news:
            found = self._news.wait_for(
                lambda: self._silent or any(words in line for line in self._said), CALL_S_MAX
            )
            assert found, "".join(self._said)
            return any(words in line for line in self._said)

    def lines(self, words):
        """The lines so far in which it said these words."""
        with self._news:
            return [line for line in self._said if words in line]

    def wait_ready(self):
        """Wait until it serves clients; where somebody took its port, it tries another."""
        for attempt in range(ATTEMPTS):
            if self.wait_said(READY):
                return
            self.__exit__()
            assert attempt + 1 < ATTEMPTS, "".join(self._said)
            assert "address already in use" in "".join(self._said), "".join(self._said)
            self._start()

    def _command(self):
        scheme = "http" if self._node is None else "https"
        client, peer = f"{scheme}://127.0.0.1:{self._port}", self._advertised or self.peer_url
        options = [f"--data-dir={self._path}", f"--listen-client-urls={client}"]
        options += [f"--advertise-client-urls={client}", f"--listen-peer-urls={self.peer_url}"]
        options += [f"--initial-advertise-peer-urls={peer}"]
        if self._joins is None:
            options += [f"--initial-cluster=default={peer}"]
        else:
            options += [f"--name={JOINING}", "--initial-cluster-state=existing"]
            options += [f"--initial-cluster=default={self._joins.peer_url},{JOINING}={peer}"]
        if self._node is not None:
            options += [f"--cert-file={self._node.cert}", f"--key-file={self._node.key}"]
            options += [f"--trusted-ca-file={self._node.ca}", "--client-cert-auth"]
        return ["etcd", *options, *self._options]

    @property
    def pid(self):
        return self._process.pid

    @property
    def url(self):
        return f"etcd://127.0.0.1:{self._port}"

    def ctl(self, *arguments):
        """Run etcdctl against it; what it said."""
        options = [f"--endpoints=127.0.0.1:{self._port}"]
        if self._node is not None:
            options += [f"--cacert={self._node.ca}", f"--cert={self._node.cert}", f"--key={self._node.key}"]
        return etcdctl(*options, *arguments)

    @property
    def cluster_id(self):
        (status,) = json.loads(self.ctl("endpoint", "status", "--write-out=json"))
        return status["Status"]["header"]["cluster_id"]

    def add_learner(self, peer_url):
        """Make room in its cluster for a member that is reached by `peer_url`; the id of that one."""
        said = self.ctl("member", "add", JOINING, "--learner", f"--peer-urls={peer_url}", "--write-out=json")
        return json.loads(said)["member"]["ID"]

    def promote(self, member):
        """Give a learner a vote; etcd refuses while that has not caught up."""
        self.ctl("member", "promote", f"{member:x}")

    def remove(self, member):
        self.ctl("member", "remove", f"{member:x}")

    def client(self):
        """A connection that puts and reads keys, over the JSON that etcd speaks beside gRPC."""
        return EtcdKeys(self._port, self._node)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stderr.close()


class EtcdKeys:
    """Keys and values as bytes. One thread at a time."""

    def __init__(self, port, node=None):
        if node is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_S_MAX)
        else:
            context = ssl.create_default_context(cafile=node.ca)
            context.load_cert_chain(node.cert, node.key)
            self._connection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=CALL_S_MAX, context=context
            )

    def _call(self, method, **fields):
        fields = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        self._connection.request("POST", f"/v3/kv/{method}", json.dumps(fields))
        answer = self._connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == 200, body
        return body

    def put(self, key, value):
        """The revision that it made."""
        return int(self._call("put", key=key, value=value)["header"]["revision"])

    def remove(self, key):
        return int(self._call("deleterange", key=key)["header"]["revision"])

    def get(self, key):
        found = self._call("range", key=key).get("kvs", [])
        return base64.b64decode(found[0].get("value", "")) if found else None

    def count(self):
        return int(self._call("range", key=b"\0", range_end=b"\0", count_only=True).get("count", 0))

    def everything(self):
        """All keys with their values, as this member has them by itself."""
        found, start = {}, b"\0"
        while True:
            more = self._call("range", key=start, range_end=b"\0", limit=PAGE_KEYS, serializable=True)
            for pair in more.get("kvs", []):
                start = base64.b64decode(pair["key"]) + b"\0"
                found[start[:-1]] = base64.b64decode(pair.get("value", ""))
            if not more.get("more"):
                return found

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._connection.close()


def etcdctl(*arguments, fails=False):
    """Run it on files, or on who is named; what it said."""
    done = subprocess.run(
        ["etcdctl", *map(str, arguments)],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=CALL_S_MAX,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout
