"""Videos: which frames are chosen, read and predicted, by the SDK's own clients and by plain requests."""

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from common.data.images import ImageError, ImageTooLarge
from sandbox.testing import Sandbox
from serve.errors import RequestError, TooLarge
from serve.limits import Limits
from serve.sources import videos
from serve.sources.instance_api import WatchedApi
from serve.sources.video_files import VideoFile, new_folder
from serve.sources.videos import FrameChoice, Frames, UploadedVideo
from tests.serve.conftest import serving_beside
from tests.serve.films import with_durations, write_film
from tests.serve.requests_of_clients import busy, expected, finished, post, refused, to_mask, upload, wait_until

COUNT, FPS = 10, 4


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (64, 64))
    for number in range(COUNT):
        writer.write(np.roll(cv2.blur(noise, (5, 5)), 7 * number, axis=1))
    writer.release()
    return path


@pytest.fixture(scope="module")
def frames(film: Path) -> list[np.ndarray]:
    from supervisely.video.video import VideoFrameReader

    return VideoFrameReader(str(film)).read_frames()


@pytest.fixture(scope="module")
def video(api, instance: Sandbox, film: Path):
    project = api.project.create(instance.workspace_id, "films", type="videos")
    return api.video.upload_path(api.dataset.create(project.id, "ds").id, "film.mp4", str(film))


@pytest.fixture(scope="module")
def app(checkpoint: Path, instance: Sandbox) -> Iterator[SimpleNamespace]:
    with serving_beside(instance, checkpoint) as running:
        yield running


@pytest.fixture(scope="module")
def masks(app: SimpleNamespace, frames: list[np.ndarray]) -> list[np.ndarray]:
    """What the model finds in each frame."""
    return [expected(app, frame) for frame in frames]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def assert_frames(results: list[dict], masks: list[np.ndarray], indices) -> None:
    assert [result["frame_index"] for result in results] == list(indices)
    for result in results:
        np.testing.assert_array_equal(to_mask(result["annotation"]), masks[result["frame_index"]])


@pytest.mark.parametrize(
    ("state", "indices"),
    [
        ({}, range(10)),
        ({"startFrameIndex": 7}, range(7, 10)),
        ({"start_frame": 2, "num_frames": 5, "stride": 2}, range(2, 7, 2)),
        ({"start_frame_index": 2, "end_frame": 4}, range(2, 4)),
        ({"startFrameIndex": 2, "framesCount": 3, "endFrameIndex": 9}, range(2, 5)),
        ({"direction": "backward"}, range(9, -1, -1)),
        ({"framesDirection": "backward", "startFrameIndex": 4, "framesCount": 5, "step": 2}, range(4, -1, -2)),
        ({"direction": "backward", "startFrameIndex": 4, "endFrameIndex": 1}, range(4, 1, -1)),
        ({"duration": 0.8}, range(4)),
        ({"duration": 900, "startFrameIndex": 8}, range(8, 10)),
        ({"duration": 0.01}, range(1)),
        ({"startFrameIndex": None, "framesCount": None, "tracker": None, "step": None}, range(10)),
    ],
)
def test_frames_are_chosen_by_every_name_that_clients_use(state, indices):
    times = [200.0 * number for number in range(10)]
    assert list(FrameChoice.of(state).indices(10, "film", times)) == list(indices)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"startFrameIndex": 10}, "film has 10 frames, with indices 0 to 9. Received: start frame 10"),
        ({"startFrameIndex": 8, "framesCount": 3}, "2 of them from frame 8 forward. Received: framesCount 3"),
        ({"startFrameIndex": 8, "endFrameIndex": 8}, "Received: endFrameIndex 8"),
        ({"endFrameIndex": 11}, "Received: endFrameIndex 11"),
        ({"direction": "backward", "startFrameIndex": 2, "framesCount": 4}, "3 of them from frame 2 backward"),
        ({"direction": "backward", "startFrameIndex": 2, "endFrameIndex": 5}, "Received: endFrameIndex 5"),
    ],
)
def test_frames_outside_of_the_video_are_refused_with_what_is_there(state, message):
    with pytest.raises(RequestError, match=message):
        FrameChoice.of(state).indices(10, "film")


@pytest.mark.parametrize("state", [{}, {"direction": "backward"}, {"start_frame": 3, "step": 4}, {"start_frame": 9}])
def test_each_frame_is_decoded_at_its_place(film, frames, state):
    video, choice = UploadedVideo(VideoFile(film, "film", Limits())), FrameChoice.of(state)
    read, chosen = list(Frames(video, choice, lambda: True)), choice.indices(COUNT, "film")
    assert len(read) == len(chosen)
    for frame, index in zip(read, chosen, strict=True):
        np.testing.assert_array_equal(frame, frames[index])
    video.close()


def test_file_that_is_no_video_or_too_large_is_refused(film, tmp_path):
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(ImageError, match="Cannot read the video no"):
        VideoFile(path, "no", Limits())
    with pytest.raises(ImageTooLarge, match="64×64"):
        VideoFile(film, "film", Limits(max_megapixels=0.004))


def test_sdk_session_predicts_a_video_of_the_instance(app, api, video, masks, folder):
    from supervisely.nn.inference import Session, SessionJSON

    session = Session(api, session_url=app.url)
    annotations = session.inference_video_id(video.id)
    assert len(annotations) == COUNT
    for annotation, mask in zip(annotations, masks, strict=True):
        np.testing.assert_array_equal(to_mask(annotation.to_json()), mask)
    session = SessionJSON(api, session_url=app.url)
    answer = session.inference_video_id(video.id, 5, 3, "backward", batch_size=2)
    assert answer["video_ann"] is None
    assert_frames(answer["ann"], masks, (5, 4, 3))
    place = {"video_id": video.id, "dataset_id": video.dataset_id, "project_id": video.project_id}
    assert answer["ann"][0].items() >= place.items()
    assert list(folder.iterdir()) == []


def test_sdk_session_follows_a_job_over_a_video(app, api, video, masks, folder):
    from supervisely.nn.inference import Session, SessionJSON

    session = SessionJSON(api, session_url=app.url)
    job = session.inference_video_id_async(video.id, 1, 9, preparing_cb=lambda **_: SimpleNamespace(update=print))
    assert len(job) == 9
    assert_frames(list(job), masks, range(1, 10))
    session = Session(api, session_url=app.url)
    session.update_inference_settings(background=False)
    annotations = list(session.inference_video_id_async(video.id, 9, 2, "backward"))
    for annotation, mask in zip(annotations, masks[:7:-1], strict=True):
        np.testing.assert_array_equal(to_mask(annotation.to_json()), np.where(mask == 0, 255, mask))
    assert list(folder.iterdir()) == []


def test_model_api_predicts_videos_by_id_and_by_file_alike(app, api, video, film, masks):
    from supervisely.nn.model.model_api import ModelAPI

    model = ModelAPI(api=api, url=app.url)
    options = {"start_frame": 1, "num_frames": 9, "stride": 4, "show_progress": False}
    for source in ({"video_id": video.id}, {"input": str(film)}):
        predictions = model.predict(**source, **options)
        assert [prediction.frame_index for prediction in predictions] == [1, 5, 9]
        for prediction in predictions:
            found = to_mask(prediction.annotation.to_json())
            np.testing.assert_array_equal(found, masks[prediction.frame_index])


def test_few_frames_are_fetched_alone_and_many_by_the_file(app, video, body, monkeypatch):
    asked, fetch = [], videos.fetch
    monkeypatch.setattr(videos, "fetch", lambda *args: asked.append(args[2]["frame"]) or fetch(*args))
    state = {"videoId": video.id, "framesCount": 2, "startFrameIndex": 6}
    assert post(app, "inference_video_id", state, **body).status_code == 200
    assert asked == [6, 7]
    assert post(app, "inference_video_id", {"videoId": video.id}, **body).status_code == 200
    assert asked == [6, 7]


def test_region_and_classes_of_a_video(app, video, frames, body):
    rectangle = {"points": {"exterior": [[8, 0], [55, 63]], "interior": []}}
    state = {"videoId": video.id, "framesCount": 2, "rectangle": rectangle, "settings": {"classes": ["crack"]}}
    results = post(app, "inference_video_id", state, **body).json()["ann"]
    for result, frame in zip(results, frames[:2], strict=True):
        mask, inner = to_mask(result["annotation"]), expected(app, np.ascontiguousarray(frame[:, 8:56]))
        np.testing.assert_array_equal(mask[:, 8:56], np.where(inner == 1, 1, 255))
        assert (mask[:, :8] == 255).all()
    state["rectangle"] = {"points": {"exterior": [[0, 0], [500, 9]], "interior": []}}
    refused(post(app, "inference_video_id", state, **body), "inside the image of 64×64")


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ({"videoId": 987654}, 404, ["no video 987654"]),
        ({"startFrameIndex": 50}, 400, ["has 10 frames, with indices 0 to 9", "start frame 50"]),
        ({"startFrameIndex": 8, "framesCount": 5}, 400, ["2 of them from frame 8", "framesCount 5"]),
        ({"direction": "sideways"}, 400, ["direction must be forward or backward", "'sideways'"]),
        ({"framesDirection": 1}, 400, ["framesDirection must be forward or backward"]),
        ({"settings": {"classes": ["crak"]}}, 400, ["did you mean 'crack'"]),
    ],
)
def test_what_a_video_does_not_have_is_told_in_a_sentence(app, video, body, state, status, words):
    state = {"videoId": video.id} | state
    refused(post(app, "inference_video_id", state, **body), *words, status=status)
    answer = post(app, "inference_video_id_async", state, **body)
    if answer.status_code == 200:
        error = finished(app, answer)["exception"]
        assert set(error) == {"type", "message"}, "no traceback"
        assert all(word in error["message"] for word in words)
    else:
        refused(answer, *words)


def test_uploaded_video_is_refused_at_once_where_its_frames_are_not_there(app, film, folder):
    state = {"startFrameIndex": 99}
    refused(upload(app, film.read_bytes(), state, route="inference_video_async"), "10 frames", "start frame 99")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("bounds", "state", "words"),
    [
        ({"max_frames": 5}, {}, ["At most 5 frames", "asynchronous", "10 frames"]),
        ({"max_megapixels": 0.004}, {}, ["frames of video", "64×64"]),
        ({"max_request_mb": 0.001}, {}, ["more than 0.001 megabytes", "At most 8 frames"]),
        ({"max_image_mb": 0.001}, {"framesCount": 1}, ["Frame 0 of video", "more than 0.001 megabytes"]),
    ],
)
def test_videos_of_the_instance_are_bounded(app, video, body, folder, monkeypatch, bounds, state, words):
    monkeypatch.setattr(app.server, "limits", Limits(**bounds))
    refused(post(app, "inference_video_id", {"videoId": video.id} | state, **body), *words, status=413)
    assert list(folder.iterdir()) == []


def test_file_that_is_longer_than_the_instance_said_is_not_kept(app, api, video, folder):
    source = videos.InstanceVideo(WatchedApi(api, Limits()), video.id, Limits(max_request_mb=0.001), lambda: False)
    source._bytes = 0
    with pytest.raises(TooLarge, match="more than 0.001 megabytes"):
        source.choose(FrameChoice(), lambda: True, None)
    source.close()
    assert list(folder.iterdir()) == []


def test_job_over_a_video_tells_its_progress_stops_and_removes_the_file(app, video, body, folder):
    with busy(app) as go_on:
        answer = post(app, "inference_video_id_async", {"videoId": video.id, "batch_size": 1}, **body)
        state = {"inference_request_uuid": answer.json()["inference_request_uuid"]}
        wait_until(lambda: len(list(folder.iterdir())) == 1)
        progress = post(app, "get_inference_progress", state).json()
        assert (progress["progress"]["current"], progress["progress"]["total"]) == (0, COUNT)
        assert progress["is_inferring"] is True
        assert post(app, "stop_inference", state).json()["success"] is True
        go_on.set()
        report = finished(app, answer)
    assert [result["frame_index"] for result in report["pending_results"]] in ([], [0])
    assert (report["stage"], report["stopped"], report["exception"]) == ("Cancelled", True, None)
    assert list(folder.iterdir()) == []


def test_download_ends_when_the_job_is_stopped(api, video, folder):
    source = videos.InstanceVideo(WatchedApi(api, Limits()), video.id, Limits(), lambda: True)
    assert list(Frames(source, FrameChoice(), lambda: True)) == []
    source.close()
    assert list(folder.iterdir()) == []


def test_full_disk_is_told_and_leaves_no_file(app, video, body, folder, monkeypatch):
    def full(self) -> None:
        with new_folder():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(videos.InstanceVideo, "_fetch_file", full)
    refused(post(app, "inference_video_id", {"videoId": video.id}, **body), "disk of the service is full", status=503)
    assert list(folder.iterdir()) == []


def test_video_that_was_removed_is_not_predicted_any_more(app, api, video, film, body):
    other = api.video.upload_path(video.dataset_id, "other.mp4", str(film))
    assert post(app, "inference_video_id", {"videoId": other.id, "framesCount": 1}, **body).status_code == 200
    api.video.remove(other.id)
    refused(post(app, "inference_video_id", {"videoId": other.id}, **body), str(other.id), status=404)


def test_video_is_not_shown_to_a_client_who_may_not_see_it(app, video):
    answer = post(app, "inference_video_id", {"videoId": video.id}, api_token="of somebody else")
    assert 400 <= answer.status_code < 500


def test_film_of_a_changing_rate_is_the_same_by_file_and_by_the_instance(app, api, video, tmp_path, body):
    """Whether frames are fetched alone, with their file, or uploaded."""
    count = 40
    film = write_film(tmp_path / "film.mp4", count)
    durations = np.random.default_rng(1).choice([128, 512, 4096], count)
    film.write_bytes(with_durations(film.read_bytes(), list(durations)))
    there = api.video.upload_path(video.dataset_id, "changing.mp4", str(film))
    assert there.frames_count == count
    read = list(Frames(UploadedVideo(VideoFile(film, "film", Limits())), FrameChoice(), lambda: True))
    wanted = {25 + n: expected(app, read[25 + n]) for n in range(9)}
    for state, last in (
        ({"startFrameIndex": 25, "framesCount": 9}, 34),
        ({"startFrameIndex": 25, "framesCount": 3}, 28),
        ({"startFrameIndex": 33, "framesCount": 9, "direction": "backward"}, 24),
    ):
        indices = range(25, last) if last > 25 else range(33, last, -1)
        results = post(app, "inference_video_id", {"videoId": there.id} | state, **body).json()["ann"]
        assert_frames(results, wanted, indices)
        job = finished(app, upload(app, film.read_bytes(), state, route="inference_video_async"))
        assert_frames(job["pending_results"], wanted, indices)


def test_text_that_names_other_files_is_refused_as_an_upload(app, folder):
    content = b"ffconcat version 1.0\nfile 'video_x/video'\n"
    refused(upload(app, content, route="inference_video_async"), "Cannot read the video photo.png")
    assert list(folder.iterdir()) == []
