"""Which classes are trained, and what labels of the others become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from common.hrda.checks import ClassNames, PlainSettings, schema
from common.hrda.pixels import IGNORE_LABEL

BACKGROUND = "__bg__"
"""Name of class 0. A project's own class of this name is background too."""
IGNORED = "__ignore__"
"""Name of the class whose labels mean no loss and no score. It is never trained."""
RESERVED = frozenset({BACKGROUND, IGNORED})
"""Names of classes that nobody chooses."""

UnchosenLabels = Literal["background", "ignore"]


@schema
class Unchosen(PlainSettings):
    """What labels of classes that are not trained become."""

    become: UnchosenLabels = "background"
    """Of all but those below: 'background', or 'ignore' for no loss and no score there."""
    ignored: ClassNames = ()
    """Names of classes that become 'ignore' in any case."""

    def index_of(self, name: str) -> int:
        """The index that labels of the class `name`, which is not trained, are drawn with."""
        if name in self.ignored or name == IGNORED:
            return IGNORE_LABEL
        return 0 if self.become == "background" or is_called_background(name) else IGNORE_LABEL


UNCHOSEN_IS_BACKGROUND = Unchosen()


def label_indices(names: Iterable[str], classes: Sequence[str], unchosen: Unchosen) -> dict[str, int]:
    """The index that labels of each class are drawn with.

    Args:
        names: of all classes of a project.
        classes: those that are trained; index i + 1 is the i-th.
        unchosen: what becomes of the others.
    """
    trained = {name: index for index, name in enumerate(classes, start=1)}
    return {name: trained[name] if name in trained else unchosen.index_of(name) for name in names}


def is_called_background(name: str) -> bool:
    """Whether a class of one's own is called as the background is: '__bg__', 'Background', 'bg'."""
    return name.strip("_ ").casefold() in ("bg", "background")


def background_twice(classes: Iterable[str]) -> str | None:
    """A sentence about trained classes that are called background; None if there are none."""
    named = [name for name in classes if is_called_background(name)]
    if not named:
        return None
    return (
        f"'{named[0]}' would be trained as a class of its own, besides the background that is always there. Leave it "
        "out of the classes, and its labels are the background."
    )


def quoted(names: Sequence[str]) -> str:
    """Names in quotes, with commas."""
    return ", ".join(f"'{name}'" for name in names)


def named(names: Sequence[str]) -> str:
    """How a sentence names classes: the class 'crack', the classes 'crack', 'joint'."""
    return f"the {'class' if len(names) == 1 else 'classes'} {quoted(names)}"


def pronoun(names: Sequence[str]) -> str:
    """How it goes on about them."""
    return "it" if len(names) == 1 else "them"
