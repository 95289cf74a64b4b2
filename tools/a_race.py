"""A race on purpose: threads write the same array.  tools/sanitize.sh checks with it that ThreadSanitizer sees ours."""

import threading

import numpy as np

from ptxsdk import Display, Window
from ptxsdk.ops import preprocess_into

pixels, target = np.zeros((2000, 2000), np.uint8), np.empty((512, 512), np.float32)
display = Display(voi=Window(0, 200))


def write() -> None:
    """Preprocess into the array that the others write."""
    for _ in range(5):
        preprocess_into(target, pixels, display=display, threads=1)


threads = [threading.Thread(target=write) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
