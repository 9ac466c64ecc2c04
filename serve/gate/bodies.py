"""What requests must hold before the SDK reads them: it takes for granted that every value is there and of its type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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

_WHOLE = {
    "image_id": 1, "imageId": 1, "videoId": 1, "video_id": 1, "projectId": 1, "project_id": 1, "dataset_id": 1,
    "output_project_id": 1, "batch_size": 1, "num_iterations": 1, "num_warmup": 0, "step": 1, "stride": 1,
    "startFrameIndex": 0, "start_frame_index": 0, "start_frame": 0, "endFrameIndex": 0, "end_frame_index": 0,
    "end_frame": 0, "framesCount": 1, "frames_count": 1, "num_frames": 1,
}  # fmt: skip
"""Whole numbers by name, and the least value of each."""
_LISTS = ("batch_ids", "image_ids", "images_ids", "imageIds", "dataset_ids", "datasetIds")
_TEXTS = ("image_url", "upload_mode", "model_prediction_suffix", *_JOB)
_UPLOAD_MODES = ("create", "append", "replace", "iou_merge")
_MOST_SPEEDTESTS = 10_000


def read_body(route: str, body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object of a request to `route`, checked as far as it is known.

    Raises:
        RequestError: not JSON, not an object, or without what the route needs.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"The request's body must be JSON: {reason}.") from error
    if not isinstance(content, dict):
        raise RequestError(
            f'The request\'s body must be a JSON object: {{"state": {{…}}}}. Received: {content!r:.200}.'
        )
    for name in ("state", "context"):
        if not isinstance(content.get(name), dict | None):
            raise RequestError(f"{name} must be a JSON object. Received: {content[name]!r:.200}.")
    for name, place in (("api_token", content), ("apiToken", content.get("context") or {})):
        token = place.get(name)
        if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise RequestError(f"{name} must be the text of a token.")
    if route in NEEDED:
        if content.get("state") is None:
            raise RequestError('The request\'s body must hold a state: {"state": {…}}.')
        check_state(route, content["state"], limits)
    return content


def check_state(route: str, state: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a `state` without what `route` needs, or with values of a wrong type.

    Raises:
        RequestError: it says what is expected.
    """
    for group in NEEDED.get(route, ()):
        if all(state.get(name) is None for name in group):
            raise RequestError(f"state must hold {' or '.join(group)}. Received: {', '.join(state) or 'nothing'}.")
    given = {name: value for name, value in state.items() if value is not None}
    for name, least in _WHOLE.items():
        if name in given and not _is_whole(given[name], least):
            raise RequestError(f"{name} must be a whole number of at least {least}. Received: {given[name]!r:.200}.")
    for name in _LISTS:
        if name in given and not (
            isinstance(given[name], list) and given[name] and all(_is_whole(each, 1) for each in given[name])
        ):
            raise RequestError(f"{name} must be a list of ids. Received: {given[name]!r:.200}.")
    for name in _TEXTS:
        if name in given and not isinstance(given[name], str):
            raise RequestError(f"{name} must be text. Received: {given[name]!r:.200}.")
    if given.get("batch_size", 1) > limits.max_batch_size:
        raise RequestError(f"batch_size must be at most {limits.max_batch_size}. Received: {given['batch_size']}.")
    if given.get("num_iterations", 1) + given.get("num_warmup", 0) > _MOST_SPEEDTESTS:
        raise TooLarge(f"At most {_MOST_SPEEDTESTS} iterations are run. Received: {given['num_iterations']}.")
    if given.get("upload_mode", "append") not in _UPLOAD_MODES:
        raise RequestError(
            f"upload_mode must be one of: {', '.join(_UPLOAD_MODES)}. Received: {given['upload_mode']!r:.200}."
        )
    for name in DIRECTION:
        if given.get(name, "forward") not in DIRECTIONS:
            raise RequestError(f"{name} must be forward or backward. Received: {given[name]!r:.200}.")
    duration = given.get("duration", 1)
    if not isinstance(duration, int | float) or isinstance(duration, bool) or not 0 < duration < 1e9:
        raise RequestError(f"duration must be a positive number of seconds. Received: {duration!r:.200}.")
    if given.get("tracker"):
        raise RequestError("This model does not follow objects through a video: leave tracker out.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53
