"""Backgrounds of a generated crack photo: noise, Voronoi cells and the surfaces made of them.

Everything is float32: H×W for fields and 3×H×W RGB in 0..1 for pictures; lengths are pixels. All chance comes from the
`numpy.random.Generator` handed in, so a picture is a pure function of its seed.
"""

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.float32]
Size = tuple[int, int]


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
    field: Field | None = None
    for octave in range(octaves):
        rows = min(int(np.ceil(height / cell_y * 2**octave)) + 1, height)
        columns = min(int(np.ceil(width / cell_x * 2**octave)) + 1, width)
        layer = gain**octave * rng.standard_normal((rows, columns), dtype=np.float32)
        if field is not None:
            layer += cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC)
        field = layer
    if field.shape != size:
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    mean, deviation = cv2.meanStdDev(field)
    scale = 1 / max(deviation[0, 0], 1e-6)
    return cv2.addWeighted(field, scale, field, 0, -mean[0, 0] * scale)


def relief(height_map: Field, strength: float, angle: float) -> Field:
    """Brightness change of a rough surface lit from `angle` (radians): the slope along the light's direction."""
    slope_x = cv2.Sobel(height_map, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height_map, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    return strength * (math.cos(angle) * slope_x + math.sin(angle) * slope_y)


def ramp(size: Size, angle: float, origin: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Signed distance in pixels to the line through `origin` (x, y) whose normal points along `angle` (radians)."""
    y = np.arange(size[0], dtype=np.float32)[:, None] - origin[1]
    x = np.arange(size[1], dtype=np.float32)[None] - origin[0]
    return math.cos(angle) * x + math.sin(angle) * y


def colour(rng: Generator, brightness: tuple[float, float], tint: float) -> Field:
    """A near-grey RGB colour, 3×1×1; `tint` is how far its channels may differ from the mean."""
    value = rng.uniform(*brightness)
    warm = rng.normal(0, tint)
    channels = value * np.array([1 + warm, 1 + rng.normal(0, tint / 4), 1 - warm])
    return np.float32(np.clip(channels, 0.03, 0.97))[:, None, None]


def _painted(base: Field, shade: Field, rng: Generator, mottling: float = 0.012) -> Field:
    """Colour a surface by brightness `shade` (relative, 0 = none) with slight changes of hue over the area."""
    size = shade.shape
    hue = mottling * noise(rng, size, max(size) / 3, 2)
    return base * (1 + np.stack([shade + hue, shade, shade - hue]))


def _specks(rng: Generator, size: Size, density: float, blur: float) -> Field:
    """Sparse dots, 0..about 1: air holes, grains, splashes. `density` is the share of pixels hit."""
    dots = (rng.random(size, dtype=np.float32) < density).astype(np.float32)
    dots = cv2.GaussianBlur(dots, (0, 0), blur)
    return np.minimum(dots * (2 * math.pi * blur * blur), 1.5)


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
    shade += relief(noise(rng, size, rng.uniform(4, 10), 3, 0.7), rng.uniform(0.04, 0.12), rng.uniform(0, 2 * math.pi))
    return _painted(colour(rng, (0.6, 0.88), 0.07), shade, rng)


def concrete(rng: Generator, size: Size) -> Field:
    """Grey cast surface: clouds, cement skin, air holes."""
    shade = 0.06 * noise(rng, size, 110, 4, 0.6) + rng.uniform(0.02, 0.05) * noise(rng, size, 3, 2, 0.8)
    shade -= rng.uniform(0.1, 0.45) * _specks(rng, size, rng.uniform(1e-4, 1e-3), rng.uniform(0.7, 1.6))
    return _painted(colour(rng, (0.42, 0.7), 0.03), shade, rng)


def asphalt(rng: Generator, size: Size) -> Field:
    """Fine road surface: grain of one to three pixels and bright grains of stone."""
    shade = rng.uniform(0.08, 0.15) * noise(rng, size, rng.uniform(1.5, 3), 2, 0.8) + 0.04 * noise(rng, size, 60, 2)
    shade += rng.uniform(0.2, 0.6) * _specks(rng, size, rng.uniform(1e-3, 5e-3), 0.7)
    return _painted(colour(rng, (0.26, 0.5), 0.04), shade, rng)


def coarse_asphalt(rng: Generator, size: Size) -> Field:
    """Worn road surface: grains lit from the side with dark pits between, bleached and tinted patches."""
    spacing = rng.uniform(3, 5.5)
    distance, index, count = cells(rng, size, spacing)
    stone = rng.normal(0, rng.uniform(0.07, 0.16), count).astype(np.float32)[index]
    height_map = -distance / spacing
    shade = stone + 0.22 * (0.42 + height_map) + relief(height_map, rng.uniform(0.2, 0.5), rng.uniform(0, 2 * math.pi))
    shade = cv2.GaussianBlur(shade, (0, 0), 0.6) + 0.05 * noise(rng, size, 80, 3) + 0.05 * noise(rng, size, 1.5)
    shade += rng.uniform(0.2, 0.7) * _specks(rng, size, rng.uniform(1e-3, 4e-3), 0.8)
    shade -= rng.uniform(0.1, 0.4) * _specks(rng, size, rng.uniform(5e-4, 2e-3), 1.2)
    return _painted(colour(rng, (0.3, 0.55), 0.06), shade, rng, 0.03)


def aggregate(rng: Generator, size: Size) -> Field:
    """Exposed pebbles of many colours in a darker binder."""
    spacing = rng.uniform(7, 15)
    distance, index, count = cells(rng, size, spacing, warp=1.5)
    radius = rng.uniform(0.25, 0.52, count).astype(np.float32)[index] * spacing
    inside = np.clip((radius - distance) / 1.5, 0, 1)
    binder = _painted(colour(rng, (0.3, 0.5), 0.05), 0.1 * noise(rng, size, 2, 2, 0.8), rng)
    hues = np.clip(1 + rng.normal(0, 0.22, (1, count)) + rng.normal(0, 0.05, (3, count)), 0.4, 1.7).astype(np.float32)
    stones = colour(rng, (0.4, 0.62), 0.06) * np.take(hues, index, axis=1)
    dome = np.maximum(radius**2 - distance**2, 0) / spacing
    shade = relief(dome, rng.uniform(0.1, 0.3), rng.uniform(0, 2 * math.pi)) + 0.04 * noise(rng, size, 2)
    contrast = rng.uniform(0.35, 0.85)
    return (binder + contrast * inside * (stones - binder)) * (1 + shade)


def tiles(rng: Generator, size: Size) -> Field:
    """Slabs or bricks of slightly different colours with dark or light joints between them."""
    height, width = size
    tile_h, tile_w = rng.uniform(45, 130), rng.uniform(60, 180)
    angle = rng.normal(0, 0.06) + (math.pi / 2 if rng.random() < 0.3 else 0)
    v = ramp(size, angle + math.pi / 2, (-4.5 * width, -4.5 * height)) / tile_h
    u = ramp(size, angle, (-4.5 * width, -4.5 * height)) / tile_w
    row = np.floor(v)
    u += row * float(rng.choice([0.0, 0.5]))
    column = np.floor(u)
    v, u = v - row, u - column
    edge = np.minimum(np.minimum(v, 1 - v) * tile_h, np.minimum(u, 1 - u) * tile_w) + 0.5 * noise(rng, size, 8, 2)
    joint = np.clip(rng.uniform(0.6, 2.2) + 0.5 - edge, 0, 1)
    per_tile = rng.normal(0, 0.07, 4096).astype(np.float32)[(row * 31 + column).astype(int) % 4096]
    shade = per_tile + 0.05 * noise(rng, size, 70, 3) + 0.05 * noise(rng, size, 2, 2, 0.8)
    shade += joint * float(rng.choice([-1, -1, 0.5])) * rng.uniform(0.15, 0.5)
    return _painted(colour(rng, (0.4, 0.72), 0.1), shade, rng, 0.02)


def boards(rng: Generator, size: Size) -> Field:
    """Concrete cast against planks: wood grain, offsets of brightness from board to board and burrs at their edges."""
    height, width = size if (turned := rng.random() < 0.5) else size[::-1]
    grain = noise(rng, (height, width), (rng.uniform(3, 6), rng.uniform(90, 200)), 2, 0.7)
    shade = 0.05 * grain + relief(grain, 0.1, math.pi / 2) + 0.07 * noise(rng, (height, width), 90, 3)
    pitch = rng.uniform(35, 90)
    position = np.arange(height) + rng.uniform(0, pitch)
    board = (position / pitch).astype(int)
    shade += rng.normal(0, 0.06, board.max() + 1).astype(np.float32)[board][:, None]
    burr = np.clip(1.6 - np.minimum(position % pitch, pitch - position % pitch), 0, 1).astype(np.float32)[:, None]
    broken = np.clip(0.6 + noise(rng, (height, width), (4, 40), 2), 0, 1)
    shade += (
        burr * broken * rng.uniform(0.1, 0.35) * np.float32(rng.choice([-1, -1, 1], board.max() + 1))[board][:, None]
    )
    shade += 0.04 * noise(rng, (height, width), 2, 2, 0.8)
    shade -= 0.3 * _specks(rng, (height, width), 1e-3, 1.3)
    return _painted(colour(rng, (0.38, 0.66), 0.05), np.float32(shade if turned else shade.T), rng)


SURFACES = {f.__name__: f for f in (plaster, concrete, asphalt, coarse_asphalt, aggregate, tiles, boards)}
