"""Keep decoded pictures between the networks of a build, so that each picture is read and decoded once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xact.disk.digest import FileStamp
from xact.labels import SourceRow

if TYPE_CHECKING:
    from PIL import Image

PictureKey = tuple[SourceRow, str]
"""(row in the source, colour of transparent pixels)."""


@dataclass(frozen=True)
class KeptPicture:
    """A decoded picture: RGB, upright, without a border."""

    stamp: FileStamp
    """State of its file when it was read."""
    sha256: str
    size: tuple[int, int]
    pixels: bytes

    def make_picture(self) -> Image.Image:
        """Return the picture. It is new each time: a transform may write into it."""
        from PIL import Image

        return Image.frombytes("RGB", self.size, self.pixels)


class PictureCache:
    """Decoded pictures up to a bound; many threads use it.

    The first pictures stay. Each network reads all of them in the same order: if later ones took the place of the
    first, none would be there when it is asked for again.
    """

    def __init__(self, nbytes: int) -> None:
        self._n_free = nbytes
        self._kept: dict[PictureKey, KeptPicture] = {}
        self._lock = threading.Lock()

    def find(self, key: PictureKey, stamp: FileStamp) -> KeptPicture | None:
        """Return a picture whose file has not changed since it was read; otherwise None."""
        kept = self._kept.get(key)
        return kept if kept is not None and kept.stamp == stamp else None

    def keep(self, key: PictureKey, picture: Image.Image, stamp: FileStamp, sha256: str) -> None:
        """Keep a picture if there is room. A picture without a file is left out: no time shows that it changed."""
        nbytes = 3 * picture.width * picture.height
        if not stamp.mtime_ns or nbytes > self._n_free:  # looked at again below: copying the pixels takes time
            return
        kept = KeptPicture(stamp, sha256, picture.size, picture.tobytes())
        with self._lock:
            old = self._kept.pop(key, None)
            self._n_free += 0 if old is None else len(old.pixels)
            if nbytes <= self._n_free:
                self._kept[key] = kept
                self._n_free -= nbytes
