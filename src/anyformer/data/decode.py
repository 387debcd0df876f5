"""From a picture file to pixels: the one way, for training and for prediction alike.

A file is untrusted. Only five formats are tried, whatever the file is called; sizes are checked before anything is
decoded; and every failure becomes one sentence that names the file and what to do with it.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from anyformer.core.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # the limit that Pillow warns at; here it is a refusal
NEEDS_PILLOW = 'reading pictures needs Pillow: pip install "anyformer[fit]"'


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """The pixels of one picture: its centre square, brought to ``size`` by bicubic interpolation.

    The shorter side sets the scale and the longer one is cropped about its centre. The camera's orientation is
    applied, transparency lies over white, 16-bit grey is scaled to 8 bits. A picture of one frame only is taken.

    Args:
        path: The file; its name does not matter, its content does.
        size: Side of the result in pixels.
        channels: 1 for grey (ITU-R 601 luma), 3 for red, green and blue.

    Returns:
        Array ``(channels, size, size)`` of uint8.

    Raises:
        UsageError: The file cannot be read as one picture of at most ``MAX_PIXELS`` pixels.
    """
    with _opened(path) as image:
        orientation = image.getexif().get(0x0112, 1)
        image.draft(None, (2 * size, 2 * size))  # a JPEG is decoded no larger than needed; other formats ignore this
        return _square(_flat(image), orientation, size, channels)


def probe(path: Path) -> tuple[int, bool]:
    """The shorter side of a picture in pixels and whether its file stores grey only, from its header alone.

    Raises:
        UsageError: The file cannot be read as one picture of at most ``MAX_PIXELS`` pixels.
    """
    with _opened(path) as image:
        return min(image.size), image.mode in ("1", "L") or image.mode.startswith("I;16")


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """A uint8 array as ``decode`` would give it.

    Args:
        pixels: ``(height, width)``, or ``(height, width, channels)`` with 1 or 3 channels.
        size: Side of the result in pixels.

    Returns:
        Array ``(channels, size, size)`` of uint8.

    Raises:
        UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(NEEDS_PILLOW) from None

    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return _square(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels), 1, size, channels)


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """The picture with only its header read; what fails inside the block is told as one sentence."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError(NEEDS_PILLOW) from None

    try:
        with regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                # A camera's JPEG may carry a preview as a second frame (MPO): its first frame is the picture.
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise UsageError(f"{path} has several frames; save the one that you mean as a PNG, or remove it")
                yield image
    except UsageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller or remove it") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not a readable {_known()} picture; convert it to PNG or remove it") from None
    except Exception as error:  # on damaged data the decoders fail in a dozen ways
        raise UsageError(f"{path} is damaged or cut short ({reason(error)}); replace it or remove it") from None


def reason(error: Exception) -> str:
    """What a reader of others says of damaged data, as a part of a sentence: its first line, without control characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(character if character.isprintable() else "?" for character in line[:200])


def _known() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


@contextmanager
def regular(path: Path) -> Iterator[BinaryIO]:
    """The file opened for reading, unless it is a device, a pipe or a folder, which could block or never end.

    Raises:
        UsageError: It is one of these, or empty, or the system refuses.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is a device or a pipe, not a file; remove it")
            if status.st_size == 0:
                raise UsageError(f"{path} is empty; replace it or remove it")
            yield file
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a picture; name a file") from None
    except OSError as error:
        if error.errno is None:  # of a decoder, not of the system
            raise
        raise UsageError(f"{path} cannot be read ({error.strerror}); check its name and permissions") from None


def _flat(image: "Image") -> "Image":
    """The picture in 8-bit grey or 8-bit red, green and blue."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))  # 65535 becomes 255
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _square(image: "Image", orientation: int, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    turns = Image.Transpose
    upright = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    if upright is not None:
        image = image.transpose(upright)
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    # Crop and resize in one step, so that a very long picture is never enlarged as a whole.
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    # Grey is taken last: a picture whose red, green and blue agree gives the same pixels with one channel and three.
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
