"""Patient-disjoint folds and splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from training.data.films import Film


class Split(NamedTuple):
    """Patient-disjoint lists of films.

    `validation` decides early stopping; `test` is only ever reported.
    """

    train: list[Film]
    validation: list[Film]
    test: list[Film]


def patient_folds(films: Iterable[Film], count: int) -> dict[str, int]:
    """Deal the patients of trusted films to folds, with the films of each kind of patient spread evenly.

    Patients go in the order of a hash of their id, those with a trusted positive first, then those with an expert's
    negative, then the others, each to the fold that has the fewest films of that stratum so far: deterministic,
    whatever the order of the films.

    Returns
    -------
    dict of str to int
        Fold of each patient with a trusted film.

    Raises
    ------
    ValueError
        A trusted film has no patient id.
    """
    owned: dict[str, list[Film]] = defaultdict(list)
    for film in films:
        if film.trusted:
            if not film.patient:
                raise ValueError(f"{film.image} is trusted but has no patient id: it could not be split by patient")
            owned[film.patient].append(film)
    folds: dict[str, int] = {}
    for wanted in range(3):
        filled = [0] * count
        for patient in sorted((patient for patient, own in owned.items() if _stratum(own) == wanted), key=_hash):
            fold = filled.index(min(filled))
            folds[patient] = fold
            filled[fold] += len(owned[patient])
    return folds


def split_films(films: Sequence[Film], *, folds: int, validate: int | None = None, test: int | None = None) -> Split:
    """Split films by patient: the trusted films of one fold validate, those of another test, all else trains.

    Every film of a held-out patient leaves training, whoever labelled it. Films without a patient id stay in
    training; see `training.data.duplicates`.

    Parameters
    ----------
    films : sequence of Film
        All films.
    folds : int
        Folds the patients are dealt to.
    validate, test : int or None
        The fold held out for each purpose; None holds out none.

    Raises
    ------
    ValueError
        One fold cannot both validate and test, and there are no more than `folds`.
    """
    if validate is not None and validate == test:
        raise ValueError(f"fold {test} cannot both validate and test")
    if any(fold is not None and not 0 <= fold < folds for fold in (validate, test)):
        raise ValueError(f"there are folds 0 to {folds - 1}")
    fold_of = patient_folds(films, folds)

    def held(fold: int | None) -> list[Film]:
        return [film for film in films if film.trusted and fold is not None and fold_of[film.patient] == fold]

    out = {patient for patient, fold in fold_of.items() if fold in (validate, test)}
    return Split([film for film in films if film.patient not in out], held(validate), held(test))


def paper_split(
    films: Sequence[Film], *, train: int = 722, validation: int = 90, test: int = 91, seed: int = 0
) -> Split:
    """Draw a balanced, patient-disjoint split of the size of ClaSegNet's (Zhao et al., C-MIMI 2018).

    Films are drawn one by one in the order of a hash, positives first. A patient belongs to the part his first film
    was drawn for: the one with the largest share of its need yet open. Labels count whoever gave them, as they did
    in the paper, which took the text-mined ones. Films beyond the counts and films without a patient id are in no
    part. The paper does not publish its lists, so its size and balance are kept, not its films.

    Parameters
    ----------
    films : sequence of Film
        All films, in any order: the draw depends on their names alone.
    train, validation, test : int
        Films of each class in each part.
    seed : int
        Names the draw.

    Raises
    ------
    ValueError
        The films do not suffice; the message says how many of each class are missing in each part.
    """
    need = {"train": train, "validation": validation, "test": test}
    part_of: dict[str, str] = {}
    drawn: dict[str, str] = {}
    missing = []
    known = sorted((film for film in films if film.patient), key=lambda film: _hash(f"{seed} {film.image}"))
    for label, kind in ((1, "pneumothorax"), (0, "non-pneumothorax")):
        open_ = dict(need)
        for film in known:
            if film.label != label:
                continue
            part = part_of.get(film.patient) or max(open_, key=lambda name: open_[name] / max(1, need[name]))
            if open_[part]:
                part_of[film.patient] = part
                drawn[film.image] = part
                open_[part] -= 1
        missing += [f"{part} lacks {count} of {need[part]} {kind} films" for part, count in open_.items() if count]
    if missing:
        raise ValueError(f"too few films of known patients for this split: {'; '.join(missing)}")
    return Split(*([film for film in films if drawn.get(film.image) == part] for part in need))


def describe_split(films: Iterable[Film]) -> str:
    """Say by what a folder's films are split; SIIM-ACR names a patient for every film."""
    return "by film (SIIM-ACR names no patients)" if any(film.origin == "siim" for film in films) else "by patient"


def _stratum(films: Sequence[Film]) -> int:
    """Return 0 for a patient with a positive film, 1 for one an expert labelled, 2 for any other."""
    if any(film.label for film in films):
        return 0
    return 1 if any(film.expert for film in films) else 2


def _hash(text: str) -> str:
    """Return a stable hash to order patients by."""
    return hashlib.sha256(text.encode()).hexdigest()
