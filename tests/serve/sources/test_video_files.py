"""Films whose files say something else than they hold, and files that are no films."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from common.data.images import ImageError
from serve.limits import Limits
from serve.sources.video_files import VideoFile, new_folder
from serve.sources.videos import FrameChoice, Frames, UploadedVideo
from tests.serve.films import number_of, with_durations, with_frames_said, without_duration, write_film

COUNT = 100
DURATIONS = np.random.default_rng(0).choice([128, 512, 1024, 4096], COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    steady = write_film(folder / "steady.mp4", COUNT).read_bytes()
    (folder / "changing.mp4").write_bytes(with_durations(steady, list(DURATIONS)))
    (folder / "stills.mp4").write_bytes(with_durations(steady, [512] * 30 + [0] * 5 + [9000] * 5 + [1] * 60))
    webm = write_film(folder / "a.webm", COUNT, "VP80").read_bytes()
    (folder / "endless.webm").write_bytes(without_duration(webm))
    avi = write_film(folder / "a.avi", COUNT, "MJPG").read_bytes()
    for said in (40, 99, 200):
        (folder / f"says_{said}.avi").write_bytes(with_frames_said(avi, said))
    return folder


FILMS = [
    "steady.mp4", "changing.mp4", "stills.mp4", "a.webm", "endless.webm", "a.avi", "says_40.avi", "says_99.avi",
    "says_200.avi",
]  # fmt: skip


@pytest.mark.parametrize("name", FILMS)
@pytest.mark.parametrize(
    "state",
    [
        {},
        {"startFrameIndex": 60, "framesCount": 2},
        {"startFrameIndex": 99},
        {"startFrameIndex": 3, "step": 31},
        {"direction": "backward"},
        {"direction": "backward", "startFrameIndex": 70, "framesCount": 30, "step": 7},
    ],
)
def test_frames_are_counted_and_each_is_at_its_place(folder, name, state):
    video, choice = UploadedVideo(VideoFile(folder / name, name, Limits())), FrameChoice.of(state)
    found = [number_of(frame) for frame in Frames(video, choice, lambda: True)]
    assert found == list(choice.indices(COUNT, name))
    video.close()


def test_seconds_of_a_film_are_those_in_which_its_frames_are_shown(folder):
    video = UploadedVideo(VideoFile(folder / "changing.mp4", "film", Limits()))
    choice = FrameChoice.of({"startFrameIndex": 10, "duration": 1.0})
    shown = np.cumsum(DURATIONS[10:]) / 12800
    assert len(Frames(video, choice, lambda: True)) == 1 + int((shown < 1).sum())
    video.close()


def test_counting_ends_when_nobody_waits_any_more(folder):
    file = VideoFile(folder / "a.avi", "film", Limits())
    frames = Frames(UploadedVideo(file), FrameChoice(), lambda: False)
    assert (len(frames), list(frames)) == (0, [])
    assert file.count(1) < COUNT
    file.close()


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile 'film.mp4'\n",
        b"#EXTM3U\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n",
        b"<?xml version='1.0'?><MPD><Period><BaseURL>film.mp4</BaseURL></Period></MPD>",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_text_that_names_other_files_is_no_video(folder, content):
    with new_folder() as own:
        (own / "film.mp4").write_bytes((folder / "steady.mp4").read_bytes())
        (own / "video").write_bytes(content)
        with pytest.raises(ImageError, match="Cannot read the video list: it is damaged"):
            VideoFile(own / "video", "list", Limits(), own)


def test_each_video_has_a_folder_of_its_own_which_goes_with_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with new_folder() as one, new_folder() as other:
        assert one != other and one.stat().st_mode & 0o077 == 0, "others on this machine cannot read it"
        (one / "video").write_bytes((folder / "steady.mp4").read_bytes())
        VideoFile(one / "video", "film", Limits(), one).close()
        assert list(tmp_path.iterdir()) == [other]
