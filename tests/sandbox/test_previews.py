"""Small pictures of images, as a browser asks for them: by the address that the SDK makes, without a token."""

from io import BytesIO

import numpy as np
import pytest
import requests
import supervisely as sly
from PIL import Image


@pytest.fixture(scope="module")
def image(api, sandbox, tmp_path_factory) -> sly.ImageInfo:
    """A photo of 60 by 40 pixels that is shown upright by its EXIF orientation only, under a name with a space."""
    path = tmp_path_factory.mktemp("photo") / "a photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    project = api.project.create(sandbox.workspace_id, "previews")
    return api.image.upload_path(api.dataset.create(project.id, "ds").id, path.name, str(path))


def picture(url: str) -> Image.Image:
    answer = requests.get(url, timeout=10)
    assert answer.status_code == 200, answer.text
    found = Image.open(BytesIO(answer.content))
    assert answer.headers["content-type"] == f"image/{found.format.lower()}"
    return found


def test_preview_has_the_asked_height_and_is_turned_as_shown(api, image):
    small = picture(api.image.preview_url(image.full_storage_url, width=0, height=30, method="fit"))
    assert (small.format, small.size) == ("JPEG", (20, 30))
    assert small.getpixel((10, 3))[0] > 200
    assert small.getpixel((10, 26))[0] < 50


def test_preview_without_sizes_is_as_large_as_the_image(image):
    assert picture(image.preview_url).size == (40, 60)


def test_preview_is_never_larger_than_the_image(api, image):
    assert picture(api.image.preview_url(image.full_storage_url, width=400, height=0, ext="png")).size == (40, 60)


@pytest.mark.parametrize(
    ("change", "status"),
    [(("resize:", "rotate:"), 400), (("/storage/", "/storage/ab"), 404), (("/storage/", "/storage/x"), 404)],
)
def test_preview_that_cannot_be_made_is_refused(image, change, status):
    assert requests.get(image.preview_url.replace(*change), timeout=10).status_code == status
