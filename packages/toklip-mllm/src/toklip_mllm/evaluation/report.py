"""Figures over questions that a model answered; :mod:`toklip_mllm.evaluation.answers` says when an answer is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from toklip_core.evaluation import report_text

from toklip_mllm.evaluation.answers import YesNo, chosen, exact_match, plain, vqa_accuracy, yes_no
from toklip_mllm.evaluation.questions import Asked


class Share(NamedTuple):
    """How many of some questions are answered rightly."""

    questions: int
    right: float
    #: What is reached by always giving the most frequent answer: of each type, where there are several types.
    prior: float


@dataclass(frozen=True, kw_only=True)
class VQAReport:
    """Figures over questions, and the protocol that they were taken by. A figure without questions is None."""

    #: Of the questions whose answer is free.
    exact_match: Share | None
    #: Of the questions with choices.
    multiple_choice: Share | None
    #: Of both, by the type of question.
    by_type: dict[str, Share]
    #: Mean over the questions that several people answered.
    vqa_accuracy: float | None
    #: Of the questions whose answer is yes or no.
    yes_no: YesNo | None
    #: How the figures were taken.
    protocol: dict[str, str | int]
    #: Questions whose pictures cannot be read, each with the reason: they are in no figure.
    unreadable: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        shares = {
            name: None if (share := getattr(self, name)) is None else share._asdict()
            for name in ("exact_match", "multiple_choice", "yes_no")
        }
        return asdict(self) | shares | {"by_type": {kind: share._asdict() for kind, share in self.by_type.items()}}

    def as_text(self) -> str:
        """Return a table for people."""
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


class Answered(NamedTuple):
    """A question, and what the model said."""

    asked: Asked
    answer: str

    @property
    def right(self) -> bool:
        """Whether it is right: by exact match, or by the choice that it names."""
        choices = self.asked.choices
        if not choices:
            return exact_match(self.answer, self.asked.truths)
        number = chosen(self.answer, choices)
        return number is not None and choices[number] == self.asked.truths[0]


def reported(answered: Sequence[Answered]) -> VQAReport:
    """Return the figures of answers, with what of the protocol they tell themselves."""
    kinds = sorted({one.asked.kind for one in answered})
    by_type = {kind: _share([one for one in answered if one.asked.kind == kind]) for kind in kinds}
    free = [one for one in answered if not one.asked.choices]
    of_choices = [one for one in answered if one.asked.choices]
    by_many = [one for one in free if len(one.asked.truths) > 1]
    yes = [one for one in free if {truth.strip().lower() for truth in one.asked.truths} in ({"yes"}, {"no"})]
    people = [len(one.asked.truths) for one in by_many]
    accuracies = [vqa_accuracy(one.answer, one.asked.truths) for one in by_many]
    protocol: dict[str, str | int] = {"questions": len(answered)}
    if free:
        protocol["exact match"] = "but for case, spaces, a full stop at the end, and 1.0 for 1"
    if people:
        protocol["people asked"] = f"{min(people)} to {max(people)} for a question"
    if yes:
        protocol["yes or no"] = "an answer is no if its first sentence has no or not, and else yes, as POPE reads it"
    protocol["software"] = ", ".join(f"{name} {version(name)}" for name in ("timm", "torch", "transformers"))
    return VQAReport(
        exact_match=_share(free) if free else None,
        multiple_choice=_share(of_choices) if of_choices else None,
        by_type=by_type,
        vqa_accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        yes_no=yes_no([one.answer for one in yes], [one.asked.truths[0] for one in yes]) if yes else None,
        protocol=protocol,
    )


def _share(answered: Sequence[Answered]) -> Share:
    kinds: dict[str, Counter[str]] = {}
    for one in answered:
        truths, choices = one.asked.truths, one.asked.choices
        # Of choices it is the letter that a model without eyes would always give.
        right = {str(choices.index(truths[0]))} if choices else {*map(plain, truths)}
        kinds.setdefault(one.asked.kind, Counter()).update(right)
    frequent = sum(counts.most_common(1)[0][1] for counts in kinds.values())
    return Share(len(answered), sum(one.right for one in answered) / len(answered), frequent / len(answered))
