"""Stimuli given in Python: paths, folders, globs, pictures in memory, or captions."""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from xact.disk.digest import FileStamp
from xact.disk.paths import expand_path
from xact.errors import RequestError
from xact.labels import Kind, SourceRow, StimulusTable
from xact.stimuli.decode import list_suffixes, load_picture
from xact.stimuli.files_on_disk import read_file, stamp_file

GivenPicture = str | os.PathLike[str] | np.ndarray | Image.Image
"""A path, folder or glob; uint8 pixels (height, width[, 3 or 4]); or a picture of Pillow."""

WANTED = "a picture is a path, a picture of PIL, or a uint8 array (height, width), (height, width, 3) or (…, 4)"
GLOB = re.compile(r"[*?\[]")
PNG_MODES = {"1": "1", "L": "L", "LA": "LA", "P": "P", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16"}
PNG_MODES |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}
PNG_MODES |= dict.fromkeys(("I;16B", "I;16L", "I;16N"), "I;16")
"""{mode of a picture: mode in which PNG keeps it}."""

ORIENTATION = 0x0112
"""Tag of EXIF: how a picture must be turned."""


@dataclass(frozen=True)
class GivenPictures:
    """Pictures in files or in memory."""

    pictures: Sequence[Path | np.ndarray | Image.Image]
    table: StimulusTable
    location: str = "the images given"
    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size and time of a file; a picture in memory has no time."""
        picture = self.pictures[row]
        if isinstance(picture, np.ndarray):
            return FileStamp(picture.nbytes, 0)
        if isinstance(picture, Image.Image):
            return FileStamp(picture.width * picture.height, 0)
        return stamp_file(picture, name=str(picture))

    def read(self, row: SourceRow) -> bytes | np.ndarray:
        """Return a file's bytes, RGB or grey pixels, or what a file of a picture in memory would hold."""
        picture = self.pictures[row]
        if isinstance(picture, Path):
            return read_file(picture, name=str(picture))
        if isinstance(picture, Image.Image):
            with self._loading:  # a picture that Pillow has opened reads its file once, in one thread
                load_picture(picture, name=f"stimulus {row}")
            return encode_picture(picture)
        return encode_picture(Image.fromarray(picture)) if picture.ndim == 3 and picture.shape[2] == 4 else picture

    def close(self) -> None:
        """Do nothing: no file stays open."""


@dataclass(frozen=True)
class GivenCaptions:
    """Captions in memory."""

    captions: Sequence[str]
    table: StimulusTable
    location: str = "the captions given"
    kind: ClassVar[Kind] = "text"
    n_replicates: ClassVar[int] = 1

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size of a text, which has no time."""
        return FileStamp(len(self.read(row)), 0)

    def read(self, row: SourceRow) -> bytes:
        """Return a text as UTF-8."""
        return self.captions[row].encode()

    def close(self) -> None:
        """Do nothing: no file stays open."""


def list_given(stimuli: object) -> list[object]:
    """Return the given stimuli as a list; a single path, caption or picture of Pillow is a list of one."""
    if isinstance(stimuli, str | os.PathLike | Image.Image):
        return [stimuli]
    if isinstance(stimuli, np.ndarray) and stimuli.ndim < 4 and stimuli.dtype.kind not in "UO":
        raise RequestError(
            f"an array of shape {stimuli.shape} may be a picture or several", hint="give a list of arrays: [picture]"
        )
    if not isinstance(stimuli, Iterable) or isinstance(stimuli, bytes | Mapping):
        raise RequestError(
            f"xact.extract: stimuli: a path, or a list of pictures or captions, is wanted, found a "
            f"{type(stimuli).__name__}"
        )
    return list(stimuli)


def open_captions(listed: Sequence[object], *, model: str) -> GivenCaptions:
    """Return the captions of a language model."""
    _check_any(listed)
    captions = []
    for i, one in enumerate(listed):
        if not isinstance(one, str):
            raise RequestError(
                f"stimulus {i} is {_name(one)}; model {model!r} is a language model: its stimuli are captions, each a "
                "str"
            )
        captions.append(one)
    ids = [f"{i:05d}" for i in range(len(captions))]
    return GivenCaptions(captions, StimulusTable(ids, ["all"] * len(ids), ids, [""] * len(ids)))


def open_pictures(listed: Sequence[object]) -> GivenPictures:
    """Return pictures; folders and globs become their files. A path is labelled by itself without its extension.

    A picture in memory is labelled by its position, in five digits.
    """
    _check_any(listed)
    pictures = [picture for i, one in enumerate(listed) for picture in _find_pictures(i, one)]
    files = [str(one) if isinstance(one, Path) else "" for one in pictures]
    ids = [str(Path(file).with_suffix("")) if file else f"{i:05d}" for i, file in enumerate(files)]
    return GivenPictures(pictures, StimulusTable(ids, ["all"] * len(ids), [Path(one).name for one in ids], files))


def _check_any(listed: Sequence[object]) -> None:
    if not listed:
        raise RequestError("xact.extract: no stimuli are given", hint="a generator gives its items once: make it anew")


def _find_pictures(i: int, given: object) -> Iterator[Path | np.ndarray | Image.Image]:
    """Yield the pictures that one given stimulus stands for; RequestError if it is none."""
    if isinstance(given, str | os.PathLike):
        yield from _find_files(i, os.fsdecode(given))
    elif isinstance(given, np.ndarray):
        is_picture = given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))
        if not is_picture or given.dtype != np.uint8 or 0 in given.shape:
            raise RequestError(
                f"stimulus {i} is an array of shape {given.shape} and type {given.dtype}", hint=f"{WANTED}"
            )
        yield given
    elif isinstance(given, Image.Image):
        _check_picture(i, given)
        yield given
    else:
        raise RequestError(f"stimulus {i} is {_name(given)}", hint=WANTED)


def _name(given: object) -> str:
    """Return `a str` or `an int`: the type of what was given."""
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _find_files(i: int, text: str) -> list[Path]:
    """Return the file of a path, the pictures in a folder, or the files that a glob matches, sorted."""
    path = expand_path(text)
    if os.path.isdir(path):  # noqa: PTH112  pathlib raises an error for a folder without permission
        return _list_folder(i, path)
    if not GLOB.search(text) or os.path.lexists(path):
        return [path]
    matched = (Path(one) for one in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207  the path may be absolute
    files = [one for one in matched if not one.is_dir()]
    if not files:
        raise RequestError(
            f"stimulus {i} is the glob {text!r}, which no file matches",
            hint="`*` is any text in a name, `**` any folders; a name may need upper or lower case",
        )
    return files


def _list_folder(i: int, folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted by name, without hidden files and without the folders in it."""
    suffixes = list_suffixes()
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError as error:
        raise RequestError(
            f"stimulus {i} is the folder {str(folder)!r}, which cannot be listed: {error.strerror}"
        ) from None
    found = [folder / one for one in names if not one.startswith(".") and Path(one).suffix.lower() in suffixes]
    if not found:
        raise RequestError(
            f"stimulus {i} is the folder {str(folder)!r}, which has no pictures",
            hint=f"pictures end in {', '.join(sorted(suffixes))}; {str(folder / '**' / '*.png')!r} looks deeper",
        )
    return found


def _check_picture(i: int, picture: Image.Image) -> None:
    """Refuse a picture of Pillow whose pixels or frames have no single meaning, as a file with them is refused."""
    if picture.mode not in PNG_MODES and picture.mode != "CMYK":
        raise RequestError(
            f"stimulus {i} is a picture of PIL with the mode {picture.mode!r}",
            hint="convert it to 8-bit RGB the way you mean it: picture.convert('RGB')",
        )
    if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a JPEG with a preview behind it
        raise RequestError(
            f"stimulus {i} is a picture of PIL with more than one frame", hint="picture.copy() is the present frame"
        )


def encode_picture(picture: Image.Image) -> bytes:
    """Return a loaded picture as the bytes of a file without loss, so that it goes the way of all files."""
    orientation = picture.getexif().get(ORIENTATION)
    mode = PNG_MODES.get(picture.mode)
    if mode == "I;16":  # Pillow converts no byte order
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    elif mode is not None and mode != picture.mode:
        picture = picture.convert(mode)
    options = {} if orientation is None else {"exif": Image.Exif()}
    for exif in options.values():
        exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode is None else "PNG", **({"compress_level": 1} if mode else {}), **options)
    return buffer.getvalue()
