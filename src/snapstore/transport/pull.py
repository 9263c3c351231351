"""The pull: a peer's snapshot on its way into a directory, in one attempt or several.

The manifest first, then what it says, verified chunk by chunk. Whether there is another attempt is not
decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, digest_text
from snapstore.wire import entity_tag

if TYPE_CHECKING:
    from snapstore.directory import SnapshotDir
    from snapstore.reception import Reception
    from snapstore.stored import SavedSnapshot
    from snapstore.transfer import Transfer
    from snapstore.transport.patience import Deadlines
    from snapstore.transport.questions import Questions


@dataclass
class Pull:
    """What one call fetches, and how. One thread at a time."""

    questions: Questions
    deadlines: Deadlines
    url: str
    directory: SnapshotDir
    digest: str | None
    transfer: Transfer
    urgent: bool

    def attempt(self) -> SavedSnapshot:
        """Try once, behind what was kept of an earlier attempt."""
        self.transfer.begin_attempt()
        manifest = self._ask_manifest()
        self.transfer.total = manifest.size
        with self.directory.receive(
            manifest.meta,
            size=manifest.size,
            chunk_size=manifest.chunk_size,
            data_size=len(manifest.meta.data),
        ) as reception:
            reception.check(manifest, self.transfer.progress)
            return self._save(manifest, reception)

    @property
    def _target(self) -> str:
        return f"/v1/snapshots/{self.transfer.index}"

    def _ask_manifest(self) -> Manifest:
        index = self.transfer.index
        said = self.questions.get(self.url, self._target + "/manifest", MANIFEST_SIZE_MAX)
        manifest = Manifest.from_bytes(said)
        if manifest.meta.index != index:
            raise SnapshotCorrupt(f"the peer sent the manifest of index {manifest.meta.index} for {index}")
        if self.digest not in (None, digest_text(manifest.digest)):
            raise SnapshotCorrupt(f"the peer has another snapshot {index} than the one of {self.digest}")
        return manifest

    def _save(self, manifest: Manifest, reception: Reception) -> SavedSnapshot:
        wanted = _range_headers(manifest, reception.kept)
        with self.questions.asked(self.url, self._target, wanted) as (sock, head):
            if head.status != HTTPStatus.PARTIAL_CONTENT:
                reception.kept = 0
            body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
            self.transfer.begin_attempt(reception.kept)
            return reception.save(
                body,
                manifest.meta,
                expected=manifest,
                progress=self.transfer.progress,
                idle_timeout_s=self.deadlines.idle_timeout_s,
                rate_min=self.deadlines.rate_min,
                urgent=self.urgent,
            )


def _range_headers(manifest: Manifest, start: int) -> Sequence[tuple[str, str]]:
    """Ask for what follows `start`, of exactly this snapshot or all of it (RFC 9110, 13.1.5)."""
    if start == 0:
        return ()
    return [("Range", f"bytes={start}-"), ("If-Range", entity_tag(manifest))]
