import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data import images
from common.data.images import ImageError, ImageTooLarge, decode_image, read_image, read_size


def photo(height=24, width=36) -> np.ndarray:
    """Smooth colours, different in every corner, so that lossy codecs and exchanged axes or channels show."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 5 * x, 30 + 6 * y, 200 - 4 * x], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 12),
    ],
)
def test_every_file_type_is_rgb(kind, options, tolerance):
    image = decode_image(encoded(photo(), kind, **options))
    assert image.dtype == np.uint8 and image.shape == (24, 36, 3) and image.flags.c_contiguous
    assert np.abs(image.astype(int) - photo()).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: np.rot90(np.fliplr(x))),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(np.fliplr(x), -1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied_once(kind, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    image = decode_image(encoded(photo(), kind, exif=exif, **options))
    expected = turned(photo())
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_one_fixed_scale(kind):
    wide = np.full((8, 9), 0x1234, np.uint16)
    wide[:, 4:] = 0xFE01
    grey = decode_image(encoded(wide, kind))
    assert grey.shape == (8, 9, 3) and set(np.unique(grey[:, :4])) == {0x12} and set(np.unique(grey[:, 4:])) == {0xFE}
    suffix = {"PNG": ".png", "TIFF": ".tif"}[kind]
    colour = decode_image(cv2.imencode(suffix, photo()[..., ::-1].astype(np.uint16) * 256)[1].tobytes())
    assert np.abs(colour.astype(int) - photo()).max() <= 1


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_dropped_not_composited(kind, options):
    alpha = np.full((24, 36, 1), 70, np.uint8)
    assert np.array_equal(decode_image(encoded(np.dstack([photo(), alpha]), kind, **options)), photo())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("meaning", [0, 1, 2])
def test_fourth_band_of_a_tiff_changes_no_colour(order, meaning):
    """Whatever the file says that it is: nothing, or an alpha that is multiplied already or is to be."""
    infrared = np.random.default_rng(0).integers(0, 256, (24, 36, 1), dtype=np.uint8)
    bands = np.dstack([photo(), infrared])
    content = tiff(bands, order, meaning)
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (36, 24), "it is a TIFF"
    assert np.array_equal(decode_image(content), photo())
    assert np.array_equal(decode_image(encoded(bands, "TIFF")), photo())


def tiff(bands: np.ndarray, order: str, meaning: int) -> bytes:
    """An uncompressed TIFF of H×W×4 uint8, with what it says of the fourth band."""
    height, width, count = bands.shape
    short, long = 3, 4
    entries = [
        (256, short, 1, width), (257, short, 1, height), (258, short, count, 8 + 2 + 12 * 10 + 4), (259, short, 1, 1),
        (262, short, 1, 2), (273, long, 1, 200), (277, short, 1, count), (278, short, 1, height),
        (279, long, 1, bands.size), (338, short, 1, meaning),
    ]  # fmt: skip
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    for tag, kind, number, value in entries:
        inline = kind == short and number == 1
        head += struct.pack(f"{order}HHI", tag, kind, number) + struct.pack(
            f"{order}HH" if inline else f"{order}I", *((value, 0) if inline else (value,))
        )
    head += struct.pack(f"{order}I", 0) + struct.pack(f"{order}4H", 8, 8, 8, 8)
    return head.ljust(200, b"\0") + bands.tobytes()


def with_scans(content: bytes, more: int) -> bytes:
    """A progressive JPEG whose last scan comes `more` times again."""
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (more + 1) + content[-2:]


@pytest.mark.parametrize("exif", [False, True])
def test_jpeg_of_countless_scans_is_refused_before_it_is_decoded(exif, monkeypatch):
    """Each scan is a pass over all pixels: 20,000 of them, in 200 kilobytes, took all workers."""
    header = Image.Exif()
    if exif:
        # A picture of its own, with scans that do not count.
        header[0x010E] = encoded(photo(), "JPEG", progressive=True).decode("latin1") * 20
    usual = encoded(photo(), "JPEG", progressive=True, exif=header)
    assert decode_image(usual, max_pixels=10**4).shape == (24, 36, 3)
    assert not images.has_many_scans(with_scans(usual, 80))
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ImageError, match="wall is a JPEG of more than 100 scans. Save it anew"):
        decode_image(with_scans(usual, 200), "wall", max_pixels=10**4)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_grey_and_palette_become_rgb(mode):
    image = Image.fromarray(photo()).convert(mode)
    decoded = decode_image(encoded(image, "PNG"))
    assert np.array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind):
    decoded = decode_image(encoded(Image.fromarray(photo()).convert("CMYK"), kind))
    assert np.abs(decoded.astype(int) - photo()).mean() < 4


def test_training_reads_the_pixels_that_the_sdk_serves(tmp_path):
    sly = pytest.importorskip("supervisely")
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "turned.jpg": encoded(photo(), "JPEG", exif=exif),
        "cmyk.jpg": encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"),
        "deep.png": encoded((photo()[..., 0].astype(np.uint16) * 257), "PNG"),
        "clear.png": encoded(np.dstack([photo(), photo()[..., :1]]), "PNG"),
        "plain.tif": encoded(photo(), "TIFF"),
        "lossy.webp": encoded(photo(), "WEBP"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        ours = read_image(tmp_path / name)
        assert np.array_equal(ours, sly.image.read(str(tmp_path / name))), name
        assert np.array_equal(ours, sly.image.read_bytes(content)), name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_truncated_photo_is_refused_rather_than_half_grey(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    content = encoded(noise, kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="half"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"no picture at all", "17 bytes"),
        (cv2.imencode(".tif", np.ones((4, 4), np.float32))[1].tobytes(), "8 or 16 bits"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path, content, message):
    (tmp_path / "wall.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / "wall.jpg")
    assert "wall.jpg" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png"):
        read_image(tmp_path / "nowhere.png")


def test_names_with_other_letters_can_be_read(tmp_path):
    path = tmp_path / "Wand Süd – ひび.png"
    path.write_bytes(encoded(photo(), "PNG"))
    assert np.array_equal(read_image(path), photo())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_size_is_known_before_anything_is_decoded(kind):
    content = encoded(photo(), kind)
    assert read_size(content) == (36, 24)
    assert decode_image(content, max_pixels=36 * 24).shape == (24, 36, 3)
    with pytest.raises(ImageTooLarge, match="wall has too many pixels.*0.0008 megapixels.*Received: 36×24"):
        decode_image(content, "wall", max_pixels=800)


def test_little_file_of_many_pixels_takes_no_memory():
    content = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(content) < 100_000
    with pytest.raises(ImageTooLarge, match="20000×20000|exceeds limit"):
        decode_image(content, max_pixels=10**8)
