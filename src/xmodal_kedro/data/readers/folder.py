"""A folder of images with a captions file, with `name.txt` captions beside the images, or with no texts at all."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from xmodal_kedro.data.paths import IMAGE_SUFFIXES
from xmodal_kedro.data.readers.jsonl import read_jsonl
from xmodal_kedro.data.readers.registry import reads
from xmodal_kedro.data.readers.rows import RawRows, Reading, SourceError
from xmodal_kedro.data.readers.table import read_table
from xmodal_kedro.data.text_files import EncodingError, decode, split_lines


@reads("folder")
def read_folder(reading: Reading) -> RawRows:
    """Read a folder of images, nested folders too.

    With `file` (CSV, TSV, TXT with a header, or JSONL) the file says which images belong and what they show. Without
    it, every line of a `name.txt` beside `name.jpg` is a caption; where no image has one, the folder is a gallery
    without texts. Hidden files and folders are passed over, symlinked folders are not entered.

    Raises:
        SourceError: No such file or column, or a train folder without captions.
    """
    source = reading.source
    if source.file is not None:
        return read_jsonl(reading) if source.file.lower().endswith((".jsonl", ".json")) else read_table(reading)
    folder = posixpath.normpath(str(source.images))
    names, texts = _walk(reading.root / folder)
    captions = {name: text for name in names if (text := f"{posixpath.splitext(name)[0]}.txt") in texts}
    gallery = not captions
    if gallery and source.split in ("train", "dev"):
        raise SourceError(
            f"{reading.key}: the images of {folder} have no captions, and split '{source.split}' needs them. "
            "Set 'file', or put a name.txt beside each image."
        )
    columns = source.columns.model_copy(update={"image_id": None, "text_id": None, "attributes": None, "group": None})
    if gallery:
        columns = columns.model_copy(update={"text": None})
    rows = RawRows(source.model_copy(update={"columns": columns}), folder)
    for number, name in enumerate(names, start=1):
        if name not in captions:
            rows.add(number, {"image": name}, [])
            continue
        file = posixpath.normpath(posixpath.join(folder, captions[name]))
        refused = reading.tree.find(file).reason
        if refused is not None:
            rows.reject(number, file, refused.replace("image", "captions file"))
            continue
        try:
            lines = split_lines(decode((reading.root / file).read_bytes(), source.encoding))
        except (EncodingError, OSError) as error:
            rows.reject(number, file, f"captions file {getattr(error, 'strerror', None) or error}")
            continue
        filled = [(line, text) for line, text in enumerate(lines, start=1) if text.strip()]
        for line, text in filled or [(1, "")]:
            rows.add(line, {"image": name}, [text], file=file)
    return rows


def _walk(folder: Path) -> tuple[list[str], set[str]]:
    """Image files, sorted, and `.txt` files below a folder, relative to it, POSIX."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = Path(place).relative_to(folder).as_posix()
        found += [posixpath.normpath(posixpath.join(below, name)) for name in files if not name.startswith(".")]
    images = sorted(name for name in found if name.lower().endswith(IMAGE_SUFFIXES))
    return images, {name for name in found if name.endswith(".txt")}
