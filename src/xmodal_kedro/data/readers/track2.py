"""Lines `image$attributes$text` of the CVPR 2023 challenge, track 2 (traffic retrieval)."""

from __future__ import annotations

from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import RawRows, Reading
from xmodal_kedro.data.text_files import split_lines

PEDESTRIAN_BITS = 21


@reads("track2")
def read_track2(reading: Reading) -> RawRows:
    """Read label lines; image names may lack their suffix, as the challenge's README prints them.

    Raises:
        SourceError: No such file.
    """
    rows = RawRows(reading.source, str(reading.source.file))
    for number, line in enumerate(split_lines(reading.text()), start=1):
        if not line.strip():
            continue
        fields = line.split("$")
        if len(fields) != 3:
            rows.reject(number, line.strip()[:80], "line has not the three fields image$attributes$text")
            continue
        image, attributes, text = fields
        rows.add(number, {"image": image, "attributes": attributes}, [text])
    return rows


def group_of_attributes(attributes: str) -> str:
    """Group of a labelled row by the test every participant used: 21 comma fields are a pedestrian's bits."""
    return "pedestrian" if len(attributes.split(",")) == PEDESTRIAN_BITS else "vehicle"
