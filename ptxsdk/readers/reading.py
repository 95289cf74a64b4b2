"""Reading: how one film is read: within which limits, until when, and where its codecs run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.deadline import NO_DEADLINE, Deadline
from ptxsdk.errors import InputError
from ptxsdk.readers.limits import DEFAULT_LIMITS, Limits

Array = npt.NDArray[np.generic]
Decode = Literal["helper", "in_process"]


@dataclass(frozen=True)
class Reading:
    """How one film is read.

    Attributes
    ----------
    limits : Limits
        What it may take.
    decode : {"helper", "in_process"}
        Where codecs run: in a supervised process, or here.
    deadline : Deadline
        Of the call that the film belongs to.
    """

    limits: Limits = DEFAULT_LIMITS
    decode: Decode = "helper"
    deadline: Deadline = NO_DEADLINE

    def decoded(self, codec: str, data: bytes | memoryview, *, most: int, **options: Any) -> Array:
        """Run a codec.

        Parameters
        ----------
        codec : str
            One of `decoder.CODECS`.
        data : bytes or memoryview
            The codestream.
        most : int
            Bytes that the image has by its header.
        options
            The codec's own.

        Returns
        -------
        ndarray
            As the codec gives it: shape and dtype are the caller's to check.

        Raises
        ------
        InputError
            ``input.corrupt``, ``input.timeout``, ``input.too_large`` or ``input.decoder``.
        DetectorError
            ``detector.timeout``.
        """
        from ptxsdk.readers import decoder, helper

        self.limits.check_memory(memoryview(data).nbytes + most)
        self.deadline.check()
        if self.decode == "helper":
            return helper.decode(codec, data, options, most=most, limits=self.limits, deadline=self.deadline)
        try:
            pixels: Array = decoder.run_codec(codec, data, options)
        except MemoryError:
            raise InputError("input.too_large", "the codec found not enough memory") from None
        except decoder.ERRORS as error:
            raise InputError("input.corrupt", f"the decoder refused the codestream: {str(error)[:200]}") from None
        return pixels


DEFAULT_READING = Reading()
