"""Questions about pictures, with the answers that are right: from JSONL files, and about scenes."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from toklip_core.files import json_rows, one_line, refuse_special
from toklip_core.pictures import Picture, open_picture, scene_pictures
from toklip_core.ranges import MAX_PIXELS
from toklip_core.scenes import Scenes, parse_scenes

from toklip_mllm.evaluation.answers import id_of, missing, plain, text_of

#: Of the letters of choices there are so many.
_MOST_CHOICES = len(string.ascii_uppercase)


class Asked(NamedTuple):
    """A question, and what is right."""

    #: Of the row, for messages.
    name: str
    #: In the order in which the model sees them; unread.
    pictures: tuple[Picture, ...]
    question: str
    #: One or more; of a question with choices the text of the right one.
    truths: tuple[str, ...]
    kind: str
    #: Empty if the answer is free.
    choices: tuple[str, ...] = ()


class Keys(NamedTuple):
    """Names of a row's columns."""

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    kind: str = "type"


def read_questions(
    path: Path | str, *, root: Path | str | None = None, keys: Keys | None = None, max_pixels: int = MAX_PIXELS
) -> list[Asked]:
    """Return the questions of a JSONL file, one in each line, of a JSON list, or about scenes.

    ``{"image": PATH or [PATH, ...], "question": TEXT, "answer": TEXT or [TEXT, ...]}``, and optionally "choices":
    [TEXT, ...], with the answer as one of them, as its letter, or as its number from 0; "type": of which figures are
    given apart; and "id" or "question_id". Of several people's answers each may be ``{"answer": TEXT}``, as VQA has
    them. A number of JSON is the text of it, 1.0 that of 1, and beside choices the number of one, which is refused if
    another choice says this number.

    Args:
        path: the file; or scenes, such as ``scenes:held-out?count=64``, of which all questions are asked.
        root: where the pictures' paths start from; None: the file's own folder.
        keys: other names of the columns.
        max_pixels: see :func:`toklip_core.pictures.open_picture`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, it holds no question, or a row is malformed or has no answer; the message
            names it.
    """
    if (scenes := parse_scenes(path)) is not None:
        return scene_questions(scenes)
    path = Path(path)
    refuse_special(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; name a JSONL file of questions")
    folder = path.parent if root is None else Path(root)
    found = []
    for number, row in json_rows(path):
        name = f"{path}, row {number}"
        try:
            if not isinstance(row, Mapping):
                raise ValueError(f"got a {type(row).__name__}; wanted an object")
            found.append(_asked(row, name, partial(open_picture, max_pixels=max_pixels), folder, keys or Keys()))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no question")
    return found


def scene_questions(scenes: Scenes) -> list[Asked]:
    """Return all questions about scenes; a picture is drawn when it is read."""
    return [
        Asked(picture.name, (picture,), question.text, (question.answer,), question.kind)
        for picture, scene in zip(scene_pictures(scenes), scenes, strict=True)
        for question in scene.questions
    ]


def prompt_of(asked: Asked, prompt: str) -> str:
    """Return what the model is asked: the prompt with the question for its {}; choices as LLaVA's evaluation has them.

    Source: LLaVA, https://github.com/haotian-liu/LLaVA, docs/Evaluation.md.
    """
    if not asked.choices:
        return prompt.replace("{}", asked.question)
    options = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, asked.choices, strict=False)]
    directly = "Answer with the option's letter from the given choices directly."
    return "\n".join([asked.question, *options, directly])


def _asked(
    row: Mapping[str, Any], name: str, read: Callable[[Path], Image.Image], folder: Path, keys: Keys
) -> Asked:
    for key in (keys.image, keys.question, keys.answer):
        if key not in row:
            raise ValueError(f"it has no {key!r}; it has {one_line(', '.join(row), longest=120) or 'nothing'}")
    pictures = row[keys.image] if isinstance(row[keys.image], list) else [row[keys.image]]
    if not all(isinstance(picture, str) for picture in pictures) or not isinstance(row[keys.question], str):
        raise ValueError(f"wanted paths in {keys.image!r} and a text in {keys.question!r}")
    paths = [folder / picture for picture in pictures]
    choices = row.get("choices") or ()
    choices = () if missing(choices) else choices
    if not isinstance(choices, list | tuple):
        raise ValueError(f"got the choices {one_line(repr(choices), longest=120)}; wanted a list")
    choices = tuple(map(text_of, choices))
    kind = row.get(keys.kind)
    return Asked(
        name + id_of(row),
        tuple(Picture(str(path), partial(read, path)) for path in paths),
        row[keys.question],
        _truths(row[keys.answer], choices),
        "all" if missing(kind) else text_of(kind, "type"),
        choices,
    )


def _truths(answer: Any, choices: Sequence[str]) -> tuple[str, ...]:  # noqa: ANN401 - whatever JSON holds
    answers = answer if isinstance(answer, list) else [answer]
    answers = [one["answer"] if isinstance(one, Mapping) and "answer" in one else one for one in answers]
    if not answers or any(map(missing, answers)):
        raise ValueError("it has no answer, or an empty one; leave out the row, or say what is right")
    truths = tuple(map(text_of, answers))
    if not any(truth.strip() for truth in truths):  # of several people some may have said nothing
        raise ValueError("it has no answer, or an empty one; leave out the row, or say what is right")
    if not choices:
        return truths
    if not 2 <= len(choices) <= _MOST_CHOICES:
        raise ValueError(f"got {len(choices)} choices; wanted 2 to {_MOST_CHOICES}")
    if len(truths) > 1:
        raise ValueError(f"got {len(truths)} answers to a question with choices; wanted one")
    return (_right_choice(truths[0], choices, is_number=isinstance(answers[0], int | float)),)


def _right_choice(answer: str, choices: Sequence[str], *, is_number: bool) -> str:
    """The choice that an answer is: a text by its words first, a number by counting from 0."""
    text = plain(answer)
    letters = dict(zip(string.ascii_uppercase, choices, strict=False))
    counted = next((choice for number, choice in enumerate(choices) if str(number) == text), None)
    if is_number:
        letter = next((letter for letter, choice in letters.items() if plain(choice) == text), None)
        if letter is not None and choices[string.ascii_uppercase.index(letter)] != counted:
            raise ValueError(
                f"the answer {text} is a number, which counts from 0, but choice {letter} says {text}, too; write its "
                f'letter, such as "{letter}", or its words as a text'
            )
        found = counted
    else:
        same = [choice for choice in choices if plain(choice) == text]
        found = answer if answer in choices else letters.get(answer.strip(), same[0] if len(same) == 1 else counted)
    if found is None:
        said, offered = one_line(repr(answer), longest=80), one_line(", ".join(choices), longest=120)
        raise ValueError(f"the answer {said} is none of its choices: {offered}")
    return found
