"""ptxsdk finds pneumothorax on frontal chest radiographs and shows where it is.

This module is the only supported import point.  Importing it loads numpy and nothing heavier; what a call needs
loads when it is called.  Research and integration use only: not a medical device.
"""

import logging

from ptxsdk.audit import AuditChain, AuditFile, Head
from ptxsdk.detection import Check, Detection, EngineId, OperatingPoint, Quality, Region, Timings
from ptxsdk.detector import Detector
from ptxsdk.engine import Engine
from ptxsdk.errors import (
    CODES,
    AuditError,
    BackendError,
    BuildError,
    DetectorError,
    EngineError,
    InputError,
    NodeError,
    OutOfScope,
    PtxsdkError,
    WriterError,
)
from ptxsdk.gate import GatePolicy
from ptxsdk.geometry import Geometry
from ptxsdk.radiograph import Display, LookupTable, Radiograph, Window
from ptxsdk.readers import read
from ptxsdk.readers.limits import Limits
from ptxsdk.rollback import RollbackCounter, RollbackFile
from ptxsdk.writers import dicom_objects, write_dicom

__version__ = "0.1.0"

__all__ = [
    "CODES",
    "AuditChain",
    "AuditError",
    "AuditFile",
    "BackendError",
    "BuildError",
    "Check",
    "Detection",
    "Detector",
    "DetectorError",
    "Display",
    "Engine",
    "EngineError",
    "EngineId",
    "GatePolicy",
    "Geometry",
    "Head",
    "InputError",
    "Limits",
    "LookupTable",
    "NodeError",
    "OperatingPoint",
    "OutOfScope",
    "PtxsdkError",
    "Quality",
    "Radiograph",
    "Region",
    "RollbackCounter",
    "RollbackFile",
    "Timings",
    "Window",
    "WriterError",
    "__version__",
    "dicom_objects",
    "read",
    "write_dicom",
]

logging.getLogger("ptxsdk").addHandler(logging.NullHandler())
