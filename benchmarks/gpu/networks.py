"""Networks with random weights, photos of noise, and windows replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.sizes import Sizes
from common.hrda import ModelSettings, build_segmentor
from common.hrda.network.segmentor import HRDASegmentor
from common.hrda.prediction.runtime import TorchNetwork


def model_of(encoder: str, sizes: Sizes) -> HRDASegmentor:
    """A network of three classes, in eval mode on the CPU; the same weights at each call."""
    torch.manual_seed(0)
    channels = {"decoder_channels": sizes.channels, "attention_channels": sizes.channels}
    return build_segmentor(ModelSettings(encoder=encoder, num_classes=3, crop_size=sizes.crop, **channels)).eval()


def image_of(side: int) -> np.ndarray:
    """side×side×3 uint8: coarse noise, as photos are smoother than their pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (-(-side // 16), -(-side // 16), 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:side, :side])


class GraphedNetwork:
    """A network whose windows of each shape are recorded once as a CUDA graph and then replayed: no kernel waits for
    Python.

    Args:
        network: on a CUDA device.
    """

    def __init__(self, network: TorchNetwork) -> None:
        self.crop_size, self.num_classes = network.crop_size, network.num_classes
        self._network = network
        self._recorded: dict[tuple[str, torch.Size], Callable[[Tensor], tuple[Tensor, ...]]] = {}

    context_images = staticmethod(HRDASegmentor.context_images)
    fuse = staticmethod(TorchNetwork.fuse)

    @torch.inference_mode()
    def detail_logits(self, images: Tensor) -> Tensor:
        """As the network's."""
        [logits] = self._replay("detail", lambda x: (self._network.detail_logits(x),), images)
        return logits

    @torch.inference_mode()
    def context_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's."""
        logits, attention = self._replay("context", self._network.context_logits, images)
        return logits, attention

    def _replay(
        self, name: str, function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor
    ) -> tuple[Tensor, ...]:
        key = (name, images.shape)
        if key not in self._recorded:
            self._recorded[key] = _record(function, images)
        return self._recorded[key](images)


def _record(function: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    entering = images.clone()
    # Kernels are chosen and workspaces made before the recording, on a stream of their own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(entering)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        leaving = function(entering)

    def replay(images: Tensor) -> tuple[Tensor, ...]:
        entering.copy_(images)
        graph.replay()
        # The next replay writes over what this one gave.
        return tuple(tensor.clone() for tensor in leaving)

    return replay
