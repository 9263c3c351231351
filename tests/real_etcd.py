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


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Etcd:
    """One member, a cluster by itself, on the data in `path`; ended with `with`.

    `node` makes it speak TLS and ask for a certificate: credentials, of the server and ours alike.
    """

    def __init__(self, path, *, node=None, options=()):
        self._path, self._node, self._options = path, node, options
        for attempt in range(ATTEMPTS):
            self._port = _free_port()
            self._process = subprocess.Popen(
                self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=path.parent
            )
            said = []
            for line in self._process.stderr:
                said.append(line)
                if READY in line:
                    # Read on to its end: a full pipe would hold it up.
                    self._reader = threading.Thread(target=self._process.stderr.read)
                    self._reader.start()
                    return
            self._process.wait()
            self._process.stderr.close()
            assert attempt + 1 < ATTEMPTS, "".join(said)
            assert "address already in use" in "".join(said), "".join(said)

    def _command(self):
        scheme = "http" if self._node is None else "https"
        client, peer = f"{scheme}://127.0.0.1:{self._port}", f"http://127.0.0.1:{_free_port()}"
        options = [f"--data-dir={self._path}", f"--listen-client-urls={client}"]
        options += [f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"]
        options += [f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"]
        if self._node is not None:
            options += [f"--cert-file={self._node.cert}", f"--key-file={self._node.key}"]
            options += [f"--trusted-ca-file={self._node.ca}", "--client-cert-auth"]
        return ["etcd", *options, *self._options]

    @property
    def url(self):
        return f"etcd://127.0.0.1:{self._port}"

    def ctl(self, *arguments):
        """Run etcdctl against it; what it said."""
        options = [f"--endpoints=127.0.0.1:{self._port}"]
        if self._node is not None:
            options += [f"--cacert={self._node.ca}", f"--cert={self._node.cert}", f"--key={self._node.key}"]
        return etcdctl(*options, *arguments)

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
