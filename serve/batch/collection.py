"""The photos of a run: which there are, and their bytes, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.data.images import IMAGE_SUFFIXES, ImageError
from common.hrda.checks import received
from common.paths import is_file, is_folder
from serve.batch.storage import FileAt, Folder, safe_name
from serve.errors import RequestError

SUFFIXES = IMAGE_SUFFIXES | {".gif"}
"""Suffixes of the files that are predicted, in lower case. A project has no GIFs; of one the first picture counts."""
MOST_NAMED = 5
"""Names of what was passed over that are told."""


@dataclass(frozen=True)
class Item:
    """A photo that was found."""

    name: str
    """Its path below the collection, with its suffix, parted by '/'; no other photo has it."""
    place: str
    """How its collection finds it."""
    stamp: str
    """Another one after the photo was changed."""


class Collection(Protocol):
    """Photos that are predicted. It goes to other processes; each opens what it needs."""

    @property
    def says(self) -> str:
        """What it is, in a few words."""

    def find(self) -> tuple[list[Item], str]:
        """All its photos by name; and what was passed over, in a sentence or empty.

        Raises:
            RequestError: there are none, or they cannot be listed.
        """

    def read(self, item: Item) -> bytes:
        """A photo's bytes.

        Raises:
            ImageError: it cannot be read; where the system says why, as the cause.
        """

    def file_of(self, item: Item) -> FileAt | None:
        """The file that a photo is; None where it is none, as on an instance."""


@dataclass(frozen=True)
class FolderCollection:
    """The photos of a folder and its subfolders, but for hidden ones."""

    folder: Folder

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        return self.folder.address

    def find(self) -> tuple[list[Item], str]:
        """As of `Collection`."""
        closed: list[OSError] = []
        seen = [entry for entry in self.folder.entries(closed.append) if not _is_hidden(entry.name)]
        photos = [entry for entry in seen if _is_photo(entry.name)]
        rest = [Path(entry.name) for entry in seen if not _is_photo(entry.name)]
        left_out = passed_over(rest, "file that is no image", "files that are no images")
        if len(closed) == 1 and not seen:
            raise RequestError(f"{self.says} cannot be looked into: {closed[0].strerror}. Give this user the right to.")
        left_out += passed_over(
            [Path(error.filename) for error in closed],
            "folder that cannot be looked into",
            "folders that cannot be looked into",
        )
        said = f"Passed over in {self.says}: {', '.join(left_out)}." if left_out else ""
        if not photos:
            kinds = ", ".join(sorted(SUFFIXES))
            raise RequestError(f"There is no image in {self.says}. Expected one of: {kinds}. {said}".strip())
        return _unique([Item(safe_name(entry.name), entry.name, entry.stamp) for entry in photos]), said

    def read(self, item: Item) -> bytes:
        """As of `Collection`."""
        return _content(self.file_of(item))

    def file_of(self, item: Item) -> FileAt:
        """As of `Collection`."""
        return FileAt(self.folder, item.place)


@dataclass(frozen=True)
class ListCollection:
    """The photos that a text file names, a path or an address a line; paths may be relative to the file's folder.

    Args:
        file: the list, a path on this machine.
    """

    file: Path

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        return f"the list {self.file}"

    def find(self) -> tuple[list[Item], str]:
        """As of `Collection`."""
        try:
            lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise RequestError(f"The list {self.file} cannot be read: {error}.") from error
        places = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not places:
            raise RequestError(f"The list {self.file} names no photo. Expected a path or an address a line.")
        items = []
        for place in dict.fromkeys(places):
            folder, name = self._folder(place)
            stamp = folder.stamp(name)
            items.append(Item(safe_name(self._name(place)), place, stamp or ""))
        return _unique(items), ""

    def read(self, item: Item) -> bytes:
        """As of `Collection`."""
        return _content(self.file_of(item))

    def file_of(self, item: Item) -> FileAt:
        """As of `Collection`."""
        return FileAt(*self._folder(item.place))

    def _folder(self, place: str) -> tuple[Folder, str]:
        parent, _, name = place.rpartition("/")
        folder = Folder(parent or ("/" if place.startswith("/") else "."))
        if folder.is_local and not place.startswith("/"):
            folder = Folder(str(self.file.resolve().parent / parent))
        return folder, name

    def _name(self, place: str) -> str:
        root = f"{self.file.resolve().parent}/"
        return place.removeprefix(root) if "://" not in place else place.partition("://")[2]


@dataclass(frozen=True)
class OnePhoto:
    """One photo of this machine."""

    path: Path

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        return str(self.path)

    def find(self) -> tuple[list[Item], str]:
        """As of `Collection`."""
        folder = Folder(str(self.path.parent))
        return [Item(safe_name(self.path.name), self.path.name, folder.stamp(self.path.name) or "")], ""

    def read(self, item: Item) -> bytes:
        """As of `Collection`."""
        return _content(self.file_of(item))

    def file_of(self, item: Item) -> FileAt:
        """As of `Collection`."""
        return FileAt(Folder(str(self.path.parent)), item.place)


def passed_over(paths: Sequence[Path], one: str, several: str) -> list[str]:
    """How many `paths` there are, called `one` or `several`, with the names of the first; empty without any."""
    if not paths:
        return []
    names = [safe_name(path.name) for path in paths[:MOST_NAMED]] + ["…"] * (len(paths) > MOST_NAMED)
    return [f"{len(paths)} {one if len(paths) == 1 else several} ({', '.join(names)})"]


def collection_of(address: str) -> Collection:
    """The collection at a path or an address: a folder, a photo, or a text file that names photos.

    Raises:
        RequestError: there is no such thing.
    """
    folder = Folder(address)
    if not folder.is_local:
        return FolderCollection(Folder(address.rstrip("/")))
    if is_folder(address):
        # Other machines of a cluster stand in another folder.
        return FolderCollection(Folder(str(Path(address).resolve())))
    if not is_file(address):
        raise RequestError(f"There is no folder, photo or list of photos at {received(address)}.")
    path = Path(address).resolve()
    return OnePhoto(path) if _is_photo(path.name) else ListCollection(path)


def _content(file: FileAt) -> bytes:
    try:
        return file.read()
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error


def unreadable(file: FileAt, error: Exception) -> ImageError:
    """That a photo's file cannot be read."""
    reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0].rstrip(".")
    return ImageError(f"Cannot read the image {file}: {reason}.")


def _unique(items: Sequence[Item]) -> list[Item]:
    by_name: dict[str, Item] = {}
    for item in items:
        if by_name.setdefault(item.name, item) is not item:
            raise RequestError(
                f"Two photos would have results of the same name: {received(by_name[item.name].place)} and "
                f"{received(item.place)}. Rename one of them, or predict them into two folders."
            )
    return [by_name[name] for name in sorted(by_name)]


def _is_photo(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)
