import base64
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import requests
import supervisely as sly
from fastapi.testclient import TestClient
from supervisely.app import DataJson
from supervisely.app.fastapi import _MainServer

from common.data.project import draw_mask
from common.hrda import SettingsError
from sandbox.synthetic.projects import write_project
from train.instance.domains import Domain, InputError
from train.page import samples
from train.page.samples import Photo, SamplePhotos, SampleSource, data_url, draw_samples
from train.settings.training import TrainSettings

SIZE = (96, 128)
PLAIN = ["data.augmentation={flip: false, photometric: 0}", "data.scale={long_edge: null, short_edge: null}"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "source"
    write_project(folder, "source", 3, size=SIZE, workers=1)
    return folder


@pytest.fixture(scope="module")
def photos(project: Path) -> list[Photo]:
    paths = sorted(project.glob("*/img/*"))
    return [Photo(path.name, path, json.loads(annotation_of(path).read_text())) for path in paths]


@pytest.fixture(scope="module")
def source(project: Path) -> SampleSource:
    meta = sly.ProjectMeta.from_json(json.loads((project / "meta.json").read_text()))
    return SampleSource(Domain(1), meta, ("crack",))


def annotation_of(path: Path) -> Path:
    return path.parents[1] / "ann" / f"{path.name}.json"


def settings(*overrides: str) -> TrainSettings:
    return TrainSettings().with_overrides(["model.crop_size=[128, 192]", *overrides])


def test_sample_is_the_photo_with_its_labels_in_the_class_colour(photos, source, tmp_path):
    pictures = draw_samples(photos[:1], source, settings(*PLAIN), tmp_path, 0)
    photo = cv2.cvtColor(cv2.imread(str(photos[0].path)), cv2.COLOR_BGR2RGB)
    crack = draw_mask(photos[0].annotation, source.meta, {"crack": 1}, SIZE) == 1
    colour = source.meta.get_obj_class("crack").color
    assert len(pictures) == 4 and crack.any()
    for picture in pictures:
        assert picture.shape == (128, 192, 3)
        inside = picture[: SIZE[0], : SIZE[1]].astype(int)
        assert np.abs(inside[~crack] - photo[~crack]).max() <= 1
        assert np.abs(inside[crack] - (photo[crack] / 2 + np.array(colour) / 2)).max() <= 1
        assert picture[SIZE[0] :].std(axis=(0, 1)).max() == 0, "what fills up the crop must look like nothing"


def test_augmentation_shows_and_each_turn_draws_others(photos, source, tmp_path):
    hard = settings("data.augmentation={rotate: true, scale: [0.5, 2.0], photometric: 0.4}")
    first, again, next_ = (draw_samples(photos, source, hard, tmp_path, turn) for turn in (0, 0, 1))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(np.array_equal(one, other) for one, other in zip(first, next_, strict=True))


def test_crops_are_drawn_by_class_where_the_run_does(photos, source, tmp_path):
    one = settings(*PLAIN, "model.crop_size=[64, 64]", "data.rare_class_sampling.mode=explicit")
    with pytest.raises(SettingsError, match="none of the 3 sample photos"):
        draw_samples(photos, source, one.with_overrides(["data.rare_class_sampling.min_pixels=99999"]), tmp_path, 0)
    few = one.with_overrides(["data.rare_class_sampling={mode: explicit, min_pixels: 20, temperature: 0.001}"])
    chance, drawn = (draw_samples(photos, source, s, tmp_path, 0) for s in (settings(*PLAIN), few))
    assert len(drawn) == len(chance) == 4
    colour = np.array(source.meta.get_obj_class("crack").color)
    reddest = [np.abs(picture.astype(int) - colour).sum(axis=2).min() for picture in drawn]
    assert max(reddest) < 3 * 128 + 10, "the labels' colour is in every crop"


def test_large_crop_gives_a_small_picture(photos, source, tmp_path):
    [picture, *_] = draw_samples(photos[:1], source, settings("model.crop_size=[512, 1024]"), tmp_path, 0)
    assert picture.shape == (160, 320, 3)
    content = base64.b64decode(data_url(picture).removeprefix("data:image/jpeg;base64,"))
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(decoded.astype(int) - picture).mean() < 5


class Instance:
    """An instance with datasets of so many labelled photos; counts what is asked of it."""

    def __init__(self, photos: list[Photo], counts: dict[int, int]) -> None:
        self._photo, self._counts = photos[0], counts
        self.downloaded = 0
        self.image = SimpleNamespace(get_list=self._images, download_paths=self._download)
        self.annotation = SimpleNamespace(download_batch=self._annotations)
        self.dataset = SimpleNamespace(tree=lambda project_id: [([], SimpleNamespace(id=i)) for i in counts])

    def _images(self, dataset_id: int, limit: int, only_labelled: bool) -> list:
        assert only_labelled
        ids = range(100 * dataset_id, 100 * dataset_id + self._counts[dataset_id])
        return [SimpleNamespace(id=number, name=f"{number}.jpg") for number in ids]

    def _download(self, dataset_id: int, ids: list[int], paths: list[str]) -> None:
        self.downloaded += len(ids)
        for path in paths:
            Path(path).write_bytes(self._photo.path.read_bytes())

    def _annotations(self, dataset_id: int, ids: list[int]) -> list:
        return [SimpleNamespace(image_id=number, annotation=self._photo.annotation) for number in ids]


def test_few_photos_are_downloaded_and_only_once(photos):
    instance = Instance(photos, dict.fromkeys(range(1, 100), 50))
    kept = SamplePhotos(count=8)
    assert len(kept.get(instance, Domain(1))) == 8
    assert kept.get(instance, Domain(1)) and instance.downloaded == 8
    assert len({photo.path for photo in kept.get(instance, Domain(1, (3, 4)))}) == 8
    assert instance.downloaded == 16


def test_source_without_labels_is_named(photos):
    with pytest.raises(InputError, match="None of the photos of the source has labels"):
        SamplePhotos().get(Instance(photos, {1: 0}), Domain(1))


def test_click_shows_pictures_and_errors_become_sentences(photos, source, monkeypatch, settings_selector):
    instance = Instance(photos, {1: 3})
    monkeypatch.setattr(samples.Api, "from_env", lambda: instance)
    view, server = settings_selector.samples, TestClient(_MainServer().get_server())
    settings_selector.set_hyperparameters("model: {crop_size: [128, 192]}\n")

    def click() -> str:
        server.post("/show_samples/button_clicked_cb").raise_for_status()
        assert view.wait(30)
        assert DataJson()["show_samples"]["loading"] is False
        return DataJson()["samples_note"]["text"]

    def refuse(error: Exception):
        def raising(*_: object) -> None:
            raise error

        return raising

    assert click() == "Choose the source first."
    view.use_source(lambda: source)
    assert "Crops of 128 × 192 pixels" in click()
    shown = [DataJson()[f"sample_{i}"]["url"] for i in range(1, 5)]
    assert all(url.startswith("data:image/jpeg;base64,") for url in shown) and len(set(shown)) == 4
    settings_selector.set_hyperparameters("model: {crop_size: [128, 128]}\n")
    assert "before the settings changed" in DataJson()["samples_note"]["text"]
    for error, sentence in (
        (SettingsError("not <valid>"), "not &lt;valid&gt;"),
        (requests.ConnectionError("away"), "does not answer as expected: away"),
        (KeyError("odd"), "could not be drawn"),
    ):
        view.use_source(refuse(error))
        assert sentence in click()
    settings_selector.editor.set_text("iterations: [1")
    assert "not valid YAML" in click()
    assert [DataJson()[f"sample_{i}"]["url"] for i in range(1, 5)] == shown, "an error leaves the last pictures"
