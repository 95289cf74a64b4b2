"""The sets films come from: name, credit and licence of each."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """What an engine must say of a set it was trained on."""

    name: str
    credit: str
    licence: str


SOURCES = {
    "nih": Source(
        "NIH ChestX-ray14",
        "NIH Clinical Center; Wang et al., ChestX-ray8, CVPR 2017. Boxes by NIH, expert labels by Majkowska et al., "
        "Radiology 2020, masks and radiologist labels of the SIIM-ACR Pneumothorax Segmentation challenge 2019",
        "films: free use with credit and citation; SIIM-ACR masks: research use",
    ),
    "siim": Source(
        "SIIM-ACR Pneumothorax Segmentation 2019",
        "films by the NIH Clinical Center (ChestX-ray14); masks by SIIM and ACR",
        "films: free use with credit and citation; masks: research use",
    ),
    "siim2": Source(
        "SIIM-ACR Pneumothorax Segmentation 2019, stage 2 films",
        "films by the NIH Clinical Center (ChestX-ray14); labels and masks predicted by the ensemble of a team of the "
        "challenge, which the data set does not name",
        "films: free use with credit and citation; predicted masks: research use",
    ),
    "covid-seg": Source(
        "GeneralBlockchain COVID-19 chest X-ray segmentation set",
        "GeneralBlockchain covid-19-chest-xray-segmentations-dataset and the sources of its films",
        "outlines: CC BY 4.0; films: under their own terms",
    ),
}
"""By the name that a film's `origin` has."""


def source_of(origin: str) -> Source:
    """Return the source of an origin; of one not known here, that it must be asked of who trained."""
    return SOURCES.get(origin, Source(origin, "not known to the exporter", "not known to the exporter"))
