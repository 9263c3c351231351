"""Imports point down only: what each layer may know, read from the source without running it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import snapstore
from processes import unmeasured

ROOT = Path(snapstore.__file__).parent

#: From the bottom up. A module may import from layers below its own, and from its own.
LAYERS = (
    ("errors", "meta", "protocols", "outcomes"),
    ("clock", "disk", "wire", "_fastpipe", "manifest", "retry", "room", "metrics", "lease"),
    ("counts", "transfer", "transfers", "tracing"),
    ("kv", "stream", "source", "leases", "stored", "share", "capture", "pacing"),
    ("broken", "poison", "retention", "reception"),
    ("shelf", "housekeeping", "claims", "directory"),
    ("store", "transport", "testing"),
    ("raft", "etcd", "archive", "aio"),
    ("doctor",),
    ("bench",),
    ("cli", "__main__"),
)
#: Neither knows the other, though the layers would allow it.
STRANGERS = {("kv", "directory"), ("kv", "stream"), ("store", "transport"), ("transport", "store")}

#: A method that leads up, imported when it is called and not before: `SnapshotClient.send_etcd`.
DOORS = {("transport/http_client.py", "etcd")}

LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def _part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _imported_parts(path: Path) -> set[str]:
    """The parts of snapstore that a module imports when it runs; type checkers' imports do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "snapstore":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= (
                {node.module.removeprefix("snapstore.")} if node.module.startswith("snapstore.") else set()
            )
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("snapstore.")
                for alias in node.names
                if alias.name.startswith("snapstore.")
            }
    return {name.split(".")[0] for name in names}


def test_there_are_modules_to_look_at():
    assert len(_modules()) > 20


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = _part(path)
    assert part in LAYER_OF, f"{part} has no layer; give it one in this test"
    for imported in _imported_parts(path):
        assert imported in LAYER_OF, f"{part} imports {imported}, which has no layer"
        if (str(path.relative_to(ROOT)), imported) in DOORS:
            continue
        assert LAYER_OF[imported] <= LAYER_OF[part], f"{part} imports {imported} from above"
        assert (part, imported) not in STRANGERS, f"{part} must not know {imported}"


def test_the_transport_opens_no_door_before_it_is_asked_to():
    code = "import sys, snapstore.transport.http_client; print(*(set(sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=unmeasured()
    ).stdout.split()
    assert "snapstore.transport.http_client" in loaded
    assert not [name for name in loaded if name.startswith(("snapstore.etcd", "google"))]


def test_another_system_gets_a_clear_message():
    code = "import sys; sys.platform = 'darwin'; import snapstore"
    outcome = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "ImportError: snapstore needs Linux, this is darwin" in outcome.stderr
