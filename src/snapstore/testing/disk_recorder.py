"""The file operations of a traced process below one directory, as disk_model.py has them.

Looks at each system call when it begins, and takes it into the log when it ends well, in the order in
which calls end. Files and directories are told apart by device and inode, so that descriptors, links
and renames need no bookkeeping. A call that changes a recorded file in a way that is not understood
raises NotImplementedError: a change that was not seen would make every state after it wrong.

Not recorded: modes, owners, times, extended attributes. They are no part of what a state has.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING

from snapstore.testing.disk_model import ROOT, Mark, Names, Operation, Resize, Sync, Write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from snapstore.testing.call import Call

    #: Told the result of a call that ended well.
    Taken = Callable[[int], object]

_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_FOLLOW = 0x400
_AT_REMOVEDIR = 0x200
_KEEP_SIZE = 1

#: Calls whose change to a recorded file is not understood, and the argument with the file's descriptor.
_NOT_UNDERSTOOD = {
    "writev": 0, "pwritev": 0, "pwritev2": 0, "sendfile": 0, "splice": 2, "copy_file_range": 2,
}  # fmt: skip

#: FICLONE and FICLONERANGE: a file gets another's bytes. All other ioctls change none.
_CLONES = {0x40049409, 0x4020940D}


class DiskRecorder:
    """`on_call` and `on_return` of a trace; afterwards `operations` are what was done below `root`."""

    def __init__(self, root: Path) -> None:
        self.operations: list[Operation] = []
        #: Numbers that are directories.
        self.directories = {ROOT}
        self._nodes = {self._identity(str(root)): ROOT}
        self._count = 1
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._sizes: dict[int, int] = {}
        self._under_way: dict[int, Taken] = {}

    def on_call(self, call: Call) -> None:
        """Look at a call that begins."""
        self._under_way.pop(call.tid, None)
        if call.name in _NOT_UNDERSTOOD:
            self._refuse_if_recorded(call, _NOT_UNDERSTOOD[call.name])
        look = getattr(self, f"_at_{call.name}", None)
        taken = look(call) if look is not None else None
        if taken is not None:
            self._under_way[call.tid] = taken

    def on_return(self, call: Call, result: int) -> None:
        """Take a call in that ended well."""
        taken = self._under_way.pop(call.tid, None)
        if taken is not None and result >= 0:
            taken(result)

    def _at_openat(self, call: Call) -> Taken | None:
        flags = call.int_argument(2)
        path = call.path(0, 1)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            inside = self._node(path) in self.directories
            return (lambda fd: self._new(call, fd)) if inside else None
        parent, name = self._place(path)
        if parent is None:
            return None

        def taken(fd: int) -> None:
            node = self._names[parent].get(name)
            if node is None and flags & os.O_CREAT:
                self._rename((parent, name, self._new(call, fd)))
            elif node is not None and flags & os.O_TRUNC:
                self._resize(node, 0)

        return taken

    def _at_mkdirat(self, call: Call) -> Taken | None:
        return self._made_directory(call.path(0, 1))

    def _at_mkdir(self, call: Call) -> Taken | None:
        return self._made_directory(call.path(None, 0))

    def _made_directory(self, path: str) -> Taken | None:
        parent, name = self._place(path)
        if parent is None:
            return None

        def taken(_: int) -> None:
            node = self._number(self._identity(path))
            self.directories.add(node)
            self._names[node] = {}
            self._rename((parent, name, node))

        return taken

    def _at_write(self, call: Call) -> Taken | None:
        return self._written(call, None)

    def _at_pwrite64(self, call: Call) -> Taken | None:
        return self._written(call, call.arguments[3])

    def _written(self, call: Call, offset: int | None) -> Taken | None:
        node = self._of_descriptor(call, 0)
        if node is None:
            return None
        position, flags = call.descriptor_state(0)
        at = position if offset is None else offset
        if flags & os.O_APPEND:
            at = self._sizes.get(node, 0)
        data = call.data

        def taken(count: int) -> None:
            self.operations.append(Write(node, at, data[:count]))
            self._sizes[node] = max(self._sizes.get(node, 0), at + count)
            if flags & os.O_DSYNC:
                self.operations.append(Sync(node, len(self.operations)))

        return taken

    def _at_ftruncate(self, call: Call) -> Taken | None:
        node = self._of_descriptor(call, 0)
        return None if node is None else lambda _: self._resize(node, call.arguments[1])

    def _at_truncate(self, call: Call) -> Taken | None:
        node = self._node(call.path(None, 0))
        return None if node is None else lambda _: self._resize(node, call.arguments[1])

    def _at_fallocate(self, call: Call) -> Taken | None:
        node = self._of_descriptor(call, 0)
        mode, end = call.int_argument(1), call.arguments[2] + call.arguments[3]
        if node is None or mode == _KEEP_SIZE:
            return None
        if mode:
            raise NotImplementedError(f"fallocate with mode {mode} is not recorded")
        return lambda _: self._resize(node, end) if end > self._sizes.get(node, 0) else None

    def _at_fsync(self, call: Call) -> Taken | None:
        node, begun = self._of_descriptor(call, 0), len(self.operations)
        return None if node is None else lambda _: self.operations.append(Sync(node, begun))

    _at_fdatasync = _at_fsync

    def _at_sync(self, call: Call) -> Taken | None:
        begun = len(self.operations)
        return lambda _: self.operations.append(Sync(None, begun))

    _at_syncfs = _at_sync

    def _at_linkat(self, call: Call) -> Taken | None:
        flags = call.int_argument(4)
        if flags & _AT_EMPTY_PATH and not call.text(1):
            node = self._of_descriptor(call, 0)
        else:
            node = self._node(call.path(0, 1), follow=bool(flags & _AT_SYMLINK_FOLLOW))
        return self._linked(node, call.path(2, 3))

    def _at_link(self, call: Call) -> Taken | None:
        return self._linked(self._node(call.path(None, 0), follow=False), call.path(None, 1))

    def _linked(self, node: int | None, path: str) -> Taken | None:
        parent, name = self._place(path)
        if parent is None:
            return None
        if node is None:
            raise NotImplementedError("a link to a file from elsewhere is not recorded")
        return lambda _: self._rename((parent, name, node))

    def _at_symlinkat(self, call: Call) -> None:
        self._refuse_inside(call.path(1, 2))

    def _at_symlink(self, call: Call) -> None:
        self._refuse_inside(call.path(None, 1))

    def _at_renameat2(self, call: Call) -> Taken | None:
        if call.int_argument(4) & ~1:
            raise NotImplementedError("an exchange of names is not recorded")
        return self._at_renameat(call)

    def _at_renameat(self, call: Call) -> Taken | None:
        return self._renamed(call.path(0, 1), call.path(2, 3))

    def _at_rename(self, call: Call) -> Taken | None:
        return self._renamed(call.path(None, 0), call.path(None, 1))

    def _renamed(self, source: str, target: str) -> Taken | None:
        (old_parent, old_name), (parent, name) = self._place(source), self._place(target)
        if old_parent is None and parent is None:
            return None
        if old_parent is None or parent is None:
            raise NotImplementedError("a rename from or to elsewhere is not recorded")
        node = self._names[old_parent].get(old_name)
        return lambda _: self._rename((old_parent, old_name, None), (parent, name, node))

    def _at_unlinkat(self, call: Call) -> Taken | None:
        return self._removed(call.path(0, 1))

    def _at_unlink(self, call: Call) -> Taken | None:
        return self._removed(call.path(None, 0))

    _at_rmdir = _at_unlink

    def _removed(self, path: str) -> Taken | None:
        parent, name = self._place(path)
        return None if parent is None else lambda _: self._rename((parent, name, None))

    def _at_mmap(self, call: Call) -> None:
        shared = call.int_argument(3) & 0x0F != mmap.MAP_PRIVATE
        if shared and call.arguments[2] & mmap.PROT_WRITE and not call.int_argument(3) & mmap.MAP_ANONYMOUS:
            self._refuse_if_recorded(call, 4)

    def _at_ioctl(self, call: Call) -> None:
        if call.arguments[1] in _CLONES:
            self._refuse_if_recorded(call, 0)

    def _at_mark(self, call: Call) -> Taken | None:
        verb, _, index = call.mark_text.partition(" ")
        return (lambda _: self.operations.append(Mark(verb, int(index)))) if index else None

    def _refuse_if_recorded(self, call: Call, position: int) -> None:
        if self._of_descriptor(call, position) is not None:
            raise NotImplementedError(f"{call.name} of a recorded file is not understood")

    def _refuse_inside(self, path: str) -> None:
        if self._place(path)[0] is not None:
            raise NotImplementedError("a symbolic link is not recorded")

    def _new(self, call: Call, fd: int) -> int:
        return self._number(self._identity(f"/proc/{call.pid}/fd/{fd}"))

    def _number(self, identity: tuple[int, int] | None) -> int:
        """A new number, also for an inode that was another's before it was removed."""
        assert identity is not None
        self._nodes[identity] = self._count
        self._count += 1
        return self._count - 1

    def _rename(self, *changes: tuple[int, str, int | None]) -> None:
        for directory, name, node in changes:
            if node is None:
                self._names[directory].pop(name, None)
            else:
                self._names[directory][name] = node
        self.operations.append(Names(changes))

    def _resize(self, node: int, size: int) -> None:
        self._sizes[node] = size
        self.operations.append(Resize(node, size))

    def _place(self, path: str) -> tuple[int | None, str]:
        """The recorded directory in which a path ends, None where that is another, and the last name."""
        parent, name = os.path.split(path.rstrip("/"))
        node = self._node(parent)
        return (node if node in self.directories and name not in ("", ".", "..") else None), name

    def _node(self, path: str, *, follow: bool = True) -> int | None:
        identity = self._identity(path, follow=follow)
        return None if identity is None else self._nodes.get(identity)

    def _of_descriptor(self, call: Call, position: int) -> int | None:
        identity = call.identity(position)
        return None if identity is None else self._nodes.get(identity)

    @staticmethod
    def _identity(path: str, *, follow: bool = True) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            status = os.stat(path, follow_symlinks=follow)
            return status.st_dev, status.st_ino
        return None
