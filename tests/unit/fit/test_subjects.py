"""What a fit is to follows from names and first bytes of files."""

import os
from pathlib import Path

import pytest

from anyformer.core.errors import UsageError
from anyformer.fit.subjects import LANGUAGE, PICTURES, TEXT_CLASSES, subject_of

PNG = b"\x89PNG\r\n\x1a\n rest"


def write(folder: Path, **files: bytes) -> str:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_names_of_sets_and_tables() -> None:
    assert subject_of("digits", None) is subject_of("t.csv", None) is subject_of("lost.npz", None) is PICTURES
    assert subject_of("stdlib", None) is LANGUAGE


def test_folders_of_pictures_by_name_or_by_content(tmp_path: Path) -> None:
    assert subject_of(write(tmp_path / "a", cat__1_png=b"", dog__2_JPG=b""), None) is PICTURES
    assert subject_of(write(tmp_path / "b", cat__1=PNG, dog__2=PNG, dog__notes_txt=b"hello"), None) is PICTURES
    assert subject_of(write(tmp_path / "c", x_png=b""), None) is PICTURES
    assert subject_of(str(tmp_path / "c" / "x.png"), None) is PICTURES


def test_texts(tmp_path: Path) -> None:
    texts = write(tmp_path / "a", a_txt=b"hello", sub__b_md=b"there", sub__c=b"\xff\xfe\0", logo_png=PNG)
    assert subject_of(texts, None) is LANGUAGE
    assert subject_of(str(tmp_path / "a" / "a.txt"), None) is LANGUAGE
    assert subject_of(write(tmp_path / "pictures", a__x=PNG), "language") is LANGUAGE


def test_folders_of_classes_of_text(tmp_path: Path) -> None:
    labelled = write(tmp_path / "a", cat__1_txt=b"x", dog__2_txt=b"y")
    assert subject_of(labelled, None) is subject_of(labelled, "classes") is TEXT_CLASSES
    assert subject_of(labelled, "language") is LANGUAGE
    divided = write(tmp_path / "b", train__cat__1=b"x", test__cat__1=b"x", train__dog__1=b"y", test__dog__2=b"y")
    assert subject_of(divided, None) is TEXT_CLASSES
    assert subject_of(write(tmp_path / "c", cat__1_txt=b"x", cat__2_txt=b"y"), None) is LANGUAGE
    assert subject_of(write(tmp_path / "d", cat__1_txt=b"x", dog__2_txt=b"y", read_me=b"z"), None) is LANGUAGE
    with pytest.raises(UsageError, match=r"there is no kind 'languge'; known are .*; did you mean language"):
        subject_of(labelled, "languge")


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", one__1=PNG, two__2=PNG)
    (tmp_path / "photos").mkdir()
    for name in ("one", "two"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    assert subject_of(str(tmp_path / "photos"), None) is PICTURES


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert subject_of(str(tmp_path / "pipe"), None) is LANGUAGE


def test_nothing_is_no_subject(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder or file 'stdlb'; give .* did you mean stdlib"):
        subject_of("stdlb", None)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file; give a folder of pictures or of texts"):
        subject_of(str(tmp_path), None)
