"""Pretrained encoders of timm: the published weights by timm's own way, and files of one's own, read strictly."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from torch import Tensor, nn
from tqdm import tqdm

from common.hrda.catalogue import ANY_OF_TIMM, ENCODERS
from common.hrda.checks import CheckpointError, received
from common.hrda.network import from_timm
from common.hrda.network.downloads import DownloadError, Progress
from common.hrda.tensor_files import EncoderWeights, contained_weights, fitting

FILE = "model.safetensors"
"""What timm's weights are called on the hub."""
_LONGEST_REASON = 200


def licence(encoder: str) -> str:
    """Licence of the published weights, as timm states it."""
    stated = from_timm.weights_config(_name(encoder)).get("license")
    return f"{stated} (as timm states it)" if stated else "not stated by timm"


def fetch(encoder: str, progress: Progress | None = None) -> Path:
    """The published weights on this machine, from the cache of the Hugging Face hub or from the hub itself.

    Raises:
        DownloadError: they cannot be had, or timm publishes none.
    """
    # The client tries a hub that does not answer again and again, for half a minute.
    require_reachable(encoder)
    repository, revision = _place(encoder)
    told = _Told(repository, progress)
    with _explained(repository, told):
        return Path(
            hf_hub_download(repository, FILE, revision=revision, library_name="timm", tqdm_class=told.bar_class())
        )


def require_reachable(encoder: str, timeout: float = 5.0) -> None:
    """Ask the hub for the published weights without loading them, unless they are on this machine.

    Raises:
        DownloadError: as `fetch`.
    """
    repository, revision = _place(encoder)
    if isinstance(try_to_load_from_cache(repository, FILE, revision=revision), str):
        return
    with _explained(repository, None):
        get_hf_file_metadata(hf_hub_url(repository, FILE, revision=revision), timeout=timeout, library_name="timm")


def encoder_of(content: Any, path: Path, encoder: str) -> EncoderWeights:
    """The weights of `encoder` in what `read_tensors` has read, as a `TimmEncoder` holds them.

    Every weight of timm's model must be there, of the right shape, and nothing else but its classifier. What timm
    itself converts when it loads such a file (names of a model's authors) is converted.

    Raises:
        CheckpointError: it is no such file.
    """
    name = _name(encoder)
    try:
        state = contained_weights(content)
        classifiers = from_timm.weights_config(name).get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        left_out = tuple(each for each in state if each.rpartition(".")[0] in classifiers)
        own = _converted(name, {each: value for each, value in state.items() if each not in left_out})
        return EncoderWeights(encoder, fitting(own, own), left_out)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no encoder to start from: {error}") from error


def load_encoder(module: nn.Module, weights: EncoderWeights) -> None:
    """Put the weights into a `TimmEncoder`, all but a pyramid that no file has.

    Raises:
        CheckpointError: it is another encoder.
    """
    try:
        module.network.load_state_dict(weights.state, strict=True)
    except (RuntimeError, AttributeError) as error:
        raise CheckpointError(f"The weights are of {weights.encoder} and fit no other encoder.") from error


def _name(encoder: str) -> str:
    return ENCODERS[encoder].weights_source if encoder in ENCODERS else encoder.removeprefix(ANY_OF_TIMM)


def _place(encoder: str) -> tuple[str, str | None]:
    """Repository of the hub and revision in it."""
    config = from_timm.weights_config(_name(encoder))
    repository, _, revision = (config.get("hf_hub_id") or "").partition("@")
    if not repository or config.get("custom_load") or config.get("hf_hub_filename"):
        raise DownloadError(
            f"timm publishes no weights of {_name(encoder)} in its own format. Give the path of a file, or name a "
            "model with the tag of its weights, such as timm:pvt_v2_b1.in1k."
        )
    return repository, revision or None


def _converted(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm's feature extractor, by timm's own loader."""
    # The random numbers of a run must not depend on the file that it starts from.
    with torch.random.fork_rng(devices=[]):
        try:
            from_timm.require_complete(name, state)
            return dict(from_timm.features(name, 0.0, state).state_dict())
        except Exception as error:
            # Names and shapes can be wrong in any way, and every model of timm has a converter of its own.
            raise CheckpointError(
                f"it is no complete {name} under timm's names: a weight is missing, of another shape, or of another "
                "model."
            ) from error


class _Told:
    """Tells of a download of the hub, whose own way is a progress bar."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self.ended: BaseException | None = None
        """What `progress` has raised, which ends the download."""
        self._name, self._progress = name, progress

    def bar_class(self) -> type[tqdm]:
        """The bar, which shows nothing."""
        told = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options | {"file": io.StringIO()})

            def update(self, n: float | None = 1) -> bool | None:
                shown = super().update(n)
                told.tell(int(self.n), None if self.total is None else int(self.total))
                return shown

        return Bar

    def tell(self, received: int, size: int | None) -> None:
        """Pass it on."""
        if self._progress is None:
            return
        try:
            self._progress(self._name, received, size)
        except BaseException as error:
            self.ended = error
            raise


@contextmanager
def _explained(repository: str, told: _Told | None) -> Iterator[None]:
    """Give every reason for which weights cannot be had the same remedy."""
    try:
        yield
    except Exception as error:
        # The hub's client has no common class for what can go wrong.
        if told is not None and told.ended is not None:
            raise told.ended from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST_REASON].rstrip(".")
        raise DownloadError(
            f"{repository} could not be had from the Hugging Face hub at {received(constants.ENDPOINT)}: {reason}. The "
            "variables of its client hold: HF_HOME is where it keeps files, HF_ENDPOINT names a mirror, "
            f"HF_HUB_OFFLINE=1 asks nobody. Without internet, give the path of the model's {FILE}."
        ) from error
