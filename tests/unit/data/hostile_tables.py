"""The hostile tables and archives of the corpus."""

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .hostile import GOOD, Case

COUNT = 12
FILES = [f"pictures/{number}.png" for number in range(COUNT)]
CLASSES = ["cat", "dog"] * (COUNT // 2)


def table(targets: list[Any] = CLASSES, header: str = "path,label", files: list[str] = FILES) -> str:
    return "\n".join([header, *(f"{file},{target}" for file, target in zip(files, targets, strict=True))]) + "\n"


def replaced(place: int, value: Any, values: list[Any] = CLASSES) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


NUMBERS = [0.5 + number for number in range(COUNT)]


def texts() -> dict[str, tuple[str | bytes, str]]:
    """CSV files and what has to be said of them."""
    whole = table()
    wide = ",".join(f"c{number}" for number in range(100_000))
    bad_numbers = [
        *("nan", "NaN", "inf", "-Infinity", "1e999", "", "old", "0x10", "1_000", "٣", 2**63 + 1, "1 2"),
        *("9" * 5000, '"1,5"', "=1+1", "1e300", "None", "1e", "--1", "true"),
    ]
    numbers = {
        f"number {place}": (table(replaced(4, value, NUMBERS), "path,age"), r"1 cells of column 'age'.*row 6")
        for place, value in enumerate(bad_numbers)
    }
    files = {
        f"file {name}": (table(files=replaced(4, value, FILES)), says)
        for name, (value, says) in {
            "absolute": ("/etc/passwd", "row 6: '/etc/passwd' is no file below"),
            "upwards": ("../../secret.png", "row 6: .* is no file below"),
            "hidden upwards": ("pictures/../../x.png", "row 6: .* is no file below"),
            "empty": ("", "row 6: '' is no file below"),
            "escape": ("\x1b[2J", "row 6: .* is no file below"),
            "missing": ("pictures/none.png", "row 6: .*No such file"),
            "folder": ("pictures", "row 6: .* is a folder"),
            "bad": ("bad.png", "row 6: .* is not a readable"),
            "pipe": ("pipe.png", "row 6: .* is a device or a pipe"),
            "zero": ("zero.png", "row 6: .* is a device or a pipe"),
            "long": ("x" * 5000, "row 6: 'x.* is no file below"),
            "twice": ("pictures/3.png", "row 6: .* was named in row 5 already"),
            "twice otherwise": ("./pictures//3.png", "row 6: .* was named in row 5 already"),
        }.items()
    }
    return {
        **numbers,
        **files,
        "header only": ("path,label\n", "has no row below its header"),
        "no line end": ("path,label", "has no row below its header"),
        "blank lines": ("\n\n\n", "no column of picture files"),
        "no header": ("\n".join(whole.splitlines()[1:]), "no column of picture files"),
        "no target": ("path\n" + "\n".join(FILES), "no column of targets"),
        "no path": (table(header="label,other"), "no column of picture files"),
        "two paths": (table(header="path,file"), "several columns of picture files"),
        "same column": (table(header="path,path"), "two columns of the name 'path'"),
        "same target": (whole.replace("path,label", "path,label,label"), "two columns of the name 'label'"),
        "escape in header": (table(header="path,\x1b[2J"), "has a name that cannot be printed"),
        "missing cell": (whole.replace("3.png,dog", "3.png"), "row 5: there are 1 cells where the header has 2"),
        "extra cell": (whole.replace("3.png,dog", "3.png,dog,x"), "row 5: there are 3 cells where the header has 2"),
        "open quote": (whole.replace("3.png,dog", '3.png,"dog'), "row 1[0-9]: .*quotes"),
        "quote inside": (whole.replace("3.png,dog", '3.png,"do"g'), "row 5: .*quotes"),
        "zero byte": (whole.replace("3.png,dog", "3.png,do\0g"), "row 5: there is a zero byte"),
        "all zeros": (bytes(2000), "row 1: there is a zero byte"),
        "UTF-16": (whole.encode("utf-16"), "row 1: the text is UTF-16"),
        "UTF-16 unmarked": (whole.encode("utf-16-le"), "zero byte"),
        "Latin-1": (whole.replace("dog", "dög").encode("latin-1"), "row 3, byte 16: the text is not UTF-8"),
        "old Mac": (whole.replace("\n", "\r"), "row 1: .*line ends"),
        "long field": (whole.replace("3.png,dog", "3.png," + 200_000 * "x"), "row 5: field larger"),
        "long line": (whole.replace("3.png,dog", "3.png," + 10_000_000 * "x"), "row 5 is longer than 1,048,576 bytes"),
        "wide": (wide + "\n", "has 100,000 columns"),
        "binary": (GOOD, "not UTF-8|zero byte"),
        "constant class": (table(["cat"] * COUNT), "has 1 classes"),
        "rare class": (table(replaced(0, "cow")), "class 'cow' has 1 pictures"),
        "missing class": (table(replaced(4, "")), "1 cells of column 'label' are missing .row 6"),
        "NaN class": (table(replaced(4, "NaN")), "1 cells of column 'label' are missing .row 6"),
        "class escape": (table(replaced(4, "\x1b[2J")), "cannot be printed"),
        "constant number": (table([2.5] * COUNT, "path,age"), "the same number in every row"),
        "mixed columns": (
            "path,a,b\n" + "\n".join(f"{file},{number},x" for number, file in enumerate(FILES)),
            "12 cells of column 'b' are no finite numbers.* .row 2: 'x', .*and 7 more",
        ),
        "empty labels": (
            table(["cat|dog", "cat||dog"] * (COUNT // 2)),
            "6 cells of column 'label' have an empty label",
        ),
        "rare label": (table(replaced(0, "cow|cat")), "label 'cow' is on 1 of 12"),
        "label on all": (table(["cat|dog"] * COUNT), "label 'cat' is on 12 of 12"),
        "unknown part": (
            "path,label,split\n" + "\n".join(f"{f},{c},training" for f, c in zip(FILES, CLASSES, strict=True)),
            "12 cells of column 'split' are none of train",
        ),
        "no test part": (
            "path,label,split\n" + "\n".join(f"{f},{c},train" for f, c in zip(FILES, CLASSES, strict=True)),
            "puts no picture in test",
        ),
        "unseen in training": (
            "path,label,split\n"
            + "\n".join(
                f"{f},{'cow' if i == 0 else c},{'test' if i < 4 else 'train'}"
                for i, (f, c) in enumerate(zip(FILES, CLASSES, strict=True))
            ),
            "class 'cow' has 0 pictures for training",
        ),
    }


def sound_texts() -> dict[str, str | bytes]:
    """CSV files that have to be read."""
    whole = table()
    return {
        "mark": b"\xef\xbb\xbf" + whole.encode(),
        "Windows": whole.replace("\n", "\r\n"),
        "semicolons": whole.replace(",", ";"),
        "tabs": whole.replace(",", "\t"),
        "quotes": whole.replace("dog", '"dog"'),
        "reordered": "label,path\n" + "\n".join(f"{c},{f}" for f, c in zip(FILES, CLASSES, strict=True)),
        "row numbers": ",path,label\n" + "\n".join(f"{i},{f},{CLASSES[i]}" for i, f in enumerate(FILES)),
        "no last line end": whole.rstrip(),
        "blanks": whole.replace(",", " , "),
        "numbers": table(NUMBERS, "path,age"),
    }


def write_tables(root: Path) -> Iterator[Case]:
    (root / "pictures").mkdir()
    for file in FILES:
        (root / file).write_bytes(GOOD)
    (root / "bad.png").write_text("no picture")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    for name, (data, says) in texts().items():
        path = root / f"{name}.csv"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        yield Case(str(path), "refused", says)
    for name, data in sound_texts().items():
        path = root / f"sound {name}.csv"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        yield Case(str(path), "read")
    with (root / "endless.csv").open("wb") as file:
        file.write(table().encode())
        file.truncate(10 * 2**30)  # takes no room on the disk
    yield Case(str(root / "endless.csv"), "refused", "row 14: there is a zero byte")
    yield Case(str(root / "sound mark.csv"), "refused", "kind of target 'sorted'", {"kind": "sorted"})
    yield Case(str(root / "sound mark.csv"), "refused", "no column 'lable'; did you mean label", {"target": ["lable"]})
    yield Case(str(root / "sound mark.csv"), "refused", "no column 'x'", {"files": "x"})
    yield Case(str(root / "sound mark.csv"), "refused", "12 cells of column 'label' are no", {"kind": "regression"})
    yield from write_parquet(root)


def write_parquet(root: Path) -> Iterator[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name: str, **columns: Any) -> Path:
        path = root / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    whole = write("sound", path=FILES, label=CLASSES)
    yield Case(str(whole), "read")
    yield Case(str(write("sound numbers", path=FILES, age=NUMBERS)), "read")
    yield Case(str(write("sound labels", path=FILES, a=[True, False] * 6, b=[False, False, True] * 4)), "read")
    for name, columns, says in [
        ("nan", {"path": FILES, "age": replaced(4, float("nan"), NUMBERS)}, "1 cells of column 'age'.*row 5"),
        ("null", {"path": FILES, "label": replaced(4, None)}, "1 cells of column 'label' are missing .row 5"),
        ("lists", {"path": FILES, "label": [["cat"], ["dog"]] * 6}, "row 1: a cell is .* neither text nor a number"),
        ("bytes", {"path": [file.encode() for file in FILES], "label": CLASSES}, "row 1: a cell is b"),
        ("none", {"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "no row below its header"),
        ("no columns", {"x": CLASSES}, "no column of picture files"),
        ("zero byte", {"path": replaced(4, "a\0b", FILES), "label": CLASSES}, "row 5: .* is no file below"),
    ]:
        yield Case(str(write(name, **columns)), "refused", says)
    data = whole.read_bytes()
    for number in range(12):
        path = root / f"cut {number}.parquet"
        path.write_bytes(data[: len(data) * number // 12 or 3])
        yield Case(str(path), "refused", "damaged after row 0")
    for number in range(12):
        path = root / f"changed {number}.parquet"
        chance = np.random.default_rng(number)
        spoilt = bytearray(data)
        for place in chance.integers(4, len(data) - 8, size=6):
            spoilt[place] = int(chance.integers(256))
        path.write_bytes(spoilt)
        yield Case(str(path), "either", "damaged|row|column|cells|class")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array file whose header says what it likes."""
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode() + data


IMAGES = np.random.default_rng(1).integers(0, 256, (COUNT, 9, 9), dtype=np.uint8)
LABELS = np.arange(COUNT) % 2


def arrays() -> dict[str, tuple[dict[str, np.ndarray | bytes], str]]:
    """Members of an archive and what has to be said of it."""
    images, labels = IMAGES, LABELS
    floats = images / 255
    record = np.zeros(COUNT, [("a", "i4")])
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
    wild = {
        "huge": header(shape % "(99999999999, 9, 9)"),
        "negative": header(shape % "(-1, 9, 9)"),
        "overflow": header(shape % "(4294967296, 4294967296, 4294967296)"),
        "larger": header(shape % "(12, 9, 9)", bytes(100)),
        "smaller": header(shape % "(12, 9, 9)", bytes(5000)),
        "code": header("__import__('os').system('touch canary')"),
        "deep": header("(" * 5000),
        "words": header("{'descr': '|u1'}"),
        "type": header("{'descr': '|O', 'fortran_order': False, 'shape': (12, 9, 9), }", bytes(8000)),
        "version": header(shape % "(12, 9, 9)", bytes(972), (9, 9)),
        "long header": header(" " * 60_000 + shape % "(12, 9, 9)", bytes(972)),
        "not an array": b"no array",
        "empty member": b"",
    }
    bad = floats.copy()
    bad[3, 4, 5] = np.nan
    return {
        **{name: ({"images": data, "labels": labels}, "array images|damaged") for name, data in wild.items()},
        "objects": ({"images": images, "labels": np.array([{}, []] * 6, object)}, "labels holds Python objects"),
        "records": ({"images": images, "labels": record}, "labels holds Python objects"),
        "by column": ({"images": np.asfortranarray(images), "labels": labels}, "images is in column order"),
        "no images": ({"labels": labels}, "it needs images"),
        "no labels": ({"images": images}, "labels or targets"),
        "both": ({"images": images, "labels": labels, "targets": floats[:, 0, 0]}, "labels and targets"),
        "unknown": ({"images": images, "labels": labels, "extra": labels}, "has an array 'extra'"),
        "upwards": ({"images": images, "../../labels": labels}, "has an array '../../labels'"),
        "absolute": ({"images": images, "/labels": labels}, "has an array '/labels'"),
        "fewer": ({"images": images, "labels": labels[:5]}, "12 images and 5 labels"),
        "flat": ({"images": images.reshape(COUNT, -1), "labels": labels}, r"images is \(12, 81\)"),
        "four channels": (
            {"images": np.zeros((COUNT, 9, 9, 4), np.uint8), "labels": labels},
            r"images is \(12, 9, 9, 4\)",
        ),
        "no pictures": ({"images": images[:0], "labels": labels[:0]}, "array labels is|array images is"),
        "no sides": ({"images": images[:, :0], "labels": labels}, "array images is"),
        "wide whole numbers": ({"images": images.astype(np.int64), "labels": labels}, "images is of int64"),
        "complex": ({"images": images.astype(complex), "labels": labels}, "images is of complex"),
        "nan": ({"images": bad, "labels": labels}, r"images\[3\] has nan; 1 of the numbers"),
        "inf": ({"images": floats + np.inf, "labels": labels}, r"images\[0\] has"),
        "negative levels": ({"images": floats - 0.5, "labels": labels}, r"images\[0\] has -"),
        "too bright": ({"images": floats * 1000, "labels": labels}, "not from 0 to 255"),
        "large pictures": ({"images": np.zeros((1, 9000, 9000), np.uint8), "labels": labels[:1]}, "are too large"),
        "complex labels": ({"images": images, "labels": labels.astype(complex)}, "labels is of complex"),
        "three axes": ({"images": images, "labels": np.zeros((COUNT, 2, 2), int)}, "array labels is"),
        "nan labels": ({"images": images, "labels": np.where(labels, np.nan, 0)}, "labels has 6 numbers that are not"),
        "nan targets": (
            {"images": images, "targets": np.where(labels, np.inf, 0)},
            "targets has 6 numbers .* in row 2",
        ),
        "fractions": ({"images": images, "labels": labels + 0.5}, "labels of classes are whole numbers"),
        "constant": ({"images": images, "targets": labels * 0.0}, "the same number in every row"),
        "one class": ({"images": images, "labels": labels * 0}, "has 1 classes"),
        "rare": ({"images": images, "labels": np.arange(COUNT)}, "class '0' has 1 pictures"),
        "not 0 and 1": ({"images": images, "labels": np.full((COUNT, 2), 3)}, "should be 0 and 1"),
        "names": (
            {"images": images, "labels": np.eye(12, 2, dtype=int), "classes": np.array(["a"])},
            "1 classes for 2 columns",
        ),
        "beyond": (
            {"images": images, "labels": labels + 1, "classes": np.array(["a", "b"])},
            "count the 2 different classes",
        ),
        "class names": ({"images": images, "labels": labels, "classes": np.eye(2)}, "array classes is"),
        "not text": (
            {"images": images, "labels": labels, "classes": np.array([b"\xff", b"b"])},
            "classes is not UTF-8",
        ),
        "parts": ({"images": images, "labels": labels, "split": np.array(["x"] * COUNT)}, "are none of train"),
        "few parts": ({"images": images, "labels": labels, "split": np.array(["train"])}, "array split is"),
    }


def write_archive(path: Path, members: dict[str, np.ndarray | bytes], pack: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", pack) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data if isinstance(data, bytes) else npy(data))
    return path


def write_archives(root: Path) -> Iterator[Case]:
    good: dict[str, np.ndarray | bytes] = {"images": IMAGES, "labels": LABELS}
    for name, (members, says) in arrays().items():
        yield Case(str(write_archive(root / f"{name}.npz", members)), "refused", says)
    yield Case(str(write_archive(root / "sound.npz", good)), "read")
    yield Case(str(write_archive(root / "sound packed.npz", good, zipfile.ZIP_DEFLATED)), "read")
    bomb = {"images": np.zeros((COUNT, 2000, 2000), np.uint8), "labels": LABELS}
    yield Case(str(write_archive(root / "bomb.npz", bomb, zipfile.ZIP_DEFLATED)), "refused", "more than 100 times")
    yield Case(str(write_archive(root / "bzip2.npz", good, zipfile.ZIP_BZIP2)), "refused", "packed in another way")
    yield Case(str(write_archive(root / "lzma.npz", good, zipfile.ZIP_LZMA)), "refused", "packed in another way")
    with zipfile.ZipFile(root / "inner.npz", "w") as archive:
        archive.write(root / "sound.npz", "images.npz")
    yield Case(str(root / "inner.npz"), "refused", "has an array 'images.npz'")
    with warnings.catch_warnings(), zipfile.ZipFile(root / "twice.npz", "w") as archive:
        warnings.simplefilter("ignore")
        for data in (IMAGES, IMAGES, LABELS):
            archive.writestr("labels.npy" if data is LABELS else "images.npy", npy(data))
    yield Case(str(root / "twice.npz"), "refused", "two arrays of the name images")
    whole = (root / "sound packed.npz").read_bytes()
    central = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02"))
    for name, place, data in [
        ("locked", central + 8, b"\x01"),
        ("claims more", central + 24, struct.pack("<I", 2**31 - 1)),
        ("claims most", central + 24, struct.pack("<I", 2**32 - 2)),
        ("claims less", central + 24, struct.pack("<I", 9)),
        ("elsewhere", central + 42, struct.pack("<I", 2**30)),
        ("checksum", central + 16, b"\0\0\0\0"),
    ]:
        (root / f"{name}.npz").write_bytes(whole[:place] + data + whole[place + len(data) :])
        yield Case(str(root / f"{name}.npz"), "refused", "damaged|encrypted|times its size|bytes are not")
    for number in range(20):
        path = root / f"cut {number}.npz"
        path.write_bytes(whole[: len(whole) * number // 20 or 1])
        yield Case(str(path), "refused", "damaged")
