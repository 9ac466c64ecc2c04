"""What requests must hold before the SDK reads them: it takes for granted that every value is there and of its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, create_model

from common.hrda.checks import IN_PART, Expected, received, sentence
from common.web.bodies import read_object
from serve.errors import RequestError, TooLarge
from serve.limits import Limits
from serve.sources.videos import DIRECTION, DIRECTIONS

IMAGE_IDS = ("batch_ids", "image_ids", "images_ids", "imageIds", "image_id", "imageId")
"""Names under which clients send ids of images; the first that is there counts."""
_JOB = ("inference_request_uuid",)

NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "inference_image_id": (IMAGE_IDS,),
    "inference_image_id_async": (IMAGE_IDS,),
    "inference_batch_ids": (IMAGE_IDS,),
    "inference_batch_ids_async": (IMAGE_IDS,),
    "inference_image_url": (("image_url",),),
    "inference_video_id": (("videoId", "video_id"),),
    "inference_video_id_async": (("videoId", "video_id"),),
    "inference_project_id_async": (("projectId", "project_id"),),
    "run_speedtest": (("projectId",), ("batch_size",), ("num_iterations",)),
    "smart_cache": (),
    "deploy_from_api": (("deploy_params",),),
    "get_inference_progress": (_JOB,),
    "get_inference_status": (_JOB,),
    "get_inference_result": (_JOB,),
    "get_preparing_progress": (_JOB,),
    "pop_inference_results": (_JOB,),
    "stop_inference": (_JOB,),
    "clear_inference_request": (_JOB,),
}
"""Routes that read a `state`, and what must be in it: one of each group of names."""

SUPERVISELY = "supervisely"
FORMATS = (SUPERVISELY, "masks", "geojson")
"""Formats of an answer about one image, that of all other answers first."""
_LARGEST = 2**53
_ID = Annotated[int, Field(ge=1, lt=_LARGEST), Expected("a whole number of at least 1")]
_COUNT = Annotated[int, Field(ge=0, lt=_LARGEST), Expected("a whole number of at least 0")]
_IDS = Annotated[list[_ID], Field(min_length=1), Expected("a list of ids")]
_KINDS: dict[str, Any] = {
    **dict.fromkeys(
        ("image_id", "imageId", "videoId", "video_id", "projectId", "project_id", "dataset_id", "output_project_id"),
        _ID,
    ),
    **dict.fromkeys(
        ("batch_size", "num_iterations", "step", "stride", "framesCount", "frames_count", "num_frames"), _ID
    ),
    **dict.fromkeys(("num_warmup", "startFrameIndex", "start_frame_index", "start_frame"), _COUNT),
    **dict.fromkeys(("endFrameIndex", "end_frame_index", "end_frame"), _COUNT),
    **dict.fromkeys(("batch_ids", "image_ids", "images_ids", "imageIds", "dataset_ids", "datasetIds"), _IDS),
    **dict.fromkeys(("image_url", "model_prediction_suffix", *_JOB), str),
    **dict.fromkeys(DIRECTION, Annotated[Literal[DIRECTIONS], Expected("forward or backward")]),
    "deploy_params": Annotated[dict[str, Any], Expected("names and values")],
    "upload_mode": Literal["create", "append", "replace", "iou_merge"],
    "format": Literal[FORMATS],
    "tolerance": Annotated[float, Field(ge=0, le=100), Expected("pixels from 0 to 100")],
    "mm_per_pixel": Annotated[float, Field(gt=0, le=1e6), Expected("millimetres above 0 that a pixel shows")],
    "duration": Annotated[float, Field(gt=0, lt=1e9), Expected("a positive number of seconds")],
}
RequestState = create_model(
    "RequestState",
    __config__=IN_PART,
    **{name: (kind, None) for name, kind in _KINDS.items()},
)
"""What the routes read in a request's `state`, under the names of all clients; what else is there is passed over."""
_MOST_SPEEDTESTS = 10_000
_OF_ONE_IMAGE = ("inference_image", "inference_image_url")
"""Routes whose answer is about one image, and may be a file of it."""
_OUTPUTS = {"format": _OF_ONE_IMAGE, "tolerance": _OF_ONE_IMAGE, "mm_per_pixel": ("measure",)}
"""What a `state` says of outputs, and the routes that read it."""


def read_body(route: str, body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object of a request to `route`, checked as far as it is known.

    Raises:
        Refusal: not JSON, or not an object.
        RequestError: without what the route needs.
    """
    content = read_object(body)
    if route in NEEDED:
        if content.get("state") is None:
            raise RequestError('The request\'s body must hold a state: {"state": {…}}.')
        check_state(route, content["state"], limits)
    return content


def is_of_tool(content: Mapping[str, Any]) -> bool:
    """Whether the body of a request came by `api.task.send_request` of the SDK, which labelling tools use."""
    return "outside_request" in (content.get("context") or {})


def check_state(route: str, state: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a `state` without what `route` needs, or with values of a wrong type.

    Raises:
        RequestError: it says what is expected.
    """
    for group in NEEDED.get(route, ()):
        if all(state.get(name) is None for name in group):
            there = [name for name, value in state.items() if value is not None]
            raise RequestError(f"state must hold {' or '.join(group)}. Received: {received(there)}.")
    given = {name: value for name, value in state.items() if value is not None}
    try:
        RequestState.model_validate(given)
    except ValidationError as error:
        raise RequestError(sentence(error, RequestState)) from None
    if given.get("batch_size", 1) > limits.max_batch_size:
        raise RequestError(f"batch_size must be at most {limits.max_batch_size}. Received: {given['batch_size']}.")
    if given.get("num_iterations", 1) + given.get("num_warmup", 0) > _MOST_SPEEDTESTS:
        raise TooLarge(f"At most {_MOST_SPEEDTESTS} iterations are run. Received: {given['num_iterations']}.")
    for name, routes in _OUTPUTS.items():
        if name in given and route not in routes and given[name] != SUPERVISELY:
            raise RequestError(f"{name} is read by {' and '.join(f'/{each}' for each in routes)} alone: leave it out.")
    if given.get("tracker"):
        raise RequestError("This model does not follow objects through a video: leave tracker out.")
