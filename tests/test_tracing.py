"""A span for each transfer, with the fields that the log has, for whoever exports them."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from nodes import CONTENT, META, push, written
from processes import unmeasured
from snapstore.aio import save_from
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, PipeClosed, SnapshotCorrupt
from snapstore.transfer import Direction
from snapstore.transfers import TransferRegistry

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="SPANS ARE NOT TESTED: no opentelemetry-sdk")


@pytest.fixture
def exporter():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


@pytest.fixture
def registry(tracer):
    from snapstore.tracing import TransferSpans

    registry = TransferRegistry()
    TransferSpans(registry, tracer)
    return registry


def fail(registry, error):
    with registry.watch(Direction.IN, "peer", 8):
        raise error


def test_a_push_is_a_span_with_the_fields_of_the_log(follower, registry, exporter):
    push(follower, written(), registry=registry)
    (span,) = exporter.get_finished_spans()
    (transfer,) = registry.transfers()
    told = {f"snapstore.{name}": value for name, value in transfer.to_json().items() if value is not None}
    assert (span.name, dict(span.attributes)) == ("snapstore.send", told)
    assert (told["snapstore.index"], told["snapstore.bytes"]) == (META.index, len(CONTENT))
    assert span.status.is_unset
    assert span.end_time - span.start_time > 0


@pytest.mark.parametrize(
    ("error", "is_error"),
    [(PeerRejected(503, "busy"), True), (OSError(5, "x"), True), (PipeClosed("x"), False)],
)
def test_how_it_ended_is_the_spans_status(registry, exporter, error, is_error):
    with pytest.raises(type(error)):
        fail(registry, error)
    (span,) = exporter.get_finished_spans()
    assert span.name == "snapstore.receive"
    assert (not span.status.is_ok and not span.status.is_unset) is is_error
    assert str(error) in span.attributes["snapstore.error"]
    assert not is_error or str(error) in span.status.description


def test_what_no_exporter_can_encode_is_told_as_text(registry, exporter):
    """A peer may offer any index of 64 bits, and a file's name in an error may be any bytes."""
    error = SnapshotCorrupt(b"/snap-\xff: chunk 7".decode("utf-8", "surrogateescape"))
    with (
        pytest.raises(SnapshotCorrupt),
        registry.watch(Direction.IN, "peer", 2**64 - 1, total=2**63 - 1),
    ):
        raise error
    (span,) = exporter.get_finished_spans()
    told = [span.attributes[f"snapstore.{name}"] for name in ("index", "total", "error")]
    assert told[:2] == [str(2**64 - 1), 2**63 - 1]
    assert told[2] == r"SnapshotCorrupt: /snap-\udcff: chunk 7"
    assert span.status.description == told[2]


def test_what_has_ended_is_not_remembered(tracer):
    from snapstore.tracing import TransferSpans

    registry = TransferRegistry()
    spans = TransferSpans(registry, tracer)
    with registry.watch(Direction.IN, "peer", 1):
        assert len(spans._spans) == 1
    assert not spans._spans


def test_those_at_once_and_those_begun_before_are_told_apart(registry, exporter, tracer):
    from snapstore.tracing import TransferSpans

    with registry.watch(Direction.IN, "a", 1), registry.watch(Direction.IN, "b", 2):
        late = TransferSpans(registry, tracer)  # It has seen none of them begin.
    assert not late._spans
    ended = [
        (span.attributes["snapstore.peer"], span.attributes["snapstore.state"])
        for span in exporter.get_finished_spans()
    ]
    assert ended == [("b", "done"), ("a", "done")]


def test_its_parent_is_the_tasks_span(registry, exporter, tracer, tmp_path):
    class Source:
        def read(self, size):
            with registry.watch(Direction.IN, "peer", 1):
                return b""

    async def main():
        with tracer.start_as_current_span("the node's"):
            await save_from(directory, Source(), 1)

    with SnapshotDir(tmp_path) as directory:
        asyncio.run(main())
    inner, outer = exporter.get_finished_spans()
    assert (inner.parent.span_id, outer.name) == (outer.context.span_id, "the node's")


def test_a_listener_that_fails_keeps_none_from_the_others(caplog):
    seen = []
    registry = TransferRegistry(on_change=lambda transfer: seen.append(1) or 1 / 0)
    registry.tell(lambda transfer: seen.append(2))
    with registry.watch(Direction.IN, "peer", 1):
        pass
    assert seen == [1, 2, 1, 2]
    assert len(caplog.records) == 2


def test_without_the_extra_its_name_is_told():
    code = "import sys; sys.modules['opentelemetry'] = None; import snapstore.tracing"
    outcome = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=unmeasured()
    )
    assert "MissingExtra: spans need OpenTelemetry: pip install 'snapstore[otel]'" in outcome.stderr
