"""The one reader of YAML text from outside: files of settings, the page's editor, fields of requests.

It makes plain data and nothing else, in bounded time and memory: no tags, no aliases, bounded length and depth.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.hrda.checks import SettingsError

LONGEST_FILE = 64 * 2**10
"""Bytes of a file of settings."""
LONGEST_FIELD = 4 * 2**10
"""Bytes of one value that comes as text."""
DEEPEST = 20
"""Levels of lists and keys within each other."""
EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
"""1e-4, a number in YAML 1.2 and to people; PyYAML wants 1.0e-4."""
_LONGEST_NUMBER = 400
_AMBIGUOUS = re.compile(r"[-+]?0[0-7_]+|.*:.*", re.DOTALL)
"""Numbers that YAML 1.1 reads to other bases than people do: 0100 is 64, 10:30 is 630."""
_NAME = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(f"{_NAME}{kind}" for kind in ("int", "float", "bool", "null", "timestamp"))


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe loader, in its fast form where the wheel has it, with a place for every error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct one value; what its text cannot be is an error at its place."""
        is_number = isinstance(node, yaml.ScalarNode) and node.tag in (f"{_NAME}int", f"{_NAME}float")
        if is_number and len(node.value) > _LONGEST_NUMBER:
            raise _constructor_error(node, "the number is too long")
        if is_number and _AMBIGUOUS.fullmatch(node.value):
            raise _constructor_error(node, "write the number in plain digits, without a leading 0 or a colon")
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, AttributeError, KeyError, IndexError) as error:
            raise _constructor_error(
                node, f"the value is not of the kind {node.tag.removeprefix(_NAME)[:20]}"
            ) from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        """Construct keys with values; keys are names, and as such the text that was written: 1, no, 010.

        A key that is given twice is an error: one of its values would be lost without a word.
        """
        names = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.tag in _PLAIN_TAGS:
                    key.tag = f"{_NAME}str"
                if key.value in names:
                    raise _constructor_error(key, "this key is given twice, the first time further up")
                names.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(f"{_NAME}float", EXPONENT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """The plain data that the YAML text of settings stands for.

    Raises:
        SettingsError: not YAML, too long or too deep; the message says where.
    """
    return _read(text, LONGEST_FILE, "The settings are not valid YAML")


def settings_text(path: Path) -> str:
    """The text of a file of settings, for `read_yaml`.

    Raises:
        SettingsError: it cannot be read, is too long, or is no text.
    """
    failure = f"The settings file {path} cannot be read"
    try:
        with path.open("rb") as file:
            # No more than that: what is named by mistake may be a checkpoint, or a device without an end.
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise SettingsError(f"{failure}: expected YAML of at most {LONGEST_FILE} bytes.")
        return content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"{failure}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{failure}: expected YAML. Save it as text in UTF-8.") from error


def read_field(name: str, text: str) -> Any:
    """The plain data of one value that comes as text.

    Args:
        name: of the value, for messages.
        text: in YAML.

    Raises:
        SettingsError: not YAML, too long or too deep.
    """
    return _read(text, LONGEST_FIELD, f"{name} cannot be read as YAML")


def _read(text: str, longest: int, failure: str) -> Any:
    size = len(text.encode(errors="replace"))
    if size > longest:
        raise SettingsError(f"{failure}: expected at most {longest} bytes. Received: {size} bytes.")
    try:
        _check_shape(text)
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{failure}: {where(error)}") from None


def _check_shape(text: str) -> None:
    """Refuse aliases and depth before anything is built: a few bytes of aliases can stand for gigabytes."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "anchors (&, *) are not read: write it out", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"more than {DEEPEST} levels within each other", event.start_mark
            )


def where(error: Exception) -> str:
    """Place and kind of what is wrong in YAML text, without repeating the text."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return "it has characters that YAML does not allow."
    return f"line {mark.line + 1}, column {mark.column + 1}: {str(problem)[:120]}."


def _constructor_error(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
