"""What a fit can be to: pictures, a text, labelled texts; how each is read, limited by a budget, and written."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from anyformer.core.errors import UsageError, nearest, shown
from anyformer.data.corpus import read_text
from anyformer.data.folder import PICTURES as PICTURE_ENDINGS
from anyformer.data.folder import SIDECARS
from anyformer.data.images import BUILT_IN, load
from anyformer.data.labelled_text import PART_FOLDERS, read_labelled_text
from anyformer.data.tables import ENDINGS
from anyformer.data.targets import Kind
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.fit.language_material import LanguageMaterial
from anyformer.fit.language_outcome import LanguageFinisher
from anyformer.fit.material import Material
from anyformer.fit.outcome import Finisher
from anyformer.fit.picture_material import PictureMaterial
from anyformer.fit.picture_outcome import PictureFinisher
from anyformer.fit.text_classes_material import LONGEST, TextClassesMaterial
from anyformer.fit.text_classes_outcome import TextClassesFinisher

if TYPE_CHECKING:
    from anyformer.fit.run import Request

STDLIB = "stdlib"
LANGUAGE_KIND = "language"
MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # how files of pictures begin


@dataclass(frozen=True)
class Subject:
    """One kind of data that models are fitted to.

    Attributes:
        what: the models, in words.
        quantities: what a budget may limit.
        runtime: what models run in unless asked otherwise.
        options: of the command, those that mean something here and not everywhere.
        read: the data of a request, and their digest.
        finisher: chooses and writes.
        also_asked: what must be equal too for a run to go on.
    """

    what: str
    quantities: tuple[str, ...]
    runtime: str
    options: tuple[str, ...]
    read: "Callable[[Request], tuple[Material, str]]"
    finisher: type[Finisher]
    also_asked: dict[str, Any] = field(default_factory=dict)

    def check(self, options: Sequence[str]) -> None:
        """Refuse options of other data. Raises UsageError."""
        for name in options:
            if name not in self.options:
                raise UsageError(f"{name} means nothing for {self.what}; leave it out")


def subject_of(source: str, kind: str | None) -> Subject:
    """What a fit to ``source`` is: read from the names and first bytes of files.

    Raises:
        UsageError: there is nothing of that name, or a folder without a file.
    """
    kinds = (*get_args(Kind), LANGUAGE_KIND)
    if kind not in (None, *kinds):
        raise UsageError(f"there is no kind {shown(kind)}; known are {', '.join(kinds)}{nearest(kind, kinds)}")
    if source == STDLIB or kind == LANGUAGE_KIND:
        return LANGUAGE
    path = Path(source)
    if source in BUILT_IN or path.suffix.lower() in (*ENDINGS, ".npz"):
        return PICTURES
    if not os.path.lexists(source):
        known = (*BUILT_IN, STDLIB)
        raise UsageError(
            f"there is no folder or file {shown(source)}; give a folder of pictures or of texts, a text file, a table of "
            f"pictures ({', '.join(ENDINGS)}), a .npz archive, or one of {', '.join(known)}{nearest(source, known)}"
        )
    files = list(_files(path))
    if not files:
        raise UsageError(f"{source} holds no file; give a folder of pictures or of texts")
    if 2 * sum(map(_is_picture, files)) >= len(files):
        return PICTURES
    labelled = path.is_dir() and _are_classes([file.relative_to(path).parts for file in files])
    return TEXT_CLASSES if labelled or kind is not None else LANGUAGE


def _are_classes(files: Sequence[tuple[str, ...]]) -> bool:
    """Whether files lie in folders of classes, or in such folders of a training and a test part, and nowhere else."""
    divided = {"train", "test"} <= {parts[0] for parts in files} <= set(PART_FOLDERS)
    depth = 3 if divided and all(len(parts) == 3 for parts in files) else 2
    return all(len(parts) == depth for parts in files) and len({parts[depth - 2] for parts in files}) > 1


def _files(path: Path) -> Iterator[Path]:
    """The files that a source consists of, hidden ones left out."""
    if not path.is_dir():
        yield path
        return
    entered: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:  # a link, perhaps to a folder that holds it
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith(".") and name not in SIDECARS)


def _is_picture(path: Path) -> bool:
    if path.suffix.lower() in PICTURE_ENDINGS:
        return True
    if not path.is_file():  # opening a pipe would wait for a writer
        return False
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(MAGIC)
    except OSError:  # whoever reads it will say so
        return False


def _pictures(asking: "Request") -> tuple[Material, str]:
    kind = cast("Kind | None", asking.kind)
    pictures = load(asking.data, asking.size, kind=kind, files=asking.files, target=asking.target)
    data = PictureMaterial.of(pictures, asking.seed, asking.weights, asking.device)
    if asking.distill and data.aim.kind != "classes":
        raise UsageError(f"distillation teaches classes; {asking.data} is {data.aim.kind}: leave --distill out")
    return data, pictures.digest()


def _language(asking: "Request") -> tuple[Material, str]:
    context = asking.budget.bound("context")
    text = read_text(asking.data)
    data = LanguageMaterial.of(text, asking.seed, None if context is None else math.ceil(context), asking.device)
    return data, text.digest()


def _text_classes(asking: "Request") -> tuple[Material, str]:
    if asking.kind not in (None, "classes"):
        raise UsageError(
            f"{asking.data} has texts in classes; {asking.kind} needs a table or a .npz archive of pictures"
        )
    texts = read_labelled_text(asking.data, ByteTokenizer(), longest=LONGEST)
    note = f"{len(texts.classes)} classes are the sub-folders; --kind language learns the texts themselves"
    texts = replace(texts, notes=(note, *texts.notes))
    return TextClassesMaterial.of(texts, asking.seed, asking.device), texts.digest()


PICTURES = Subject(
    what="models of pictures",
    quantities=("latency", "params", "size", "macs"),
    runtime="onnx",
    options=("--size", "--runtime", "--weights", "--distill", "--files", "--target"),
    read=_pictures,
    finisher=PictureFinisher,
)
LANGUAGE = Subject(
    what="language models",
    quantities=("tokens_per_second", "state", "context", "params", "size", "macs"),
    runtime="eager",
    options=(),
    read=_language,
    finisher=LanguageFinisher,
    also_asked={"kind": LANGUAGE_KIND},
)
TEXT_CLASSES = Subject(
    what="classifiers of text",
    quantities=("latency", "params", "size", "macs"),
    runtime="eager",
    options=(),
    read=_text_classes,
    finisher=TextClassesFinisher,
    also_asked={"kind": "classes of text"},
)
