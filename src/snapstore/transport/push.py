"""The push: a snapshot on its way to one peer, in one attempt or several.

Makes the offer, sends what the follower wants, and hears what came of it. Whether there is another
attempt is not decided here; how the line is made is dial.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.errors import PeerRejected
from snapstore.transport.answers import believed
from snapstore.transport.breaks import line_broke, naming
from snapstore.transport.heads import Call
from snapstore.transport.patience import read_back_s
from snapstore.wire import pack_data, parse_kept

if TYPE_CHECKING:
    import socket

    from snapstore._fastpipe import Throttle
    from snapstore.stream import SnapshotStream
    from snapstore.transfer import Transfer
    from snapstore.transport.address import Address
    from snapstore.transport.answers import Answers, SentSnapshot
    from snapstore.transport.dial import Dialer
    from snapstore.transport.patience import Deadlines
    from snapstore.wire import Offer


@dataclass
class Push:
    """What one call sends, and how. One thread at a time."""

    dialer: Dialer
    answers: Answers
    deadlines: Deadlines
    throttle: Throttle | None
    url: str
    offer: Offer
    stream: SnapshotStream
    transfer: Transfer
    urgent: bool
    body_begun: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether another attempt would send all of it; raises what the stream was closed for."""
        return not self.body_begun or self.stream.rereadable

    def attempt(self) -> SentSnapshot:
        """Try once; at once again where it failed for what the peer has thrown away meanwhile."""
        try:
            return self._try()
        except PeerRejected as rejected:
            # It kept bytes of another snapshot that was announced alike; they are gone now.
            if rejected.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not self.repeatable:
                raise
        return self._try()

    def _try(self) -> SentSnapshot:
        self.transfer.begin_attempt()
        address = self.dialer.check(self.url)
        call = self._offer_call(address)
        with self.dialer.connected(self.url, address) as sock:
            with naming(self.url):
                _fastpipe.send_words(sock.fileno(), call.head, timeout_s=self.deadlines.idle_timeout_s)
                answer = call.read_answer(sock, self.deadlines.offer_timeout_s, or_continue=True)
                if answer.status != HTTPStatus.CONTINUE:
                    sent = believed(self.url, self.answers.read_sent(sock, answer, self.offer), None)
                    self.transfer.existed = True
                    return sent
                kept = parse_kept(answer.headers, self.offer)
            # One that said more than "go on" has refused already.
            copied = None if answer.kept else self._send_body(sock, kept)
            patience_s = self.deadlines.connect_timeout_s
            if copied:
                patience_s = self.deadlines.fsync_timeout_s + read_back_s(kept)
            with naming(self.url):
                answer = call.read_answer(sock, patience_s)
                sent = self.answers.read_sent(sock, answer, self.offer, kept)
        return believed(self.url, sent, copied)

    def _offer_call(self, address: Address) -> Call:
        headers = [*self.dialer.headers(address), *self.offer.headers(), ("Expect", "100-continue")]
        return Call("PUT", f"/v1/snapshots/{self.offer.meta.index}", headers)

    def _send_body(self, sock: socket.socket, kept: int) -> _fastpipe.Copied | None:
        """Send all of the stream; None where the line broke: the peer left, or answered in the middle."""
        stream, data = self.stream, pack_data(self.stream.meta.data)
        patience_s = self.deadlines.idle_timeout_s + read_back_s(kept)
        self.body_begun = True
        try:
            if data:
                chunk = b"%x\r\n%b\r\n" % (len(data), data)
                _fastpipe.send_words(sock.fileno(), chunk, timeout_s=patience_s)
            return _fastpipe.send_frames(
                stream.source,
                sock.fileno(),
                size=self.offer.size,
                chunk_size=self.offer.chunk_size,
                kept=kept,
                http_chunked=True,
                progress=self.transfer.progress,
                idle_timeout_s=patience_s,
                rate_min=self.deadlines.rate_min,
                throttle=self.throttle,
                urgent=self.urgent,
            )
        except Exception as error:
            # Closed meanwhile, by whoever compacted the log or stopped the store: that is why.
            if stream.reason is not None and stream.reason is not error:
                raise stream.reason from error
            if line_broke(sock, error):
                return None
            raise
