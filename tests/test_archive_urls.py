"""Which URLs name an archive, and which endpoints are asked: nothing else is ever tried."""

from __future__ import annotations

import pytest

pytest.importorskip("obstore", reason="THE ARCHIVE IS NOT TESTED: snapstore[s3] is not installed")

from snapstore.archive import Archive

URLS = [
    "s3://", "s3:///prefix", "file://host/path", "file:///", "memory://", "http://x/y", "/path", "s3://u:p@b",
    "s3://b?x", "s3://b#x", "s3://b//x", "s3://b/x//y", "s3://b/x/../y", "s3://b/.", "s3://b/%2e%2e/y",
    "s3://b/%00", "s3://b/x\n", "s3://b\n/x", "s3://b:99/x", "s3://b\u00fc/x",
]  # fmt: skip

ENDPOINTS = [
    "", "localhost:9000", "nonsense", "http://", "ftp://x", "http://user:pw@x", "http://x:99999",
    "http://x y", "http://x?y", "http://[::1", "http://x\n",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_archive(url):
    with pytest.raises(ValueError, match="archive"):
        Archive(url)


@pytest.mark.parametrize("url", ["s3://b", "s3://b/", "s3://my.bucket-1/x/y/", "file:///a/../b//c"])
def test_what_is_an_archive(url):
    assert repr(Archive(url)) == f"Archive({url!r})"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_is_no_endpoint_is_asked_for_nothing(endpoint, monkeypatch):
    with pytest.raises(ValueError, match="an archive's endpoint is http") as raised:
        Archive("s3://b", endpoint=endpoint)
    assert "pw" not in str(raised.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if endpoint:
        with pytest.raises(ValueError, match="an archive's endpoint is http"):
            Archive("s3://b")
    else:
        Archive("s3://b")  # As for AWS's own tools.
