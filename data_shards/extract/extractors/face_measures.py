"""What 68 landmarks of a face say: where the head is and how it is turned, how eyes, brows and
mouth stand, and where every landmark lies on a face of unit size.

Landmarks are numbered as in iBUG 300-W, from 0: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47,
outer lips 48-59, inner lips 60-67. "Left" is left in the picture.
"""

from __future__ import annotations

import numpy as np

LANDMARKS = 68
POSE = ("yaw", "pitch", "roll", "x", "y", "size")
MEASURES = (
    "left eye",
    "right eye",
    "left brow",
    "right brow",
    "between brows",
    "mouth width",
    "lips apart",
    "mouth open",
    "corners up",
    "chin",
)
WIDTH = 1 + 2 * (len(POSE) + len(MEASURES)) + 2 * LANDMARKS

# A head of usual proportions, in millimetres from the tip of the nose: right in the picture, up,
# towards the viewer.
_HEAD = {
    30: (0.0, 0.0, 0.0),  # tip of the nose
    8: (0.0, -66.0, -13.0),  # chin
    36: (-45.0, 34.0, -27.0),  # outer corners of the eyes
    45: (45.0, 34.0, -27.0),
    39: (-17.0, 33.0, -23.0),  # inner corners of the eyes
    42: (17.0, 33.0, -23.0),
    48: (-29.0, -29.0, -25.0),  # corners of the mouth
    54: (29.0, -29.0, -25.0),
}
_HEAD_POINTS = list(_HEAD)
# least squares: what turns points of the picture into the two rows of a scaled rotation
_TO_ROTATION = np.linalg.pinv(
    np.array(list(_HEAD.values())) - np.mean(list(_HEAD.values()), axis=0)
)


def describe(landmarks: np.ndarray, picture_size: tuple[int, int]) -> np.ndarray:
    """Pose, measures and normalised landmarks of a face.

    Args:
        landmarks: (68, 2) float64, pixels to the right and down.
        picture_size: height and width.

    Returns:
        (6 + 10 + 136,) float64: angles in radians; the place of the face from the middle of the
        picture in heights of the picture; the rest in distances between the eyes' middles.
    """
    height, width = picture_size
    left, right = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    middle = (left + right) / 2
    distance = max(float(np.hypot(*(right - left))), 1.0)
    pose = [
        *head_angles(landmarks),
        (middle[0] - width / 2) / height,
        (middle[1] - height / 2) / height,
        np.log(distance / height),
    ]
    normal = normalised(landmarks, middle, right - left, distance)
    return np.concatenate([pose, measures(normal), normal.reshape(-1)])


def head_angles(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Yaw (to the right of the picture), pitch (up) and roll (counter-clockwise) in radians.

    By a scaled orthographic projection (DeMenthon and Davis, Model-Based Object Pose in 25 Lines of
    Code, IJCV 1995, without the iteration).
    """
    points = landmarks[_HEAD_POINTS] * (1.0, -1.0)
    rows = (_TO_ROTATION @ (points - points.mean(axis=0))).T  # (2, 3)
    across = rows[0] / max(float(np.linalg.norm(rows[0])), 1e-9)
    upwards = rows[1] - (rows[1] @ across) * across
    upwards /= max(float(np.linalg.norm(upwards)), 1e-9)
    outwards = np.cross(across, upwards)
    yaw = np.arctan2(across[2], outwards[2])
    pitch = np.arctan2(upwards[2], outwards[2])
    roll = np.arctan2(upwards[0], across[0])
    return float(yaw), float(pitch), float(roll)


def normalised(
    landmarks: np.ndarray, middle: np.ndarray, eye_line: np.ndarray, distance: float
) -> np.ndarray:
    """Landmarks (68, 2) from the middle between the eyes, along the line through them and down,
    in distances between the eyes."""
    along = eye_line / distance
    downwards = np.array([-along[1], along[0]])
    centred = (landmarks - middle) / distance
    return np.stack([centred @ along, centred @ downwards], axis=1)


def measures(normal: np.ndarray) -> np.ndarray:
    """The ten ``MEASURES`` of normalised landmarks (68, 2)."""

    def apart(first: int, second: int) -> float:
        return float(np.hypot(*(normal[first] - normal[second])))

    def eye_opening(first: int) -> float:
        lids = apart(first + 1, first + 5) + apart(first + 2, first + 4)
        return lids / max(2 * apart(first, first + 3), 1e-9)

    def brow_height(brow: slice, eye: slice) -> float:
        return float(normal[eye, 1].mean() - normal[brow, 1].mean())

    lips = (normal[51, 1] + normal[57, 1]) / 2
    corners = (normal[48, 1] + normal[54, 1]) / 2
    return np.array(
        [
            eye_opening(36),
            eye_opening(42),
            brow_height(slice(17, 22), slice(36, 42)),
            brow_height(slice(22, 27), slice(42, 48)),
            apart(21, 22),
            apart(48, 54),
            apart(51, 57),
            apart(62, 66),
            float(lips - corners),
            apart(33, 8),
        ]
    )
