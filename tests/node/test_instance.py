"""Which object a file is: learnt from its head, whatever the rest of it would take."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from dicom_files import content, dataset
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ptxsdk.errors import InputError
from ptxsdk.node.instance import instance_uid

SYNTAXES = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def deflated(body, most=None):
    """A file with this deflated data set, or the first bytes of it."""
    file = content(dataset(), DeflatedExplicitVRLittleEndian)
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return file[: 144 + struct.unpack_from("<L", file, 140)[0]] + (machine.compress(body) + machine.flush())[:most]


def uid(value=b"1.2.3.4\0"):
    return struct.pack("<HH2sH", 8, 0x18, b"UI", len(value)) + value


def large(tag, size):
    return struct.pack("<HH2sHL", *tag, b"OB", 0, size) + bytes(size)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_it_is_found_in_every_syntax(syntax):
    assert instance_uid(content(dataset(), syntax)) == "1.2.3.4"


@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_before_it_are_passed_over(undefined):
    ds, item = dataset(), Dataset()
    item.CodeValue, item.SOPInstanceUID = "en", "1.2.3.4.5"
    item.EquivalentCodeSequence = [Dataset()]
    item.EquivalentCodeSequence[0].SOPInstanceUID = "1.2.3.4.6"
    ds.LanguageCodeSequence = [item, item]
    for sequence in (ds["LanguageCodeSequence"], item["EquivalentCodeSequence"]):
        sequence.is_undefined_length = undefined
        for one in sequence.value:
            one.is_undefined_length_sequence_item = undefined
    file = content(ds, DeflatedExplicitVRLittleEndian)
    assert instance_uid(file) == "1.2.3.4"


@pytest.mark.requirement("R-NODE-2")
def test_a_deflated_data_set_is_not_inflated_for_it():
    file = deflated(uid() + large((0x7FE0, 0x10), 100 << 20))
    assert len(file) < 1 << 20
    tracemalloc.start()
    try:
        assert instance_uid(file) == "1.2.3.4"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        large((0x7FE0, 0x10), 8),
        large((0x0009, 0x1001), 1 << 16) + uid(),  # too far behind
        struct.pack("<HH2sHL", 8, 6, b"SQ", 0, 0xFFFFFFFF) + uid(),  # inside of something that has no end
        large((0x0009, 0x1001), (1 << 16) - 12 - 8 - 4) + uid(),  # cut to 1.2.
        uid(b"\xff\xff"),
    ],
)
def test_a_deflated_data_set_that_does_not_say_it_is_not_understood(body):
    with pytest.raises(InputError):
        instance_uid(deflated(body))


@pytest.mark.parametrize("most", [0, 10])
def test_a_deflated_data_set_cut_short_before_it_is_not_understood(most):
    with pytest.raises(InputError):
        instance_uid(deflated(uid(), most))


def test_what_is_not_deflated_is_not_understood():
    with pytest.raises(InputError) as raised:
        instance_uid(deflated(b"")[:-2] + b"\xff" * 100)
    assert raised.value.code == "input.corrupt"
