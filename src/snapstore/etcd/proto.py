"""Makes message classes of a `.proto` file, so that no generated code and no protoc is needed.

Reads what our own files use and nothing more: a syntax, a package, flat messages of scalars and of
messages that stand above them in the same file. Anything else is a ValueError with its line. The
classes live in a pool of their own: another library's etcd messages in the process do not collide.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from snapstore.errors import MissingExtra

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError as DecodeError  # Callers take it from here.
except ImportError as error:
    raise MissingExtra("etcd's messages need protobuf: pip install 'snapstore[etcd]'") from error

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Field = descriptor_pb2.FieldDescriptorProto

_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint64": _Field.TYPE_UINT64,
}

_LABELS = {
    "": _Field.LABEL_OPTIONAL,
    "optional": _Field.LABEL_OPTIONAL,
    "repeated": _Field.LABEL_REPEATED,
}

_COMMENT = re.compile(r"\s*//.*")
_SYNTAX = re.compile(r'syntax = "(proto[23])";')
_PACKAGE = re.compile(r"package (\w+);")
_MESSAGE = re.compile(r"message (\w+) {")
_FIELD = re.compile(r"(?:(optional|repeated) )?(\w+) (\w+) = ([1-9]\d*);")


def message_classes(name: str, text: str) -> dict[str, type[Message]]:
    """Return the classes of all messages in `text`, the contents of the file `name`, by their names."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_read(name, text).SerializeToString())
    described = pool.FindFileByName(name).message_types_by_name
    return {message: message_factory.GetMessageClass(descriptor) for message, descriptor in described.items()}


def _read(name: str, text: str) -> Any:
    """Return the FileDescriptorProto of `text`."""
    file = descriptor_pb2.FileDescriptorProto(name=name)
    message: Any = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = _COMMENT.sub("", raw).strip()
        if not line:
            continue
        if message is not None and line == "}":
            message = None
        elif message is not None and (found := _FIELD.fullmatch(line)):
            _add_field(file, message, *found.groups(""))
        elif message is None and (found := _MESSAGE.fullmatch(line)):
            message = file.message_type.add(name=found[1])
        elif not file.message_type and (found := _SYNTAX.fullmatch(line)):
            file.syntax = found[1]
        elif not file.message_type and (found := _PACKAGE.fullmatch(line)):
            file.package = found[1]
        else:
            raise ValueError(f"{name}:{number}: {line!r} is not in the part of protobuf that is read here")
    if message is not None or not (file.syntax and file.package):
        raise ValueError(f"{name}: the file has no syntax, no package, or ends in a message")
    return file


def _add_field(file: Any, message: Any, label: str, kind: str, field: str, number: str) -> None:
    # proto2 wants a label on each field; in proto3 none means that a zero is not written.
    if (label == "optional") != (file.syntax == "proto2" and label != "repeated"):
        raise ValueError(f"{file.name}: {message.name}.{field} has a label that is not of {file.syntax}")
    added = message.field.add(name=field, number=int(number), label=_LABELS[label])
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
    elif any(kind == above.name for above in file.message_type):
        added.type, added.type_name = _Field.TYPE_MESSAGE, f".{file.package}.{kind}"
    else:
        raise ValueError(f"{file.name}: {message.name}.{field} is of the unknown type {kind}")
