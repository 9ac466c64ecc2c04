"""Weights that an encoder of the catalogue starts from, whichever library it comes from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from torch import nn

from common.hrda.catalogue import ENCODERS, is_of_timm
from common.hrda.metadata import WeightsOrigin
from common.hrda.network import mit_weights
from common.hrda.network.downloads import Progress, RemoteFile, fetch, weights_folder
from common.hrda.network.encoders import require_timm
from common.hrda.tensor_files import EncoderWeights, read_tensors

OF_THE_FILE = "of the file"
"""The licence of a file of one's own, which its owner knows."""
RANDOM_WEIGHTS = WeightsOrigin("random weights", "none besides this app's")


def published_origin(encoder: str) -> WeightsOrigin:
    """Source and licence of the published weights of an encoder.

    Raises:
        SettingsError: it is one that only timm knows, and timm is not installed.
    """
    spec = ENCODERS.get(encoder)
    if spec is None:
        return WeightsOrigin(encoder, _family(encoder).licence(encoder))
    return WeightsOrigin(f"{spec.weights_source} of {spec.weights_publisher}", spec.weights_licence)


def file_origin(path: str | Path) -> WeightsOrigin:
    """Source and licence of a file of one's own."""
    return WeightsOrigin(f"the file {Path(path).name}"[:200], OF_THE_FILE)


def fetch_published(encoder: str, progress: Progress | None = None) -> Path:
    """The published weights of an encoder, on this machine; downloaded unless they are.

    Raises:
        DownloadError: they cannot be had. The message says where to put them by hand.
        SettingsError: its library is not installed.
    """
    return _family(encoder).fetch(encoder, progress)


def require_published(encoder: str) -> None:
    """Make sure that the published weights are on this machine or that the server that has them answers.

    Raises:
        DownloadError, SettingsError: as `fetch_published`.
    """
    _family(encoder).require_reachable(encoder)


def fetch_from(url: str, encoder: str, progress: Progress | None = None) -> Path:
    """The weights of an encoder at an address, on this machine.

    Raises:
        DownloadError: they cannot be had, or are none of this encoder.
    """
    return fetch(RemoteFile.from_url(url), weights_folder(), lambda path: read_encoder(path, encoder), progress)


def read_encoder(path: str | Path, encoder: str) -> EncoderWeights:
    """Read the weights of an encoder in a file of tensors; nothing in it is executed.

    Raises:
        CheckpointError: the file cannot be read, or holds another encoder or an incomplete one.
        SettingsError: the encoder's library is not installed.
    """
    path = Path(path)
    return encoder_of(read_tensors(path, "a file of weights"), path, encoder)


def encoder_of(content: object, path: Path, encoder: str) -> EncoderWeights:
    """The weights of an encoder in what `read_tensors` has read.

    Args:
        content: of the file.
        path: the file, for messages.
        encoder: its name.

    Raises:
        CheckpointError, SettingsError: as `read_encoder`.
    """
    return _family(encoder).encoder_of(content, path, encoder)


def load_encoder(module: nn.Module, weights: EncoderWeights) -> None:
    """Put the weights into an encoder, all of it.

    Raises:
        CheckpointError: it is another encoder.
    """
    _family(weights.encoder).load_encoder(module, weights)


def _family(encoder: str) -> ModuleType:
    if not is_of_timm(encoder):
        return mit_weights
    require_timm(encoder)
    # Seconds of imports, which networks on other encoders do without.
    from common.hrda.network import timm_weights

    return timm_weights
