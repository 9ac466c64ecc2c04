"""The malformed set: each is an HTTP error with a sentence, or a right answer, and the next request is answered."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import requests
from PIL import Image

from tests.common.test_plain_yaml import BOMB
from tests.serve.conftest import serving
from tests.serve.requests_of_clients import encoded, expected, post, refused, to_mask, upload, wait_until

LIMITS = {"HRDA_MAX_MEGAPIXELS": 1, "HRDA_MAX_REQUEST_MB": 4, "HRDA_MAX_JSON_MB": 0.1}
NOISE = np.random.default_rng(11).integers(0, 256, (90, 140, 3), dtype=np.uint8)
JPEG = encoded(NOISE, "JPEG", quality=95)
PNG = encoded(NOISE)
TURNED = Image.Exif()
TURNED[0x112] = 6


def png_of_zeros(width: int, height: int, depth: int = 8, promised: tuple[int, int] | None = None) -> bytes:
    """A grey PNG of one colour, whose header may promise another size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * ((width * depth // 8 + 1) * height), 9)
    header = struct.pack(">IIBBBBB", *(promised or (width, height)), depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def app(checkpoint: Path, no_instance) -> Iterator[SimpleNamespace]:
    with serving(checkpoint, **LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(app) -> Iterator[None]:
    """After whatever was sent: the same answer as ever to a good request, and nobody is left in the queue."""
    yield
    answer = upload(app, PNG)
    assert answer.status_code == 200
    wait_until(lambda: app.server.admission.held == 0)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        pytest.param(JPEG[: len(JPEG) // 2], 400, ["photo.png", "incomplete"], id="truncated JPEG"),
        pytest.param(JPEG[:-2], 400, ["incomplete"], id="JPEG without its end"),
        pytest.param(PNG[: len(PNG) // 2], 400, ["photo.png", "incomplete"], id="truncated PNG"),
        pytest.param(PNG[:30], 400, ["incomplete"], id="PNG that ends in its header"),
        pytest.param(PNG[:60] + bytes(40) + PNG[100:], 400, ["damaged"], id="PNG with a hole"),
        pytest.param(png_of_zeros(20_000, 20_000), 413, ["20000×20000", "at most 1 megapixels"], id="zip bomb PNG"),
        pytest.param(png_of_zeros(9, 9, promised=(100_000, 100_000)), 413, ["too many pixels"], id="PNG that boasts"),
        pytest.param(png_of_zeros(9, 9, promised=(90, 90)), 400, ["damaged"], id="PNG with too few rows"),
        pytest.param(png_of_zeros(0, 0), 400, ["damaged"], id="0×0"),
        pytest.param(png_of_zeros(9, 0), 400, ["damaged"], id="9×0"),
        pytest.param(b"", 400, ["empty"], id="no bytes"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(300), 400, ["damaged"], id="JPEG of zeros"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, ["of a kind that is not read"], id="SVG"),
        pytest.param(b"%PDF-1.7", 400, ["of a kind that is not read"], id="PDF"),
        pytest.param(json.dumps({"a": 1}).encode(), 400, ["of a kind that is not read"], id="JSON"),
        pytest.param(bytes(5 * 2**20), 413, ["at most 4 megabytes"], id="upload larger than allowed"),
    ],
)
def test_bad_image_is_refused(app, content, status, words):
    refused(upload(app, content), *words, status=status)
    refused(upload(app, content, route="inference_batch"), *words, status=status)


def grey(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        pytest.param(
            cv2.imencode(".png", NOISE[..., ::-1].astype(np.uint16) * 256)[1].tobytes(), NOISE, id="16-bit PNG"
        ),
        pytest.param(encoded(Image.fromarray(NOISE).convert("CMYK"), "TIFF"), None, id="CMYK TIFF"),
        pytest.param(encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG", quality=95), None, id="CMYK JPEG"),
        pytest.param(encoded(np.dstack([NOISE, NOISE[..., :1]])), NOISE, id="alpha"),
        pytest.param(
            encoded(Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
            None,
            id="animated GIF",
        ),
        pytest.param(encoded(NOISE, exif=TURNED), np.rot90(NOISE, -1), id="EXIF-rotated"),
        pytest.param(encoded(NOISE[:1, :1]), NOISE[:1, :1], id="1×1"),
        pytest.param(encoded(NOISE[:3]), NOISE[:3], id="140×3"),
        pytest.param(encoded(grey(3, 500)), grey(3, 500), id="3×500"),
        pytest.param(png_of_zeros(16, 16, depth=16), grey(16, 16), id="16-bit grey"),
        pytest.param(PNG + b"what a camera appends", NOISE, id="bytes after the end"),
    ],
)
def test_unusual_image_is_predicted_right(app, content, pixels):
    from common.data.images import decode_image

    pixels = decode_image(content) if pixels is None else pixels
    answer = upload(app, content, {"settings": {"stride": 64}})
    assert answer.status_code == 200, answer.text
    wanted = expected(app, pixels, stride=(64, 64))
    np.testing.assert_array_equal(to_mask(answer.json()["annotation"]), wanted)


def test_image_of_30000_by_3_is_predicted_whole(app):
    answer = upload(app, encoded(grey(30_000, 3)), {"settings": {"preset": "fast", "long_side": 6000}})
    mask = to_mask(answer.json()["annotation"])
    assert mask.shape == (3, 30_000)
    assert (mask != 255).all()


UUID = {"inference_request_uuid": "nobody"}


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [
        ("inference_image_id", b"", 400, ["must be JSON"]),
        ("inference_image_id", b"{", 400, ["must be JSON"]),
        ("inference_image_id", b"\xff\xfe\x00", 400, ["must be JSON"]),
        ("inference_image_id", b"[" * 100_000, 400, ["too deeply nested"]),
        ("inference_image_id", b'{"state":' + b"9" * 5000 + b"}", 400, ["must be JSON", "too many digits"]),
        ("inference_image_id", b"[]", 400, ["must be a JSON object", "Received: []"]),
        ("inference_image_id", b"null", 400, ["must be a JSON object"]),
        ("inference_image_id", b"{}", 400, ["must hold a state"]),
        ("inference_image_id", b'{"state": []}', 400, ["state must be a JSON object"]),
        ("inference_image_id", b'{"state": {}, "context": 5}', 400, ["context must be a JSON object"]),
        ("inference_image_id", b'{"state": {"image_id": 5}, "api_token": 5}', 400, ["api_token must be the text"]),
        ("inference_image_id", b'{"state": {"image_id": 5}, "context": {"apiToken": "a\\nb"}}', 400, ["apiToken"]),
        ("inference_image_id", b'{"state": {"a": "' + b"x" * 200_000 + b'"}}', 413, ["at most 0.1 megabytes"]),
        ("is_deployed", b"[1]", 400, ["must be a JSON object"]),
    ],
)
def test_bad_json_is_refused(app, route, body, status, words):
    headers = {"Content-Type": "application/json"}
    refused(requests.post(f"{app.url}/{route}", data=body, headers=headers, timeout=60), *words, status=status)


def test_state_that_is_no_json_is_refused_with_the_way_to_send_it(app):
    as_form = requests.post(f"{app.url}/inference_image_id", data={"state": "{}"}, timeout=60)
    refused(as_form, "application/json", status=415)
    refused(requests.post(f"{app.url}/stop_inference", timeout=60), "application/json")


@pytest.mark.parametrize(
    ("route", "state", "status", "words"),
    [
        ("inference_image_id", {}, 400, ["state must hold", "image_id"]),
        ("inference_image_id", {"image_id": None, "settings": {}}, 400, ["Received: ['settings']"]),
        ("inference_image_id", {"image_id": "five"}, 400, ["image_id must be a whole number", "'five'"]),
        ("inference_image_id", {"image_id": True}, 400, ["image_id must be a whole number"]),
        ("inference_image_id", {"image_id": -1}, 400, ["at least 1"]),
        ("inference_image_id", {"image_id": 2**70}, 400, ["whole number"]),
        ("inference_image_id", {"image_id": 1}, 400, ["SERVER_ADDRESS"]),
        ("inference_batch_ids", {"batch_ids": 5}, 400, ["list of ids"]),
        ("inference_batch_ids", {"batch_ids": []}, 400, ["list of ids"]),
        ("inference_batch_ids", {"batch_ids": [1, "2"]}, 400, ["list of ids"]),
        ("inference_batch_ids", {"batch_ids": [1], "batch_size": 0}, 400, ["batch_size"]),
        ("inference_batch_ids", {"batch_ids": [1], "batch_size": 10**6}, 400, ["at most 16"]),
        ("inference_batch_ids", {"batch_ids": [1], "upload_mode": "overwrite"}, 400, ["append", "'overwrite'"]),
        ("inference_video_id", {"videoId": 1, "framesCount": "all"}, 400, ["framesCount"]),
        ("inference_video_id_async", {"videoId": 1, "step": 0}, 400, ["step must be"]),
        ("inference_video_id_async", {"videoId": 1, "duration": "long"}, 400, ["duration"]),
        ("inference_video_id_async", {"videoId": 1, "tracker": "botsort"}, 400, ["does not follow objects"]),
        ("tracking_by_detection", {}, 400, ["does not follow objects"]),
        ("inference_project_id_async", {"projectId": None}, 400, ["projectId"]),
        ("run_speedtest", {"projectId": 1}, 400, ["batch_size"]),
        ("run_speedtest", {"projectId": 1, "batch_size": 1, "num_iterations": 10**9}, 413, ["10000"]),
        ("inference_image_url", {}, 400, ["image_url"]),
        ("inference_image_url", {"image_url": 5}, 400, ["image_url must be text"]),
        ("inference_image_url", {"image_url": "ftp://example.com/a.png"}, 400, ["https://"]),
        ("inference_image_url", {"image_url": "https://127.0.0.1/a.png"}, 400, ["public address"]),
        ("inference_image_id", {"image_id": 1, "format": "masks"}, 400, ["/inference_image and /inference_image_url"]),
        ("inference_image_url", {"image_url": "a", "format": "png"}, 400, ["Unknown format 'png'", "masks"]),
        ("inference_image_url", {"image_url": "a", "tolerance": -1.0}, 400, ["tolerance must be pixels from 0 to 100"]),
        ("inference_image_url", {"image_url": "a", "mm_per_pixel": 1.0}, 400, ["read by /measure alone"]),
        ("get_inference_progress", UUID, 404, ["no such job", "'nobody'"]),
        ("get_inference_status", UUID, 404, ["no such job"]),
        ("get_inference_result", UUID, 404, ["no such job"]),
        ("get_preparing_progress", UUID, 404, ["no such job"]),
        ("pop_inference_results", UUID, 404, ["no such job"]),
        ("stop_inference", UUID, 404, ["no such job"]),
        ("stop_inference", {"inference_request_uuid": [1]}, 400, ["must be text"]),
        ("stop_inference", {}, 400, ["inference_request_uuid"]),
        ("deploy_from_api", {}, 400, ["deploy_params"]),
        ("deploy_from_api", {"deploy_params": "model.pth"}, 400, ["names and values"]),
        (
            "deploy_from_api",
            {"deploy_params": {"model_source": "zz", "model_files": {"checkpoint": "x"}}},
            400,
            ["model_source must be", "'zz'"],
        ),
        ("deploy_from_api", {"deploy_params": {"model_files": {"checkpoint": 5}}}, 400, ["A checkpoint is needed"]),
        ("deploy_from_api", {"deploy_params": {"model_files": {"checkpoint": "a\0b"}}}, 400, ["TEAM_ID"]),
        ("no_such_route", {}, 404, ["nothing at this address"]),
    ],
)
def test_state_of_wrong_values_is_refused(app, route, state, status, words):
    refused(post(app, route, state), *words, status=status)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("[" * 100_000, ["nested"]),
        ({"batch_size": "many"}, ["batch_size must be"]),
        ({"settings": {"rectangles": 5}}, ["rectangles must be a list"]),
        ({"settings": {"rectangle": [[[]]]}}, ["rectangle must be"]),
        ({"settings": {"classes": [{}]}}, ["no class {}"]),
        ({"settings": {"window": BOMB}}, ["window cannot be read as YAML", "anchors"]),
        ({"settings": {"thresholds": BOMB}}, ["anchors"]),
        ({"settings": {"w" * 5000: "a: [1"}}, ["www cannot be read as YAML"]),
        ({"settings": {"window": "!!python/object/apply:os.system [id]"}}, ["window"]),
        ({"settings": {"\ud800": 1}}, ["Unknown"]),
    ],
)
def test_form_of_wrong_values_is_refused(app, state, words):
    answer = upload(app, PNG, state)
    refused(answer, *words)
    assert len(answer.json()["message"]) < 500


def test_form_that_grows_too_large_on_its_way_is_refused(app):
    """Its length is not told, so that this shows only while the SDK's middleware receives it."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    parts = [head, *[bytes(2**20)] * 5]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(f"{app.url}/inference_image", data=iter(parts), headers=headers, timeout=60)
    refused(answer, "at most 4 megabytes", status=413)


def test_form_without_what_it_needs_is_refused(app):
    refused(requests.post(f"{app.url}/inference_image", data={"state": "{}"}, timeout=60), "with files", status=415)
    refused(requests.post(f"{app.url}/inference_image", files={"other": b"1"}, timeout=60), "files")
    headers = {"Content-Type": "multipart/form-data"}
    refused(requests.post(f"{app.url}/inference_image", data=PNG, headers=headers, timeout=60), "boundary")


def test_other_ways_to_ask_are_refused(app):
    refused(requests.get(f"{app.url}/inference_image", timeout=60), "POST", status=405)
    refused(requests.get(f"{app.url}/nothing/here", timeout=60), "nothing at this address", status=404)
    refused(requests.post(f"{app.url}/debug", timeout=60), status=404)


def test_video_that_is_none_is_refused_and_leaves_no_file(app, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refused(upload(app, PNG[:500], route="inference_video_async"), "Cannot read the video photo.png")
    assert list(tmp_path.iterdir()) == []


def test_uploaded_video_is_predicted_frame_by_frame_and_removed(app, tmp_path, monkeypatch):
    import tempfile

    from supervisely.video.video import VideoFrameReader, create_from_frames

    from tests.serve.requests_of_clients import finished, wait_until

    path = tmp_path / "film.mp4"
    create_from_frames([np.roll(NOISE[:64, :96], 8 * n, axis=1) for n in range(5)], str(path), fps=5)
    frames = VideoFrameReader(str(path)).read_frames([1, 3])
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    state = {"startFrameIndex": 1, "framesCount": 3, "step": 2}
    report = finished(app, upload(app, path.read_bytes(), state, route="inference_video_async"))
    assert [result["frame_index"] for result in report["pending_results"]] == [1, 3]
    for result, frame in zip(report["pending_results"], frames, strict=True):
        np.testing.assert_array_equal(to_mask(result["annotation"]), expected(app, frame))
    # Its results can be had a moment before it is removed.
    wait_until(lambda: not list(kept.iterdir()), 60)
