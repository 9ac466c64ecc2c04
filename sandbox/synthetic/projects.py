"""Labelled crack photos without any download: source domains and a "real-like" target domain.

The source shows plaster, concrete and fine asphalt under even light with clean, mostly single cracks. The real-like
domain differs in what no colour jitter, blur or noise on the source imitates: other surfaces (pebbles, slabs with
joints, board marks, coarse asphalt), other cracks (jagged and spalled, meandering, map cracking, dust-filled), other
things that look like cracks (roots, wires, joints, shadow edges, peeling paint); on top of that it has uneven light,
blur, sensor noise and JPEG artefacts. A third domain, "road", is a source for photos of asphalt: thin, faint cracks on
rough ground, labelled a little wider than they are, as people do. `STYLES` holds every strength, for whoever wants
another gap.

Example:
    image, mask = generate("source", seed=3)
    write_project("/tmp/cracks", "real_like", 60, seed=1)

Command line: `python -m sandbox.synthetic --out DIR --domain source --count 300`.
"""

import base64
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common.processors import available_processors
from sandbox.synthetic import scene
from sandbox.synthetic.surfaces import SURFACES, Field, colour

CLASS_NAME = "crack"
CLASS_COLOUR = "#DC143C"

_ON_TOP = frozenset({"roots", "shadow_edge"})
"""Look-alikes that come after the cracks: they lie or fall on them."""
_COVERED = 0.4
"""A line one pixel wide that runs between two pixel rows covers half of each; a threshold of 0.5 would tear it."""
_MOST_CRACKS = 6
_SEEDS_PER_PROJECT = 100_000
_PHOTOS_WORTH_A_PROCESS = 25

Range = tuple[float, float]


@dataclass(frozen=True)
class CrackShape:
    """One way in which cracks run; ranges are drawn from uniformly."""

    roughness: Range = (0.12, 0.25)
    """Sideways displacement of the coarsest midpoint, relative to the crack's length."""
    decay: Range = (0.45, 0.55)
    """Displacement of each finer level relative to the one before; higher is more jagged."""
    jag: Range = (0.0, 0.3)
    """Random kink of every point in pixels."""
    width: Range = (1.2, 4.0)
    """Mean width in pixels."""
    depth: Range = (0.45, 0.95)
    """Contrast: 1 is a black void."""
    branches: tuple[int, int] = (0, 4)
    """Least and greatest number of branches of one crack."""


@dataclass(frozen=True)
class Style:
    """What a domain is made of. Choices are names with weights, ranges are drawn from uniformly."""

    surfaces: dict[str, float]
    """Weights of `synthetic_surfaces.SURFACES`."""
    cracks: tuple[tuple[CrackShape, float], ...]
    """Shapes of single cracks with weights; all cracks of a picture have the same shape."""
    map_cracking: float
    """Share of pictures with a patch of map cracking as their main crack."""
    share: Range
    """Share of crack pixels at which no further crack is added; what a label adds around them is not counted."""
    lookalikes: dict[str, float]
    """Probability of each of `synthetic_scene.LOOKALIKES` to be in a picture, in the order in which they are drawn."""
    label_extra: int = 0
    """Pixels by which a label is wider than the crack, as brushes draw them; an odd one lies right and below."""
    filled: float = 0.0
    """Share of pictures whose cracks hold dust of another colour instead of shadow."""
    light: Range = (0.0, 0.1)
    """Relative brightness change from the middle to the border."""
    vignette: Range = (0.0, 0.05)
    """Relative darkening of the corners."""
    blur: Range = (0.3, 0.6)
    """Lens blur in pixels."""
    sensor_noise: Range = (0.0, 0.01)
    """Noise in mid-grey, relative to white."""
    cast: float = 0.01
    """Standard deviation of the white balance error."""
    jpeg: tuple[int, int] | None = None
    """Range of the JPEG quality; None for uncompressed."""


STYLES: dict[str, Style] = {
    "source": Style(
        surfaces={"plaster": 0.25, "concrete": 0.35, "asphalt": 0.4},
        cracks=((CrackShape(), 0.7), (CrackShape(roughness=(0.1, 0.2), decay=(0.5, 0.6), jag=(0.2, 0.6)), 0.3)),
        map_cracking=0.0,
        share=(0.006, 0.016),
        lookalikes={"stain": 0.3, "scratches": 0.2},
    ),
    "real_like": Style(
        surfaces={"coarse_asphalt": 0.5, "aggregate": 0.17, "tiles": 0.17, "boards": 0.16},
        cracks=(
            (
                CrackShape(
                    roughness=(0.08, 0.2), decay=(0.58, 0.68), jag=(0.6, 1.4), width=(1.4, 4.5), depth=(0.45, 0.9)
                ),
                0.7,
            ),
            (CrackShape(roughness=(0.25, 0.45), decay=(0.48, 0.56), width=(1.0, 2.2), depth=(0.4, 0.8)), 0.3),
        ),
        map_cracking=0.12,
        share=(0.005, 0.016),
        lookalikes={
            "stain": 0.4,
            "joint": 0.45,
            "flakes": 0.2,
            "scratches": 0.25,
            "roots": 0.4,
            "shadow_edge": 0.5,
        },
        filled=0.05,
        light=(0.05, 0.35),
        vignette=(0.0, 0.4),
        blur=(0.5, 1.1),
        sensor_noise=(0.01, 0.04),
        cast=0.05,
        jpeg=(45, 85),
    ),
    "road": Style(
        surfaces={"asphalt": 0.5, "coarse_asphalt": 0.5},
        cracks=(
            (
                CrackShape(
                    roughness=(0.06, 0.18), decay=(0.52, 0.64), jag=(0.3, 1.0), width=(0.8, 1.8), depth=(0.35, 0.85)
                ),
                1.0,
            ),
        ),
        map_cracking=0.08,
        share=(0.002, 0.008),
        lookalikes={"stain": 0.4, "scratches": 0.1},
        label_extra=1,
        blur=(0.4, 0.8),
        sensor_noise=(0.0, 0.02),
        cast=0.04,
    ),
}
DOMAINS: tuple[str, ...] = tuple(STYLES)


def generate(
    domain: str, seed: int, size: tuple[int, int] = (256, 256), style: Style | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make one photo of cracks and its label.

    Args:
        domain: One of `DOMAINS`.
        seed: Non-negative; the result is a function of (domain, seed, size) and of the style.
        size: Height and width in pixels, at least 32 each.
        style: What to draw instead of `STYLES[domain]`.

    Returns:
        The photo, H×W×3 uint8 RGB, and its mask, H×W uint8, 1 where the crack covers most of the pixel before any blur,
        and beside it where the style's labels are wider.

    Raises:
        ValueError: For an unknown domain, a negative seed or a size below 32.
    """
    if domain not in STYLES:
        raise ValueError(f"No such domain of crack photos: use one of {', '.join(DOMAINS)}. Received: {domain!r}")
    if seed < 0:
        raise ValueError(f"The seed must not be negative. Received: {seed}")
    if min(size) < 32:
        raise ValueError(f"A crack photo needs at least 32 pixels on each side. Received: {size[0]}×{size[1]}")
    style = style or STYLES[domain]
    rng = np.random.default_rng([DOMAINS.index(domain), seed, *size])
    picture = SURFACES[_pick(rng, style.surfaces)](rng, size)
    present = [name for name, probability in style.lookalikes.items() if rng.random() < probability]
    for name in (n for n in present if n not in _ON_TOP):
        picture = scene.LOOKALIKES[name](rng, picture)
    depth, covered = _cracks(rng, style, size)
    dust = picture.mean() * colour(rng, (0.3, 0.55), 0.15) if rng.random() < style.filled else None
    picture = scene.engrave(rng, picture, depth, rng.uniform(0, 0.25), dust)
    for name in (n for n in present if n in _ON_TOP):
        picture = scene.LOOKALIKES[name](rng, picture)
    picture = scene.uneven_light(rng, picture, rng.uniform(*style.light), rng.uniform(*style.vignette))
    image = scene.camera(
        rng,
        picture,
        blur=rng.uniform(*style.blur),
        sensor_noise=rng.uniform(*style.sensor_noise),
        cast=style.cast,
        jpeg=None if style.jpeg is None else int(rng.integers(style.jpeg[0], style.jpeg[1] + 1)),
    )
    mask = np.uint8(covered >= _COVERED)
    return image, cv2.dilate(mask, np.ones((1 + style.label_extra, 1 + style.label_extra), np.uint8))


def _pick(rng: Generator, weights: dict[str, float]) -> str:
    names = list(weights)
    return names[int(rng.choice(len(names), p=np.array(list(weights.values())) / sum(weights.values())))]


def _cracks(rng: Generator, style: Style, size: tuple[int, int]) -> tuple[Field, Field]:
    """Draw cracks until their share is reached; returns depth and coverage per pixel, H×W, 0..1."""
    canvas = np.zeros((size[0] * scene.SUPERSAMPLING, size[1] * scene.SUPERSAMPLING), np.uint8)
    weights = np.array([weight for _, weight in style.cracks])
    shape = style.cracks[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
    enough = rng.uniform(*style.share)
    if rng.random() < style.map_cracking:
        scene.map_crack(
            rng,
            canvas,
            size,
            rng.uniform(1.2, 2.4),
            rng.uniform(*shape.depth),
            spacing=max(size) * rng.uniform(0.08, 0.2),
        )
    for _ in range(_MOST_CRACKS):
        if np.count_nonzero(canvas) / canvas.size >= enough:
            break
        scene.branching_crack(
            rng,
            canvas,
            size,
            width=rng.uniform(*shape.width),
            depth=rng.uniform(*shape.depth),
            shape=(rng.uniform(*shape.roughness), rng.uniform(*shape.decay), rng.uniform(*shape.jag)),
            branches=int(rng.integers(shape.branches[0], shape.branches[1] + 1)),
        )
    return scene.average(canvas, size), scene.average(cv2.threshold(canvas, 0, 255, cv2.THRESH_BINARY)[1], size)


def write_project(
    folder: str | Path,
    domain: str,
    count: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    labelled: bool = True,
    dataset: str = "ds0",
    workers: int | None = None,
) -> None:
    """Write a project folder in Supervisely's format: meta.json, DATASET/img, DATASET/ann.

    Photos of the source are PNG, of the real-like domain JPEG, as from a camera. A second call with another `dataset`
    adds to the folder.

    Args:
        folder: The project's folder; made if missing.
        domain: One of `DOMAINS`.
        count: Number of photos, at least 1.
        seed: Photo i is `generate(domain, seed * 100_000 + i, size)`.
        size: Height and width in pixels.
        labelled: False writes annotations without labels.
        dataset: Name of the dataset's folder.
        workers: Processes; by default as many as there are processors, at most 4.

    Raises:
        ValueError: For a count below 1 or above 100,000, and as `generate`.
    """
    if not 1 <= count <= _SEEDS_PER_PROJECT:
        raise ValueError(f"A project holds 1 to {_SEEDS_PER_PROJECT} photos. Received: {count}")
    home = Path(folder) / dataset
    for part in ("img", "ann"):
        (home / part).mkdir(parents=True, exist_ok=True)
    meta = {"classes": [{"title": CLASS_NAME, "shape": "bitmap", "color": CLASS_COLOUR}], "tags": []}
    (Path(folder) / "meta.json").write_text(json.dumps(meta, indent=2))
    write = partial(_write_photo, home, domain, size, labelled)
    seeds = [seed * _SEEDS_PER_PROJECT + i for i in range(count)]
    workers = min(workers or available_processors(), 4, count // _PHOTOS_WORTH_A_PROCESS + 1)
    if workers == 1:
        for one in seeds:
            write(one)
        return
    # Not by fork: the caller may hold threads, whose locks a forked child would wait for.
    with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        list(pool.map(write, seeds, chunksize=max(count // (4 * workers), 1)))


def _write_photo(home: Path, domain: str, size: tuple[int, int], labelled: bool, seed: int) -> None:
    image, mask = generate(domain, seed, size)
    name = f"{domain}_{seed:07d}" + (".png" if STYLES[domain].jpeg is None else ".jpg")
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1] if name.endswith(".png") else [cv2.IMWRITE_JPEG_QUALITY, 95]
    (home / "img" / name).write_bytes(cv2.imencode(name[-4:], image[..., ::-1], options)[1].tobytes())
    objects = [bitmap_label(mask, CLASS_NAME)] if labelled and mask.any() else []
    annotation = {"description": "", "size": {"height": size[0], "width": size[1]}, "tags": [], "objects": objects}
    (home / "ann" / f"{name}.json").write_text(json.dumps(annotation))


def bitmap_label(mask: NDArray[np.uint8], class_name: str) -> dict:
    """A mask as an object of Supervisely's annotation format: a zipped one-bit PNG of its bounding box, and its place.

    Args:
        mask: H×W, nonzero where the object is; at least one pixel.
        class_name: The object's class.
    """
    x, y, width, height = cv2.boundingRect(mask)
    pixels = np.uint8(mask[y : y + height, x : x + width] > 0) * np.uint8(255)
    _, png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_BILEVEL, 1])
    data = base64.b64encode(zlib.compress(png.tobytes())).decode()
    bitmap = {"origin": [x, y], "data": data}
    return {"classTitle": class_name, "description": "", "tags": [], "geometryType": "bitmap", "bitmap": bitmap}
