"""Characters drawn from the text fonts that matplotlib ships: as many labelled pictures as are asked for, without a download.

The fonts of the test part are of other families than those of the training part, so a model must have learnt the
character and not the typeface. Validation pictures, taken from the training part, share its fonts. A picture is a pure
function of the seed, its part, its character and its number: a larger set begins with the smaller one.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.decode import NEEDS_PILLOW
from anyformer.data.imageset import ImageSet
from anyformer.data.pixels import gather
from anyformer.data.reading import check_size
from anyformer.data.seeds import derive_seed
from anyformer.data.split import FRACTIONS

LEAST, MOST = 3, 10_000  # pictures a class


@dataclass(frozen=True)
class Parameters:
    """How pictures are drawn; pairs are ranges of uniform draws, lengths are shares of the side.

    Args:
        characters: The classes, in order.
        train_fonts: Files of the fonts of training and validation pictures.
        test_fonts: Files of the fonts of test pictures, of other families.
        side: Of the pictures in pixels, unless another is asked for.
        height: Of the font.
        degrees: Largest turn to either side.
        shear: Largest slant to either side.
        stretch: Largest natural logarithm of width over height, to either side.
        shift: Largest offset along each axis.
        contrast: Between ink and background, of the range of grey; as often darker as lighter.
        background: Range of the slow changes of the background, as much as that of grey at most.
        cells: Along each axis, between which the background changes.
        noise: Standard deviation of each pixel's own noise, of the range of grey.
        drawing: The version of the code that draws, which is to change with it.
    """

    characters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    train_fonts: tuple[str, ...] = (
        *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf"),
        *("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf"),
        *("cmr10.ttf", "cmb10.ttf", "cmti10.ttf"),
    )
    test_fonts: tuple[str, ...] = (
        *(
            "DejaVuSansMono.ttf",
            "DejaVuSansMono-Bold.ttf",
            "DejaVuSansMono-Oblique.ttf",
            "DejaVuSansMono-BoldOblique.ttf",
        ),
        *("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf"),
        *("cmss10.ttf", "cmtt10.ttf"),
    )
    side: int = 64
    height: tuple[float, float] = (0.45, 0.9)
    degrees: float = 15.0
    shear: float = 0.25
    stretch: float = 0.2
    shift: float = 0.1
    contrast: tuple[float, float] = (0.25, 0.8)
    background: tuple[float, float] = (0.0, 0.5)
    cells: int = 5
    noise: tuple[float, float] = (0.0, 0.12)
    drawing: int = 1

    def digest(self) -> str:
        """SHA-256 of all of it: equal digests mean pictures drawn alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


PARAMETERS = Parameters()


def glyphs(size: int | None = None, *, per_class: int = 300, classes: int = 36, seed: int = 0) -> ImageSet:
    """Characters as grey pictures, divided into training and test parts with fonts of different families.

    Args:
        size: Side in pixels; 64 when absent.
        per_class: Pictures of each character, 15 % of them, at least one, in the test part.
        classes: How many characters: A to Z, then 0 to 9.
        seed: Of every draw.

    Raises:
        UsageError: A number is out of range, or Pillow or matplotlib is not installed.
    """
    check_size(size)
    side = size or PARAMETERS.side
    plan = _plan(side, per_class, classes)
    labels = [PARAMETERS.characters.index(character) for _, character, _ in plan]
    identity = f"glyphs {PARAMETERS.digest()} {side} {per_class} {classes} {seed}"
    pixels = gather(
        (len(plan), 1, side, side),
        lambda: (draw(side, part, character, number, seed)[None] for part, character, number in plan),
        lambda: hashlib.sha256(identity.encode()).hexdigest(),
    )
    return ImageSet(
        images=pixels.tensor(),
        labels=torch.tensor(labels),
        classes=tuple(PARAMETERS.characters[:classes]),
        names=tuple(f"{part}/{character}/{number:04d}" for part, character, number in plan),
        given=torch.tensor([2 * (part == "test") for part, _, _ in plan], dtype=torch.int8),
        notes=("the fonts of the test part are of other families than those of training and validation",),
        stored=pixels,
    )


def write(folder: str | Path, *, per_class: int = 300, classes: int = 36, size: int = 64, seed: int = 0) -> int:
    """Writes the pictures of ``glyphs`` as PNG files, ``train/A/0000.png`` and so on, and ``glyphs.json`` about them.

    Args:
        folder: To be made, or empty.
        per_class: As in ``glyphs``.
        classes: As in ``glyphs``.
        size: As in ``glyphs``.
        seed: As in ``glyphs``.

    Returns:
        How many pictures were written.

    Raises:
        UsageError: A number is out of range, the folder holds something, or Pillow or matplotlib is not installed.
        AnyformerError: The disk refuses; nothing is left behind.
    """
    plan = _plan(size, per_class, classes)
    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is there and not empty; name another folder or remove it")
        for part, character, number in plan:
            place = beside / part / character
            place.mkdir(parents=True, exist_ok=True)
            picture = _image().fromarray(draw(size, part, character, number, seed))
            picture.save(place / f"{number:04d}.png")
        about = {"per_class": per_class, "classes": classes, "size": size, "seed": seed, "digest": PARAMETERS.digest()}
        (beside / "glyphs.json").write_text(json.dumps(about | {"parameters": asdict(PARAMETERS)}, indent=1))
        os.replace(beside, folder)
    except OSError as error:
        raise AnyformerError(f"cannot write {folder} ({error.strerror}); free space or name another folder") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return len(plan)


def draw(side: int, part: str, character: str, number: int, seed: int) -> np.ndarray:
    """One picture, ``(side, side)`` of uint8."""
    p = PARAMETERS
    chance = np.random.Generator(np.random.PCG64(derive_seed(seed, "glyph", part, character, number)))

    def between(low: float, high: float) -> float:
        return low + (high - low) * chance.random()

    fonts = p.test_fonts if part == "test" else p.train_fonts
    font = fonts[int(chance.random() * len(fonts))]
    growth = between(*p.height) / p.height[1]
    turn, shear = math.radians(between(-p.degrees, p.degrees)), between(-p.shear, p.shear)
    stretch = math.exp(between(-p.stretch, p.stretch) / 2)
    right, down = (between(-p.shift, p.shift) * side for _ in range(2))
    # From a place in the picture to the place in the drawing that it shows, both about their centres.
    turned = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    slanted = np.array([[1 / stretch, shear], [0, stretch]]) / growth
    ink = _placed(_drawn(character, font, 2 * side), slanted @ turned, (2 * right, 2 * down))
    contrast = between(*p.contrast) * (-1 if chance.random() < 0.5 else 1)
    level = between(max(0.0, -contrast), min(1.0, 1.0 - contrast))  # so that ink, too, is a grey that there is
    cells = chance.random((p.cells, p.cells)) - 0.5
    background = level + between(*p.background) * _smooth(cells, side)
    noise = between(*p.noise) * chance.standard_normal((side, side))
    return np.round(np.clip(background + contrast * ink + noise, 0, 1) * 255).astype(np.uint8)


def _plan(size: int, per_class: int, classes: int) -> list[tuple[str, str, int]]:
    """Part, character and number of every picture."""
    check_size(size)
    if not LEAST <= per_class <= MOST:
        raise UsageError(f"a class of glyphs has {LEAST} to {MOST:,} pictures, not {per_class}")
    if not 2 <= classes <= len(PARAMETERS.characters):
        raise UsageError(f"glyphs have 2 to {len(PARAMETERS.characters)} classes, not {classes}")
    test = max(1, math.floor(per_class * FRACTIONS[2] + 0.5))
    counts = {"train": per_class - test, "test": test}
    return list(_places(counts, PARAMETERS.characters[:classes]))


def _places(counts: dict[str, int], characters: str) -> Iterator[tuple[str, str, int]]:
    for part, count in counts.items():
        for character in characters:
            for number in range(count):
                yield part, character, number


def _placed(drawing: Any, matrix: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """The share of ink ``(side, side)`` of a drawing at twice that size, seen through a matrix about its centre."""
    image, centre = _image(), np.full(2, drawing.width / 2)
    offset = centre - matrix @ (centre + shift)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    placed = drawing.transform(drawing.size, image.Transform.AFFINE, affine, image.Resampling.BICUBIC)
    return np.asarray(placed.reduce(2), np.float64) / 255


@lru_cache(maxsize=1024)
def _drawn(character: str, font: str, side: int) -> Any:
    """A character at the largest height about the middle of ``(side, side)``, white on black."""
    image = _image()
    from PIL import ImageDraw

    canvas = image.new("L", (side, side))
    typeface = _font(font, round(PARAMETERS.height[1] * side))
    left, top, right, bottom = typeface.getbbox(character)
    middle = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(middle, character, fill=255, font=typeface)
    return canvas


def _smooth(cells: np.ndarray, side: int) -> np.ndarray:
    """Values ``(k, k)`` spread over ``(side, side)`` without edges."""
    image = _image()
    return np.asarray(
        image.fromarray(cells.astype(np.float32)).resize((side, side), image.Resampling.BICUBIC), np.float64
    )


def _font(name: str, height: int) -> Any:
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError:
        raise UsageError('glyphs need Pillow and matplotlib: pip install "anyformer[fit]"') from None

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    if not path.is_file():  # Pillow would look for a font of this name elsewhere
        raise UsageError(f"matplotlib's font {path} is missing; install matplotlib again")
    return ImageFont.truetype(path, height, layout_engine=ImageFont.Layout.BASIC)


def _image() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(NEEDS_PILLOW) from None
    return Image
