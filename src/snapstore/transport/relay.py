"""The relay between TLS on the network and a plain socket for everybody else.

The C core reads and writes plain descriptors without the GIL; TLS exists in Python only as an object
that needs the GIL for each record. So it ends here: a `Relay` shakes hands on the thread that makes
it, then a thread of its own passes bytes between the network and one end of a socket pair, and all
others see the pair's other end, which is a socket like any. It must not know HTTP or snapshots.

What the plain end sees of the network: an end of the peer's is an end, whether or not TLS took leave
first (bodies carry their lengths, so one that was cut is seen there); a peer that is gone is a broken
pipe; and a peer that is slow is a full buffer, since the relay holds one buffer each way and no more.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, cast

from snapstore.transport.tls import NotTls, TlsFailed, context_of, words_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore.transport.tls import TlsContext

#: Read and passed on at a time: sixteen of the largest records, so that the calls around them are few.
_PIECE_SIZE = 256 * 1024

#: The most that one record carries (RFC 8446, 5.1).
_RECORD_SIZE_MAX = 16 * 1024

#: What a first byte of TLS can be: an alert or a handshake (RFC 8446, 5.1). No letter of HTTP's is.
_FIRST_BYTES = (b"\x15", b"\x16")


class Relay:
    """Speaks TLS on `network`, and stands for it as the plain socket `plain`. Ends with `with`.

    `host` is the name that the peer's certificate must be for, which makes us the client; None makes
    us the server. The handshake may take `handshake_timeout_s` seconds in all; later, a peer may take
    nothing of what it is sent for `idle_timeout_s`. Raises TlsFailed, TimeoutError, ConnectionError
    where the peer leaves, and what else the network says. `network` stays its maker's; to shut it
    down ends the relay, from any thread.
    """

    def __init__(
        self,
        network: socket.socket,
        context: TlsContext,
        *,
        host: str | None,
        handshake_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        self._network = network
        self._idle_timeout_s = idle_timeout_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context_of(context).wrap_bio(self._incoming, self._outgoing, host is None, host)
        self._shake_hands(handshake_timeout_s)
        network.setblocking(False)
        #: Why it ended, where that was not as agreed. Set before `plain` ends.
        self.failure: OSError | None = None
        # Each way: whether it goes on, and what waits for its other side to take it.
        self._receiving = self._sending = True
        self._network_ended = False
        self._opened = self._sealed = memoryview(b"")
        self._moved_s = time.monotonic()
        self._buffer = memoryview(bytearray(_PIECE_SIZE))
        self._opened_buffer = memoryview(bytearray(_PIECE_SIZE))
        self.plain, self._inner = socket.socketpair()
        self._inner.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="snapstore-tls", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # The system has no thread left for us.
            self.plain.close()
            self._inner.close()
            raise ConnectionAbortedError(str(error)) from error

    def close(self) -> None:
        """Pass on what was written to `plain`, take leave, and wait for the thread."""
        self.plain.close()
        try:
            self._thread.join()
        except BaseException:  # Ctrl-C, since the peer is slow to take the rest: it will not get it.
            self._shut_down()
            self._thread.join()
            raise

    def cut(self) -> None:
        """End at once: the peer sees a line that broke, never a body that ended."""
        self._shut_down()
        self.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._network.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.cut()

    def _shake_hands(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        begun = False
        try:
            while not self._greeted(until_s):
                self._set_deadline(until_s)
                data = self._network.recv(_RECORD_SIZE_MAX)
                if not data:
                    raise ConnectionAbortedError("the peer left in the middle of the TLS handshake")
                if not begun and data[:1] not in _FIRST_BYTES:
                    raise NotTls("the peer speaks without TLS")
                begun = True
                self._incoming.write(data)
        except TimeoutError:
            raise TimeoutError(f"no TLS handshake within {timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise TlsFailed(f"TLS: {words_of(error)}") from error

    def _greeted(self, until_s: float) -> bool:
        """Say what is ours to say now, an alert too; whether the handshake is done."""
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._set_deadline(until_s)
                self._network.sendall(self._outgoing.read())
            raise
        self._set_deadline(until_s)
        self._network.sendall(self._outgoing.read())
        return done

    def _set_deadline(self, until_s: float) -> None:
        """For the whole handshake: a byte now and then does not move it."""
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._network.settimeout(left_s)

    # From here on, the relay's own thread.

    def _run(self) -> None:
        try:
            while True:
                self._receive()
                self._send()
                if not self._wait():
                    return
        except ssl.SSLError as error:
            self.failure = TlsFailed(f"TLS: {words_of(error)}")
            with contextlib.suppress(OSError):
                self._network.send(self._outgoing.read())
        except OSError as error:
            self.failure = error
        finally:
            self._inner.close()

    def _receive(self) -> None:
        """Pass on what the network has, as far as that goes without waiting."""
        while self._receiving:
            if not self._opened:
                self._opened = self._open_records()
            if not self._opened:
                if self._network_ended:
                    self._receiving = False
                    self._inner.shutdown(socket.SHUT_WR)
                return
            try:
                self._opened = self._opened[self._inner.send(self._opened) :]
            except BlockingIOError:
                return
            except OSError:  # Nobody reads there any more.
                self._receiving, self._opened = False, self._opened[:0]

    def _open_records(self) -> memoryview:
        """The content of the records that are here; empty where none is whole, or none will come."""
        opened, size = self._opened_buffer, 0
        while size + _RECORD_SIZE_MAX <= len(opened) and not self._network_ended:
            try:
                count = cast("int", self._tls.read(len(opened), opened[size:]))
            except ssl.SSLWantReadError:
                # What a peer makes us answer, key after key, must not pile up.
                if size or self._outgoing.pending > _PIECE_SIZE or not self._take():
                    break
            except ssl.SSLZeroReturnError:
                self._network_ended = True
            else:
                self._network_ended = count == 0
                size += count
        return opened[:size]

    def _take(self) -> bool:
        """Read from the network; whether there was anything, be it its end."""
        try:
            count = self._network.recv_into(self._buffer)
        except BlockingIOError:
            return False
        # An end without TLS's leave is not told to OpenSSL: it would take that for an attack, and refuse
        # to send the answer that a peer may still read.
        self._network_ended = count == 0
        self._incoming.write(self._buffer[:count])
        return True

    def _send(self) -> None:
        """Pass on what the plain end wrote, as far as that goes without waiting."""
        while True:
            if not self._sealed and not self._outgoing.pending and not self._seal():
                return
            if not self._sealed:
                self._sealed, self._moved_s = memoryview(self._outgoing.read()), time.monotonic()
            try:
                self._sealed = self._sealed[self._network.send(self._sealed) :]
            except BlockingIOError:
                return
            except OSError:  # It takes no more; what it said before may still be here.
                self._sending, self._sealed = False, self._sealed[:0]
                self._inner.shutdown(socket.SHUT_RD)
            self._moved_s = time.monotonic()

    def _seal(self) -> bool:
        """Make records of what the plain end wrote; whether there are any."""
        if not self._sending:
            return False
        try:
            count = self._inner.recv_into(self._buffer)
        except BlockingIOError:
            return False
        written = 0
        while written < count:
            written += self._tls.write(self._buffer[written:count])
        if count == 0:
            self._sending = False
            with contextlib.suppress(ssl.SSLError):  # It would wait for the peer's leave, and need not.
                self._tls.unwrap()
        return self._outgoing.pending > 0

    def _wait(self) -> bool:
        """Wait until either side can go on; False when neither will."""
        if not (self._receiving or self._sending or self._sealed):
            return False
        line = select.poll()
        network = select.POLLIN if self._receiving and not self._opened else 0
        network |= select.POLLOUT if self._sealed else 0
        inner = select.POLLOUT if self._opened else 0
        inner |= select.POLLIN if self._sending and not self._sealed else 0
        # Without a wish of ours a line that hung up would wake us for nothing, again and again.
        if network:
            line.register(self._network, network)
        if inner or not self._sealed:
            line.register(self._inner, inner)
        left_s = self._moved_s + self._idle_timeout_s - time.monotonic()
        ready = dict(line.poll(max(0.0, left_s) * 1000 if self._sealed else None))
        if not ready and self._sealed:
            raise TimeoutError(f"the peer took nothing for {self._idle_timeout_s:g} s")
        # The plain end is closed, both ways, and all it wrote is on its way.
        hung_up = ready.get(self._inner.fileno(), 0) & select.POLLHUP
        return not (hung_up and not self._sending and not self._sealed)
