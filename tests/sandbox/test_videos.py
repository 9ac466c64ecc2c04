"""Upload, listing and download of videos, as the SDK does it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
import supervisely as sly

FRAMES, HEIGHT, WIDTH, FPS = 6, 48, 64, 3


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of one grey each, brighter and brighter, so that a frame is known by its mean."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        writer.write(np.full((HEIGHT, WIDTH, 3), 30 * number + 20, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def dataset(api, sandbox) -> sly.DatasetInfo:
    project = api.project.create(sandbox.workspace_id, "films", type=sly.ProjectType.VIDEOS)
    return api.dataset.create(project.id, "ds")


@pytest.fixture(scope="module")
def video(api, dataset, film):
    return api.video.upload_path(dataset.id, "film.mp4", str(film))


def test_uploaded_video_is_described_listed_and_counted(api, dataset, video):
    assert (video.name, video.frames_count, video.frame_width, video.frame_height) == (
        "film.mp4",
        FRAMES,
        WIDTH,
        HEIGHT,
    )
    assert video.file_meta["duration"] == pytest.approx(FRAMES / FPS)
    assert (video.dataset_id, video.project_id) == (dataset.id, dataset.project_id)
    assert [info.id for info in api.video.get_list(dataset.id)] == [video.id]
    assert api.video.get_info_by_id(video.id)._replace(updated_at="") == video._replace(updated_at="")
    assert api.dataset.get_info_by_id(dataset.id).items_count == 1
    assert api.project.get_info_by_id(dataset.project_id).items_count == 1


def test_video_comes_back_as_it_was_sent(api, video, film, tmp_path):
    api.video.download_path(video.id, str(tmp_path / "back.mp4"))
    assert (tmp_path / "back.mp4").read_bytes() == film.read_bytes()


def test_single_frames_are_those_that_were_asked_for(api, video):
    assert api.video.frame.download_np(video.id, 4).mean() == pytest.approx(140, abs=4)
    frames = api.video.frame.download_nps(video.id, [5, 0, 2])
    assert [round(frame.mean(), -1) for frame in frames] == [170, 20, 80]
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    for index in (-1, FRAMES):
        with pytest.raises(requests.HTTPError, match="has 6 frames"):
            api.video.frame.download_np(video.id, index)


def test_file_that_is_no_video_is_refused(api, dataset, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    with pytest.raises(RuntimeError, match="supported format"):
        api.video.upload_path(dataset.id, "no.mp4", str(tmp_path / "no.mp4"))


def test_removed_video_is_gone_and_no_image_with_it(api, sandbox, dataset, film):
    project = api.project.create(sandbox.workspace_id, "photos")
    images = api.dataset.create(project.id, "ds")
    photo = api.image.upload_np(images.id, "photo.png", np.zeros((4, 4, 3), np.uint8))
    second = api.video.upload_path(dataset.id, "second.mp4", str(film))
    assert second.id != photo.id
    api.video.remove(second.id)
    assert api.video.get_info_by_id(second.id) is None
    assert api.image.get_info_by_id(photo.id) is not None
    with pytest.raises(requests.HTTPError):
        api.video.download_path(second.id, "nowhere.mp4")
