"""Codes: the concepts that DICOM results are expressed in, standard ones and our own.

A film above the threshold is "flagged"; below it is "not flagged".  Neither is the presence or the absence of a
finding, for which the standard has codes (SCT 52101004 Present, 2667000 Absent; RadLex RID28472, RID28473): a reader of
such a code would take a score for a reading.  So the flag has codes of its own, in the private scheme 99PTXSDK.
"""

from __future__ import annotations

from typing import Literal

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SCHEME = "99PTXSDK"

PNEUMOTHORAX = codes.SCT.Pneumothorax
LUNG = codes.SCT.Lung
SIDES: dict[Literal["left", "right"], Code] = {"left": codes.SCT.Left, "right": codes.SCT.Right}
AREA = codes.SCT.Area
PROBABILITY = codes.DCM.Probability

FLAG = Code("PTX-FLAG", SCHEME, "Flag for pneumothorax")
FLAGGED = Code("PTX-FLAGGED", SCHEME, "Flagged")
NOT_FLAGGED = Code("PTX-NOT-FLAGGED", SCHEME, "Not flagged (rules nothing out)")
THRESHOLD = Code("PTX-THRESHOLD", SCHEME, "Threshold of the operating point")
MAP_PEAK = Code("PTX-MAP-PEAK", SCHEME, "Highest value of the map, not calibrated")
MAP_MEAN = Code("PTX-MAP-MEAN", SCHEME, "Mean value of the map, not calibrated")

PIXELS = Code("{pixels}", "UCUM", "pixels")
