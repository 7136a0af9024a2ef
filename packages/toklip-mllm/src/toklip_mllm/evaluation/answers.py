"""When an answer is right: exact match, VQA accuracy, yes and no, the letters of a choice.

A number in a file becomes a text here. This module is about texts only; vqa.py beside it asks the questions.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toklip_core.files import one_line

#: Written with all their apostrophes; a word that lacks one of them is put right.
_CONTRACTIONS = (
    "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've "
    "mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's "
    "won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
).split()
_WITH_APOSTROPHES = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS
    for place, letter in enumerate(word)
    if letter == "'"
}
_DIGITS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = {"a", "an", "the"}
_MARKS = ";/[]\"{}()=+\\_-><@`,?!"
_NUMBER_COMMA = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
#: What a table of texts makes of a whole number.
_WHOLE = re.compile(r"([+-]?\d+)\.0+", re.ASCII)

#: So many people must have given an answer for it to be all right.
_AGREEING = 3


class YesNo(NamedTuple):
    """Figures over questions whose answer is yes or no; "yes" is the positive class, as POPE has it."""

    questions: int
    accuracy: float
    #: 0 where nothing was answered with yes, or where nothing is yes.
    precision: float
    recall: float
    f1: float
    #: Share of the answers that were read as yes.
    yes_share: float
    #: Share of the answers with neither word in them: they were read as yes, as POPE reads them.
    unclear_share: float


def missing(value: object) -> bool:
    """Say whether a cell is empty: null, or the NaN that a table makes of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: object, what: str = "answer or choice") -> str:
    """Return an answer, a choice or a type as a text: a number that is whole as one, for tables make 1.0 of 1.

    Args:
        value: of a row.
        what: it is, for the message.

    Raises:
        ValueError: it is neither a text nor a finite number.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        got = one_line(repr(value), longest=120)
        raise ValueError(f"got the {what} {got}; wanted a text or a number, such as \"yes\"")
    return str(value)


def id_of(row: Mapping[str, Any]) -> str:
    """Return " (id ID)" of a row that has one, for messages; it has no other use."""
    found = next((row[key] for key in ("id", "question_id") if not missing(row.get(key))), None)
    if found is None:
        return ""
    whole = isinstance(found, float) and found.is_integer()
    return f" (id {int(found) if whole else found})"


def exact_match(answer: str, truths: Sequence[str]) -> bool:
    """Say whether an answer is one of the true ones, but for case, spaces, a full stop at the end, and 1.0 for 1.

    >>> exact_match("A red circle.", ["a red circle", "red"])
    True
    """
    return plain(answer) in {plain(truth) for truth in truths}


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the accuracy of an answer where several people were asked, in [0, 1].

    It is the mean, over the people, of min(1, n / 3), n being how many of the others gave the answer. Both sides are
    :func:`normalized` first, and 1.0 is 1.

    Args:
        answer: what the model said.
        truths: an answer of each of the people: ten in VQA and TextVQA. With fewer than four nobody reaches 1.

    Raises:
        ValueError: there are fewer than two.

    Source: Antol et al., VQA, https://arxiv.org/abs/1505.00468, and GT-Vision-Lab/VQA, vqaEval.py.

    >>> vqa_accuracy("two", ["2", "two", "two", "3"])
    0.75
    """
    if len(truths) < 2:
        raise ValueError(f"got {len(truths)} answers; VQA accuracy compares several people, so it needs at least 2")
    given = plain(normalized(answer))
    agree = [plain(normalized(truth)) == given for truth in truths]
    return sum(min(1.0, (sum(agree) - own) / _AGREEING) for own in agree) / len(agree)


def normalized(answer: str) -> str:
    """Return an answer in the words that VQA accuracy compares: punctuation, digits, articles, contractions.

    Source: GT-Vision-Lab/VQA, vqaEval.py, processPunctuation and processDigitArticle; "none" is 0 there, too. Its table
    of contractions turns "somebody'd" into "somebodyd", which is left out here.

    >>> normalized("The two dogs, running!")
    '2 dogs running'
    """
    text = " ".join(answer.split())
    cleaned = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or _NUMBER_COMMA.search(text) else " ")
    words = [_DIGITS.get(word, word) for word in _POINT.sub("", cleaned).lower().split()]
    return " ".join(_WITH_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def is_yes(answer: str) -> bool:
    """Read an answer as POPE does: its first sentence is no if it has the word no or not, and else yes.

    Source: RUCAIBox/POPE, evaluate.py.
    """
    return not {"no", "not"} & {*_words(answer)}


def yes_no(answers: Sequence[str], truths: Sequence[str]) -> YesNo:
    """Return the figures of POPE.

    Args:
        answers: what the model said.
        truths: "yes" or "no" for each.

    Source: Li et al., POPE, https://arxiv.org/abs/2305.10355, section 5.
    """
    said = [is_yes(answer) for answer in answers]
    is_so = [plain(truth) == "yes" for truth in truths]
    both = sum(a and b for a, b in zip(said, is_so, strict=True))
    precision = both / sum(said) if any(said) else 0.0
    recall = both / sum(is_so) if any(is_so) else 0.0
    unclear = [not {"yes", "no", "not"} & {*_words(answer)} for answer in answers]
    return YesNo(
        questions=len(said),
        accuracy=sum(a == b for a, b in zip(said, is_so, strict=True)) / len(said),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if both else 0.0,
        yes_share=sum(said) / len(said),
        unclear_share=sum(unclear) / len(unclear),
    )


def chosen(answer: str, choices: Sequence[str]) -> int | None:
    """Return which of some choices an answer names, by its letter or in its words; None if it names none.

    A letter stands alone ("B"), in brackets ("(B)"), or before a mark ("B. a dog"). "A dog" is words.
    """
    text = answer.strip()
    if match := re.match(r"\(?([A-Za-z])(?:[).:,]|$)", text):
        number = string.ascii_uppercase.index(match[1].upper())
        return number if number < len(choices) else None
    words = normalized(text)
    same = [number for number, choice in enumerate(choices) if words and normalized(choice) == words]
    return same[0] if len(same) == 1 else None


def plain(text: str) -> str:
    """Return a text as exact match compares it: "a cat" of " A  cat.", and "1" of "1.0"."""
    words = " ".join(text.lower().split()).removesuffix(".").rstrip()
    return found[1] if (found := _WHOLE.fullmatch(words)) else words


def _words(answer: str) -> list[str]:
    return answer.split(".")[0].replace(",", " ").lower().split()
