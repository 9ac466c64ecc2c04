"""Requests to deploy, as the SDK's clients of several generations send them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from supervisely.nn.utils import ModelSource

from common.hrda.checks import IN_PART, Expected, received, sentence
from serve.errors import RequestError
from serve.model.deployment import PYTORCH, RUNTIMES, default_device
from serve.model.exports import runnable_file

_SOURCES = (ModelSource.CUSTOM, ModelSource.EXTERNAL, ModelSource.PRETRAINED)


def _with_checkpoint(files: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(files.get("checkpoint"), str) or not files["checkpoint"]:
        raise ValueError
    return files


class DeployRequest(BaseModel):
    """What is read of a request to deploy."""

    model_config = IN_PART
    model_files: Annotated[dict[str, Any], AfterValidator(_with_checkpoint)]
    """Path of the checkpoint, under this name; clients send others beside it."""
    model_source: Annotated[Literal["", *_SOURCES], Expected(" or ".join(map(repr, _SOURCES)))] = ""
    """Where the model comes from, in the SDK's words."""
    model_info: dict[str, Any] = Field(default_factory=dict)
    """The experiment's description."""
    device: str = ""
    """Where to compute, such as 'cuda:0'."""
    runtime: Annotated[Literal["", *RUNTIMES], Expected(" or ".join(RUNTIMES))] = ""
    """What the network runs on."""


def completed(deploy_params: Mapping[str, Any]) -> dict[str, Any]:
    """A request to deploy with nothing missing that the SDK takes for granted.

    Raises:
        RequestError: no checkpoint is named, or the model would be converted.
    """
    params = {name: value for name, value in deploy_params.items() if value is not None}
    if "model_files" not in params and "checkpoint_url" in params:
        params["model_files"] = {"checkpoint": params["checkpoint_url"]}
    try:
        given = DeployRequest.model_validate(params)
    except ValidationError as error:
        if error.errors()[0]["loc"][0] == "model_files":
            raise RequestError(
                "A checkpoint is needed, there are no pretrained HRDA models: give its path as "
                f"model_files['checkpoint']. Received: model_files {received(params.get('model_files'))}."
            ) from None
        raise RequestError(sentence(error, DeployRequest)) from None
    completed = {
        "model_files": given.model_files,
        "model_source": given.model_source or ModelSource.CUSTOM,
        "model_info": given.model_info,
        "device": given.device or default_device(),
        "runtime": given.runtime or PYTORCH,
    }
    # The SDK takes this one out again; everything else would reach `load_model`, which has no use for it.
    return completed | {name: params[name] for name in ("without_workflow",) if name in params}


def runnable(params: Mapping[str, Any]) -> dict[str, Any]:
    """A completed request with the file that its runtime runs: for others than PyTorch a checkpoint is exported.

    Raises:
        CheckpointError, RequestError: as `runnable_file`.
    """
    files = params["model_files"]
    path = runnable_file(Path(files["checkpoint"]), params["device"], params["runtime"])
    return {**params, "model_files": {**files, "checkpoint": str(path)}}
