"""The SDK's public clients `Session` and `SessionJSON`, every method of theirs, through the port of the service."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervisely as sly
from supervisely.nn.inference import Session, SessionJSON

from sandbox.testing import Sandbox
from tests.serve.conftest import serving_beside
from tests.serve.films import write_film
from tests.serve.requests_of_clients import encoded, expected, to_mask

FRAMES = 6


@pytest.fixture(scope="module")
def app(checkpoint: Path, instance: Sandbox) -> Iterator[SimpleNamespace]:
    on_this_machine = {"HRDA_ALLOW_HTTP": "true", "HRDA_ALLOW_PRIVATE_ADDRESSES": "true"}
    with serving_beside(instance, checkpoint, **on_this_machine) as running:
        yield running


@pytest.fixture(scope="module")
def photos(api, instance: Sandbox, tmp_path_factory) -> SimpleNamespace:
    """Two photos: of a project, in files, and the first at an address; and a film."""
    random, folder = np.random.default_rng(4), tmp_path_factory.mktemp("photos")
    images = [random.integers(0, 256, (64, 64 + 8 * n, 3), dtype=np.uint8) for n in range(2)]
    files = [folder / f"{n}.png" for n in range(2)]
    for path, image in zip(files, images, strict=True):
        path.write_bytes(encoded(image))
    project = api.project.create(instance.workspace_id, "photos of a session")
    infos = api.image.upload_paths(
        api.dataset.create(project.id, "ds").id, [f.name for f in files], list(map(str, files))
    )
    films = api.project.create(instance.workspace_id, "films of a session", type="videos")
    film = write_film(folder / "film.mp4", FRAMES)
    video = api.video.upload_path(api.dataset.create(films.id, "ds").id, film.name, str(film))

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            self.wfile.write(files[0].read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield SimpleNamespace(
            images=images, files=list(map(str, files)), ids=[info.id for info in infos], project=project.id,
            video=video.id, url=f"http://127.0.0.1:{site.server_port}/0.png",
        )  # fmt: skip
        site.shutdown()


def masks_of(results: Any) -> list[np.ndarray]:
    """What a client was given, whichever of its forms it has."""
    results = results if isinstance(results, list) else [results]
    found = [result.get("annotation") if isinstance(result, dict) else result for result in results]
    found = [getattr(each, "annotation", each) for each in found]
    return [to_mask(each if isinstance(each, dict) else each.to_json()) for each in found]


ASKED = {
    "inference_image_id": lambda client, photos: client.inference_image_id(photos.ids[0]),
    "inference_image_ids": lambda client, photos: client.inference_image_ids(photos.ids),
    "inference_image_ids_async": lambda client, photos: list(client.inference_image_ids_async(photos.ids)),
    "inference_image_path": lambda client, photos: client.inference_image_path(photos.files[0]),
    "inference_image_paths": lambda client, photos: client.inference_image_paths(photos.files),
    "inference_image_url": lambda client, photos: client.inference_image_url(photos.url),
    "inference_project_id": lambda client, photos: client.inference_project_id(photos.project),
    "inference_project_id_async": lambda client, photos: list(client.inference_project_id_async(photos.project)),
}
"""What predicts photos: the first, or both in their order."""


@pytest.mark.parametrize("kind", [Session, SessionJSON])
@pytest.mark.parametrize("method", ASKED)
def test_photos_are_predicted_by_every_method(app, api, photos, kind, method):
    client = kind(api, session_url=app.url, inference_settings={"stride": 64})
    found = masks_of(ASKED[method](client, photos))
    assert len(found) in (1, len(photos.images))
    for mask, image in zip(found, photos.images, strict=False):
        np.testing.assert_array_equal(mask, expected(app, image, stride=(64, 64)))


@pytest.mark.parametrize("kind", [Session, SessionJSON])
def test_frames_are_predicted(app, api, photos, kind):
    client = kind(api, session_url=app.url, inference_settings={"preset": "fast"})
    two = client.inference_video_id(photos.video, start_frame_index=1, frames_count=2)
    assert len(masks_of(two if kind is Session else two["ann"])) == 2
    assert len(masks_of(list(client.inference_video_id_async(photos.video)))) == FRAMES


@pytest.mark.parametrize("kind", [Session, SessionJSON])
def test_session_is_described(app, api, kind):
    client = kind(api, session_url=app.url)
    assert (client.task_id, client.base_url) == (None, app.url)
    assert client.get_session_info()["max_batch_size"] == 16
    assert client.get_human_readable_info("none")["Model name"] == "HRDA mit_b0"
    meta = client.get_model_meta()
    meta = sly.ProjectMeta.from_json(meta) if kind is SessionJSON else meta
    assert [one.name for one in meta.obj_classes] == ["__bg__", "crack", "stain"]
    told = client.get_deploy_info()
    assert (told["checkpoint_name"] if kind is SessionJSON else told.checkpoint_name) == "model.pth"
    assert client.get_default_inference_settings()["preset"] == "exact"
    assert client.set_inference_settings({"flip": True}) == {"flip": True}
    assert client.update_inference_settings(stride=64) == {"flip": True, "stride": 64}


def test_speed_is_measured_and_a_job_is_stopped(app, api, instance, photos):
    client = SessionJSON(api, session_url=app.url, inference_settings={"preset": "fast"})
    measured = list(client.run_speedtest(photos.project, batch_size=1, num_iterations=2, num_warmup=1))
    assert len(measured) == 2
    results = client.inference_image_ids_async(photos.ids)
    assert client.stop_async_inference()["success"] is True
    assert list(results) == [], "what is stopped is not fetched"
    task = instance.create_task("Serve HRDA")["id"]
    instance.set_task_address(task, app.url)
    assert Session(api, task_id=task).is_model_deployed()["deployed"] is True


def test_no_public_method_of_the_clients_is_left_out():
    """A release of the SDK that has another one is found here."""
    others = {
        "inference_video_id", "inference_video_id_async", "get_session_info", "get_human_readable_info",
        "get_model_meta", "get_deploy_info", "get_default_inference_settings", "set_inference_settings",
        "update_inference_settings", "task_id", "base_url", "run_speedtest", "stop_async_inference",
        "is_model_deployed",
    }  # fmt: skip
    assert {name for name in dir(Session) if not name.startswith("_")} == ASKED.keys() | others
