"""An S3 server for tests: moto's, on a port of its own, that notes what is asked and fails as told."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from typing import NamedTuple
from urllib.parse import quote

import pytest

from nodes import WAIT_S

pytest.importorskip("obstore", reason="THE ARCHIVE IS NOT TESTED: snapstore[s3] is not installed")
pytest.importorskip("moto.server", reason="THE ARCHIVE IS NOT TESTED: moto[server] is not installed")

import obstore
from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import WSGIRequestHandler, make_server

#: What an object store wants to see; moto takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}


class Request(NamedTuple):
    """What was asked; `size` is the length of its body in bytes."""

    method: str
    path: str
    size: int
    query: str = ""

    @property
    def is_part_put(self):
        return self.method == "PUT" and "/part-" in self.path

    @property
    def is_removal(self):
        return self.method in ("POST", "DELETE")  # Of several at once, and of one, as older ones of obstore.


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


def _broken_off(answer, line):
    yield answer
    line.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def part_puts(requests):
    """The names of the parts that these requests brought, in the order of their numbers."""
    return sorted(request.path.rpartition("/")[2] for request in requests if request.is_part_put)


def gets(requests):
    """The last parts of the names of the objects that these requests asked for."""
    return [request.path.rpartition("/")[2] for request in requests if request.method == "GET"]


class ArchiveServer:
    """Serves the bucket `url`, which is new; `requests` are all that came, in order.

    `fault(request)` is asked about each before it is served, by the thread that serves it, and may wait:
    None lets it be served, "403 AccessDenied" is answered with that status and code, "cut" breaks the
    line with the request half read, "half" with half of the answer sent, and "lost" with the request
    done and no word of it said. `served` are those that were done.

    While it is open the environment has what a client needs, and nothing leads elsewhere: the service
    that has credentials on other machines is this server, too.
    """

    def __init__(self):
        self.requests, self.served = [], []
        self.fault = lambda request: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.bucket = f"bucket-{self._server.server_port}-{id(self)}"
        self.url = f"s3://{self.bucket}/raft/a"
        self._put(f"/{self.bucket}", b"")
        self.forget()

    def _serve(self, environ, start_response):
        request = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            int(environ.get("CONTENT_LENGTH") or 0),
            environ["QUERY_STRING"],
        )
        self.requests.append(request)
        fault = self.fault(request)
        if fault == "cut":
            environ["wsgi.input"].read(request.size // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if fault not in (None, "half", "lost"):
            environ["wsgi.input"].read(request.size)
            code = fault.partition(" ")[2]
            body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
            start_response(fault, [("Content-Length", str(len(body))), ("ETag", '"told"')])
            return [body]
        answer = b"".join(self._app(environ, start_response))
        if fault == "half":
            return _broken_off(answer[: len(answer) // 2], environ["werkzeug.socket"])
        self.served.append(request)
        if fault == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return [answer]

    def hold(self, name):
        """Hold the first request for `name`: an event for its coming, and one to let it end with a cut."""
        reached, release = threading.Event(), threading.Event()

        def fault(request):
            if not request.path.endswith(name) or reached.is_set():
                return None
            reached.set()
            assert release.wait(WAIT_S)
            return "cut"

        self.fault = fault
        return reached, release

    def forget(self):
        """Count requests anew."""
        self.requests.clear()
        self.served.clear()

    def put_raw(self, name):
        """Put a byte under a name that obstore would not take, below the URL."""
        self._put(f"/{self.bucket}/raft/a/{quote(name)}", b"x")

    def _put(self, path, body):
        line = http.client.HTTPConnection(self.endpoint.removeprefix("http://"), timeout=WAIT_S)
        line.request("PUT", path, body)
        assert line.getresponse().status == 200
        line.close()

    @property
    def objects(self):
        """The bucket, for who puts something there by hand."""
        keys = {name.lower(): value for name, value in CREDENTIALS.items()}
        return S3Store.from_url(
            self.url, endpoint=self.endpoint, region="us-east-1", client_options={"allow_http": True}, **keys
        )

    def names(self):
        """The names of all objects."""
        return sorted(found["path"] for found in obstore.list(self.objects).collect())

    def whole_parts(self, size):
        """The names of the parts that have all of `size` bytes; a client that died may leave less."""
        listed = obstore.list(self.objects).collect()
        return {found["path"].rpartition("/")[2] for found in listed if found["size"] == size}

    def __enter__(self):
        self._before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(CREDENTIALS, AWS_REGION="us-east-1", AWS_METADATA_ENDPOINT=self.endpoint)
        os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        return self

    def __exit__(self, *exception):
        os.environ.clear()
        os.environ.update(self._before)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
