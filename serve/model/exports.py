"""From a checkpoint to the file that a runtime runs."""

from __future__ import annotations

from pathlib import Path

from common.hrda.checks import CheckpointError
from common.hrda.files import WriteError, sum_of
from common.hrda.prediction.exported import read_export
from common.hrda.prediction.runtime import RuntimeUnavailableError, export_checkpoint
from serve.errors import RequestError
from serve.model.deployment import EXPORTED, PYTORCH, require_runtime


def export(checkpoint: Path, path: Path) -> None:
    """Write the network of a checkpoint as ONNX, which the runtimes ONNXRuntime and TensorRT serve.

    Raises:
        CheckpointError: not a checkpoint.
        RequestError: the exporter's packages are not installed, or the file cannot be written.
    """
    try:
        export_checkpoint(checkpoint, path)
    except (RuntimeUnavailableError, WriteError) as error:
        raise RequestError(str(error)) from error


def runnable_file(path: Path, device: str, runtime: str) -> Path:
    """The file that a runtime runs: `path` itself, or for other runtimes than PyTorch the export of a checkpoint.

    Raises:
        CheckpointError: as `export`.
        RequestError: the runtime is not here, it does not run such files, or as `export_beside`.
    """
    require_runtime(runtime, device)
    if runtime == PYTORCH or path.suffix.lower() == EXPORTED:
        return path
    if path.suffix.lower() not in (".pt", ".pth"):
        raise RequestError(f"{path.name} is no file for {runtime}, which runs {EXPORTED} files and checkpoints (.pth).")
    return export_beside(path)


def export_beside(checkpoint: Path) -> Path:
    """The exported network of a checkpoint, in a file beside it: written now, or by an earlier call.

    A file of that name that is no export of this very checkpoint is left alone.

    Raises:
        CheckpointError, RequestError: as `export`, and where such a file is in the way.
    """
    exported = checkpoint.with_suffix(EXPORTED)
    if exported.exists():
        _require_export_of(checkpoint, exported)
    else:
        export(checkpoint, exported)
    return exported


def _require_export_of(checkpoint: Path, exported: Path) -> None:
    try:
        is_its = read_export(exported).source == sum_of(checkpoint)
    except CheckpointError:
        is_its = False
    if not is_its:
        raise RequestError(
            f"{exported} is there already and is no export of {checkpoint.name} as it is now; it is left as it is. "
            f"Deploy {exported.name} itself, move it away, or export to another file: python -m serve export --model "
            f"{checkpoint.name} --output OTHER{EXPORTED}"
        )
