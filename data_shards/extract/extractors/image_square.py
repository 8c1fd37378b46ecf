"""The square of a picture that has a face in it."""

from __future__ import annotations

import numpy as np

MARGIN = 1.5  # side of the square around a face, in sides of the square around its landmarks


def square_around(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The square around a face, black where it reaches beyond the picture.

    Args:
        pixels: (H, W, 3) uint8.
        landmarks: (68, 2), columns and lines in pixels.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    side = max(8, round(MARGIN * float((high - low).max())))
    left, top = np.round((low + high) / 2 - side / 2).astype(int)
    square = np.zeros((side, side, 3), np.uint8)
    height, width = pixels.shape[:2]
    seen = pixels[max(top, 0) : min(top + side, height), max(left, 0) : min(left + side, width)]
    row, column = max(-top, 0), max(-left, 0)
    square[row : row + seen.shape[0], column : column + seen.shape[1]] = seen
    return square
