"""Files of tensors from outside: read as data, within bounds, and refused in words of ours alone.

Whatever is wrong with a file becomes a `CheckpointError`. Its message holds nothing of the file and nothing of torch: a
service must not show the lines of any file that its machine has, and torch's advice for a file that it refuses is to
execute it.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from common.hrda.checks import CheckpointError
from common.paths import is_file

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that torch wrote before it wrote zip archives: a number of its own, pickled."""
_LEGACY_PICKLES = 5
_MOST_PICKLED = 64 * 2**20
_MOST_NAMES = 20_000
_LONGEST_NAME = 300
_MOST_GROWTH = 2
_NAMED = 3
_LONGEST_HEADER = 8
"""Bytes that say how long the header of a safetensors file is; the header is JSON."""
_CONTAINERS = ("state_dict", "model")

_STORAGES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
_KNOWN = frozenset(
    [f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in _STORAGES]
    + [f"torch {kind}" for kind in ("Size", "device", "bfloat16", "float16", "float32", "float64", "int64", "uint8")]
    + [f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")]
    + ["collections OrderedDict", "collections Counter", "_codecs encode", "__builtin__ set", "builtins set"]
)
"""What torch rebuilds tensors and plain data with. It knows more, some of which reserves memory as the file likes."""


@dataclass(frozen=True)
class EncoderWeights:
    """A complete encoder."""

    encoder: str
    """Name in the catalogue, or `timm:` and a name in timm."""
    state: Mapping[str, Tensor]
    """All its weights, float32, under the names of the network that is built for it."""
    left_out: tuple[str, ...] = ()
    """Names of what else the file holds: the classifier of ImageNet's classes, the decoder of a segmentor."""


def read_tensors(path: Path, expected: str) -> Any:
    """The content of a file of tensors and plain data. Nothing in it is executed.

    Formats are torch's own and safetensors, told apart by what they begin with. An archive may not unpack to much more
    than its own size, and what it holds must have the sums that it says: torch itself looks at neither.

    Args:
        path: the file.
        expected: what it ought to be, for the message.

    Raises:
        CheckpointError: it is not there, cannot be read, is damaged, or holds other things.
    """
    if not is_file(path):
        raise CheckpointError(f"There is no file at {path}. Give the path of a .pth file.")
    try:
        with path.open("rb") as file:
            if file.read(_LONGEST_HEADER + 1).endswith(b"{"):
                return _read_safetensors(path)
            file.seek(0)
            _require_bounded(file, path.stat().st_size)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or 'the system refuses it'}.") from error
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors: pip install -r requirements.txt.") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into the memory of this machine.") from error
    except Exception as error:
        # A file can be wrong in any way, and torch has no common class for it.
        raise CheckpointError(
            f"{path} is not {expected}, or it is damaged; it was not opened. "
            "Expected a .pth file that this app, the former HRDA app or the research code wrote."
        ) from error


def weights_of(content: Any) -> dict[str, Tensor]:
    """Weights by name, as a file has them: dense tensors of numbers that do not pretend to be larger than they are.

    Raises:
        CheckpointError: it is something else. The message does not name the file.
    """
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError("its weights are no names with tensors.")
    if len(content) > _MOST_NAMES:
        raise CheckpointError(f"it has more than {_MOST_NAMES} weights.")
    storages = {}
    for name, value in content.items():
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise CheckpointError("its weights are no names with tensors.")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError("its weights are no dense tensors.")
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(value.nbytes for value in content.values()) > _MOST_GROWTH * sum(storages.values()):
        raise CheckpointError("its weights are larger than the file.")
    return dict(content)


def contained_weights(content: Any) -> dict[str, Tensor]:
    """`weights_of` what may lie a level deeper, and without the prefix of torch's data parallel training."""
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    return {name.removeprefix("module."): value for name, value in weights_of(content).items()}


def fitting(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights `state` in the types of `wanted`, whose names and shapes they must have.

    Args:
        state: of a file, as `weights_of` gives it.
        wanted: of a network; its values are not looked at.

    Raises:
        CheckpointError: names or shapes differ, or a number is not finite. The message does not name the file, and of
            names only those that are wanted.
    """
    shared = [name for name in wanted if name in state]
    unknown = len(state) - len(shared)
    wrong = [name for name in shared if state[name].shape != wanted[name].shape]
    problems = [f"it lacks {some(missing)}"] if (missing := [name for name in wanted if name not in state]) else []
    problems += [f"it has {unknown} weights that do not belong to it"] if unknown else []
    problems += [f"it has another shape of {some(wrong)}"] if wrong else []
    if not problems:
        kinds = [name for name in shared if state[name].is_floating_point() != wanted[name].is_floating_point()]
        problems += [f"it has numbers of another kind in {some(kinds)}"] if kinds else []
    if not problems:
        # Only now: what has the wrong shape may be of any size.
        endless = [name for name in shared if not torch.isfinite(state[name]).all()]
        problems += [f"it has no finite numbers in {some(endless)}"] if endless else []
        negative = [name for name in shared if name.endswith("running_var") and bool((state[name] < 0).any())]
        problems += [f"it has negative variances in {some(negative)}"] if negative else []
    if problems:
        raise CheckpointError("; ".join(problems))
    return {name: state[name].detach().to(wanted[name].dtype).contiguous() for name in wanted}


def some(names: Iterable[str]) -> str:
    """The first few of `names`."""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _require_bounded(file: BinaryIO, size: int) -> None:
    """Refuse what would take more memory than a file of its size may; a ValueError of some kind."""
    begins = file.read(len(_LEGACY))
    file.seek(0)
    if begins == _LEGACY:
        for _ in range(_LEGACY_PICKLES):
            _require_known(file)
    elif begins.startswith(_ZIP):
        with zipfile.ZipFile(file) as archive:
            _require_known(io.BytesIO(_checked_pickle(archive, size)))
    else:
        raise ValueError("neither of the two formats that torch writes")


def _checked_pickle(archive: zipfile.ZipFile, size: int) -> bytes:
    entries = archive.infolist()
    # torch looks names up whatever their case.
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise ValueError("two entries of one name")
    if sum(entry.file_size for entry in entries) > _MOST_GROWTH * size:
        raise ValueError("unpacks to much more than its size")
    if archive.testzip() is not None:
        raise ValueError("an entry does not have its sum")
    [pickled] = [entry for entry in entries if entry.filename.lower().endswith("/data.pkl")]
    if pickled.file_size > _MOST_PICKLED:
        raise ValueError("too much besides tensors")
    return archive.read(pickled)


def _require_known(pickled: BinaryIO) -> None:
    """Read over one pickle, without making anything of it, and refuse names besides those of tensors and plain data."""
    begins = pickled.tell()
    for operation, argument, position in pickletools.genops(pickled):
        if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and argument not in _KNOWN:
            raise ValueError("not only tensors and plain data")
        if position - begins > _MOST_PICKLED:
            raise ValueError("too much besides tensors")
