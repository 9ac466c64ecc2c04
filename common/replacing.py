"""Names that stand for something else for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(owner: ModuleType | type, **parts: Any) -> Iterator[None]:
    """Let names of a module or class stand for something else within the block: the SDK looks its parts up by them.

    Raises:
        AttributeError: it has no such name any more.
    """
    before = {name: getattr(owner, name) for name in parts}
    for name, part in parts.items():
        setattr(owner, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(owner, name, part)
