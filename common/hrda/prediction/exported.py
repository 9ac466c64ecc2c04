"""Reading an exported network: what a file of ONNX says of itself is checked before any of it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.hrda.checks import CheckpointError
from common.hrda.metadata import ExportMetadata
from common.paths import is_file

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

METADATA_KEY = "hrda"
EXPORT_FORMAT = 1
IMAGES, LOGITS, ATTENTION, DETAIL = "images", "logits", "attention", "detail"
_MOST_BYTES = 2**31
_LONGEST_METADATA = 4 * 2**20


def read_export(path: Path) -> ExportMetadata:
    """What a file of `export_onnx` says of its network.

    Raises:
        CheckpointError: it is not there, is no such file, describes another network than it holds, or refers to other
            files. The message repeats nothing of it.
    """
    import onnx

    if not is_file(path):
        raise CheckpointError(f"There is no exported network at {path}. Give the path of a .onnx file.")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than ONNX allows")
        model = onnx.load(str(path), load_external_data=False)
        described = _described(model)
    except Exception as error:
        # Neither onnx nor its parser has a common class for what is wrong with a file.
        raise no_export(path) from error
    try:
        _require_known_format(described)
        metadata = ExportMetadata.read(described)
        _require_fit(model, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit the network that it describes: {error}") from error
    return metadata


def no_export(path: Path) -> CheckpointError:
    """That a file is not what `export_onnx` writes."""
    return CheckpointError(
        f"{path} is not a network exported by this app, or it is damaged. Export it from a checkpoint again."
    )


def _described(model: ModelProto) -> Mapping[str, Any]:
    [text] = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(text) > _LONGEST_METADATA:
        raise ValueError("too long")
    described = json.loads(text)
    if not isinstance(described, Mapping):
        raise TypeError("no keys with values")
    return described


def _require_known_format(described: Mapping[str, Any]) -> None:
    given = described.get("format", EXPORT_FORMAT)
    if given == EXPORT_FORMAT:
        return
    if isinstance(given, int) and not isinstance(given, bool) and EXPORT_FORMAT < given < 10**6:
        raise CheckpointError(
            f"it has format {given} of exported networks, and this version reads format {EXPORT_FORMAT}: it was "
            "written by a newer version. Update the app."
        )
    raise CheckpointError("it has a format that this app does not know.")


def _require_fit(model: ModelProto, metadata: ExportMetadata) -> None:
    """Refuse a graph that has other ends than its metadata say, or that is more than one graph in one file."""
    from onnx import AttributeProto
    from onnx.external_data_helper import uses_external_data

    graph = model.graph
    nested = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if model.functions or any(attribute.type in nested for attribute in attributes):
        raise CheckpointError("it has graphs within its graph.")
    tensors = [*graph.initializer, *(attribute.t for attribute in attributes)]
    if any(uses_external_data(tensor) for tensor in tensors) or graph.sparse_initializer:
        raise CheckpointError("its weights lie in other files.")
    count = len(metadata.classes)
    wanted = {IMAGES: {3}, LOGITS: {count}, ATTENTION: {1, count}}
    if metadata.model.fine_branch:
        wanted[DETAIL] = {count}
    ends = [*graph.input, *graph.output]
    if [end.name for end in ends] != list(wanted):
        raise CheckpointError(f"its ends are not {', '.join(wanted)}.")
    sizes = [size for place, size in enumerate(graph.input[0].type.tensor_type.shape.dim) if place != 1]
    if any(size.HasField("dim_value") for size in sizes):
        raise CheckpointError("it takes images of one size alone.")
    for end in ends:
        if not _is_float_image(end) or end.type.tensor_type.shape.dim[1].dim_value not in wanted[end.name]:
            channels = " or ".join(map(str, sorted(wanted[end.name])))
            raise CheckpointError(f"{end.name} are no float32 maps of {channels} channels.")


def _is_float_image(end: ValueInfoProto) -> bool:
    from onnx import TensorProto

    tensor = end.type.tensor_type
    return tensor.elem_type == TensorProto.FLOAT and len(tensor.shape.dim) == 4
