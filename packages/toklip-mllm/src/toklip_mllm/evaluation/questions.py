"""Questions about pictures with their right answers, from JSONL files or about scenes."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from toklip_core.config import MAX_PIXELS
from toklip_core.files import json_rows, one_line, refuse_special
from toklip_core.pictures import LazyPicture, open_picture, scene_pictures
from toklip_core.scenes import Scenes, parse_scenes

from toklip_mllm.evaluation.answers import format_id, is_missing, simplify, to_text

#: Number of letters for choices.
_MOST_CHOICES = len(string.ascii_uppercase)


class VQAQuestion(NamedTuple):
    """A question with its right answers."""

    #: Name of the row, for messages.
    name: str
    #: Unread pictures, in the order in which the model sees them.
    pictures: tuple[LazyPicture, ...]
    text: str
    #: Right answers, at least one; for a question with choices, the text of the right choice.
    truths: tuple[str, ...]
    #: Type of the question; figures are also given per type.
    kind: str
    #: Choices; empty for a free answer.
    choices: tuple[str, ...] = ()


class Columns(NamedTuple):
    """Names of the columns of a file of questions."""

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    kind: str = "type"


def read_questions(
    path: Path | str, *, root: Path | str | None = None, columns: Columns | None = None, max_pixels: int = MAX_PIXELS
) -> list[VQAQuestion]:
    """Return the questions of a JSONL file with one question per line, of a JSON list, or about scenes.

    A row is ``{"image": PATH or [PATH, ...], "question": TEXT, "answer": TEXT or [TEXT, ...]}``. Answers of several
    people may also be ``{"answer": TEXT}`` each, as in VQA. Optional columns are "choices": [TEXT, ...], "type", for
    figures per type, and "id" or "question_id". With choices, the answer is the text of a choice, its letter, or its
    number, counted from 0; a number that is also the text of another choice is refused. Numbers become texts, and 1.0
    becomes 1.

    Args:
        path: the file; or scenes, such as ``scenes:held-out?count=64``, for all questions about them.
        root: folder that picture paths are relative to; None: the file's own folder. It has no effect on scenes.
        columns: names of the columns, if others than the usual ones. They have no effect on scenes.
        max_pixels: maximum pixels of a picture, see :func:`toklip_core.pictures.open_picture`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not JSON in UTF-8 or has no question, or a row is malformed or has no answer; the
            message names the row.
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
            read = partial(open_picture, max_pixels=max_pixels)
            found.append(_question_of(row, name, read, folder, columns or Columns()))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no question")
    return found


def scene_questions(scenes: Scenes) -> list[VQAQuestion]:
    """Return all questions about scenes; their pictures are drawn when they are read."""
    return [
        VQAQuestion(picture.name, (picture,), question.text, (question.answer,), question.kind)
        for picture, scene in zip(scene_pictures(scenes), scenes, strict=True)
        for question in scene.questions
    ]


def make_prompt(question: VQAQuestion, prompt: str) -> str:
    """Return the text for the model: the prompt with the question in place of {}, or choices in LLaVA's form.

    Source: LLaVA, https://github.com/haotian-liu/LLaVA, docs/Evaluation.md.
    """
    if not question.choices:
        return prompt.replace("{}", question.text)
    options = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, question.choices, strict=False)]
    directly = "Answer with the option's letter from the given choices directly."
    return "\n".join([question.text, *options, directly])


def _question_of(
    row: Mapping[str, Any], name: str, read: Callable[[Path], Image.Image], folder: Path, columns: Columns
) -> VQAQuestion:
    for key in (columns.image, columns.question, columns.answer):
        if key not in row:
            raise ValueError(f"it has no {key!r}; it has {one_line(', '.join(row), longest=120) or 'nothing'}")
    pictures = row[columns.image] if isinstance(row[columns.image], list) else [row[columns.image]]
    if not all(isinstance(picture, str) for picture in pictures) or not isinstance(row[columns.question], str):
        raise ValueError(f"wanted paths in {columns.image!r} and a text in {columns.question!r}")
    paths = [folder / picture for picture in pictures]
    choices = row.get("choices") or ()
    choices = () if is_missing(choices) else choices
    if not isinstance(choices, list | tuple):
        raise ValueError(f"got the choices {one_line(repr(choices), longest=120)}; wanted a list")
    choices = tuple(map(to_text, choices))
    kind = row.get(columns.kind)
    return VQAQuestion(
        name + format_id(row),
        tuple(LazyPicture(str(path), partial(read, path)) for path in paths),
        row[columns.question],
        _truths(row[columns.answer], choices),
        "all" if is_missing(kind) else to_text(kind, "type"),
        choices,
    )


def _truths(answer: Any, choices: Sequence[str]) -> tuple[str, ...]:  # noqa: ANN401 - whatever JSON holds
    answers = answer if isinstance(answer, list) else [answer]
    answers = [one["answer"] if isinstance(one, Mapping) and "answer" in one else one for one in answers]
    if not answers or any(map(is_missing, answers)):
        raise ValueError("it has no answer, or an empty one; leave out the row, or say what is right")
    truths = tuple(map(to_text, answers))
    if not any(truth.strip() for truth in truths):  # some of several people may have given no answer
        raise ValueError("it has no answer, or an empty one; leave out the row, or say what is right")
    if not choices:
        return truths
    if not 2 <= len(choices) <= _MOST_CHOICES:
        raise ValueError(f"got {len(choices)} choices; wanted 2 to {_MOST_CHOICES}")
    if len(truths) > 1:
        raise ValueError(f"got {len(truths)} answers to a question with choices; wanted one")
    return (_right_choice(truths[0], choices, is_number=isinstance(answers[0], int | float)),)


def _right_choice(answer: str, choices: Sequence[str], *, is_number: bool) -> str:
    """Return the choice that an answer names; a text is compared with the choices first, a number counts from 0."""
    text = simplify(answer)
    letters = dict(zip(string.ascii_uppercase, choices, strict=False))
    counted = next((choice for number, choice in enumerate(choices) if str(number) == text), None)
    if is_number:
        letter = next((letter for letter, choice in letters.items() if simplify(choice) == text), None)
        if letter is not None and choices[string.ascii_uppercase.index(letter)] != counted:
            raise ValueError(
                f"the answer {text} is a number, which counts from 0, but choice {letter} says {text}, too; write its "
                f'letter, such as "{letter}", or its words as a text'
            )
        found = counted
    else:
        same = [choice for choice in choices if simplify(choice) == text]
        found = answer if answer in choices else letters.get(answer.strip(), same[0] if len(same) == 1 else counted)
    if found is None:
        said, offered = one_line(repr(answer), longest=80), one_line(", ".join(choices), longest=120)
        raise ValueError(f"the answer {said} is none of its choices: {offered}")
    return found
