"""What `import snapstore` brings: every name when it is asked for, and nothing before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import snapstore
from processes import unmeasured

#: What costs milliseconds or is another's: a node that saves and lends snapshots needs none of it.
HEAVY = {
    "asyncio", "concurrent", "email", "google", "grpc", "h11", "hashlib", "http", "lmdb", "multiprocessing",
    "obstore", "opentelemetry", "prometheus_client", "rich", "secrets", "shtab", "sqlite3", "ssl",
    "subprocess", "urllib.request", "xml",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has after `code`, and had not before."""
    code = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=unmeasured()
    )
    return set(done.stdout.split())


def told_to_type_checkers() -> dict[str, str]:
    """Name by name, the module from which type checkers are told that it comes."""
    tree = ast.parse(Path(snapstore.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_package_alone_loads_nothing_but_itself():
    assert loaded_by("import snapstore") == {"snapstore"}


def test_all_its_names_together_load_nothing_heavy_and_no_extra():
    names = set(snapstore.__all__) - {"CaptureQueue"}  # Its requests are futures, of concurrent.futures.
    loaded = loaded_by(f"from snapstore import {', '.join(sorted(names))}")
    assert "snapstore.directory" in loaded
    assert not {name for name in loaded if name in HEAVY or name.split(".")[0] in HEAVY}


def test_each_name_is_the_one_that_type_checkers_know():
    told = told_to_type_checkers()
    assert told.keys() == set(snapstore.__all__)
    for name, module in told.items():
        assert getattr(snapstore, name) is getattr(importlib.import_module(module), name)
        assert name in dir(snapstore)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'snapstore' has no attribute 'nothing'"):
        snapstore.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from snapstore import nothing  # noqa: F401


def test_a_star_brings_them_all():
    names: dict[str, object] = {}
    exec("from snapstore import *", names)
    assert names.keys() - {"__builtins__"} == set(snapstore.__all__)


def test_a_module_is_there_as_type_checkers_take_it_to_be():
    assert "snapstore.errors" in loaded_by("import snapstore; snapstore.errors.SnapshotBusy")
    assert "snapstore.lease" in loaded_by("import snapstore; snapstore.lease.Lease")
