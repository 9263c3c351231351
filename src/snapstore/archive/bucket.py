"""The object store at the border: objects by name, and what it refuses in our words.

Knows obstore and nothing of snapshots. Retries are obstore's: of what may be repeated, after a break
and where the server has no time. What is still wrong then comes out as one of our errors, with what to
do about it; keys and signatures never stand in one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from snapstore.errors import (
    MissingExtra,
    PeerRejected,
    PeerUnreachable,
    SnapshotCorrupt,
    SnapshotTruncated,
    TransportError,
)
from snapstore.transport.answers import shown
from snapstore.transport.patience import IDLE_TIMEOUT_S

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError
    from obstore.store import LocalStore, S3Store
except ImportError as error:
    raise MissingExtra("the archive needs obstore: pip install 'snapstore[s3]'") from error

#: In bytes/s, for each of the requests at a time: obstore's deadline is for a whole request, and its
#: own of 30 s would end the parts of a line of 2 MB/s. No line that carries an archive is slower.
REQUEST_RATE_MIN = 64 * 1024

#: Within one region a connection takes milliseconds, around the world a third of a second.
CONNECT_TIMEOUT_S = 5

#: Six pauses that double from 0.1 s on: a server that has no time gets some seconds.
RETRIES_MAX = 6

#: From the first attempt of a request on: longer than a server needs to be replaced by its neighbour.
RETRY_TIMEOUT_S = 60

#: Where obstore's text about an error turns into the dump of a structure.
_DUMP = "\n\nDebug source:"

#: What S3 takes for a bucket's name, with what it took long ago.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")

_STATUS = re.compile(r"(?:status code: |status: |\()([345][0-9]{2})\b")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WORDS = re.compile(r"<Message>([^<]{1,300})</Message>")
#: obstore's words where S3 answers 301 and does not tell where to, as it does in another region.
_ELSEWHERE = "incorrectly configured region"
#: obstore's words for a range beyond the end of a file.
_BEYOND = "Requested range"
_SYSTEM_ERROR = re.compile(r"\(os error ([0-9]+)\)")

#: Some servers answer with statuses of their own.
_PHRASES = {int(status): status.phrase for status in HTTPStatus}

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do with the bucket"
_REGION = "set AWS_REGION to the bucket's region"

#: What to do about what S3 says, by its code; and else by the status.
_ADVICE: Mapping[str | int, str] = {
    "NoSuchBucket": "make the bucket, or check its name and the endpoint",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "get a new AWS_SESSION_TOKEN",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    HTTPStatus.UNAUTHORIZED: _CREDENTIALS,
    HTTPStatus.FORBIDDEN: _CREDENTIALS,
    HTTPStatus.NOT_FOUND: "check the URL and the endpoint",
    HTTPStatus.CONFLICT: "somebody else is at it: try again",
}


class Found(NamedTuple):
    """An object in a list: its size in bytes, and when it was last written."""

    name: str
    size: int
    changed: datetime


def check_url(url: str) -> str:
    """Return `url` where it names an archive: s3://BUCKET[/PREFIX] or file:///PATH. Raises ValueError."""
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"an archive's URL has no user, no query and no fragment, unlike {url!r}")
    path = unquote(parts.path)
    # What obstore would refuse, or take for a prefix that is not the one that stands here.
    strange = not {"", ".", ".."}.isdisjoint(path.strip("/").split("/")) and path not in ("", "/")
    if parts.scheme == "s3":
        known = bool(_BUCKET_NAME.match(parts.netloc)) and not strange and not path.startswith("//")
    else:
        known = parts.scheme == "file" and not parts.netloc and path.strip("/") != ""
    if not known or not (url + path).isprintable():
        raise ValueError(f"an archive is s3://BUCKET/PREFIX or file:///PATH, not {url!r}")
    return url


def find_endpoint(endpoint: str | None) -> str | None:
    """Return the endpoint that is given, or the environment's, None for AWS's own.

    Raises ValueError for what is none: also for an empty one, which must not send anything to AWS.
    """
    if endpoint is None:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not endpoint:
            return None
    try:
        parts = urlsplit(endpoint)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or not endpoint.isprintable() or set(endpoint) & set(" @?#"):
        raise ValueError("an archive's endpoint is http[s]://HOST[:PORT], without a user")
    return endpoint


def open_store(url: str, endpoint: str | None, request_size: int, *, make: bool) -> Any:
    """Return obstore's store for `url`, for requests of up to `request_size` bytes.

    What is not said here it finds in the environment, as AWS's own tools do. A directory is made where
    `make` says so, else FileNotFoundError tells that there is none.
    """
    parts = urlsplit(check_url(url))
    if parts.scheme == "file":
        path = unquote(parts.path)
        if not make and not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, "no archive is here", path)
        os.makedirs(path, 0o700, exist_ok=True)
        return LocalStore(path)
    timeout_s = IDLE_TIMEOUT_S + request_size / REQUEST_RATE_MIN
    given: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store.from_url(
        url,
        # S3 compares it with what came, and keeps it. obstore knows no CRC32C.
        checksum_algorithm="SHA256",
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http:"),
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
            "timeout": f"{timeout_s:.0f}s",
        },
        retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
        **given,
    )


class Bucket:
    """The objects of one store, called `place` in errors. Every method raises as `error_of` says."""

    def __init__(self, store: Any, place: str) -> None:
        self._store = store
        self.place = place
        self._keeps_attributes = not isinstance(store, LocalStore)

    async def put(self, name: str, data: Buffer, attributes: dict[str, str]) -> None:
        """Write an object whole; its attributes too, where the store keeps any."""
        kept = {"attributes": attributes} if self._keeps_attributes else {}
        with self._border(name):
            await obstore.put_async(self._store, name, data, use_multipart=False, **kept)  # type: ignore[arg-type]

    async def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; whether it was written."""
        with self._border(name):
            try:
                await obstore.put_async(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    async def read(self, name: str, size_max: int) -> bytes | None:
        """Return an object, None where there is none. SnapshotCorrupt where it is larger than that."""
        with self._border(name):
            try:
                found = await obstore.get_async(self._store, name)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            if found.meta["size"] > size_max:
                raise SnapshotCorrupt(f"{name} has {found.meta['size']} bytes, more than {size_max}")
            return bytes(await found.bytes_async())

    async def read_range(self, name: str, start: int, size: int) -> Buffer:
        """Return `size` bytes of an object; SnapshotTruncated where it, or some of them, are missing."""
        with self._border(name):
            try:
                data = await obstore.get_range_async(self._store, name, start=start, length=size)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise SnapshotTruncated(f"{self.place} has no {name} any more") from error
            except BaseError as error:
                if _is_beyond(str(error)):
                    raise SnapshotTruncated(f"{name} ends before byte {start}") from error
                raise
        if len(data) != size:
            raise SnapshotTruncated(f"{name} ends {size - len(data)} bytes early")
        return data

    async def list(self, prefix: str) -> Sequence[Found]:
        """Return all objects whose names begin with `prefix` and a slash."""
        with self._border(prefix):
            listed = await obstore.list(self._store, prefix).collect_async()
        return [Found(entry["path"], entry["size"], entry["last_modified"]) for entry in listed]

    async def look_around(self) -> tuple[Sequence[str], Sequence[str]]:
        """Return the names without a slash, and the folders that the others begin with."""
        with self._border("a list"):
            listed = await obstore.list_with_delimiter_async(self._store)
        return [entry["path"] for entry in listed["objects"]], listed["common_prefixes"]

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for name in names if isinstance(self._store, LocalStore) else [list(names)] if names else []:
            with self._border("a removal"), contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, name)

    @contextlib.contextmanager
    def _border(self, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, NotImplementedError) as error:
            raise error_of(error, f"{self.place}, {name}") from error


def error_of(error: BaseException, place: str) -> Exception:
    """Return what an error of obstore means, at `place`.

    OSError for a file system's. PeerRejected with S3's words where it answered, PeerUnreachable where
    nobody did, TransportError where there are no credentials, or the store lacks what is needed.
    """
    text = str(error).partition(_DUMP)[0]
    system = _SYSTEM_ERROR.search(text)
    if system and "LocalFileSystem" in str(error):
        return OSError(int(system[1]), os.strerror(int(system[1])), place)
    if "/latest/api/token" in text or "/latest/meta-data" in text:
        return TransportError(f"{place}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, NotImplementedError):
        return TransportError(f"{place}: this store does not do what an archive needs: {text}")
    if isinstance(error, InvalidPathError):
        return TransportError(
            f"{place}: an object there has a name that no archive gives: remove it (a pull by its index"
            f" needs no list): {shown(text)}"
        )
    if _ELSEWHERE in text:
        return PeerRejected(HTTPStatus.MOVED_PERMANENTLY, f"{place}: the bucket is elsewhere; {_REGION}")
    status, code, words = _status_of(text), _CODE.search(text), _WORDS.search(text)
    if status is None and not isinstance(error, FileNotFoundError):
        return PeerUnreachable(f"{place}: {shown(' '.join(text.split()))}")
    number = HTTPStatus.NOT_FOUND if status is None else status
    said = shown(f"{code[1]}: {words[1]}") if code and words else _PHRASES.get(number, "no reason was given")
    advice = _ADVICE.get(code[1] if code else "") or _ADVICE.get(number)
    return PeerRejected(number, f"{place}: {said}" + (f"; {advice}" if advice else ""))


def _status_of(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def _is_beyond(text: str) -> bool:
    """Whether an object has not even the first of the bytes that were asked for."""
    return _status_of(text) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or _BEYOND in text
