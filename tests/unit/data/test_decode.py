"""Pictures are read right or refused by one sentence that names the file."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.data.decode import FORMATS, MAX_PIXELS, decode, probe, resize

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
GREY = PIXELS[..., 0].copy()


def content(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(folder: Path, image: Image.Image, kind: str, **options) -> Path:
    path = folder / "picture"
    path.write_bytes(content(image, kind, **options))
    return path


def colours(path: Path, size: int = 24) -> np.ndarray:
    return decode(path, size, 3).transpose(1, 2, 0)


def refused(path: Path) -> str:
    """The sentence; one line that begins with the file's name."""
    with pytest.raises(UsageError) as caught:
        (probe(path), decode(path, 16, 3))
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert "remove it" in sentence
    return sentence


def attempt(path: Path, size: int) -> tuple[np.ndarray | None, str]:
    """The pixels, or the sentence of the refusal."""
    try:
        return decode(path, size, 3), ""
    except UsageError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_are_read_to_the_bit(tmp_path, kind):
    path = saved(tmp_path, Image.fromarray(PIXELS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (colours(path) == PIXELS).all()
    assert probe(path) == (24, False)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_cut_is_refused_or_harmless(tmp_path, kind):
    """Some bytes at the end, such as PNG's last chunk, carry no pixels; every other cut must be told."""
    large = Image.fromarray(PIXELS).resize((150, 100), Image.Resampling.BILINEAR)
    whole = content(large, kind)
    path = tmp_path / "picture"
    path.write_bytes(whole)
    expected = decode(path, 16, 3)
    cuts = {*range(0, len(whole), max(1, len(whole) // 50)), *range(len(whole) - 30, len(whole))}
    told = 0
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        pixels, sentence = attempt(path, 16)
        told += pixels is None
        assert str(path) in sentence if pixels is None else (pixels == expected).all(), cut
    assert told >= 50


def test_name_does_not_matter_and_content_does(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content(Image.fromarray(PIXELS), "PNG"))
    assert (colours(path) == PIXELS).all()
    for name, data in {
        "text.png": b"not a picture\n" * 9,
        "zeros.png": bytes(5000),
        "other.png": content(Image.fromarray(PIXELS), "TIFF"),
        "drawing.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert "not a readable PNG, JPEG, WEBP, BMP or GIF picture" in refused(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty.png")


def test_sixteen_bit_grey_is_scaled(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257), "PNG")
    assert probe(path) == (24, True)
    assert (decode(path, 24, 1)[0] == GREY).all()


def test_two_levels_palette_and_cmyk(tmp_path):
    bits = GREY > 127
    assert (decode(saved(tmp_path, Image.fromarray(bits), "PNG"), 24, 1)[0] == bits * 255).all()
    few = (PIXELS // 128) * 255
    palette = Image.fromarray(few).quantize(8)
    assert (colours(saved(tmp_path, palette, "PNG")) == few).all()
    assert (colours(saved(tmp_path, palette, "GIF")) == few).all()
    flat = Image.new("CMYK", (24, 24), (0, 255, 255, 0))
    red = colours(saved(tmp_path, flat, "JPEG", quality=100)).astype(int)
    assert abs(red - [255, 0, 0]).max() <= 3


def test_transparency_lies_over_white(tmp_path):
    alpha = np.zeros((24, 24, 1), np.uint8)
    alpha[:12] = 255
    path = saved(tmp_path, Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)), "PNG")
    assert (colours(path)[:12] == PIXELS[:12]).all()
    assert (colours(path)[12:] == 255).all()
    grey_alpha = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha[..., 0])))
    path = saved(tmp_path, grey_alpha, "PNG")
    assert (decode(path, 24, 1)[0, :12] == GREY[:12]).all()
    assert (decode(path, 24, 1)[0, 12:] == 255).all()
    few = Image.fromarray((PIXELS // 128) * 255).quantize(8)
    assert (colours(saved(tmp_path, few, "PNG", transparency=0))[np.asarray(few) == 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_orientation_is_applied(tmp_path, orientation):
    """The stored picture is the upright one turned as the EXIF standard's table says for this tag."""
    stored = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS.transpose(1, 0, 2)[::-1],
        7: PIXELS.transpose(1, 0, 2)[::-1, ::-1],
        8: PIXELS.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert (colours(path) == PIXELS).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_several_frames_are_refused(tmp_path, kind):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    assert "several frames" in refused(saved(tmp_path, frames[0], kind, save_all=True, append_images=frames[1:]))


def test_preview_of_a_camera_is_passed_over(tmp_path):
    first, second = Image.new("RGB", (24, 24), "red"), Image.new("RGB", (24, 24), "blue")
    path = saved(tmp_path, first, "MPO", save_all=True, append_images=[second])
    assert abs(colours(path).astype(int) - [254, 0, 0]).max() <= 3


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 50_000, 2**31 - 1])
@pytest.mark.parametrize("limit", [MAX_PIXELS, None])
def test_bombs_are_refused_unopened(tmp_path, monkeypatch, side, limit):
    """The refusal does not hang on Pillow's global limit, which a program may have taken away."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    assert "more than 89,478,485 pixels" in refused(path)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("side", [9_999, 20_000])
def test_frame_larger_than_its_gif_is_refused(tmp_path, side):
    screen = struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"
    path = tmp_path / "bomb.gif"
    path.write_bytes(b"GIF89a" + screen + frame)
    assert "more than 89,478,485 pixels" in refused(path)


def test_large_jpeg_is_scaled_down_near_to_exactly(tmp_path):
    """It is decoded at an eighth, a quarter or a half of its size where that is still twice what is needed."""
    large = Image.fromarray(PIXELS).resize((256, 256), Image.Resampling.BICUBIC)
    path = saved(tmp_path, large, "JPEG", quality=95)
    exact = np.asarray(large.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert abs(colours(path, 64) - exact).mean() < 3


def test_text_bomb_in_a_chunk_is_refused(tmp_path):
    text = b"zTXtnote\x00\x00" + zlib.compress(bytes(100_000_000), 9)
    whole = content(Image.fromarray(GREY), "PNG")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    path = tmp_path / "text.png"
    path.write_bytes(whole[:33] + chunk + whole[33:])
    refused(path)


def test_one_pixel_and_very_long_pictures(tmp_path):
    dot = saved(tmp_path, Image.new("RGB", (1, 1), (9, 80, 200)), "PNG")
    assert (colours(dot, 16) == [9, 80, 200]).all()
    line = saved(tmp_path, Image.new("L", (65_535, 1), 77), "PNG")
    assert (decode(line, 64, 1) == 77).all()


def test_crop_is_central_and_scale_by_the_shorter_side(tmp_path):
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = GREY[:20, :20]
    path = saved(tmp_path, Image.fromarray(wide), "PNG")
    assert (decode(path, 20, 1)[0] == GREY[:20, :20]).all()


def test_grey_gives_the_same_pixels_with_one_channel_and_three(tmp_path):
    grey = saved(tmp_path, Image.fromarray(GREY), "PNG")
    one, three = decode(grey, 17, 1), decode(grey, 17, 3)
    assert (three == one).all()
    stored_in_colour = saved(tmp_path, Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)), "PNG")
    assert (decode(stored_in_colour, 17, 1) == one).all()
    assert (decode(stored_in_colour, 17, 3) == three).all()
    assert (resize(GREY, 17) == one).all()


def test_pipes_devices_folders_and_links_to_nowhere_are_refused(tmp_path):
    """Opening a pipe that nobody writes to would wait for ever: a failure here is a hang."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder").mkdir()
    for name, reason in {"pipe": "pipe", "zero": "device", "circle": "cannot be read", "folder": "folder"}.items():
        with pytest.raises(UsageError, match=f"^{tmp_path / name} .*{reason}"):
            decode(tmp_path / name, 8, 1)
    with pytest.raises(UsageError, match=r"nothing\.png cannot be read \(No such file"):
        decode(tmp_path / "nothing.png", 8, 1)


def test_damage_inside_never_gives_anything_but_a_sentence(tmp_path):
    """Zeroed blocks and changed bytes: a picture of the right form, or a sentence; no other exception."""
    chance = np.random.default_rng(1)
    told = 0
    for kind in FORMATS:
        whole = np.frombuffer(content(Image.fromarray(PIXELS), kind), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            start = chance.integers(len(whole))
            damaged[start : start + 8] = 0
            damaged[chance.integers(len(whole), size=3)] = chance.integers(256, size=3)
            path = tmp_path / "picture"
            path.write_bytes(damaged.tobytes())
            pixels, sentence = attempt(path, 8)
            told += pixels is None
            assert str(path) in sentence if pixels is None else pixels.shape == (3, 8, 8)
    assert told > 20


def test_without_pillow_the_remedy_is_told(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(GREY), "PNG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for read in (lambda: probe(path), lambda: resize(GREY, 8)):
        with pytest.raises(UsageError, match=r"reading pictures needs Pillow: pip install"):
            read()


def test_arrays_in_colour_are_made_square_as_files_are(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS[:20]), "PNG")
    assert (resize(PIXELS[:20], 12) == decode(path, 12, 3)).all()
    assert (resize(GREY[..., None], 12) == resize(GREY, 12)).all()
