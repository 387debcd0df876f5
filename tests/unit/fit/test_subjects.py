"""What a fit is to follows from names and first bytes of files."""

import os
from pathlib import Path

import pytest

from anyformer.core.errors import UsageError
from anyformer.fit.subjects import LANGUAGE, PICTURES, subject_of

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
