"""What lies on the surface of a generated crack photo, and how it is photographed: cracks, look-alikes, light, camera.

Conventions as in `sandbox.synthetic.surfaces`.
"""

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sandbox.synthetic.surfaces import Field, Size, cells, colour, noise, ramp

SUPERSAMPLING = 3
"""Crack lines are drawn this many times larger and averaged down, which gives sub-pixel widths and smooth edges."""


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


def draw_void(canvas: NDArray[np.uint8], points: Field, widths: Field, depths: Field) -> None:
    """`draw_path` with a narrower, deeper core: a crack is darkest in its middle."""
    draw_path(canvas, points, widths, depths)
    draw_path(canvas, points, 0.5 * widths, np.minimum(1.3 * depths, 1))


def _profile(
    rng: Generator, count: int, width: float, depth: float, jag: float, fade: tuple[bool, bool]
) -> tuple[Field, Field]:
    """Width and depth along a crack: slow changes, broken edges where `jag` is high, ends that run out."""
    knots = max(count // 8, 2)
    along = np.linspace(0, knots - 1, count)
    wave = np.interp(along, np.arange(knots), rng.uniform(0.55, 1.35, knots))
    wave *= 1 + min(jag, 1.0) * rng.uniform(-0.4, 0.4, count)
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
    """One crack across or into the picture, and thinner ones off it; `shape` is (roughness, decay, jag) of `path`."""
    height, breadth = size
    angle = rng.uniform(0, 2 * math.pi)
    centre = np.array([breadth, height]) * rng.uniform(0.2, 0.8, 2)
    direction = np.array([math.cos(angle), math.sin(angle)])
    reach = max(size) * rng.uniform(0.35, 1.0, 2)
    main = path(rng, centre - reach[0] * direction, centre + reach[1] * direction, *shape)
    fade = (reach[0] < 0.5 * max(size), reach[1] < 0.5 * max(size))
    stems = [main]
    jobs = [(main, *_profile(rng, len(main), width, depth, shape[2], fade))]
    for _ in range(branches):
        stem = stems[rng.integers(len(stems))]
        at = rng.integers(len(stem) // 5, max(4 * len(stem) // 5, len(stem) // 5 + 1))
        ahead = stem[min(at + 5, len(stem) - 1)] - stem[max(at - 5, 0)]
        turn = math.atan2(ahead[1], ahead[0]) + rng.choice([-1, 1]) * rng.uniform(0.5, 1.3)
        tip = stem[at] + np.array([math.cos(turn), math.sin(turn)]) * max(size) * rng.uniform(0.12, 0.45)
        twig = path(rng, stem[at], tip.astype(np.float32), *shape)
        stems.append(twig)
        scale = rng.uniform(0.4, 0.85)
        jobs.append(
            (twig, *_profile(rng, len(twig), width * scale, depth * rng.uniform(0.6, 1), shape[2], (False, True)))
        )
    for job in reversed(jobs):
        draw_void(canvas, *job)


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


def average(canvas: NDArray[np.uint8], size: Size) -> Field:
    """A drawn canvas at the picture's size, H×W in 0..1: depth times the share of the pixel that is covered."""
    small = cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def engrave(rng: Generator, picture: Field, depth: Field, lip: float, filling: Field | None) -> Field:
    """Darken a surface along cracks, unevenly from grain to grain, and light one of their edges.

    Args:
        rng: Source of chance.
        picture: 3×H×W surface.
        depth: H×W crack depth, 0..1.
        lip: Brightness of the broken edge that faces the light.
        filling: RGB colour, 3×1×1, of the dust in the crack, None for a shadowed void.
    """
    angle = rng.uniform(0, 2 * math.pi)
    shifted = cv2.warpAffine(depth, np.float32([[1, 0, math.cos(angle)], [0, 1, math.sin(angle)]]), depth.shape[::-1])
    bright = lip * np.clip(shifted - depth, 0, 1)
    depth = depth * np.clip(0.95 + 0.12 * noise(rng, depth.shape, 3), 0.5, 1)
    inside = picture * 0.12 if filling is None else filling
    alpha = depth
    return (picture * (1 - alpha) + inside * alpha) * (1 + bright)


# ---------------------------------------------------------------------------------------------------- look-alikes
def _line_layer(size: Size) -> NDArray[np.uint8]:
    return np.zeros((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), np.uint8)


def _any_two_points(rng: Generator, size: Size, length: tuple[float, float]) -> tuple[Field, Field]:
    middle = rng.uniform(0, 1, 2) * size[::-1]
    angle, half = rng.uniform(0, 2 * math.pi), max(size) * rng.uniform(*length) / 2
    offset = half * np.array([math.cos(angle), math.sin(angle)])
    return np.float32(middle - offset), np.float32(middle + offset)


def _bend(rng: Generator, size: Size, length: tuple[float, float]) -> Field:
    """A smooth course, N×2 (x, y): a cubic Bézier curve."""
    start, end = _any_two_points(rng, size, length)
    swing = 0.35 * float(np.hypot(*(end - start)))
    handles = [start + (end - start) * at + rng.normal(0, swing, 2) for at in (0.33, 0.67)]
    t = np.linspace(0, 1, 48)[:, None]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    return np.float32(sum(w * p for w, p in zip(weights, (start, *handles, end), strict=True)))


def stain(rng: Generator, picture: Field) -> Field:
    """A damp or bleached patch with a ragged outline."""
    size = picture.shape[1:]
    field = noise(rng, size, max(size) / 2, 4, 0.6)
    edge = rng.uniform(0.08, 0.6)
    patch = np.clip((field - rng.uniform(0.4, 1.4)) / edge, 0, 1)
    return picture * (1 + patch * rng.uniform(-0.3, 0.2))


def scratches(rng: Generator, picture: Field) -> Field:
    """A few straight, thin, mostly light marks."""
    size = picture.shape[1:]
    layer = _line_layer(size)
    for _ in range(rng.integers(1, 5)):
        points = path(rng, *_any_two_points(rng, size, (0.1, 0.7)), 0.01, 0.3, 0.0)
        draw_path(layer, points, np.full(len(points), rng.uniform(0.4, 1.4)), rng.uniform(0.3, 1, len(points)))
    return picture * (1 + average(layer, size) * float(rng.choice([0.35, 0.25, -0.25])))


def joint(rng: Generator, picture: Field) -> Field:
    """One straight sawn or cast joint, soft and of constant width."""
    size = picture.shape[1:]
    layer = _line_layer(size)
    start, end = _any_two_points(rng, size, (2.5, 3))
    draw_path(layer, np.stack([start, end]), np.full(2, rng.uniform(1.5, 5)), np.ones(2))
    depth = cv2.GaussianBlur(average(layer, size), (0, 0), rng.uniform(0.5, 1.2))
    return picture * (1 - rng.uniform(0.25, 0.6) * depth)


def roots(rng: Generator, picture: Field) -> Field:
    """Thin roots, wires or cables lying on the surface: smooth, of even width, with a highlight and a cast shadow."""
    size = picture.shape[1:]
    for _ in range(rng.integers(1, 4)):
        layer = _line_layer(size)
        points = _bend(rng, size, (0.4, 1.5))
        widths = np.full(len(points), rng.uniform(1.2, 4.5))
        draw_path(layer, points, widths, np.ones(len(points)))
        body = average(layer, size)
        layer[:] = 0
        draw_path(layer, points - 0.2 * widths[:, None], 0.35 * widths, np.ones(len(points)))
        gloss = rng.uniform(0.05, 0.3) * average(layer, size)
        shift = np.float32([[1, 0, rng.uniform(-3, 3)], [0, 1, rng.uniform(1, 3)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(body, shift, size[::-1]), (0, 0), 1.2)
        skin = colour(rng, (0.08, 0.35), 0.35)
        picture = picture * ((1 - 0.35 * shadow) * (1 - body)) + skin * body + gloss
    return picture


def flakes(rng: Generator, picture: Field) -> Field:
    """Peeling paint or a worn road marking: a bright layer with sharp, shadowed edges and fine holes."""
    size = picture.shape[1:]
    cover = noise(rng, size, rng.uniform(40, 120), 5, 0.65) - rng.uniform(-0.2, 1.2)
    if rng.random() < 0.5:
        angle = float(rng.choice([0, math.pi / 2])) + rng.normal(0, 0.2)
        across = ramp(size, angle, (rng.uniform(0, size[1]), rng.uniform(0, size[0])))
        cover = np.minimum(rng.uniform(8, 40) - np.abs(across), 6) * 0.3 + 0.5 * cover
    layer = np.clip(cover / 0.12, 0, 1)
    shadow = np.clip(cv2.GaussianBlur(layer, (0, 0), 1.2) - layer, 0, 1)
    paint = colour(rng, (0.6, 0.9), 0.05) * (1 + 0.05 * noise(rng, size, 20, 4, 0.8))
    opacity = rng.uniform(0.5, 0.95) * layer
    return picture * ((1 - opacity) * (1 - 0.7 * shadow)) + paint * opacity


def shadow_edge(rng: Generator, picture: Field) -> Field:
    """The shadow of a straight edge, of a post or of foliage."""
    size = picture.shape[1:]
    across = ramp(size, rng.uniform(0, 2 * math.pi), (rng.uniform(0, size[1]), rng.uniform(0, size[0])))
    kind = rng.integers(3)
    if kind == 1:
        across = rng.uniform(2, 20) - np.abs(across)
    elif kind == 2:
        across = 12 * (noise(rng, size, rng.uniform(25, 70), 3, 0.55) - rng.uniform(0, 0.8))
    shade = np.clip(across / rng.uniform(1, 6) + 0.5, 0, 1)
    strength = rng.uniform(0.25, 0.55)
    return picture * (1 - shade * strength * np.float32([1, 0.96, 0.88])[:, None, None])


LOOKALIKES = {f.__name__: f for f in (stain, scratches, joint, roots, flakes, shadow_edge)}


# ------------------------------------------------------------------------------------------------ light and camera
def uneven_light(rng: Generator, picture: Field, strength: float, vignette: float) -> Field:
    """Brighten one side, darken the corners; both strengths are relative brightness changes at the border."""
    height, width = picture.shape[1:]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    angle = rng.uniform(0, 2 * math.pi)
    gain = (
        1
        + strength * (math.cos(angle) * x + math.sin(angle) * y)
        + 0.4 * strength * noise(rng, (height, width), height)
    )
    gain *= 1 - vignette * (x * x + y * y) / 2
    return picture * np.maximum(gain, 0.15)


def camera(
    rng: Generator, picture: Field, blur: float, sensor_noise: float, cast: float, jpeg: int | None
) -> NDArray[np.uint8]:
    """Photograph the scene: lens blur, white balance, noise, 8 bits, JPEG.

    Args:
        rng: Source of chance.
        picture: 3×H×W scene, 0..1.
        blur: Standard deviation of the lens blur in pixels.
        sensor_noise: Standard deviation of the noise in mid-grey, 0..1.
        cast: Standard deviation of the white balance error: red gains what blue loses, relative.
        jpeg: JPEG quality 1..100, None for no compression.
    """
    size = picture.shape[1:]
    warm = rng.normal(0, cast)
    gains = np.float32([255 * (1 + warm), 255 * (1 + rng.normal(0, cast / 4)), 255 * (1 - warm)])
    grain = sensor_noise * math.sqrt(2 * 255) * rng.standard_normal(size, dtype=np.float32)
    chroma = 0.5 * noise(rng, size, 1.5)
    channels = []
    for channel, gain, lean in zip(picture, gains, (1, 0, -1), strict=True):
        light = gain * (cv2.GaussianBlur(channel, (0, 0), blur) if blur > 0.2 else channel)
        shot = cv2.sqrt(np.maximum(light, 5))
        shot *= grain if lean == 0 else grain * (1 + lean * chroma)
        light += shot
        channels.append(np.maximum(light, 0, out=light))
    pixels = cv2.convertScaleAbs(cv2.merge(channels))
    if jpeg is not None:
        _, stream = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])
        pixels = cv2.imdecode(stream, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(pixels)
