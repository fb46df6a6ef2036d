"""Scenes made of real scans: digits of many sizes on canvases cluttered with scraps of digits.

A scrap is a piece of a real digit, and a stroke is drawn with the same pen: what a pixel belongs to
cannot be told from its neighbours, only from the whole shape around it. Sizes differ by a factor of
three. Ink is bright on dark as in the scans: with half of the canvases inverted, a small network
learned next to nothing in the epochs that a first try has. Scans of one part of the split are used
in the scenes of that part alone, as digits and as scraps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SIDE = 48
_SMALLEST, _LARGEST = 10.0, 30.0
_INK = 0.4
"""Of the darkest ink: from here on a pixel belongs to the digit."""

_TRIES = 20
_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)


@dataclass(frozen=True)
class Scene:
    """A canvas of bytes ``(48, 48)``, its mask (0 is background) and the boxes of its digits."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    corners: NDArray[np.float32]
    labels: NDArray[np.int64]


def draw_scenes(scans: Floats, digits: NDArray[np.int64], count: int, seed: int) -> list[Scene]:
    """Return ``count`` scenes of the given scans ``(N, 8, 8)`` with ink from 0 to 1."""
    random = np.random.RandomState(seed)  # its streams are frozen, unlike those of default_rng
    order = _endless(random, len(scans))
    return [_draw_scene(scans, digits, order, random) for _ in range(count)]


def _endless(random: np.random.RandomState, count: int) -> Iterator[int]:
    while True:
        yield from random.permutation(count)


def _draw_scene(
    scans: Floats, digits: NDArray[np.int64], order: Iterator[int], random: np.random.RandomState
) -> Scene:
    canvas = _draw_ground(random)
    for _ in range(random.randint(4, 10)):
        if random.rand() < 0.75:
            ink = _draw_scrap(scans[random.randint(len(scans))], random)
        else:
            ink = _draw_stroke(random)
        canvas = _lay(canvas, ink, random.uniform(0.4, 0.9))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(random.randint(1, 5)):
        scan = next(order)
        placed = _place_digit(scans[scan], boxes, random)
        if placed is None:
            continue
        ink = placed
        canvas = _lay(canvas * (1 - 0.8 * _widen(ink)), ink, random.uniform(0.7, 1.0))
        mask[ink > _INK] = 1 + digits[scan]
        boxes.append(_bound(ink))
        labels.append(int(digits[scan]))
    canvas = canvas + 0.03 * random.standard_normal(canvas.shape)
    image = np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Scene(image, mask, corners, np.array(labels, np.int64))


def _draw_ground(random: np.random.RandomState) -> Floats:
    """A level and a slope of light."""
    level, down, right = random.uniform(0.02, 0.2), *random.uniform(-0.12, 0.12, 2)
    ground: Floats = level + down * (_ROWS / SIDE - 0.5) + right * (_COLUMNS / SIDE - 0.5)
    return ground


def _draw_scrap(scan: Floats, random: np.random.RandomState) -> Floats:
    """A window of 3 or 4 of the 8 pixels of a scan each way, turned: never a whole digit."""
    height, width = random.randint(3, 5, 2)
    top, left = random.randint(0, 9 - height), random.randint(0, 9 - width)
    window = scan[top : top + height, left : left + width]
    scale = _draw_side(random) / 8
    return _enlarge(window, random.uniform(0, SIDE, 2), scale, random.uniform(-np.pi, np.pi))


def _draw_stroke(random: np.random.RandomState) -> Floats:
    """A bent line, as wide as the pen of a digit of some size."""
    start, bend, end = random.uniform(-4, SIDE + 4, (3, 2))
    end = start + np.clip(end - start, -26, 26)
    bend = (start + end) / 2 + np.clip(bend - start, -8, 8)
    steps = np.linspace(0, 1, 48)[:, None]
    points = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
    pen = _draw_side(random) / 10
    middle = (points.min(0) + points.max(0)) / 2
    window = _find_window(middle, float((points.max(0) - middle).max()) + 2 * pen)
    rows, columns = _ROWS[window][:, :1, None], _COLUMNS[window][:1, :, None]
    gaps = ((rows - points[:, 0]) ** 2 + (columns - points[:, 1]) ** 2).min(-1, initial=np.inf)
    canvas = np.zeros((SIDE, SIDE))
    canvas[window] = np.clip(1.3 - np.sqrt(gaps) / pen, 0, 1)
    return canvas


def _draw_side(random: np.random.RandomState) -> float:
    """Side of a digit in pixels, every ratio as likely."""
    return math.exp(random.uniform(math.log(_SMALLEST), math.log(_LARGEST)))


def _place_digit(
    scan: Floats, boxes: list[tuple[int, int, int, int]], random: np.random.RandomState
) -> Floats | None:
    """A digit that lies whole on the canvas and touches no other; ``None`` if there is no room."""
    rows, columns = (np.flatnonzero((scan > _INK).any(axis)) - 3.5 for axis in (1, 0))
    for _ in range(_TRIES):
        side = _draw_side(random)
        center = random.uniform(side / 2, SIDE - side / 2, 2)
        angle = random.uniform(-0.2, 0.2)
        (y, x), unit = center, side / 8
        left, right = x + columns[[0, -1]] * unit
        top, bottom = y + rows[[0, -1]] * unit
        about = left, top, right, bottom
        if _touches(about, boxes):
            continue  # too near even before it is drawn
        ink = _enlarge(scan, center, unit, angle)
        if ink.max() > _INK and not _touches(_bound(ink), boxes):
            return ink
    return None


def _touches(box: Sequence[float], boxes: Sequence[Sequence[float]]) -> bool:
    x1, y1, x2, y2 = box
    return any(
        x1 <= right and x2 >= left and y1 <= bottom and y2 >= top
        for left, top, right, bottom in boxes
    )


def _enlarge(pixels: Floats, center: Floats, scale: float, angle: float) -> Floats:
    """Draw pixels on an empty canvas around ``center`` (row, column), bilinearly."""
    cosine, sine = round(math.cos(angle), 6), round(math.sin(angle), 6)  # alike everywhere
    height, width = pixels.shape
    window = _find_window(center, scale * (math.hypot(height, width) / 2 + 1))
    down, right = (_ROWS[window] - center[0]) / scale, (_COLUMNS[window] - center[1]) / scale
    rows = np.clip(cosine * down - sine * right + (height + 1) / 2, 0, height + 0.999)
    columns = np.clip(sine * down + cosine * right + (width + 1) / 2, 0, width + 0.999)
    padded = np.zeros((height + 3, width + 3))
    padded[1 : height + 1, 1 : width + 1] = pixels
    top, left = rows.astype(int), columns.astype(int)
    y, x = rows - top, columns - left
    upper = padded[top, left] * (1 - x) + padded[top, left + 1] * x
    lower = padded[top + 1, left] * (1 - x) + padded[top + 1, left + 1] * x
    canvas = np.zeros((SIDE, SIDE))
    canvas[window] = upper * (1 - y) + lower * y
    return canvas


def _find_window(center: Floats, reach: float) -> tuple[slice, slice]:
    """The part of the canvas that a drawing can touch; the rest need not be computed."""
    rows, columns = (
        slice(max(math.floor(middle - reach), 0), max(math.ceil(middle + reach) + 1, 0))
        for middle in center.tolist()
    )
    return rows, columns


def _lay(canvas: Floats, ink: Floats, strength: float) -> Floats:
    return canvas * (1 - ink * strength) + ink * strength


def _widen(ink: Floats) -> Floats:
    """The silhouette and a rim around it, where the clutter is paler: the pen was set down last."""
    wide = ink.copy()
    wide[1:] = np.maximum(wide[1:], ink[:-1])
    wide[:-1] = np.maximum(wide[:-1], ink[1:])
    tall = wide.copy()
    wide[:, 1:] = np.maximum(wide[:, 1:], tall[:, :-1])
    wide[:, :-1] = np.maximum(wide[:, :-1], tall[:, 1:])
    return wide


def _bound(ink: Floats) -> tuple[int, int, int, int]:
    """The tight box of a digit: left, top, and the first column and row after it."""
    rows, columns = (np.flatnonzero((ink > _INK).any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
