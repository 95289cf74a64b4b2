"""Node: films in by DICOM or from a folder, results out to a PACS, nothing accepted ever lost.

``service`` puts the parts together: ``scp`` or ``watcher`` bring films into
the ``store``, ``worker`` scores them, ``sender`` delivers the results, ``web`` shows how it goes.
"""

from __future__ import annotations
