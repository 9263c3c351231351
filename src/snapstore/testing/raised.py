"""An exception of another process, told in plain values: what it was, its errno and path, its cause.

Exceptions do not travel well: what pickles of one is not what it carries. Reads no files, so that
telling one makes no system call that a tracer could mistake for the tested code's own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Raised:
    """What a traced callable raised."""

    #: Names of its class and of all classes above, most special first.
    kinds: tuple[str, ...]
    text: str
    #: Of an OSError, else None.
    errno: int | None
    filename: str | None
    cause: Raised | None
    #: Where it went through, outermost first, as "file:line in function".
    where: tuple[str, ...]

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        """Tell of `error`."""
        where = []
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            where.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
            traceback = traceback.tb_next
        filename = getattr(error, "filename", None)
        return cls(
            tuple(kind.__name__ for kind in type(error).__mro__),
            str(error),
            getattr(error, "errno", None),
            None if filename is None else str(filename),
            None if error.__cause__ is None else cls.of(error.__cause__),
            tuple(where),
        )

    def is_a(self, kind: type[BaseException]) -> bool:
        """Whether it was a `kind`."""
        return kind.__name__ in self.kinds

    def __str__(self) -> str:
        return "\n  ".join((f"{self.kinds[0]}: {self.text}", *self.where))
