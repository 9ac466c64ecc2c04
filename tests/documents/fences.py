"""The code blocks of a Markdown document, every one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHELLS = frozenset({"", "sh", "bash", "console"})
"""Languages of the blocks that a reader types into a shell."""
PYTHON = "python"
OUTPUT = "text"
"""Language of the blocks that show something and are not typed: what a program printed, a folder."""

_OPENING = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^`]*)$")
_MARK = re.compile(r"^<!-- not run by the tests: (?P<reason>.+) -->$")
_VARIABLE = re.compile(r"^(?P<name>[A-Z_]+)=\$\{(?P=name):-(?P<value>[^}]*)\}$")


@dataclass(frozen=True)
class Fence:
    """One code block."""

    document: str
    """Path of the document in the project."""
    line: int
    """Where the block begins, from 1."""
    language: str
    text: str
    reason: str | None
    """Why the tests do not run it: what its mark in the document says. None without a mark."""

    @property
    def first(self) -> str:
        """The first line that does something: after comments and variables."""
        lines = [line.rstrip() for line in self.text.splitlines()]
        return next(line for line in lines if line and line[:1] != "#" and not _VARIABLE.match(line))

    @property
    def variables(self) -> frozenset[str]:
        """Names of the values that a reader may set in the environment: lines `NAME=${NAME:-value}`."""
        return frozenset(match["name"] for match in map(_VARIABLE.match, self.text.splitlines()) if match)


def fences(path: Path, document: str) -> list[Fence]:
    """Every code block of a document, in order.

    Args:
        path: the document.
        document: what the blocks call it.

    Raises:
        ValueError: a block does not end, or a mark stands before no block.
    """
    found: list[Fence] = []
    opening, begun, reason, lines = None, 0, None, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if opening is None:
            opening, begun, lines = _OPENING.match(line), number, []
            if opening is None:
                if reason is not None:
                    raise ValueError(f"{document}:{number - 1}: a mark must stand right before a code block.")
                mark = _MARK.match(line.strip())
                reason = mark["reason"] if mark else None
        elif set(line.strip()) == set(opening["fence"][0]) and len(line.strip()) >= len(opening["fence"]):
            indent = len(opening["indent"])
            text = "".join(f"{each[indent:]}\n" for each in lines)
            found.append(Fence(document, begun, opening["language"].strip(), text, reason))
            opening, reason = None, None
        else:
            lines.append(line)
    if opening is not None:
        raise ValueError(f"{document}:{begun}: the code block does not end.")
    return found
