"""Changing single values of YAML text while its comments and order stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from common.hrda.checks import SettingsError, received
from common.plain_yaml import EXPONENT, Loader, read_yaml, where


class _Dumper(yaml.SafeDumper):
    """Writes what `common.plain_yaml` and PyYAML's own loaders read alike."""


# The writer must know it, too, to put a text such as '1e-4' in quotes.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if not math.isfinite(value) or "e" not in repr(value):
        return yaml.SafeDumper.represent_float(dumper, value)
    mantissa, _, exponent = repr(value).partition("e")
    point = "" if "." in mantissa else ".0"
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}{point}e{int(exponent):+d}")


def _str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Written over several lines, a text would depend on the indentation of its surroundings.
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _str)


def get_values(text: str, paths: Iterable[str]) -> dict[str, Any]:
    """The values that `text` has at `paths`; those that it does not have are left out.

    Raises:
        SettingsError: not YAML.
    """
    data, found = read_yaml(text), {}
    for path in paths:
        value = data
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found


def set_value(text: str, path: str, value: Any) -> str:
    """`text` with one value replaced or added; comments, order and all other values stay as they are.

    Args:
        text: YAML of keys with values, or nothing.
        path: names from the outside in, such as `optimizer.lr`.
        value: plain data; more than one value is written on one line, as `[1, 2]`.

    Raises:
        SettingsError: not YAML, a name below what is one value, or a place that other places refer to (`&`, `*`).

    Example:
        >>> set_value("optimizer:\\n  lr: 1.0e-4 # of the encoder\\n", "optimizer.lr", 6e-5)
        'optimizer:\\n  lr: 6.0e-5 # of the encoder\\n'
    """
    return set_values(text, {path: value})


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """`text` with several values replaced or added, by path, as `set_value` does it.

    Raises:
        SettingsError: as `set_value`; nothing is changed then.
    """
    expected = read_yaml(text)
    for path, value in values.items():
        names, value = path.split("."), _plain(value)
        expected = _with_value(expected, names, value, path)
        text = _edit(text, names, value)
    # Tags and merged keys let one place of the text mean several: not to be changed blindly.
    if not _means(text, expected):
        raise SettingsError(
            f"{', '.join(values)} cannot be changed in this YAML, which uses anchors (&, *) or tags. Write "
            "its values out, or change it by hand."
        )
    return text


def _means(text: str, expected: Any) -> bool:
    try:
        return read_yaml(text) == expected
    except SettingsError:
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _with_value(data: Any, names: list[str], value: Any, path: str) -> Any:
    """A copy of `data` with `value` at `names`."""
    name, *rest = names
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise SettingsError(f"Cannot set '{path}': there is no '{name}' in {received(data)}. Correct the YAML first.")
    return data | {name: _with_value(data.get(name), rest, value, path) if rest else value}


# -------------------------------------------------------------------------------------------------------- editing
def _edit(text: str, names: list[str], value: Any) -> str:
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"The settings are not valid YAML: {where(error)}") from None
    if node is None:
        break_ = "" if not text or text.endswith("\n") else _line_break(text)
        return f"{text}{break_}{_entry(names, value)}{_line_break(text)}"
    after = node.start_mark.index
    for depth, name in enumerate(names):
        if not isinstance(node, yaml.MappingNode):
            value = _nested(names[depth:], value)
            break
        child = _child(text, node, name)
        if child is None:
            return _add(text, node, _entry(names[depth:], value))
        node, after = child
    return _replace(text, node, after, _written(value))


def _child(text: str, node: yaml.MappingNode, name: str) -> tuple[yaml.Node, int] | None:
    """What `name` stands for, and where in `text` it may begin; None if there is no such name."""
    for key, inner in reversed(node.value):
        if isinstance(key, yaml.ScalarNode) and key.value == name:
            return inner, text.find(":", key.end_mark.index) + 1
    return None


def _replace(text: str, node: yaml.Node, after: int, written: str) -> str:
    start, end = node.start_mark.index, _end(text, node)
    if start == end:
        return f"{text[:after]} {written}{text[after:]}"
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if is_block and "\n" in text[after:start]:
        # The value moves up to its key, where a comment may stand; the lines that it had go.
        line = text.rfind("\n", 0, start) + 1
        rest = text.find("\n", end) + 1 or len(text)
        return f"{text[:after]} {written}{text[after:line]}{text[rest:]}"
    return text[:start] + written + text[end:]


def _add(text: str, node: yaml.MappingNode, entry: str) -> str:
    if node.flow_style:
        if not node.value:
            at = node.start_mark.index + 1
            return f"{text[:at]}{entry}{text[at:]}"
        at = _end(text, node.value[-1][1])
        return f"{text[:at]}, {entry}{text[at:]}"
    break_, indent = _line_break(text), " " * node.value[0][0].start_mark.column
    at = text.find("\n", _end(text, node))
    if at < 0:
        return f"{text}{break_}{indent}{entry}{break_}"
    at -= text[at - 1] == "\r"
    return f"{text[:at]}{break_}{indent}{entry}{text[at:]}"


def _end(text: str, node: yaml.Node) -> int:
    """Where a node's own text ends: the parser counts the comments after a block to it."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(node, yaml.MappingNode) else last)
    return start + len(text[start:end].rstrip())


def _line_break(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _nested(names: list[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


def _entry(names: list[str], value: Any) -> str:
    """`key: value`, the names below the first inside of the value."""
    return f"{_written(names[0])}: {_written(_nested(names[1:], value))}"


def _written(value: Any) -> str:
    # Written as an item of a list, a text gets the quotes that it needs anywhere.
    line = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return line.strip()[1:-1]
