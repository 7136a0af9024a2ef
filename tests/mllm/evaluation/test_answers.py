"""Correctness of answers: laws of the figures, and the formulas of VQA and POPE, computed by hand."""

import pytest
from toklip_mllm.evaluation import exact_match, find_choice, is_yes, normalize_answer, vqa_accuracy, yes_no


@pytest.mark.parametrize("answer", ["red", "Red", " red ", "RED.", "red ."])
def test_exact_match_overlooks_case_spaces_and_a_full_stop(answer):
    assert exact_match(answer, ["blue", "red"])


@pytest.mark.parametrize("answer", ["reddish", "a red", "", "red!"])
def test_exact_match_overlooks_nothing_else(answer):
    assert not exact_match(answer, ["blue", "red"])


def test_no_answer_is_never_a_right_one():
    assert not exact_match("", ["", "red"]) and not exact_match(".", ["", "red"]) and exact_match("red", ["", "red"])


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("-3", "-3.00"), ("20", "20.0."), ("2022", " 2022.0")])
def test_a_text_of_a_whole_number_is_right_with_and_without_its_point(one, other):
    for answer, truth in ((one, other), (other, one), (other, other)):
        assert exact_match(answer, [truth]) and vqa_accuracy(answer, [truth] * 4) == 1


@pytest.mark.parametrize(("one", "other"), [("1", "1.05"), ("1.5", "1"), ("10", "1.00"), ("1.0.0", "1"), ("nan", "")])
def test_other_texts_with_points_are_what_they_say(one, other):
    assert not exact_match(one, [other]) and not exact_match(other, [one]) and exact_match(one, [one.upper()])


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_is_the_mean_over_ten_people_of_those_who_agree_with_the_others(agreeing, accuracy):
    """With n of ten people, those n see n - 1 others, the rest n: (n min(1, (n - 1)/3) + (10 - n) min(1, n/3)) / 10."""
    truths = ["red"] * agreeing + [f"colour {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("red", truths) == pytest.approx(accuracy)


def test_vqa_accuracy_of_one_person_is_none():
    with pytest.raises(ValueError, match="got 1 answers; VQA accuracy compares several people"):
        vqa_accuracy("red", ["red"])


#: As the official evaluation has them: GT-Vision-Lab/VQA, vqaEval.py.
NORMALIZED = {
    "A red circle": "red circle",
    "two": "2",
    "none": "0",
    "1,000 people": "1000 people",
    "3.5": "3.5",
    "U.S.": "us",
    "red-ish": "red ish",
    "dont": "don't",
    "couldnt've": "couldn't've",
    "yes, it is": "yes it is",
    "a/b": "b",
    "what?": "what",
    "black\nand\twhite": "black and white",
}


@pytest.mark.parametrize("answer", NORMALIZED)
def test_answers_are_normalized_as_the_official_evaluation_does(answer):
    assert normalize_answer(answer) == NORMALIZED[answer]


@pytest.mark.parametrize("answer", ["yes", "Yes, it is.", "it is red", "known", "Yes. No other"])
def test_an_answer_without_no_is_a_yes_to_pope(answer):
    assert is_yes(answer)


@pytest.mark.parametrize("answer", ["no", "No, it is red.", "it is not", "there is no cat. Yes"])
def test_an_answer_with_no_or_not_in_its_first_sentence_is_a_no(answer):
    assert not is_yes(answer)


def test_pope_counts_yes_as_positive():
    answers = ["yes", "yes", "yes", "no", "no", "it is"]
    truths = ["yes", "yes", "no", "yes", "no", "no"]
    found = yes_no(answers, truths)
    assert found.questions == 6 and found.accuracy == pytest.approx(3 / 6)
    assert found.precision == pytest.approx(2 / 4) and found.recall == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert found.yes_share == pytest.approx(4 / 6) and found.unclear_share == pytest.approx(1 / 6)


def test_always_no_has_no_precision_and_half_of_the_accuracy():
    assert yes_no(["no", "no"], ["yes", "no"]) == (2, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)


CHOICES = ("a dog", "a cat", "an A")


@pytest.mark.parametrize(
    ("answer", "number"),
    [("A", 0), ("b", 1), ("(B)", 1), ("B. a dog", 1), ("C:", 2), ("A dog", 0), ("the cat", 1), ("a cat.", 1),
     ("D", None), ("a bird", None), ("", None)],
)  # fmt: skip
def test_a_choice_is_named_by_its_letter_or_its_words(answer, number):
    assert find_choice(answer, CHOICES) == number
