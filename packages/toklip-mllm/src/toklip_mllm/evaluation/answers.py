"""Rules for right answers: exact match, VQA accuracy, yes and no, letters of choices.

Numbers in files become texts here, and this module compares texts only. vqa.py asks the questions.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toklip_core.files import one_line

#: Contractions with all their apostrophes; a word that lacks one is corrected.
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
#: A whole number as tables may write it.
_WHOLE = re.compile(r"([+-]?\d+)\.0+", re.ASCII)

#: Number of people whose agreement makes an answer fully right.
_AGREEING = 3


class YesNo(NamedTuple):
    """Figures over questions whose answer is yes or no; "yes" is the positive class, as in POPE."""

    questions: int
    accuracy: float
    #: Precision, recall and F1 are 0 if no answer is yes, or if yes is never right.
    precision: float
    recall: float
    f1: float
    #: Share of answers that count as yes.
    yes_share: float
    #: Share of answers without yes, no or not; they count as yes, as in POPE.
    unclear_share: float


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, or NaN, which tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def to_text(value: object, what: str = "answer or choice") -> str:
    """Return an answer, a choice or a type as a text; 1.0 becomes "1", because tables write 1.0 for 1.

    Args:
        value: value in a row.
        what: word for the value, for the message.

    Raises:
        ValueError: the value is neither a text nor a finite number.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    finite = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not finite:
        got = one_line(repr(value), longest=120)
        raise ValueError(f"got the {what} {got}; wanted a text or a number, such as \"yes\"")
    return str(value)


def format_id(row: Mapping[str, Any]) -> str:
    """Return " (id ID)" for messages, or an empty text if a row has no id."""
    found = next((row[key] for key in ("id", "question_id") if not is_missing(row.get(key))), None)
    if found is None:
        return ""
    whole = isinstance(found, float) and found.is_integer()
    return f" (id {int(found) if whole else found})"


def exact_match(answer: str, truths: Sequence[str]) -> bool:
    """Return whether an answer is a right one, ignoring case, spaces and a final full stop, and reading 1.0 as 1.

    An empty answer is never right: of several people some may have given none.

    >>> exact_match("A red circle.", ["a red circle", "red"])
    True
    """
    return simplify(answer) in {simplify(truth) for truth in truths} - {""}


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return the accuracy, in [0, 1], of an answer to a question that several people answered.

    It is the mean over the people of min(1, n / 3), where n is the number of other people who gave this answer. All
    answers go through :func:`normalize_answer` first, and 1.0 counts as 1.

    Args:
        answer: answer of the model.
        truths: answers of the people, ten in VQA and TextVQA. With fewer than four no answer reaches 1.

    Raises:
        ValueError: there are fewer than two people.

    Source: Antol et al., VQA, https://arxiv.org/abs/1505.00468, and GT-Vision-Lab/VQA, vqaEval.py.

    >>> vqa_accuracy("two", ["2", "two", "two", "3"])
    0.75
    """
    if len(truths) < 2:
        raise ValueError(f"got {len(truths)} answers; VQA accuracy compares several people, so it needs at least 2")
    given = simplify(normalize_answer(answer))
    agree = [simplify(normalize_answer(truth)) == given for truth in truths]
    return sum(min(1.0, (sum(agree) - own) / _AGREEING) for own in agree) / len(agree)


def normalize_answer(answer: str) -> str:
    """Return an answer in VQA's normal form of punctuation, numbers, articles and contractions.

    Source: GT-Vision-Lab/VQA, vqaEval.py, processPunctuation and processDigitArticle; "none" is 0 there, too. Its table
    of contractions turns "somebody'd" into "somebodyd"; that entry is left out here.

    >>> normalize_answer("The two dogs, running!")
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
    """Return whether an answer means yes: unless its first sentence contains no or not.

    Source: RUCAIBox/POPE, evaluate.py. It looks for "No", "no" and "not" between spaces, so it reads "NO", "Not really"
    and "no" beside a line break as yes. Here they are no.

    >>> is_yes("It is red."), is_yes("No, it is not."), is_yes("Not really")
    (True, False, False)
    """
    return not {"no", "not"} & {*_words(answer)}


def yes_no(answers: Sequence[str], truths: Sequence[str]) -> YesNo:
    """Return the figures of POPE.

    Args:
        answers: answers of the model.
        truths: right answers, "yes" or "no".

    Raises:
        ValueError: there is no answer.

    Source: Li et al., POPE, https://arxiv.org/abs/2305.10355, section 5.
    """
    if not answers:
        raise ValueError("got no answers; POPE's figures need at least one")
    said = [is_yes(answer) for answer in answers]
    is_so = [simplify(truth) == "yes" for truth in truths]
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


def find_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that an answer names by its letter or its text; None if it names none.

    A letter stands alone ("B"), in brackets ("(B)"), or before a punctuation mark ("B. a dog"). "A dog" is a text.
    """
    text = answer.strip()
    if match := re.match(r"\(?([A-Za-z])(?:[).:,]|$)", text):
        number = string.ascii_uppercase.index(match[1].upper())
        return number if number < len(choices) else None
    words = normalize_answer(text)
    same = [number for number, choice in enumerate(choices) if words and normalize_answer(choice) == words]
    return same[0] if len(same) == 1 else None


def simplify(text: str) -> str:
    """Return a text in the form that exact match compares: " A  cat." becomes "a cat", and "1.0" becomes "1"."""
    words = " ".join(text.lower().split()).removesuffix(".").rstrip()
    return found[1] if (found := _WHOLE.fullmatch(words)) else words


def _words(answer: str) -> list[str]:
    return answer.split(".")[0].replace(",", " ").lower().split()
