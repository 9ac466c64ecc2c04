"""Lets `mmseg.models` be imported without mmcv's compiled operators.

mmsegmentation 1.2 imports `mmcv.ops` unconditionally, for models that HRDA does not use. `mmcv-lite`
has no compiled extension `mmcv._ext`, and building the full mmcv takes the better part of an hour.
A placeholder takes the extension's place; calling one of its operators says what is missing. Where
the full mmcv is installed, nothing is touched.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from common.hrda.network import torchvision_operators


class _MissingOperators(ModuleType):
    """Answers every operator's name, so that `mmcv.ops` can look them up while it is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(
                f"mmcv's compiled operator '{name}' is not installed (mmcv-lite has none). HRDA does not need it; "
                "a model that does needs the full mmcv: pip uninstall mmcv-lite, then install mmcv==2.1.0."
            )

        return missing


def ensure_importable() -> None:
    """Put the placeholder in place unless the compiled extension exists. Idempotent."""
    # mmsegmentation imports timm wherever it is installed, and timm torchvision.
    torchvision_operators.ensure_importable()
    name = "mmcv._ext"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    placeholder = _MissingOperators(name)
    placeholder.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = placeholder
