"""Geometry: the one integer mapping between a film's pixels and the network's input, used forward and back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Where a film lies in the network's input.

    The film is scaled to fit with its aspect kept and centred; the rest is padding.  Coordinates are continuous,
    ``x`` right and ``y`` down, with the origin at the outer corner of the first pixel, so pixel ``(row, column)``
    covers ``[column, column + 1) x [row, row + 1)`` and boxes are half-open without any half-pixel offset.

    Attributes
    ----------
    source : tuple of int
        ``(rows, columns)`` of the film.
    target : tuple of int
        ``(rows, columns)`` of the network's input.
    content : tuple of int
        ``(x0, y0, x1, y1)`` of the film in the target, half-open.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    content: tuple[int, int, int, int]

    @classmethod
    def fit(cls, source: tuple[int, int], target: tuple[int, int]) -> Geometry:
        """Scale `source` to fit `target`, aspect kept, centred; every side at least one pixel.

        Integer arithmetic only: the longer side fits exactly, the other is rounded half up.
        """
        rows, columns = source
        height, width = target
        if columns * height >= rows * width:
            content_width = width
            content_height = max(1, (2 * rows * width + columns) // (2 * columns))
        else:
            content_height = height
            content_width = max(1, (2 * columns * height + rows) // (2 * rows))
        x0 = (width - content_width) // 2
        y0 = (height - content_height) // 2
        return cls(source, target, (x0, y0, x0 + content_width, y0 + content_height))

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """Map a target point to the film."""
        x0, y0, x1, y1 = self.content
        return (x - x0) * self.source[1] / (x1 - x0), (y - y0) * self.source[0] / (y1 - y0)

    def to_target(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the film to the target."""
        x0, y0, x1, y1 = self.content
        return x0 + x * (x1 - x0) / self.source[1], y0 + y * (y1 - y0) / self.source[0]
