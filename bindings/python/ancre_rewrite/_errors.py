"""What goes wrong, with the fields of the tool's reports."""

from __future__ import annotations

from pathlib import Path
from typing import Optional


class Error(Exception):
    """A call that did not do what was asked."""

    #: Exit status of the same command line: 1, a check said no; 2, bad usage or bad input.
    status: int
    #: What happened, and where.
    what: str
    #: What to try, if there is something. Options are named as on the command line: ``--label-smoothing`` is ``label_smoothing=``.
    help: Optional[str]
    #: The file it is about.
    file: Optional[Path]
    #: The node it is about.
    node: Optional[str]
    #: The operator of that node.
    operator: Optional[str]

    def __init__(
        self,
        what: str,
        *,
        status: int = 2,
        help: Optional[str] = None,
        file: Optional[Path] = None,
        node: Optional[str] = None,
        operator: Optional[str] = None,
    ) -> None:
        super().__init__(what)
        self.status, self.what, self.help = status, what, help
        self.file, self.node, self.operator = file, node, operator

    def __str__(self) -> str:
        return self.what if self.help is None else f"{self.what}\n  try: {self.help}"


class CheckFailed(Error):
    """A check said no (status 1)."""


class InputError(Error, ValueError):
    """Bad usage or bad input (status 2)."""


class Notice(UserWarning):
    """Something that happened on the way, such as an engine that died while it was asked for types."""
