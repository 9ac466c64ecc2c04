"""The encoders of the catalogue as modules, whichever library they come from.

Each is a module that gives four feature maps at strides 4, 8, 16 and 32 of ImageNet-normalised images, and has

- `channels`: of the four maps,
- `encoder`: the name that it was made by,
- `init_weights()`: draws fresh weights (torch's global random state),
- `undecayed()`: the parameters that weight decay leaves alone,
- `learning_layers()`: the parameters of each layer from the image on, or nothing where no order of them is known,
- `activation_checkpointing`: whether its blocks are computed again in the backward pass.
"""

from __future__ import annotations

from importlib.util import find_spec

from torch import nn

from common.hrda.catalogue import ANY_OF_TIMM, ENCODERS, is_of_timm
from common.hrda.checks import SettingsError
from common.hrda.network.mit import HRDAMixVisionTransformer


def make_encoder(name: str, drop_path_rate: float = 0.0) -> nn.Module:
    """An encoder by its name in the catalogue, or `timm:` and a name in timm.

    Its weights are not drawn yet as `init_weights` draws them.

    Raises:
        SettingsError: timm cannot build it, or is not installed.
    """
    encoder = _made(name, drop_path_rate)
    encoder.encoder = name
    return encoder


def _made(name: str, drop_path_rate: float) -> nn.Module:
    if not is_of_timm(name):
        return HRDAMixVisionTransformer(name, drop_path_rate)
    require_timm(name)
    # Seconds of imports, which networks on other encoders do without.
    from common.hrda.network.from_timm import TimmEncoder

    in_timm = ENCODERS[name].weights_source if name in ENCODERS else name.removeprefix(ANY_OF_TIMM)
    return TimmEncoder(in_timm, drop_path_rate)


def require_timm(name: str) -> None:
    """Make sure that timm is installed, for the encoder of this name.

    Raises:
        SettingsError: it is not. The message names the encoder.
    """
    if find_spec("timm") is None:
        raise SettingsError(
            f"The encoder {name} needs the package timm, which is not installed. Run: pip install -r requirements.txt"
        )


def build_encoder(name: str, drop_path_rate: float = 0.0) -> nn.Module:
    """An encoder with freshly drawn weights (torch's global random state)."""
    encoder = make_encoder(name, drop_path_rate)
    encoder.init_weights()
    return encoder


def with_synchronised_norms(model: nn.Module) -> nn.Module:
    """`model` with batch norms over the batches of all processes, which needs CUDA."""
    if not any(isinstance(module, nn.BatchNorm2d) and hasattr(module, "act") for module in model.modules()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # Norms with an activation in them are timm's, and it knows how to convert them.
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)
