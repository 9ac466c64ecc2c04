"""The pieces of a generated crack photo: noise, surfaces, crack networks, look-alikes of cracks, light and camera.

Everything works on float32 arrays, H×W for fields and H×W×3 RGB in 0..1 for pictures, lengths are pixels. All chance
comes from the `numpy.random.Generator` handed in, so a picture is a pure function of its seed.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.float32]
Size = tuple[int, int]

SUPERSAMPLING = 3
"""Crack lines are drawn this many times larger and averaged down, which gives sub-pixel widths and smooth edges."""


# ---------------------------------------------------------------------------------------------------------- noise
def noise(rng: Generator, size: Size, cell: float | tuple[float, float], octaves: int = 1, gain: float = 0.5) -> Field:
    """Smooth random field of mean 0 and standard deviation 1.

    Args:
        rng: Source of chance.
        size: Height and width of the field.
        cell: Size of the coarsest structures in pixels, one number or (vertical, horizontal) for streaks.
        octaves: Number of layers, each half as coarse as the one before.
        gain: Amplitude of a layer relative to the coarser one before it.
    """
    height, width = size
    cell_y, cell_x = cell if isinstance(cell, tuple) else (cell, cell)
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step_y, step_x = max(cell_y / 2**octave, 1.0), max(cell_x / 2**octave, 1.0)
        rows, columns = int(np.ceil(height / step_y)) + 1, int(np.ceil(width / step_x)) + 1
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        full = (max(round(columns * step_x), width), max(round(rows * step_y), height))
        layer = grid if grid.shape[::-1] == full else cv2.resize(grid, full, interpolation=cv2.INTER_CUBIC)
        top, left = rng.integers(full[1] - height + 1), rng.integers(full[0] - width + 1)
        total += gain**octave * layer[top : top + height, left : left + width]
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def relief(height_map: Field, strength: float, angle: float) -> Field:
    """Brightness change of a rough surface lit from `angle` (radians): the slope along the light's direction."""
    slope_x = cv2.Sobel(height_map, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height_map, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return strength * (np.cos(angle) * slope_x + np.sin(angle) * slope_y)


def _colour(rng: Generator, brightness: tuple[float, float], tint: float) -> Field:
    """A near-grey RGB colour; `tint` is how far its channels may differ from the mean."""
    value = rng.uniform(*brightness)
    warm = rng.normal(0, tint)
    return np.float32(np.clip(value * np.array([1 + warm, 1 + rng.normal(0, tint / 3), 1 - warm]), 0.03, 0.97))


def _painted(colour: Field, shade: Field, rng: Generator, mottling: float = 0.012) -> Field:
    """Colour a surface by brightness `shade` (relative, 0 = none) with slight changes of hue over the area."""
    size = shade.shape
    hue = mottling * noise(rng, size, max(size) / 3, 2)
    picture = np.empty((*size, 3), np.float32)
    for channel, lean in enumerate((1.0, 0.0, -1.0)):
        picture[..., channel] = colour[channel] * (1 + shade + lean * hue)
    return picture


def _specks(rng: Generator, size: Size, density: float, blur: float) -> Field:
    """Sparse dots, 0..about 1: air holes, grains, splashes. `density` is the share of pixels hit."""
    dots = (rng.random(size, dtype=np.float32) < density).astype(np.float32)
    dots = cv2.GaussianBlur(dots, (0, 0), blur)
    return np.minimum(dots * (2 * np.pi * blur * blur), 1.5)


def cells(rng: Generator, size: Size, spacing: float, warp: float = 0.0) -> tuple[Field, NDArray[np.int32], int]:
    """Voronoi cells around jittered points.

    Returns:
        Distance of each pixel to its cell's centre (H×W), the cell's index (H×W, from 0) and the number of cells.
        `warp` bends the borders by that many pixels.
    """
    height, width = size
    rows, columns = int(np.ceil(height / spacing)) + 1, int(np.ceil(width / spacing)) + 1
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32) * spacing
    y += rng.uniform(-0.48, 0.48, y.shape) * spacing
    x += rng.uniform(-0.48, 0.48, x.shape) * spacing
    holes = np.ones((height, width), np.uint8)
    holes[np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)] = 0
    distance, labels = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if warp:
        map_y, map_x = np.mgrid[0:height, 0:width].astype(np.float32)
        map_y += warp * noise(rng, size, spacing / 2, 3, 0.6)
        map_x += warp * noise(rng, size, spacing / 2, 3, 0.6)
        warped = cv2.remap(labels.astype(np.float32), map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
        labels = warped.astype(np.int32)
        distance = cv2.remap(distance, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return distance, labels - 1, int(labels.max())


# ------------------------------------------------------------------------------------------------------- surfaces
def plaster(rng: Generator, size: Size) -> Field:
    """Bright wall: soft clouds, trowel strokes, fine sand."""
    stroke = (rng.uniform(3, 8), rng.uniform(20, 60))
    shade = 0.03 * noise(rng, size, 90, 3) + 0.018 * noise(rng, size, stroke if rng.random() < 0.5 else stroke[::-1], 2)
    shade += relief(noise(rng, size, rng.uniform(4, 10), 3, 0.7), rng.uniform(0.04, 0.12), rng.uniform(0, 2 * np.pi))
    return _painted(_colour(rng, (0.6, 0.88), 0.07), shade, rng)


def concrete(rng: Generator, size: Size) -> Field:
    """Grey cast surface: clouds, cement skin, air holes."""
    shade = 0.06 * noise(rng, size, 110, 4, 0.6) + rng.uniform(0.02, 0.05) * noise(rng, size, 3, 2, 0.8)
    shade -= rng.uniform(0.1, 0.45) * _specks(rng, size, rng.uniform(1e-4, 1e-3), rng.uniform(0.7, 1.6))
    return _painted(_colour(rng, (0.42, 0.7), 0.03), shade, rng)


def asphalt(rng: Generator, size: Size) -> Field:
    """Fine road surface: grain of one to three pixels and bright grains of stone."""
    shade = rng.uniform(0.08, 0.15) * noise(rng, size, rng.uniform(1.5, 3), 2, 0.8) + 0.04 * noise(rng, size, 60, 2)
    shade += rng.uniform(0.2, 0.6) * _specks(rng, size, rng.uniform(1e-3, 5e-3), 0.7)
    return _painted(_colour(rng, (0.26, 0.5), 0.04), shade, rng)


def coarse_asphalt(rng: Generator, size: Size) -> Field:
    """Worn road surface: grains lit from the side with dark pits between, bleached and tinted patches."""
    spacing = rng.uniform(3, 5.5)
    distance, index, count = cells(rng, size, spacing)
    stone = rng.normal(0, rng.uniform(0.07, 0.16), count).astype(np.float32)[index]
    height_map = -distance / spacing
    shade = stone + 0.22 * (0.42 + height_map) + relief(height_map, rng.uniform(0.2, 0.5), rng.uniform(0, 2 * np.pi))
    shade = cv2.GaussianBlur(shade, (0, 0), 0.6) + 0.1 * noise(rng, size, 80, 3) + 0.05 * noise(rng, size, 1.5)
    shade += rng.uniform(0.2, 0.7) * _specks(rng, size, rng.uniform(1e-3, 4e-3), 0.8)
    shade -= rng.uniform(0.1, 0.4) * _specks(rng, size, rng.uniform(5e-4, 2e-3), 1.2)
    return _painted(_colour(rng, (0.3, 0.55), 0.09), shade, rng, 0.035)


def aggregate(rng: Generator, size: Size) -> Field:
    """Exposed pebbles of many colours in a darker binder."""
    spacing = rng.uniform(7, 15)
    distance, index, count = cells(rng, size, spacing, warp=1.5)
    radius = rng.uniform(0.25, 0.52, count).astype(np.float32)[index] * spacing
    inside = np.clip((radius - distance) / 1.5, 0, 1)
    binder = _painted(_colour(rng, (0.3, 0.5), 0.05), 0.1 * noise(rng, size, 2, 2, 0.8), rng)
    hues = np.clip(1 + rng.normal(0, 0.22, (count, 1)) + rng.normal(0, 0.05, (count, 3)), 0.4, 1.7).astype(np.float32)
    stones = _colour(rng, (0.4, 0.62), 0.06) * hues[index]
    dome = np.maximum(radius**2 - distance**2, 0) / spacing
    shade = relief(dome, rng.uniform(0.1, 0.3), rng.uniform(0, 2 * np.pi)) + 0.04 * noise(rng, size, 2)
    contrast = rng.uniform(0.35, 0.85)
    return (binder + contrast * inside[..., None] * (stones - binder)) * (1 + shade[..., None])


def tiles(rng: Generator, size: Size) -> Field:
    """Slabs or bricks of slightly different colours; the joints between them are drawn dark or light, never labelled."""
    height, width = size
    tile_h, tile_w = rng.uniform(45, 130), rng.uniform(60, 180)
    angle = rng.normal(0, 0.06) + (np.pi / 2 if rng.random() < 0.3 else 0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    v = np.cos(angle) * y - np.sin(angle) * x + rng.uniform(0, tile_h) + 4 * tile_h
    u = np.cos(angle) * x + np.sin(angle) * y + rng.uniform(0, tile_w) + 4 * tile_w
    row = np.floor(v / tile_h)
    u += row * tile_w * rng.choice([0.0, 0.5])
    column = np.floor(u / tile_w)
    wobble = 0.5 * noise(rng, size, 8, 2)
    edge = np.minimum(np.minimum(v % tile_h, tile_h - v % tile_h), np.minimum(u % tile_w, tile_w - u % tile_w)) + wobble
    joint = np.clip(rng.uniform(0.6, 2.2) + 0.5 - edge, 0, 1)
    per_tile = rng.normal(0, 0.07, 4096).astype(np.float32)[(row * 31 + column).astype(int) % 4096]
    shade = per_tile + 0.05 * noise(rng, size, 70, 3) + 0.05 * noise(rng, size, 2, 2, 0.8)
    shade += joint * rng.choice([-1, -1, 0.5]) * rng.uniform(0.15, 0.5)
    return _painted(_colour(rng, (0.4, 0.72), 0.1), shade, rng, 0.02)


def boards(rng: Generator, size: Size) -> Field:
    """Concrete cast against planks: wood grain, offsets of brightness from board to board and burrs at their edges."""
    height, width = size if (turned := rng.random() < 0.5) else size[::-1]
    grain = noise(rng, (height, width), (rng.uniform(3, 6), rng.uniform(90, 200)), 2, 0.7)
    shade = 0.05 * grain + relief(grain, 0.1, np.pi / 2) + 0.07 * noise(rng, (height, width), 90, 3)
    pitch = rng.uniform(35, 90)
    position = np.arange(height) + rng.uniform(0, pitch)
    board = (position / pitch).astype(int)
    shade += rng.normal(0, 0.06, board.max() + 1).astype(np.float32)[board][:, None]
    burr = np.clip(1.6 - np.minimum(position % pitch, pitch - position % pitch), 0, 1).astype(np.float32)[:, None]
    broken = np.clip(0.6 + noise(rng, (height, width), (4, 40), 2), 0, 1)
    shade += burr * broken * rng.uniform(0.1, 0.35) * rng.choice([-1, -1, 1], board.max() + 1)[board][:, None]
    shade += 0.04 * noise(rng, (height, width), 2, 2, 0.8)
    shade -= 0.3 * _specks(rng, (height, width), 1e-3, 1.3)
    return _painted(_colour(rng, (0.38, 0.66), 0.05), np.float32(shade if turned else shade.T), rng)


SURFACES = {f.__name__: f for f in (plaster, concrete, asphalt, coarse_asphalt, aggregate, tiles, boards)}


# --------------------------------------------------------------------------------------------------------- cracks
def path(rng: Generator, start: Field, end: Field, roughness: float, decay: float, jag: float) -> Field:
    """A crack's course by midpoint displacement, N×2 (x, y).

    Args:
        rng: Source of chance.
        start: First point.
        end: Last point.
        roughness: Sideways displacement of the first midpoint, relative to the length.
        decay: Displacement of each finer level relative to the one before: below 0.5 smooth, above 0.6 jagged.
        jag: Additional random kink of every point in pixels, as around the grains of a road.
    """
    length = float(np.hypot(*(end - start)))
    points = np.stack([start, end]).astype(np.float32)
    amplitude = roughness * length
    while length / (len(points) - 1) > 3.5:
        middle = (points[1:] + points[:-1]) / 2
        middle += rng.normal(0, amplitude / 2, middle.shape).astype(np.float32)
        merged = np.empty((2 * len(points) - 1, 2), np.float32)
        merged[0::2], merged[1::2] = points, middle
        points = merged
        amplitude *= decay
    points[1:-1] += rng.normal(0, jag, (len(points) - 2, 2))
    return points


def draw_path(canvas: NDArray[np.uint8], points: Field, widths: Field, depths: Field) -> None:
    """Draw a line of changing width (pixels) and depth (0..1) on a canvas that is SUPERSAMPLING times larger."""
    corners = np.round((points + 0.5) * SUPERSAMPLING * 16).astype(int).tolist()
    thickness = np.maximum(np.round(widths * SUPERSAMPLING), 1).astype(int).tolist()
    values = np.clip(depths * 255, 1, 255).astype(int).tolist()
    for index in range(len(corners) - 1):
        cv2.line(canvas, corners[index], corners[index + 1], values[index], thickness[index], cv2.LINE_8, shift=4)


def _profile(rng: Generator, count: int, width: float, depth: float, fade: tuple[bool, bool]) -> tuple[Field, Field]:
    """Width and depth along a crack: slow changes, and ends that run out."""
    knots = max(count // 8, 2)
    along = np.linspace(0, knots - 1, count)
    wave = np.interp(along, np.arange(knots), rng.uniform(0.55, 1.35, knots))
    dark = np.interp(along, np.arange(knots), rng.uniform(0.7, 1.1, knots))
    t = np.linspace(0, 1, count)
    ends = np.ones(count)
    if fade[0]:
        ends *= np.clip(t / 0.3, 0.25, 1)
    if fade[1]:
        ends *= np.clip((1 - t) / 0.3, 0.25, 1)
    return np.maximum(width * wave * ends, 0.9), np.clip(depth * dark * (0.5 + 0.5 * ends), 0, 1)


def branching_crack(
    rng: Generator,
    canvas: NDArray[np.uint8],
    size: Size,
    width: float,
    depth: float,
    shape: tuple[float, float, float],
    branches: int,
) -> None:
    """One crack across or into the picture with `branches` thinner ones; `shape` is (roughness, decay, jag) of `path`."""
    height, breadth = size
    angle = rng.uniform(0, 2 * np.pi)
    centre = np.array([breadth, height]) * rng.uniform(0.2, 0.8, 2)
    direction = np.array([np.cos(angle), np.sin(angle)])
    reach = max(size) * rng.uniform(0.35, 1.0, 2)
    main = path(rng, centre - reach[0] * direction, centre + reach[1] * direction, *shape)
    fade = (reach[0] < 0.5 * max(size), reach[1] < 0.5 * max(size))
    stems = [main]
    jobs = [(main, *_profile(rng, len(main), width, depth, fade))]
    for _ in range(branches):
        stem = stems[rng.integers(len(stems))]
        at = rng.integers(len(stem) // 5, max(4 * len(stem) // 5, len(stem) // 5 + 1))
        ahead = stem[min(at + 5, len(stem) - 1)] - stem[max(at - 5, 0)]
        turn = np.arctan2(ahead[1], ahead[0]) + rng.choice([-1, 1]) * rng.uniform(0.5, 1.3)
        tip = stem[at] + np.array([np.cos(turn), np.sin(turn)]) * max(size) * rng.uniform(0.12, 0.45)
        twig = path(rng, stem[at], tip.astype(np.float32), *shape)
        stems.append(twig)
        scale = rng.uniform(0.4, 0.85)
        jobs.append(
            (twig, *_profile(rng, len(twig), max(width * scale, 1.0), depth * rng.uniform(0.6, 1), (False, True)))
        )
    for job in reversed(jobs):
        draw_path(canvas, *job)


def map_crack(
    rng: Generator, canvas: NDArray[np.uint8], size: Size, width: float, depth: float, spacing: float
) -> None:
    """A patch of alligator cracking: the bent borders of Voronoi cells, some of them missing, inside a blob."""
    _, index, count = cells(rng, size, spacing, warp=spacing * 0.07)
    tone = rng.permutation(count).astype(np.float32)[index]
    border = np.zeros(size, np.uint8)
    border[:, 1:] |= tone[:, 1:] != tone[:, :-1]
    border[1:] |= tone[1:] != tone[:-1]
    blob = noise(rng, size, max(size) / 1.5, 2) > rng.uniform(0.2, 0.9)
    border &= blob & (noise(rng, size, spacing, 2) > -0.9)
    large = cv2.resize(border, canvas.shape[::-1], interpolation=cv2.INTER_NEAREST)
    thick = max(round((width - 1) * SUPERSAMPLING / 2) * 2 + 1, 1)
    if thick > 1:
        large = cv2.dilate(large, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thick, thick)))
    np.maximum(canvas, large * np.uint8(np.clip(depth * 255, 1, 255)), out=canvas)


def flatten(canvas: NDArray[np.uint8], size: Size) -> tuple[Field, Field]:
    """Average a drawn canvas down: depth of the crack per pixel (0..1) and the share of the pixel it covers (0..1)."""
    target = size[::-1]
    depth = cv2.resize(canvas, target, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    covered = cv2.resize(np.where(canvas > 0, np.uint8(255), np.uint8(0)), target, interpolation=cv2.INTER_AREA)
    return depth, covered.astype(np.float32) / 255


def engrave(picture: Field, depth: Field, lip: float, angle: float, filling: Field | None) -> Field:
    """Darken a surface along cracks.

    Args:
        picture: H×W×3 surface.
        depth: H×W crack depth, 0..1.
        lip: Brightness of the broken edge that faces the light.
        angle: Direction of the light in radians.
        filling: RGB colour of the dust in the crack, None for a shadowed void.
    """
    shifted = cv2.warpAffine(depth, np.float32([[1, 0, np.cos(angle)], [0, 1, np.sin(angle)]]), depth.shape[::-1])
    bright = lip * np.clip(shifted - depth, 0, 1)[..., None]
    inside = picture * 0.12 if filling is None else filling
    alpha = depth[..., None]
    return (picture * (1 - alpha) + inside * alpha) * (1 + bright)


# ---------------------------------------------------------------------------------------------------- look-alikes
def _line_layer(size: Size) -> NDArray[np.uint8]:
    return np.zeros((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), np.uint8)


def _any_two_points(rng: Generator, size: Size, length: tuple[float, float]) -> tuple[Field, Field]:
    middle = rng.uniform(0, 1, 2) * size[::-1]
    angle, half = rng.uniform(0, 2 * np.pi), max(size) * rng.uniform(*length) / 2
    offset = half * np.array([np.cos(angle), np.sin(angle)])
    return np.float32(middle - offset), np.float32(middle + offset)


def stain(rng: Generator, picture: Field) -> Field:
    """A damp or bleached patch with a ragged outline."""
    size = picture.shape[:2]
    field = noise(rng, size, max(size) / 2, 4, 0.6)
    edge = rng.uniform(0.08, 0.6)
    patch = np.clip((field - rng.uniform(0.4, 1.4)) / edge, 0, 1)
    return picture * (1 + patch[..., None] * rng.uniform(-0.3, 0.2))


def scratches(rng: Generator, picture: Field) -> Field:
    """A few straight, thin, mostly light marks."""
    size = picture.shape[:2]
    layer = _line_layer(size)
    for _ in range(rng.integers(1, 5)):
        points = path(rng, *_any_two_points(rng, size, (0.1, 0.7)), 0.01, 0.3, 0.0)
        draw_path(layer, points, np.full(len(points), rng.uniform(0.4, 1.4)), rng.uniform(0.3, 1, len(points)))
    return picture * (1 + flatten(layer, size)[0][..., None] * rng.choice([0.35, 0.25, -0.25]))


def joint(rng: Generator, picture: Field) -> Field:
    """One straight sawn or cast joint, soft and of constant width."""
    size = picture.shape[:2]
    layer = _line_layer(size)
    start, end = _any_two_points(rng, size, (2.5, 3))
    draw_path(layer, np.stack([start, end]), np.full(2, rng.uniform(1.5, 5)), np.ones(2))
    depth = cv2.GaussianBlur(flatten(layer, size)[0], (0, 0), rng.uniform(0.5, 1.2))
    return picture * (1 - rng.uniform(0.25, 0.6) * depth[..., None])


def roots(rng: Generator, picture: Field) -> Field:
    """Thin roots, wires or cables lying on the surface: smooth, of even width, with a highlight and a cast shadow."""
    size = picture.shape[:2]
    for _ in range(rng.integers(1, 4)):
        layer = _line_layer(size)
        points = path(rng, *_any_two_points(rng, size, (0.4, 1.5)), 0.22, 0.38, 0.0)
        draw_path(layer, points, np.full(len(points), rng.uniform(1.2, 4.0)), np.ones(len(points)))
        body = flatten(layer, size)[0]
        shift = np.float32([[1, 0, rng.uniform(-3, 3)], [0, 1, rng.uniform(1, 3)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(body, shift, size[::-1]), (0, 0), 1.2)
        colour = _colour(rng, (0.08, 0.35), 0.35)
        picture = picture * (1 - 0.35 * shadow[..., None])
        picture = picture * (1 - body[..., None]) + colour * body[..., None]
    return picture


def flakes(rng: Generator, picture: Field) -> Field:
    """Peeling paint or a worn road marking: a bright layer with sharp, shadowed edges and fine holes."""
    size = picture.shape[:2]
    cover = noise(rng, size, rng.uniform(40, 120), 5, 0.65) - rng.uniform(-0.2, 1.2)
    if rng.random() < 0.5:
        y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
        angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.2)
        across = np.cos(angle) * (x - rng.uniform(0, size[1])) + np.sin(angle) * (y - rng.uniform(0, size[0]))
        cover = np.minimum(np.float32(rng.uniform(8, 40)) - np.abs(across), 6) * 0.3 + 0.5 * cover
    layer = np.clip(cover / 0.12, 0, 1)
    shadow = np.clip(cv2.GaussianBlur(layer, (0, 0), 1.2) - layer, 0, 1)
    colour = _colour(rng, (0.6, 0.9), 0.05) * (1 + 0.05 * noise(rng, size, 20, 4, 0.8))[..., None]
    opacity = rng.uniform(0.5, 0.95) * layer[..., None]
    return picture * (1 - opacity) * (1 - 0.7 * shadow[..., None]) + colour * opacity


def shadow_edge(rng: Generator, picture: Field) -> Field:
    """The shadow of a straight edge, of a post or of foliage."""
    height, width = size = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    across = np.cos(angle) * (x - rng.uniform(0, width)) + np.sin(angle) * (y - rng.uniform(0, height))
    kind = rng.integers(3)
    if kind == 1:
        across = rng.uniform(2, 20) - np.abs(across)
    elif kind == 2:
        across = 12 * (noise(rng, size, rng.uniform(25, 70), 3, 0.55) - rng.uniform(0, 0.8))
    shade = np.clip(across / rng.uniform(1, 6) + 0.5, 0, 1)[..., None]
    strength = rng.uniform(0.25, 0.55)
    return picture * (1 - shade * strength * np.float32([1, 0.96, 0.88]))


LOOKALIKES = {f.__name__: f for f in (stain, scratches, joint, roots, flakes, shadow_edge)}


# ------------------------------------------------------------------------------------------------ light and camera
def uneven_light(rng: Generator, picture: Field, strength: float, vignette: float) -> Field:
    """Brighten one side, darken the corners; both strengths are relative brightness changes at the border."""
    height, width = picture.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    angle = rng.uniform(0, 2 * np.pi)
    gain = 1 + strength * (np.cos(angle) * x + np.sin(angle) * y) + 0.4 * strength * noise(rng, (height, width), height)
    gain *= 1 - vignette * (x * x + y * y) / 2
    return picture * np.maximum(gain, 0.15)[..., None]


def camera(
    rng: Generator, picture: Field, blur: float, sensor_noise: float, cast: float, jpeg: int | None
) -> NDArray[np.uint8]:
    """Photograph the scene: lens blur, white balance, noise, 8 bits, JPEG.

    Args:
        rng: Source of chance.
        picture: H×W×3 scene, 0..1.
        blur: Standard deviation of the lens blur in pixels.
        sensor_noise: Standard deviation of the noise in mid-grey, 0..1.
        cast: Standard deviation of the relative error of each channel's gain.
        jpeg: JPEG quality 1..100, None for no compression.
    """
    picture = cv2.GaussianBlur(np.float32(picture), (0, 0), blur) if blur > 0.2 else picture
    picture = picture * np.float32(1 + rng.normal(0, cast, 3))
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture = picture + sensor_noise * grain * np.sqrt(np.clip(picture, 0.02, 1) / 0.5)
    pixels = np.uint8(np.clip(np.round(picture * 255), 0, 255))
    if jpeg is not None:
        _, stream = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
        pixels = cv2.imdecode(stream, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(pixels)
