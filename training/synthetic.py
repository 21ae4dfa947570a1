"""Reference pairs from any photo: a crop to recover, and a warped, recoloured view of its surroundings with known flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image8 = NDArray[np.uint8]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Warp:
    """How a synthetic reference differs from the crop; each value is drawn uniformly from its range.

    Attributes:
        rotation: degrees, either way.
        scale: enlargement of the reference, drawn on a logarithmic scale.
        shear: horizontal and vertical, either way.
        perspective: displacement of the corners, in fractions of the side.
        waves: amplitude in pixels of a smooth displacement, as of a changed viewpoint.
        shift: of the reference's centre from the crop's, in fractions of the crop.
        gain, bias, gamma: of the colours: per channel for gain and bias, either way around 1, 0, 1.
    """

    rotation: float = 18.0
    scale: tuple[float, float] = (0.5, 2.0)
    shear: float = 0.08
    perspective: float = 0.06
    waves: float = 3.0
    shift: float = 0.15
    gain: float = 0.1
    bias: float = 0.04
    gamma: float = 0.15


@dataclass
class Pair:
    """A training sample.

    Attributes:
        hr: uint8 [H, W, 3], the crop to recover.
        ref: uint8 [R, R, 3], the reference.
        position: float32 [2, H/4, W/4], where the centre of each LR pixel lies in the reference (y, x), in its pixels.
        known: bool [H/4, W/4], where that is true and inside the reference.
    """

    hr: Image8
    ref: Image8
    position: Float = field(repr=False)
    known: NDArray[np.bool_] = field(repr=False)


def no_flow(size: int) -> tuple[Float, NDArray[np.bool_]]:
    """Position and known of a pair without known correspondence."""
    return np.zeros((2, size // 4, size // 4), np.float32), np.zeros((size // 4, size // 4), bool)


def homography(rng: np.random.Generator, warp: Warp, crop: int, ref: int) -> NDArray[np.float64]:
    """Random map from the crop's pixels to the reference's, centre to (shifted) centre."""
    angle = np.deg2rad(rng.uniform(-warp.rotation, warp.rotation))
    scale = np.exp(rng.uniform(*np.log(warp.scale)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.uniform(-warp.shear, warp.shear)], [rng.uniform(-warp.shear, warp.shear), 1]])
    shift = rng.uniform(-warp.shift, warp.shift, 2) * crop
    corners = np.array([[0, 0], [crop, 0], [crop, crop], [0, crop]], np.float64)
    moved = (corners - crop / 2) @ (scale * turn @ shear).T + ref / 2 + shift
    moved += rng.uniform(-warp.perspective, warp.perspective, (4, 2)) * crop
    return np.asarray(cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32)), np.float64)


def _smooth_field(rng: np.random.Generator, size: int, amplitude: float) -> Float:
    coarse = rng.uniform(-1, 1, (5, 5, 2)).astype(np.float32) * rng.uniform(0, amplitude)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def synthetic_reference(
    rng: np.random.Generator, photo: Image8, corner: tuple[int, int], crop: int, ref: int, warp: Warp
) -> tuple[Image8, Float, NDArray[np.bool_]]:
    """Render a reference view around a crop of a photo.

    Args:
        rng: source of all randomness.
        photo: uint8 [H, W, 3].
        corner: (row, column) of the crop's top-left pixel.
        crop, ref: sides of the crop and of the reference.
        warp: the ranges to draw from.

    Returns:
        The reference, and `position` and `known` as in `Pair`.
    """
    forward = homography(rng, warp, crop, ref)
    inverse = np.linalg.inv(forward)
    field_ = _smooth_field(rng, ref, warp.waves)  # in crop pixels, on the reference's grid
    grid = np.stack(np.meshgrid(np.arange(ref), np.arange(ref)), -1).astype(np.float32)  # (x, y)
    source = cv2.perspectiveTransform(grid.reshape(-1, 1, 2), inverse).reshape(ref, ref, 2) + field_
    source += np.array([corner[1], corner[0]], np.float32)
    # Shrinking needs the blur that a camera would have made: the reference's pixel covers 1/scale of the photo's.
    shrink = float(np.sqrt(abs(np.linalg.det(inverse[:2, :2]))))
    blurred = cv2.GaussianBlur(photo, (0, 0), 0.45 * shrink) if shrink > 1.1 else photo
    rendered = _remap(blurred, source, cv2.INTER_CUBIC, cv2.BORDER_REFLECT_101)
    # Centres of the LR pixels through the inverse of `source`, by fixed-point iteration (the field is smooth and small).
    centres = np.stack(np.meshgrid(*(4 * np.arange(crop // 4) + 1.5,) * 2), -1).astype(np.float32)
    position = cv2.perspectiveTransform(centres.reshape(-1, 1, 2), forward)
    for _ in range(4):
        moved = _remap(field_, position, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        position = cv2.perspectiveTransform(centres.reshape(-1, 1, 2) - moved, forward)
    position = position.reshape(crop // 4, crop // 4, 2)[..., ::-1].transpose(2, 0, 1)
    known: NDArray[np.bool_] = np.all((position > 4) & (position < ref - 5), axis=0)
    return recolour(rng, rendered.astype(np.uint8), warp), np.ascontiguousarray(position, np.float32), known


def _remap(picture: NDArray[Any], where: NDArray[Any], interpolation: int, border: int) -> NDArray[Any]:
    """`picture` read at (x, y) positions, [.., .., 2]."""
    x, y = np.ascontiguousarray(where[..., 0], np.float32), np.ascontiguousarray(where[..., 1], np.float32)
    return np.asarray(cv2.remap(picture, x, y, interpolation, borderMode=border))


def recolour(rng: np.random.Generator, picture: Image8, warp: Warp) -> Image8:
    """Other light and another camera: gain and bias per channel, one gamma."""
    x = picture.astype(np.float32) / 255
    x = x ** np.float32(np.exp(rng.uniform(-warp.gamma, warp.gamma)))
    gain = 1 + rng.uniform(-warp.gain, warp.gain, 3).astype(np.float32)
    bias = rng.uniform(-warp.bias, warp.bias, 3).astype(np.float32)
    return np.asarray(np.clip((x * gain + bias) * 255 + 0.5, 0, 255), np.uint8)
