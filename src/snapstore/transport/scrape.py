"""What a server tells of itself to operators: the answers to GET /metrics, /v1/transfers, /v1/leases.

The names and units of the metrics are the field's, and a promise: dashboards know them. It must not know
sockets or heads; each answer is a route, behind the token like every other.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore.errors import PeerRejected
from snapstore.lease import Kind
from snapstore.metrics import CONTENT_TYPE, Page
from snapstore.wire import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.directory import SnapshotDir
    from snapstore.lease import Lease
    from snapstore.transfers import TransferRegistry
    from snapstore.transport.routes import Exchange, Route


def scrape_routes(directory: SnapshotDir, registry: TransferRegistry) -> dict[str, Route]:
    """Return the routes of a server on `directory` whose transfers are in `registry`."""
    return {
        "/metrics": _route("/metrics", CONTENT_TYPE, lambda: metrics_page(directory, registry)),
        "/v1/transfers": _route("/v1/transfers", "application/json", lambda: transfers_list(registry)),
        "/v1/leases": _route("/v1/leases", "application/json", lambda: leases_list(directory, registry)),
    }


def transfers_list(registry: TransferRegistry) -> bytes:
    """Return the transfers under way and the last ones that have ended, in JSON."""
    return to_json({"transfers": [transfer.to_json() for transfer in registry.transfers()]})


def leases_list(directory: SnapshotDir, registry: TransferRegistry) -> bytes:
    """Return what is held, pins first, the oldest of each first, in JSON."""
    return to_json({"leases": [lease.to_json() for lease in _leases(directory, registry)]})


def metrics_page(directory: SnapshotDir, registry: TransferRegistry) -> bytes:
    """Return all that is counted, in Prometheus' text format. Reads the manifests of the directory."""
    page = Page()
    page.counter(
        "snapstore_transfer_bytes_total",
        "Bytes of snapshots moved, or compared where they were kept, all attempts together.",
        [({"direction": way.value}, count) for way, count in registry.moved().items()],
    )
    page.gauge(
        "snapstore_transfers_in_flight",
        "Transfers under way.",
        [({"direction": way.value}, count) for way, count in registry.in_flight().items()],
    )
    page.histogram(
        "snapstore_transfer_seconds",
        "How long transfers took, from offer to answer.",
        [
            ({"direction": way.value, "outcome": outcome.value}, histogram)
            for (way, outcome), histogram in registry.seconds.items()
        ],
    )
    page.gauge(
        "snapstore_pinned_age_seconds",
        "How long the oldest snapshot has been pinned in the store; 0 where none is.",
        [({}, registry.pinned_age_s)],
    )
    page.gauge(
        "snapstore_pinned_bytes",
        "What the KV cannot use again while its snapshot is lent, as far as it tells.",
        [({}, registry.pinned_bytes)],
    )
    _write_leases(page, _leases(directory, registry))
    _write_directory(page, directory)
    return page.encode()


def _leases(directory: SnapshotDir, registry: TransferRegistry) -> list[Lease]:
    return [*registry.leases(), *directory.leases()]


def _write_leases(page: Page, leases: list[Lease]) -> None:
    for name, words, counted in (
        ("snapstore_leases", "Snapshots held.", leases),
        ("snapstore_leases_overdue", "Those whose time is up.", [it for it in leases if it.overdue]),
    ):
        page.gauge(
            name, words, [({"kind": kind.value}, sum(it.kind is kind for it in counted)) for kind in Kind]
        )


def _write_directory(page: Page, directory: SnapshotDir) -> None:
    stored, counts = directory.list(), directory.counts
    page.gauge("snapstore_stored_snapshots", "Snapshots in the directory.", [({}, len(stored))])
    page.gauge("snapstore_stored_bytes", "What they have together.", [({}, sum(it.size for it in stored))])
    page.histogram("snapstore_fsync_seconds", "What the fsyncs of a save took.", [({}, counts.fsync)])
    page.counter(
        "snapstore_leftovers_swept_total",
        "Files that dead or broken saves left, removed.",
        [({}, counts.leftovers_swept.value)],
    )
    page.counter(
        "snapstore_digest_failures_total",
        "Snapshots, stored or coming in, whose bytes were not those of their digests.",
        [({}, counts.digest_failures.value)],
    )


def _route(path: str, content_type: str, make: Callable[[], bytes]) -> Route:
    def answer(exchange: Exchange) -> None:
        head = exchange.head
        if head.target.partition("?")[0] != path:
            raise PeerRejected(HTTPStatus.NOT_FOUND, f"nothing there, only at {path}")
        if head.method not in ("GET", "HEAD"):
            raise PeerRejected(HTTPStatus.METHOD_NOT_ALLOWED, f"no {head.method} here")
        if head.body_length != 0:
            raise PeerRejected(HTTPStatus.BAD_REQUEST, f"{head.method} takes no body")
        exchange.respond(HTTPStatus.OK, make(), [("Content-Type", content_type)])

    return answer
