"""Requests to deploy, as the SDK's clients of several generations send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisely.nn.utils import ModelSource, RuntimeType

from serve.errors import RequestError
from serve.model.deployment import default_device


def completed(deploy_params: Mapping[str, Any]) -> dict[str, Any]:
    """A request to deploy with nothing missing that the SDK takes for granted.

    Raises:
        RequestError: no checkpoint is named, or the model would be converted.
    """
    params = deploy_params
    files = params.get("model_files") or {"checkpoint": params.get("checkpoint_url")}
    if not isinstance(files, Mapping) or not isinstance(files.get("checkpoint"), str) or not files["checkpoint"]:
        raise RequestError(
            "A checkpoint is needed, there are no pretrained HRDA models: give its path as "
            f"model_files['checkpoint']. Received: model_files {params.get('model_files')!r}."
        )
    runtime = params.get("runtime") or RuntimeType.PYTORCH
    if runtime != RuntimeType.PYTORCH:
        raise RequestError(f"The runtime must be '{RuntimeType.PYTORCH}'. Received: {runtime!r}.")
    completed = {
        "model_files": dict(files),
        "model_source": params.get("model_source") or ModelSource.CUSTOM,
        "model_info": params.get("model_info") or {},
        "device": params.get("device") or default_device(),
        "runtime": runtime,
    }
    # The SDK takes this one out again; everything else would reach `load_model`, which has no use for it.
    return completed | {name: params[name] for name in ("without_workflow",) if name in params}
