"""What the values or colours of masks are called: files beside the masks, a list that was given, or plain names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from supervisely.convert.image.pascal_voc import pascal_voc_helper

from common.data.choice import IGNORED, is_called_background
from common.data.folders import ProjectError
from common.hrda.pixels import IGNORE_LABEL
from train.importing.source import RGB

BACKGROUND_VALUE = 0
LISTS = ("obj_class_to_machine_color.json", "classes.json", "palette.json", "classes.txt", "colors.txt")
"""Files that name classes, beside the masks or above their folder; the first counts. The first is Supervisely's, the
last Pascal VOC's."""
ALL = "__all__"
_VOID = "neutral"
_MOST_BYTES = 2**20
_Value = Annotated[int, Field(ge=0, le=255)]
_KINDS = TypeAdapter(
    list[str]
    | dict[_Value, str]
    | dict[str, _Value | Annotated[list[_Value], Field(min_length=1)] | Literal["__all__"]]
)


@dataclass(frozen=True)
class Names:
    """Names of classes by the value or by the colour of their pixels; the background has none."""

    values: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[RGB, str] = field(default_factory=dict)
    of_all: str | None = None
    """The name of every value but 0."""
    origin: str = ""
    """Where they are from, as a sentence names it; empty where they are plain."""
    file: Path | None = None
    """The file that they are from."""

    @property
    def order(self) -> list[str]:
        """The names in the order of their values, or of the file."""
        return list(dict.fromkeys([*(self.values[value] for value in sorted(self.values)), *self.colours.values()]))

    def by_value(self, values: Collection[int]) -> dict[int, str]:
        """The name of each of the `values` that all masks together have, the background's left out.

        Where there is no other value but 0, 255 is the foreground; else it is what does not count.

        Raises:
            ProjectError: a value without a name.
        """
        found = sorted(value for value in values if value != BACKGROUND_VALUE or value in self.values)
        if self.of_all is not None:
            return dict.fromkeys(found, self.of_all)
        others = {name for name in self.values.values() if not is_called_background(name)}
        if set(found) - {BACKGROUND_VALUE} == {IGNORE_LABEL} and IGNORE_LABEL not in self.values and len(others) <= 1:
            return {IGNORE_LABEL: next(iter(others), "foreground")}
        named = {value: self.values.get(value) or self._plain(value) for value in found}
        nameless = [value for value, name in named.items() if name is None]
        if nameless:
            known = ", ".join(f"{value} {name}" for value, name in self.values.items())
            raise ProjectError(
                f"The masks hold the values {', '.join(map(str, sorted(values)[:12]))}, and {self.origin} names "
                f"{known}: what is {nameless[0]}? Name every value, 0 is the background and 255 what does not count."
            )
        return {value: name for value, name in named.items() if not is_called_background(name)}

    def _plain(self, value: int) -> str | None:
        if value == IGNORE_LABEL:
            return IGNORED
        return None if self.origin else f"class_{value}"


def listed(names: Sequence[str], origin: str, file: Path | None = None) -> Names:
    """Names in the order of the values: from 0 where the first is called background, else from 1."""
    start = 0 if names and is_called_background(names[0]) else 1
    return Names(dict(enumerate(names, start)), origin=origin, file=file)


def names_beside(folders: Sequence[Path]) -> Names:
    """The names in the first file of `LISTS` in the first of `folders` that has one; plain names where none has.

    Raises:
        ProjectError: the file cannot be read.
    """
    for folder in folders:
        for name in LISTS:
            if (folder / name).is_file():
                return _read(folder / name)
    return Names()


def pascal_names(folder: Path) -> Names:
    """Those of `colors.txt` in the folder of a Pascal VOC, or Pascal VOC's own, by colour and by value."""
    path = folder / "colors.txt"
    classes, by_colour = pascal_voc_helper.read_colors(str(path))
    colours = {tuple(rgb): IGNORED if name == _VOID else name for rgb, name in by_colour.items()}
    counted = [each.name for each in classes if each.name != _VOID and not is_called_background(each.name)]
    return Names(
        dict(enumerate(counted, 1)), colours, origin="Pascal VOC's list", file=path if path.is_file() else None
    )


def _read(path: Path) -> Names:
    failure = f"Cannot read the names of classes in {path}"
    if path.name == "colors.txt":
        return pascal_names(path.parent)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{failure}: {error}.") from error
    if path.suffix == ".txt":
        return listed([line.strip() for line in text.splitlines() if line.strip()], str(path), path)
    try:
        data = _KINDS.validate_json(text)
    except ValidationError as error:
        raise ProjectError(
            f'{failure}: expected JSON such as ["background", "crack"], {{"crack": 1}} or {{"crack": [220, 20, 60]}}.'
        ) from error
    if isinstance(data, list):
        return listed(data, str(path), path)
    return _of_pairs(data, path)


def _of_pairs(data: Mapping[int, str] | Mapping[str, int | list[int] | str], path: Path) -> Names:
    values: dict[int, str] = {}
    colours: dict[RGB, str] = {}
    for key, what in data.items():
        if isinstance(key, int):
            values[key] = what
        elif what == ALL:
            return Names(of_all=key, origin=str(path), file=path)
        else:
            several = [what] if isinstance(what, int) else what
            # Supervisely's import takes several values for one class, its export three equal ones; else it is a colour.
            values |= dict.fromkeys(several, key)
            if len(several) == 3:
                colours[tuple(several)] = key
    return Names(values, colours, origin=str(path), file=path)
