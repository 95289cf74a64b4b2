"""Outline: a region's outline as the point list that DICOM annotations hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import Region

_MOST_POINTS = 8191  # of two FL values each, in the 16-bit length that Explicit VR has for FL


def closed_outline(region: Region) -> npt.NDArray[np.float64]:
    """Return the outline, closed.

    An outline of more than 8190 points is thinned (Douglas and Peucker), to within as few pixels as bring it below.

    Parameters
    ----------
    region : Region
        With its outline.

    Returns
    -------
    ndarray, shape (n, 2), float64
        ``(x, y)`` in pixels of the film, origin at the outer corner of the first one, as PS3.3 C.10.5 and C.18.6 have
        it; the last point is the first.
    """
    import cv2

    points = np.array(region.outline, np.float64)
    tolerance = 0.25
    thinned = points
    while len(thinned) >= _MOST_POINTS:
        thinned = cv2.approxPolyDP(points.astype(np.float32), tolerance, closed=True)[:, 0].astype(np.float64)
        tolerance *= 1.25
    return np.vstack([thinned, thinned[:1]])
