"""Figures over questions that a model answers; :mod:`toklip_mllm.evaluation.answers` says when an answer is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from toklip_core.evaluation import report_text

from toklip_mllm.evaluation.answers import YesNo, exact_match, find_choice, simplify, vqa_accuracy, yes_no
from toklip_mllm.evaluation.questions import VQAQuestion


class Share(NamedTuple):
    """Share of right answers among some questions."""

    questions: int
    right: float
    #: Share of right answers if the most frequent answer, of each type, is always given.
    prior: float


@dataclass(frozen=True, kw_only=True)
class VQAReport:
    """Figures over questions, with the protocol of their measurement. A figure without questions is None."""

    #: Questions with free answers.
    exact_match: Share | None
    #: Questions with choices.
    multiple_choice: Share | None
    #: Both kinds of questions, by type.
    by_type: dict[str, Share]
    #: Mean over the questions with answers of several people.
    vqa_accuracy: float | None
    #: Questions whose answer is yes or no.
    yes_no: YesNo | None
    #: Protocol of the measurement.
    protocol: dict[str, str | int]
    #: Questions whose pictures cannot be read, with the reason; no figure includes them.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        shares = {
            name: None if (share := getattr(self, name)) is None else share._asdict()
            for name in ("exact_match", "multiple_choice", "yes_no")
        }
        return asdict(self) | shares | {"by_type": {kind: share._asdict() for kind, share in self.by_type.items()}}

    def as_text(self) -> str:
        """Return the report as a table for people."""
        rows = [("exact match", self.exact_match), ("multiple choice", self.multiple_choice)]
        rows += [(f"  {kind}", share) for kind, share in self.by_type.items() if len(self.by_type) > 1]
        figures = [
            (name, f"{share.right:.2%}", f"({share.questions} questions, most frequent answer {share.prior:.2%})")
            for name, share in rows
            if share is not None
        ]
        if self.vqa_accuracy is not None:
            figures.append(("VQA accuracy", f"{self.vqa_accuracy:.2%}", ""))
        if self.yes_no is not None:
            yes = self.yes_no
            figures.append(("yes or no", f"{yes.accuracy:.2%}", f"({yes.questions} questions)"))
            others = (yes.precision, yes.recall, yes.f1, yes.yes_share, yes.unclear_share)
            names = ("precision", "recall", "F1", "share of yes", "neither word")
            figures += [(f"  {name}", f"{value:.2%}", "") for name, value in zip(names, others, strict=True)]
        return report_text(figures, self.protocol, self.unreadable)


class VQAAnswer(NamedTuple):
    """A question with the model's answer."""

    question: VQAQuestion
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is right, by exact match or by the choice that it names."""
        choices = self.question.choices
        if not choices:
            return exact_match(self.answer, self.question.truths)
        number = find_choice(self.answer, choices)
        return number is not None and choices[number] == self.question.truths[0]


def report_answers(answers: Sequence[VQAAnswer]) -> VQAReport:
    """Return the figures of answers; the protocol has only the entries that follow from the answers."""
    kinds = sorted({one.question.kind for one in answers})
    by_type = {kind: _share([one for one in answers if one.question.kind == kind]) for kind in kinds}
    free = [one for one in answers if not one.question.choices]
    of_choices = [one for one in answers if one.question.choices]
    by_many = [one for one in free if len(one.question.truths) > 1]
    yes = [one for one in free if {simplify(truth) for truth in one.question.truths} in ({"yes"}, {"no"})]
    people = [len(one.question.truths) for one in by_many]
    accuracies = [vqa_accuracy(one.answer, one.question.truths) for one in by_many]
    protocol: dict[str, str | int] = {"questions": len(answers)}
    if free:
        protocol["exact match"] = "but for case, spaces, a full stop at the end, and 1.0 for 1"
    if people:
        protocol["people asked"] = f"{min(people)} to {max(people)} for a question"
    if yes:
        protocol["yes or no"] = (
            "yes unless the first sentence has 'no' or 'not', in any case (POPE's script reads 'Not' and 'NO' as yes)"
        )
    protocol["software"] = ", ".join(f"{name} {version(name)}" for name in ("timm", "torch", "transformers"))
    return VQAReport(
        exact_match=_share(free) if free else None,
        multiple_choice=_share(of_choices) if of_choices else None,
        by_type=by_type,
        vqa_accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        yes_no=yes_no([one.answer for one in yes], [one.question.truths[0] for one in yes]) if yes else None,
        protocol=protocol,
    )


def _share(answers: Sequence[VQAAnswer]) -> Share:
    kinds: dict[str, Counter[tuple[bool, str]]] = {}
    for one in answers:
        truths, choices = one.question.truths, one.question.choices
        # For choices this is the letter that a blind model would always give.
        right = {str(choices.index(truths[0]))} if choices else {*map(simplify, truths)} - {""}
        # A type may have free answers, too: the letter of choice 0 is not the answer "0".
        kinds.setdefault(one.question.kind, Counter()).update((bool(choices), answer) for answer in right)
    frequent = sum(max(counts.values(), default=0) for counts in kinds.values())
    return Share(len(answers), sum(one.right for one in answers) / len(answers), frequent / len(answers))
