"""Classes and their names: folders of classes, typed labels, ImageNet, and templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from toklip_core.config import MAX_PIXELS
from toklip_core.files import read_text, replace_lone_surrogates
from toklip_core.pictures import (
    ARCHIVE_SUFFIXES,
    LabelledPictures,
    LazyPicture,
    find_pictures,
    labelled_scenes,
    list_pictures,
)
from toklip_core.scenes import parse_scenes

#: Names of open_clip's sets of 80 and 7 templates.
TEMPLATE_SETS = ("openai", "simple")


def known_templates(given: Sequence[str]) -> list[str]:
    """Return templates; ``openai`` becomes open_clip's 80 templates for ImageNet, and ``simple`` its 7 simple ones.

    Raises:
        ValueError: a template has no {} for the name, or occurs twice.
    """
    found: list[str] = []
    for template in given:
        if "{}" not in template and template not in TEMPLATE_SETS:
            raise ValueError(
                f"got the template {template!r}; wanted a text with {{}} where the name goes, such as 'a photo of a "
                f"{{}}.', or one of {', '.join(TEMPLATE_SETS)}"
            )
        found += _template_set(template) if template in TEMPLATE_SETS else [template]
    return refuse_duplicates(found, "template")


def read_labels(labels: str | None, file: Path | str | None) -> list[str]:
    """Return labels from a text, separated by commas, or from a file with one label per line.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: both or neither are given, there are no labels, or two are equal.
    """
    if (labels is None) == (file is None):
        raise ValueError("name the labels, or a file with one in each line, and not both (--labels, --labels-file)")
    if file is None:
        return refuse_duplicates([label.strip() for label in (labels or "").split(",")], "label")
    lines = read_text(file).splitlines()
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"{file} has no label; wanted one in each line")
    return refuse_duplicates(found, "label")


def class_folders(
    folder: Path | str, *, imagenet: bool = False, max_pixels: int = MAX_PIXELS
) -> LabelledPictures:
    """Return the pictures of a folder with one folder per class, in the order of :func:`sort_classes`.

    A class has the name of its folder, with spaces for underscores; a class without pictures is still a candidate.
    Files beside the folders of classes, and hidden ones, are ignored.

    Args:
        folder: folder with FOLDER/CLASS/PICTURE, or deeper; a tar in the folder of a class is read like one. Or
            scenes, such as ``scenes:held-out?count=256&objects=1``, see :func:`toklip_core.pictures.labelled_scenes`.
        imagenet: whether the folders are the 1000 classes of ImageNet, named n01440764 and so on, or 0 to 999; the
            classes get open_clip's names.
        max_pixels: maximum pixels of a picture, see :func:`toklip_core.pictures.open_picture`.

    Raises:
        FileNotFoundError: the folder is missing, or has no folder or no picture.
        ValueError: two classes have the same name, the folders are not those of ImageNet, or scenes have several
            objects.
    """
    if (scenes := parse_scenes(folder)) is not None:
        if imagenet:
            raise ValueError("got ImageNet's names for scenes, which have classes of their own; name a folder")
        return labelled_scenes(scenes)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; wanted one with a folder of pictures for each class")
    by_name = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    found = [by_name[name] for name in sort_classes(by_name)]
    if not found:
        raise FileNotFoundError(f"{folder} has no folders; wanted one for each class, with pictures in it")
    if imagenet:
        names = _imagenet_names(folder, found)
    else:
        names = refuse_duplicates([class_name(path.name) for path in found], "class")
    pictures: list[LazyPicture] = []
    labels: list[int] = []
    for label, path in enumerate(found):
        inside = _pictures_in(path, max_pixels)
        pictures += inside
        labels += [label] * len(inside)
    if not pictures:
        raise FileNotFoundError(f"no picture in any of the {len(found)} folders of {folder}")
    return LabelledPictures(names, pictures, labels)


def sort_classes(folders: Iterable[str]) -> list[str]:
    """Return the folders of classes, sorted; as numbers if all of them are numbers."""
    found = sorted(folders)
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found


def class_name(folder: str) -> str:
    """Return the name of a folder's class, with spaces for underscores.

    >>> class_name("red_circle")
    'red circle'
    """
    return folder.replace("_", " ")


def folders_above(key: str) -> list[str]:
    """Return the folders that a picture of a store lies in, the nearest last; a tar or Parquet file is none."""
    folders = key.split("/")[:-1]
    return [folder for folder in folders if PurePosixPath(folder).suffix.lower() not in ARCHIVE_SUFFIXES]


def folders_of_keys(keys: Sequence[str], what: str) -> list[str]:
    """Return the folder of the class of each picture of a store, by the rule of :func:`class_folders`.

    What all keys have in common is FOLDER, and the folder below it is the class, however deep in it the picture lies.
    If all pictures lie in one folder, that is the class. A tar is not a folder: its pictures lie where it does, or in
    the folders that it holds. Keys do not tell a single class with folders below it (cat/train, cat/val) from two
    classes.

    Args:
        keys: keys of pictures, posix paths.
        what: names the store, for messages.

    Raises:
        ValueError: a picture lies in no folder of a class.
    """
    folders = list(map(folders_above, keys))
    first, last = min(folders), max(folders)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    if first == last:
        common -= 1
    for key, folder in zip(keys, folders, strict=True):
        if not 0 <= common < len(folder):
            raise ValueError(f"{key!r} of {what} lies in no folder of a class; encode FOLDER/CLASS/PICTURE")
    return [folder[common] for folder in folders]


def described_templates(templates: Sequence[str]) -> str:
    """Return templates as one line for a protocol; a whole set by its name."""
    for name in TEMPLATE_SETS:
        if len(templates) > 1 and list(templates) == _template_set(name):
            return f"{name}, the {len(templates)} of open_clip"
    return " | ".join(templates)


def refuse_duplicates(texts: Sequence[str], kind: str) -> list[str]:
    """Return texts without lone surrogates; ValueError if there are none, or if one is empty or occurs twice.

    Args:
        texts: at least one text.
        kind: word for a text, for the message.
    """
    texts = list(map(replace_lone_surrogates, texts))
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"got {texts}; wanted one {kind} or more, and none of them empty")
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise ValueError(f"the {kind} {text!r} occurs twice; each must differ from all others")
        seen.add(text)
    return texts


def _pictures_in(folder: Path, max_pixels: int) -> list[LazyPicture]:
    try:
        return list_pictures(find_pictures([folder], max_pixels=max_pixels))
    except FileNotFoundError:
        return []


def _imagenet_names(folder: Path, classes: Sequence[Path]) -> list[str]:
    """Return open_clip's names, in the order of ImageNet's sorted synsets.

    Raises:
        ValueError: the folders of classes are not those of ImageNet.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    wanted = "wanted ImageNet's 1000, named n01440764 and so on, or 0 to 999"
    if len(classes) != len(IMAGENET_CLASSNAMES):
        raise ValueError(f"{folder} has {len(classes)} folders; {wanted}")
    synsets = [path.name for path in classes if re.fullmatch(r"n\d{8}", path.name)]
    numbers = [path.name for path in classes if re.fullmatch(r"\d+", path.name)]
    if len(synsets) < len(classes) and {int(number) for number in numbers} != set(range(len(classes))):
        odd = next((path.name for path in classes if path.name not in {*synsets, *numbers}), classes[0].name)
        raise ValueError(f"{folder} has folders such as {odd!r}; {wanted}")
    return list(IMAGENET_CLASSNAMES)


def _template_set(name: str) -> list[str]:
    from open_clip import zero_shot_metadata

    functions = {
        "openai": zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES,
        "simple": zero_shot_metadata.SIMPLE_IMAGENET_TEMPLATES,
    }
    return [template("{}") for template in functions[name]]
