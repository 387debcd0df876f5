"""A corpus of hostile sources for ``load``, generated: each has to be refused in one sentence, or read with a reason."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """What is given to ``load``, what should come of it, and what a refusal has to say beside the remedy."""

    source: str
    outcome: str  # refused, read, or either: a picture with a changed byte may still be one
    says: str = ""  # a regular expression
    options: dict[str, Any] = field(default_factory=dict)


def content(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GOOD = content(Image.fromarray(PIXELS[:12, :12]), "PNG")
WHOLE = {kind: content(Image.fromarray(PIXELS), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF")}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = bytes(100), extra: bytes = b""
) -> bytes:
    """A PNG file whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def jpeg(width: int, height: int) -> bytes:
    """A JPEG file with other sizes in its header."""
    data = bytearray(WHOLE["JPEG"])
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    data = bytearray(WHOLE["BMP"])
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def changed(whole: bytes, number: int) -> bytes:
    """Zeros and other bytes in places that follow from the number."""
    chance = np.random.default_rng(number)
    data = bytearray(whole)
    start = int(chance.integers(len(data)))
    data[start : start + 8] = bytes(len(data[start : start + 8]))
    for place in chance.integers(len(data), size=3):
        data[place] = int(chance.integers(256))
    return bytes(data)


def pictures() -> Iterator[tuple[str, bytes, str, str]]:
    """Name, content, outcome and saying of one picture among good ones."""
    for kind, cuts in {"PNG": 50, "JPEG": 50, "WEBP": 20, "BMP": 20, "GIF": 20}.items():
        whole = WHOLE[kind]
        for number in range(cuts):
            yield (
                f"cut {number}.{kind}",
                whole[: int(0.85 * len(whole) * number / cuts)],
                "refused",
                "empty|damaged|readable",
            )
        for number in range(8):
            yield f"changed {number}.{kind}", changed(whole, number), "either", "damaged|readable|pixels|frames"
    image = Image.fromarray(PIXELS)
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PDF", "EPS", "SGI", "DDS", "PCX", "JPEG2000"):
        yield f"{kind}.png", content(image, kind), "refused", "not a readable"
    for name, data in {
        "text.png": b"no picture\n" * 9,
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "zip.png": b"PK\x03\x04" + bytes(60),
        "fits.png": b"SIMPLE  =                    T".ljust(2880),
        "zeros.png": bytes(5000),
        "script.png": b"#!/bin/sh\ntouch canary\n",
        "pickle.png": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
        "riff.png": b"RIFF\x00\x00\x00\x00WEBPVP8X",
        "signature.png": b"\x89PNG\r\n\x1a\n",
    }.items():
        yield name, data, "refused", "not a readable|damaged"
    for side in (10_000, 50_000, 2**31 - 1):
        yield f"bomb {side}.png", png(side, side), "refused", "more than 89,478,485 pixels"
    for side in (9_999, 65_535):
        yield f"bomb {side}.gif", gif(side, side), "refused", "more than 89,478,485 pixels"
        yield f"bomb {side}.jpg", jpeg(side, side), "refused", "more than 89,478,485 pixels"
        yield f"bomb {side}.bmp", bmp(side, side), "refused", "more than 89,478,485 pixels"
    for width, height in ((0, 0), (0, 9), (9, 0)):
        yield f"none {width} {height}.png", png(width, height), "refused", "damaged|readable"
    for depth, colour in ((3, 0), (16, 3), (8, 5), (255, 0)):
        yield f"depth {depth} {colour}.png", png(9, 9, depth, colour), "refused", "damaged|readable"
    bomb = zlib.compress(bytes(100_000_000), 9)
    yield "text bomb.png", png(9, 9, extra=chunk(b"zTXt", b"note\0\0" + bomb)), "refused", "damaged"
    yield "long rows.png", png(9, 9, data=bytes(50_000_000)), "either", "damaged"
    yield "few rows.png", png(200, 200, data=bytes(9)), "refused", "damaged"
    yield "no check.png", GOOD[:40] + b"\0" + GOOD[41:], "refused", "damaged|readable"
    yield "negative.bmp", bmp(-24, 24), "refused", "pixels"
    frames = [image, Image.fromarray(255 - PIXELS)]
    for kind in ("GIF", "PNG", "WEBP"):
        yield (
            f"frames.{kind}",
            content(image, kind, save_all=True, append_images=frames[1:]),
            "refused",
            "several frames",
        )
    yield from oddities(image)


def oddities(image: Image.Image) -> Iterator[tuple[str, bytes, str, str]]:
    """Rare but sound pictures, which have to be read."""
    turned = Image.Exif()
    for orientation in (0, 3, 6, 8, 77):
        turned[0x0112] = orientation
        yield f"turned {orientation}.jpg", content(image, "JPEG", exif=turned), "read", ""
    yield "wrong ending.jpg", content(image, "PNG"), "read", ""
    yield "no ending", content(image, "PNG"), "read", ""
    yield "dot.png", content(Image.new("RGB", (1, 1), "red"), "PNG"), "read", ""
    yield "line.png", content(Image.new("L", (65_535, 1), 7), "PNG"), "read", ""
    yield "four inks.jpg", content(image.convert("CMYK"), "JPEG"), "read", ""
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        odd = (
            Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 99)
            if mode == "I;16"
            else image.convert(mode)
        )
        yield f"mode {mode.replace(';', '')}.png", content(odd, "PNG"), "read", ""
    yield "progressive.jpg", content(image, "JPEG", progressive=True), "read", ""
    yield "interlaced.gif", content(image.convert("P"), "GIF", interlace=True), "read", ""
    yield "more behind.png", GOOD + b"PK\x03\x04" + bytes(99), "read", ""


def folder(root: Path, classes: tuple[str, ...] = ("a", "b"), each: int = 3) -> Path:
    """Good pictures in a folder of classes."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"good {number}.png").write_bytes(GOOD)
    return root


def traps() -> dict[str, tuple[Callable[[Path], object], str]]:
    """What is done to a good folder, and what has to be said of it."""

    def within(change: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda root: change(root / "a" / "trap.png")

    def sock(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)

    link, folders = (lambda target: lambda path: path.symlink_to(target)), folder
    return {
        "pipe": (within(os.mkfifo), "trap.png is a device or a pipe"),
        "socket": (within(sock), "trap.png cannot be read"),
        "zero": (within(link("/dev/zero")), "trap.png is a device or a pipe"),
        "random": (within(link("/dev/urandom")), "trap.png is a device or a pipe"),
        "null": (within(link("/dev/null")), "trap.png is a device or a pipe"),
        "memory": (within(link("/proc/self/mem")), "trap.png"),
        "process": (within(link("/proc/self/status")), "trap.png"),
        "circle": (within(link("trap.png")), "trap.png cannot be read"),
        "nowhere": (within(link("nothing")), "trap.png cannot be read"),
        "upwards": (within(link("../..")), "trap.png is a folder inside of a class"),
        "root": (within(link("/")), "trap.png is a folder inside of a class"),
        "inner": (within(Path.mkdir), "trap.png is a folder inside of a class"),
        "class circle": (lambda root: link("c")(root / "c"), "c cannot be read"),
        "class upwards": (lambda root: link(".")(root / "c"), "is a folder inside of a class"),
        "class pipe": (lambda root: os.mkfifo(root / "c.png"), "lies outside of the classes"),
        "class empty": (lambda root: (root / "c").mkdir(), "c has 0 pictures"),
        "class small": (lambda root: folders(root, ("c",), 2), "c has 2 pictures"),
        "loose": (lambda root: (root / "x.jpg").write_bytes(GOOD), "lies outside of the classes"),
        "line break": (lambda root: (root / "a" / "x\ny.png").write_bytes(GOOD), "cannot be printed"),
        "escape": (lambda root: (root / "a" / "\x1b[2J.png").write_bytes(GOOD), "cannot be printed"),
        "not a text": (lambda root: os.mkdir(os.fsencode(root) + b"/caf\xe9"), "cannot be printed"),
        "notes": (lambda root: (root / "a" / "notes.txt").write_text("x"), "notes.txt is not a readable"),
        "one class": (
            lambda root: [*map(Path.unlink, (root / "b").iterdir()), (root / "b").rmdir()],
            "has 1 sub-folders",
        ),
    }


def divided() -> dict[str, tuple[dict[str, dict[str, int]], str]]:
    """Folders of parts with the pictures of each class, and what has to be said of them."""
    whole = {"a": 3, "b": 3}
    return {
        "unseen": ({"train": whole, "test": {"a": 1, "z": 1}}, "class 'z' has 0 pictures for training"),
        "one to train": ({"train": {"a": 1, "b": 3}, "test": whole}, "class 'a' has 1 pictures for training"),
        "one class": ({"train": {"a": 3}, "test": {"a": 3}}, "has 1 classes"),
        "two validations": (
            {"train": whole, "test": whole, "val": whole, "validation": whole},
            "is a folder inside of",
        ),
        "a fourth": ({"train": whole, "test": whole, "extra": whole}, "is a folder inside of a class"),
        "no test": ({"train": whole, "validation": whole}, "is a folder inside of a class"),
    }


def write_folders(root: Path) -> Iterator[Case]:
    """The cases that are folders, or nothing at all."""
    for name, data, outcome, says in pictures():
        place = folder(root / f"picture {name}")
        (place / "a" / name).write_bytes(data)
        yield Case(str(place), outcome, says)
    for name, (change, says) in traps().items():
        place = folder(root / f"trap {name}")
        change(place)
        yield Case(str(place), "refused", says)
    for name, (parts, says) in divided().items():
        for part, classes in parts.items():
            for label, count in classes.items():
                folder(root / f"parts {name}" / part, (label,), count)
        yield Case(str(root / f"parts {name}"), "refused", says)
    os.mkfifo(root / "pipe")
    (root / "zero").symlink_to("/dev/zero")
    (root / "circle").symlink_to("circle")
    (root / "none").mkdir()
    (root / "file.png").write_bytes(GOOD)
    for name in ("pipe", "zero", "circle", "file.png"):
        yield Case(str(root / name), "refused", "neither a folder nor a table")
    yield Case(str(root / "none"), "refused", "has 0 sub-folders")
    for name in ("missing", "x" * 300, "a\0b", "../" * 40 + "missing"):
        yield Case(str(root / name), "refused", "there is no folder or file")
    for ending in (".csv", ".parquet", ".npz"):
        os.mkfifo(root / f"pipe{ending}")
        (root / f"zero{ending}").symlink_to("/dev/zero")
        (root / f"circle{ending}").symlink_to(f"circle{ending}")
        (root / f"empty{ending}").touch()
        (root / f"text{ending}").write_text("no, such\nfile")
        for name, says in {"pipe": "device or a pipe", "zero": "device or a pipe", "circle": "cannot be read"}.items():
            yield Case(str(root / f"{name}{ending}"), "refused", says)
        yield Case(str(root / f"empty{ending}"), "refused", "is empty")
        yield Case(str(root / f"text{ending}"), "refused", "columns? of picture files|damaged")
