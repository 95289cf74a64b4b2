"""A film, who labelled it and how far that is trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far a label is trusted.

    Attributes
    ----------
    draw : float
        Relative rate at which a film of this kind is drawn within its class.
    label : float
        Weight of its label in the loss.
    mask : float
        Weight of its mask as a pixel mask in the loss.
    """

    draw: float
    label: float
    mask: float


EXPERTS = frozenset({"siim", "box", "adjudicated"})
"""Labels given by radiologists and expert panels."""

TRUST = {
    ("siim", 1): Trust(draw=2.0, label=1.0, mask=1.0),
    ("siim", 0): Trust(draw=2.0, label=1.0, mask=1.0),
    ("box", 1): Trust(draw=2.0, label=1.0, mask=0.0),
    ("adjudicated", 1): Trust(draw=2.0, label=1.0, mask=0.0),
    ("adjudicated", 0): Trust(draw=2.0, label=1.0, mask=1.0),
    ("predicted", 1): Trust(draw=1.0, label=0.9, mask=0.7),
    ("predicted", 0): Trust(draw=0.7, label=0.9, mask=0.9),
    ("predicted-doubtful", 1): Trust(draw=0.4, label=0.5, mask=0.4),
    ("made", 1): Trust(draw=0.0, label=0.9, mask=0.9),
    ("nih", 1): Trust(draw=0.3, label=0.5, mask=0.0),
    ("nih", 0): Trust(draw=1.0, label=0.8, mask=0.8),
    ("report", 1): Trust(draw=0.3, label=0.5, mask=0.0),
    ("report", 0): Trust(draw=0.4, label=0.8, mask=0.8),
}
"""Trust by (labelled_by, label). Text-mined positives are wrong a third of the time, hence their low rate."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """One film and what is known of it.

    Attributes
    ----------
    image, mask : str
        Paths from the data folder; an empty mask: there is none.
    rle : tuple of str
        SIIM-ACR's relative run lengths of a mask, where there is no file of it; see `training.data.siim`.
    origin : str
        The set the film came from.
    patient : str
        Patient id; empty where it is not known.
    label : int
        1 pneumothorax, 0 not.
    labelled_by : str
        Source of the label, a key of `TRUST`.
    boxes : tuple of tuple of float
        Radiologists' boxes ``(x, y, width, height)`` in pixels of the image.
    findings : tuple of str
        What the report names, pneumothorax included.
    view, sex : str
        Projection and sex, empty where not known.
    age : float or None
        Years.
    """

    image: str
    mask: str = ""
    rle: tuple[str, ...] = ()
    origin: str
    patient: str
    label: int
    labelled_by: str
    boxes: tuple[Box, ...] = ()
    findings: tuple[str, ...] = ()
    view: str = ""
    sex: str = ""
    age: float | None = None

    @property
    def expert(self) -> bool:
        """Whether a radiologist or an expert panel gave the label."""
        return self.labelled_by in EXPERTS

    @property
    def trusted(self) -> bool:
        """Whether the label may be evaluated on: an expert's, or a report that does not mention the finding."""
        return self.expert or (self.labelled_by == "nih" and not self.label)

    @property
    def has_mask(self) -> bool:
        """Whether the finding is outlined to the pixel."""
        return bool(self.label and (self.mask or self.rle))

    def as_made(self) -> Film:
        """Return this negative as the positive that is made from it."""
        return replace(self, label=1, labelled_by="made", mask=self.image)

    @property
    def trust(self) -> Trust:
        """How far the label is trusted in training."""
        return TRUST[self.labelled_by, self.label]


def describe(films: Sequence[Film]) -> dict[str, int]:
    """Count films by ``labelled_by`` and class, with totals."""
    counts = Counter(f"{film.labelled_by} {'positive' if film.label else 'negative'}" for film in films)
    totals = {"films": len(films), "positive": sum(film.label for film in films)}
    patients = len({film.patient for film in films if film.patient})
    return totals | {"known patients": patients} | dict(sorted(counts.items()))
