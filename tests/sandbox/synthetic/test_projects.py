import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from sandbox.synthetic.__main__ import main
from sandbox.synthetic.projects import DOMAINS, STYLES, generate, write_project
from sandbox.synthetic.scene import LOOKALIKES, path
from sandbox.synthetic.surfaces import SURFACES, noise


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_photo_is_a_function_of_its_seed(domain):
    image, mask = generate(domain, 3, (96, 128))
    again, mask_again = generate(domain, 3, (96, 128))
    other, _ = generate(domain, 4, (96, 128))
    assert image.shape == (96, 128, 3) and image.dtype == np.uint8
    assert mask.shape == (96, 128) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)
    assert not np.array_equal(image, other)


def test_the_domains_do_not_share_photos():
    assert not np.array_equal(generate("source", 0, (64, 64))[1], generate("real_like", 0, (64, 64))[1])


@pytest.mark.parametrize("domain", DOMAINS)
def test_cracks_are_thin_dark_and_a_few_percent_of_the_pixels(domain):
    shares, contrasts, thickness = [], [], []
    for seed in range(12):
        image, mask = generate(domain, seed)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        near = cv2.dilate(mask, np.ones((15, 15), np.uint8)) - cv2.dilate(mask, np.ones((5, 5), np.uint8))
        shares.append(mask.mean())
        contrasts.append(1 - grey[mask == 1].mean() / grey[near == 1].mean())
        thickness.append(cv2.distanceTransform(mask, cv2.DIST_L2, 5).max())
    assert 0.01 <= np.mean(shares) <= 0.03 and min(shares) > 0.003 and max(shares) < 0.08
    assert np.mean(contrasts) > 0.2, "a label that is not darker than its surroundings shows no crack"
    assert np.median(thickness) < 6


def test_the_domains_differ_in_more_than_colour():
    """Local contrast beside the cracks, after each photo's brightness and contrast are normalised."""

    def edges(domain):
        values = []
        for seed in range(10):
            image, mask = generate(domain, seed, (128, 128))
            grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
            grey = (grey - grey.mean()) / grey.std()
            gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
            crack = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
            values.append(gradient[~crack].mean() / gradient[crack].mean())
        return np.mean(values)

    assert edges("real_like") > 1.3 * edges("source"), "the background must hold structures as strong as cracks"


@pytest.mark.parametrize("size", [(32, 200), (33, 47)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_odd_sizes(domain, size):
    for seed in range(4):
        image, mask = generate(domain, seed, size)
        assert image.shape == (*size, 3) and mask.shape == size


@pytest.mark.parametrize("name", SURFACES)
def test_every_surface_is_a_float32_picture_that_varies(name):
    picture = SURFACES[name](np.random.default_rng(0), (61, 83))
    assert picture.shape == (3, 61, 83) and picture.dtype == np.float32
    assert np.isfinite(picture).all() and picture.std() > 0.01


@pytest.mark.parametrize("name", LOOKALIKES)
def test_every_lookalike_changes_the_picture_and_keeps_its_type(name):
    rng = np.random.default_rng(1)
    before = SURFACES["concrete"](rng, (61, 83))
    pictures = [LOOKALIKES[name](rng, before.copy()) for _ in range(6)]
    assert all(p.dtype == np.float32 and p.shape == before.shape and np.isfinite(p).all() for p in pictures)
    assert any(np.abs(p - before).max() > 0.02 for p in pictures)


def test_styles_name_things_that_exist():
    for style in STYLES.values():
        assert set(style.surfaces) <= set(SURFACES)
        assert set(style.lookalikes) <= set(LOOKALIKES)


def test_noise_is_normalised_at_any_cell():
    for cell in (1, 1.5, 40, 500, (3, 90)):
        field = noise(np.random.default_rng(0), (50, 70), cell, 3)
        assert field.shape == (50, 70) and abs(field.mean()) < 1e-3 and abs(field.std() - 1) < 1e-3


def test_a_path_keeps_its_ends_and_gets_rougher_with_decay():
    def length(decay):
        points = path(np.random.default_rng(0), np.float32([0, 0]), np.float32([200, 0]), 0.1, decay, 0.0)
        assert np.allclose(points[0], [0, 0]) and np.allclose(points[-1], [200, 0])
        return np.hypot(*np.diff(points, axis=0).T).sum()

    assert length(0.7) > length(0.45) >= 200


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_sdk_reads_a_written_project_back_to_the_same_masks(tmp_path, domain):
    sly = pytest.importorskip("supervisely")
    write_project(tmp_path / "p", domain, 3, seed=2, size=(64, 80), workers=1)
    write_project(tmp_path / "p", domain, 2, seed=3, size=(64, 80), workers=1, labelled=False, dataset="ds1")
    project = sly.Project(str(tmp_path / "p"), sly.OpenMode.READ)
    assert sorted(d.name for d in project.datasets) == ["ds0", "ds1"]
    for dataset in project.datasets:
        for name in dataset:
            image = sly.image.read(dataset.get_img_path(name))
            annotation = dataset.get_ann(name, project.meta)
            drawn = np.zeros((64, 80), np.uint8)
            for label in annotation.labels:
                label.draw(drawn, 1)
            expected, mask = generate(domain, int(name.split("_")[-1][:7]), (64, 80))
            assert annotation.img_size == (64, 80)
            assert np.array_equal(drawn, mask if dataset.name == "ds0" else 0 * mask)
            tolerance = 0 if name.endswith(".png") else 4
            assert np.abs(image.astype(int) - expected).mean() <= tolerance


def test_processes_write_the_same_files_as_one_process(tmp_path):
    write_project(tmp_path / "one", "source", 26, size=(32, 32), workers=1)
    write_project(tmp_path / "two", "source", 26, size=(32, 32), workers=2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n / "ds0").rglob("*.*")} for n in ("one", "two"))
    assert len(one) == 52 and one == two


def test_other_seeds_give_other_photos(tmp_path):
    for seed in (0, 1):
        write_project(tmp_path / str(seed), "source", 2, seed=seed, size=(32, 32), workers=1)
    names = [{p.name for p in (tmp_path / s / "ds0" / "img").iterdir()} for s in "01"]
    assert not names[0] & names[1], "two projects may be merged into one dataset"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("elsewhere", 0), "source, real_like"), (("source", -1), "-1"), (("source", 0, (16, 64)), "16×64")],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(*arguments)


def test_a_project_without_photos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: 0"):
        write_project(tmp_path, "source", 0)


def test_the_command_line_writes_an_unlabelled_project(tmp_path):
    main(["--out", str(tmp_path), "--domain", "real_like", "--count", "2", "--unlabelled", "--size", "48", "64"])
    annotations = [json.loads(p.read_text()) for p in (tmp_path / "ds0" / "ann").iterdir()]
    assert [a["objects"] for a in annotations] == [[], []]
    assert annotations[0]["size"] == {"height": 48, "width": 64}


def test_the_command_line_names_a_wrong_count(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--count", "0"])
    assert "Received: 0" in capsys.readouterr().err


def test_the_generator_needs_neither_sdk_nor_torch():
    code = "import sys, sandbox.synthetic.projects; assert not {'supervisely', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
