"""Captions of scenes and their parser, and questions with answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toklip_core.scenes.drawing import allowed_pairs
from toklip_core.scenes.draws import Draws
from toklip_core.scenes.picture import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Background,
    SceneObject,
    distance,
    holds,
)

#: Number of captions per scene.
CAPTIONS = 4

_SIZE_WORDS = {
    "small": ("small", "small", "little"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "large", "big"),
}
_RELATION_WORDS = {
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
_PLACES = {
    ("left", "top"): "in the upper left",
    ("middle", "top"): "at the top",
    ("right", "top"): "in the upper right",
    ("left", "middle"): "on the left",
    ("middle", "middle"): "in the centre",
    ("right", "middle"): "on the right",
    ("left", "bottom"): "in the lower left",
    ("middle", "bottom"): "at the bottom",
    ("right", "bottom"): "in the lower right",
}
_OPENINGS = ("", "", "", "a picture of ", "there is ", "this is ")
_GROUNDS = ("on a {} background", "against a {} background")
_OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_ONES = {"above": "the upper one", "below": "the lower one", "left of": "the left one", "right of": "the right one"}
_PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

#: End of the left third and begin of the right third of a picture.
_THIRDS = (0.41, 0.59)


class Phrase(NamedTuple):
    """An object named in a caption."""

    colour: str
    shape: str
    #: One of SIZES, or None if the caption does not mention it.
    size: str | None
    #: Place in the words of captions, such as "in the upper left", or None if the caption does not mention it.
    place: str | None = None


class Question(NamedTuple):
    """A question about a picture, with its answer."""

    text: str
    answer: str
    #: "colour", "shape", "count", "existence", "relation" or "size"; in training also "place".
    kind: str


@dataclass(frozen=True)
class Description:
    """The claims of a caption."""

    objects: tuple[Phrase, ...]
    #: (i, relation, j): object i is above, below, left of or right of object j.
    relations: tuple[tuple[int, str, int], ...] = ()
    #: One of BACKGROUNDS, or None if the caption does not mention it.
    background: str | None = None

    def is_true_of(self, objects: Sequence[SceneObject], background: Background) -> bool:
        """Return whether a scene shows exactly the named objects and all claims are true."""
        if len(objects) != len(self.objects) or self.background not in (None, background.kind):
            return False
        by_name = {(thing.colour, thing.shape): thing for thing in objects}
        named = [by_name.get((phrase.colour, phrase.shape)) for phrase in self.objects]
        found = [thing for thing in named if thing is not None]
        return (
            len({id(thing) for thing in found}) == len(objects)
            and all(phrase.size in (None, thing.size) for phrase, thing in zip(self.objects, found, strict=True))
            and all(phrase.place in (None, place_of(thing)) for phrase, thing in zip(self.objects, found, strict=True))
            and all(holds(found[i], relation, found[j]) for i, relation, j in self.relations)
        )


def place_of(thing: SceneObject) -> str:
    """Return the place of an object in words, such as "in the upper left" or "at the top"."""
    low, high = _THIRDS
    column = "left" if thing.x < low else "right" if thing.x > high else "middle"
    row = "top" if thing.y < low else "bottom" if thing.y > high else "middle"
    return _PLACES[column, row]


def describe(draws: Draws, objects: Sequence[SceneObject], background: Background) -> tuple[str, ...]:
    """Return CAPTIONS random captions of a scene."""
    return tuple(_caption(draws, objects, background) for _ in range(CAPTIONS))


def describe_places(draws: Draws, objects: Sequence[SceneObject]) -> tuple[str, ...]:
    """Return CAPTIONS random captions that say where each object is, and not how objects lie to one another."""
    return tuple(_with_places(draws, objects) for _ in range(CAPTIONS))


def _with_places(draws: Draws, objects: Sequence[SceneObject]) -> str:
    *most, last = (f"{_name(draws, thing)} {place_of(thing)}" for thing in _shuffled(draws, objects))
    return f"{', '.join(most)} and {last}" if most else last


def _caption(draws: Draws, objects: Sequence[SceneObject], background: Background) -> str:
    things = _shuffled(draws, objects)
    body = (_of_one, _of_two, _of_three)[len(things) - 1](draws, things)
    ground = " " + draws.pick(_GROUNDS).format(background.kind) if draws.chance(0.3) else ""
    return f"{draws.pick(_OPENINGS)}{body}{ground}"


def _shuffled(draws: Draws, objects: Sequence[SceneObject]) -> list[SceneObject]:
    rest = list(objects)
    return [rest.pop(draws.below(len(rest))) for _ in objects]


def _of_one(draws: Draws, things: list[SceneObject]) -> str:
    name = _name(draws, things[0])
    return f"{name} {place_of(things[0])}" if draws.chance(0.4) else name


def _of_two(draws: Draws, things: list[SceneObject]) -> str:
    first, second = things
    a, b = _name(draws, first), _name(draws, second)
    form = draws.share()
    if form < 0.2:
        return f"{a} and {b}"
    if form < 0.4:
        return f"{a} with {b} {_relation(draws, second, first)} it"
    return f"{a} {_relation(draws, first, second)} {b}"


def _of_three(draws: Draws, things: list[SceneObject]) -> str:
    first, second, third = things
    a, b, c = (_name(draws, thing) for thing in things)
    if draws.chance(0.3):
        return f"{a}, {b} and {c}"
    other = draws.pick((first, second))
    return f"{a} {_relation(draws, first, second)} {b}, and {c} {_relation(draws, third, other)} the {_noun(other)}"


def _relation(draws: Draws, first: SceneObject, second: SceneObject) -> str:
    return draws.pick(_RELATION_WORDS[draws.pick([r for r in RELATIONS if holds(first, r, second)])])


def _noun(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.shape}"


def _name(draws: Draws, thing: SceneObject) -> str:
    size = draws.pick(_SIZE_WORDS[thing.size]) + " " if draws.chance(0.7) else ""
    return _with_article(f"{size}{_noun(thing)}")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _any_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_SIZE_OF = {word: size for size, words in _SIZE_WORDS.items() for word in words}
_RELATION_OF = {word: relation for relation, words in _RELATION_WORDS.items() for word in words}
_NOUN = f"(?:{_any_of(COLOURS)}) (?:{_any_of(SHAPES)})"
_PLACE = _any_of(tuple(_PLACES.values()))
_P = f"(an? (?:(?:{_any_of(tuple(_SIZE_OF))}) )?{_NOUN}(?: (?:{_PLACE}))?)"
_PHRASE = re.compile(f"an? (?:(.+) )?({_any_of(COLOURS)}) ({_any_of(SHAPES)})(?: ({_PLACE}))?")
_R = f"({_any_of(tuple(_RELATION_OF))})"
_WHOLE = re.compile(
    f"(?:{_any_of(tuple(filter(None, _OPENINGS)))})?(?P<body>.+?)"
    f"(?: (?:on|against) a (?P<ground>{_any_of(BACKGROUNDS)}) background)?"
)
_FORMS = tuple(
    (name, re.compile(pattern))
    for name, pattern in {
        "one": _P,
        "two": f"{_P} and {_P}",
        "two, with": f"{_P} with {_P} {_R} it",
        "two, related": f"{_P} {_R} {_P}",
        "three": f"{_P}, {_P} and {_P}",
        "three, related": f"{_P} {_R} {_P}, and {_P} {_R} the ({_NOUN})",
    }.items()
)


def parse_caption(caption: str) -> Description:
    """Return the claims of a caption.

    Raises:
        ValueError: the caption is not in the words of Scenes.

    >>> parse_caption("a small red circle on a plain background").objects
    (Phrase(colour='red', shape='circle', size='small', place=None),)
    """
    whole = _WHOLE.fullmatch(caption.strip().rstrip(".").lower())
    for name, form in _FORMS if whole else ():
        assert whole is not None
        if match := form.fullmatch(whole["body"]):
            return _READERS[name](match.groups(), whole["ground"])
    raise ValueError(
        f"got the caption {caption!r}, which is not in the words of Scenes; "
        "one that is: 'a small red circle above a large blue square on a striped background'"
    )


Groups = tuple[str, ...]


def _read_list(groups: Groups, ground: str | None) -> Description:
    return Description(tuple(map(_phrase, groups)), background=ground)


def _read_with(groups: Groups, ground: str | None) -> Description:
    first, second, word = groups
    return Description((_phrase(first), _phrase(second)), ((1, _RELATION_OF[word], 0),), background=ground)


def _read_two(groups: Groups, ground: str | None) -> Description:
    first, word, second = groups
    return Description((_phrase(first), _phrase(second)), ((0, _RELATION_OF[word], 1),), background=ground)


def _read_three(groups: Groups, ground: str | None) -> Description:
    first, word, second, third, other_word, other = groups
    phrases = (_phrase(first), _phrase(second), _phrase(third))
    names = [f"{phrase.colour} {phrase.shape}" for phrase in phrases[:2]]
    if other not in names:
        raise ValueError(f"the caption says 'the {other}', but it names {' and '.join(names)} before")
    relations = ((0, _RELATION_OF[word], 1), (2, _RELATION_OF[other_word], names.index(other)))
    return Description(phrases, relations, background=ground)


_READERS: dict[str, Callable[[Groups, str | None], Description]] = {
    "one": _read_list,
    "two": _read_list,
    "two, with": _read_with,
    "two, related": _read_two,
    "three": _read_list,
    "three, related": _read_three,
}


def _phrase(text: str) -> Phrase:
    found = _PHRASE.fullmatch(text)
    assert found is not None  # it is what _P matches
    size, colour, shape, place = found.groups()
    return Phrase(colour, shape, size and _SIZE_OF[size], place)


def ask(draws: Draws, objects: Sequence[SceneObject], split: str) -> tuple[Question, ...]:
    """Return a question of each kind that the scene allows; held-out combinations are only named in "held-out"."""
    kinds = (_ask_colour, _ask_shape, _ask_count, _ask_relation, _ask_size)
    questions = [kind(draws, objects) for kind in kinds]
    questions.insert(3, _ask_existence(draws, objects, split))
    return tuple(question for question in questions if question is not None)


def ask_places(draws: Draws, objects: Sequence[SceneObject]) -> tuple[Question, ...]:
    """Return where each object is, and a question that names one by its place or, where it is alone, as "it".

    That question is left out where no such name is clear: three objects, or two about as far apart across as down.
    """
    where = [Question(f"where is the {_noun(thing)}?", place_of(thing), "place") for thing in objects]
    names = ["it"]
    if len(objects) > 1:
        objects = _shuffled(draws, objects)
        relation = _clear_relation(*objects) if len(objects) == 2 else None
        if relation is None:
            return tuple(where)
        names = [_ONES[relation], _ONES[_OPPOSITES[relation]]]
    which = draws.below(len(names))
    thing, name = objects[which], names[which]
    kind = draws.pick(("colour", "shape", "size"))
    return Question(f"what {kind} is {name}?", str(getattr(thing, kind)), kind), *where


def _ask_colour(draws: Draws, objects: Sequence[SceneObject]) -> Question | None:
    shapes = [thing.shape for thing in objects]
    alone = [thing for thing in objects if shapes.count(thing.shape) == 1]
    if not alone:
        return None
    thing = draws.pick(alone)
    form = draws.pick(("what colour is the {}?", "which colour does the {} have?"))
    return Question(form.format(thing.shape), thing.colour, "colour")


def _ask_shape(draws: Draws, objects: Sequence[SceneObject]) -> Question | None:
    colours = [thing.colour for thing in objects]
    alone = [thing for thing in objects if colours.count(thing.colour) == 1]
    if not alone:
        return None
    thing = draws.pick(alone)
    form = draws.pick(("what shape is the {} object?", "which shape is {}?"))
    return Question(form.format(thing.colour), thing.shape, "shape")


def _ask_count(draws: Draws, objects: Sequence[SceneObject]) -> Question:
    what = draws.below(3)
    if what == 0:
        return Question("how many objects are there?", str(len(objects)), "count")
    if what == 1:
        colours = [thing.colour for thing in objects]
        colour = draws.pick(colours if draws.chance(0.75) else COLOURS)
        return Question(f"how many {colour} objects are there?", str(colours.count(colour)), "count")
    shapes = [thing.shape for thing in objects]
    shape = draws.pick(shapes if draws.chance(0.75) else SHAPES)
    return Question(f"how many {_PLURALS[shape]} are there?", str(shapes.count(shape)), "count")


def _ask_existence(draws: Draws, objects: Sequence[SceneObject], split: str) -> Question:
    pairs = [(thing.colour, thing.shape) for thing in objects]
    colour, shape = draws.pick(pairs)
    is_there = draws.chance(0.5)
    if not is_there:
        # A combination that shares its colour or shape with an object, so that both have to be recognised.
        near = [p for p in allowed_pairs(split) if p not in pairs and (p[0] == colour) != (p[1] == shape)]
        colour, shape = draws.pick(near)
    form = draws.pick(("is there {}?", "do you see {}?"))
    return Question(form.format(_with_article(f"{colour} {shape}")), "yes" if is_there else "no", "existence")


def _ask_relation(draws: Draws, objects: Sequence[SceneObject]) -> Question | None:
    if len(objects) < 2:
        return None
    first, second, *_ = _shuffled(draws, objects)
    relation = draws.pick([r for r in RELATIONS if holds(first, r, second)])
    if draws.chance(0.5):
        clear = _clear_relation(first, second)
        if clear is not None:
            text = f"where is the {_noun(first)}, seen from the {_noun(second)}?"
            return Question(text, clear.split()[0], "relation")
    is_so = draws.chance(0.5)
    asked = relation if is_so else _OPPOSITES[relation]
    text = f"is the {_noun(first)} {draws.pick(_RELATION_WORDS[asked])} the {_noun(second)}?"
    return Question(text, "yes" if is_so else "no", "relation")


def _clear_relation(first: SceneObject, second: SceneObject) -> str | None:
    """Return the relation of the axis along which two objects are clearly farther apart; otherwise two are as right."""
    across, down = abs(first.x - second.x), abs(first.y - second.y)
    if max(across, down) <= 1.5 * min(across, down):
        return None
    return max(RELATIONS, key=lambda relation: distance(first, relation, second))


def _ask_size(draws: Draws, objects: Sequence[SceneObject]) -> Question:
    first, *others = _shuffled(draws, objects)
    different = [thing for thing in others if thing.size != first.size]
    if different and draws.chance(0.5):
        second = different[0]
        word = draws.pick(("larger", "smaller"))
        larger, smaller = sorted((first, second), key=lambda thing: SIZES.index(thing.size), reverse=True)
        answer = larger if word == "larger" else smaller
        return Question(f"which is {word}, the {_noun(first)} or the {_noun(second)}?", _noun(answer), "size")
    return Question(f"what size is the {_noun(first)}?", first.size, "size")
