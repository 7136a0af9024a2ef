"""Match of generated scenes with their captions: colour, shape, count, relation.

There are two judges. Each is also measured on the scenes themselves and on their reconstructions, because a generator
cannot do better than its tokenizer, and no figure is better than its judge:

    pixels  reads the picture (:mod:`toklip_core.scenes.reading`); no network; on plain backgrounds, where it is exact
    model   a CLIP or TokLIP finds the true caption among those that differ in one word, zero-shot

Shape letters: B pictures, S side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import torch
from toklip_core.evaluation import Matcher
from toklip_core.pictures import normalized, resample, to_rgb
from toklip_core.plugins import VQTokenizer
from toklip_core.scenes import COLOURS, SHAPES, Description, Phrase, Scene, Scenes, parse_caption
from toklip_core.scenes.reading import Detection, read_scene
from torch import Tensor

_OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
#: Distance of centres at which a relation counts as shown: half of the 0.12 at which captions mention it.
_MARGIN = 0.06
#: Number of texts that the model reads at a time.
_TEXTS = 512


class Prompt(NamedTuple):
    """A caption, its claims, and its scene."""

    text: str
    claims: Description
    scene: Scene


def scene_prompts(
    count: int, *, split: str = "held-out", seed: int = 0, size: int = 64, objects: int | None = None
) -> list[Prompt]:
    """Return captions of scenes on plain backgrounds, which all captions mention.

    Args:
        count: number of captions.
        split: "validation" for combinations of colour and shape that training shows, in other scenes; "held-out" for
            scenes with a combination that training never shows.
        seed: seed of the scenes.
        size: side of their pictures.
        objects: number of objects per scene; None: random.
    """
    found = []
    for plain in Scenes(count, seed=seed, split=split, size=size, objects=objects, background="plain"):
        text = plain.caption
        if parse_caption(text).background is None:
            text += " on a plain background"
        found.append(Prompt(text, parse_caption(text), plain))
    return found


@dataclass(frozen=True)
class Match:
    """Shares that are right; None if no caption claims such a thing, or the judge cannot tell."""

    #: Shares of named objects with an object of this colour, and of this shape.
    colour: float | None
    shape: float | None
    #: Share of named objects with the right colour and shape.
    object: float | None
    #: Share of pictures with the right number of objects.
    count: float | None
    #: Share of named relations that hold.
    relation: float | None
    #: Share of pictures in which everything is right.
    caption: float | None

    def as_json(self) -> dict[str, float | None]:
        """Return the figures by name."""
        return dict(vars(self))


def match_by_pixels(pixels: Tensor, claims: Sequence[Description]) -> Match:
    """Return how well pictures (B, 3, S, S) in [-1, 1], on plain backgrounds, match their claims."""
    rgb = to_rgb(pixels).movedim(1, -1).cpu().numpy()
    tally = _Tally()
    for picture, claim in zip(rgb, claims, strict=True):
        found = read_scene(picture)
        chosen = _best_assignment(found, claim.objects)
        right: list[bool] = []
        for phrase, thing in zip(claim.objects, chosen, strict=True):
            colour = thing is not None and thing.colour == phrase.colour
            shape = thing is not None and thing.shape == phrase.shape
            right += [tally.add("colour", colour), tally.add("shape", shape), tally.add("object", colour and shape)]
        right.append(tally.add("count", len(found) == len(claim.objects)))
        for i, relation, j in claim.relations:
            right.append(tally.add("relation", _is_seen(chosen[i], relation, chosen[j])))
        tally.add("caption", all(right))
    return tally.match()


@torch.no_grad()
def match_by_model(model: Matcher, pixels: Tensor, claims: Sequence[Description]) -> Match:
    """Return how often a model prefers a claim to every other colour, shape, count or relation.

    Args:
        model: model on the device of the pixels.
        pixels: (B, 3, S, S) in [-1, 1]; they are resized for the model.
        claims: claims of each picture.
    """
    pixels = resample(pixels, model.config.image_size)
    images = torch.cat([model.image_features(part) for part in torch.split(pixels, 64)])
    questions = [list(_questions(claim)) for claim in claims]
    texts = sorted({text for asked in questions for _, true, others in asked for text in (true, *others)})
    rows = {text: row for row, text in enumerate(texts)}
    features = torch.cat([model.text_features(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)])
    tally = _Tally()
    for image, asked, claim in zip(images, questions, claims, strict=True):
        right: list[bool] = []
        of_object: list[bool] = []
        for kind, true, others in asked:
            scores = features[[rows[text] for text in (true, *others)]] @ image
            answer = bool(scores[0] > scores[1:].max())
            right.append(tally.add(kind, answer))
            of_object += [answer] if kind in ("colour", "shape") else []
        for i in range(len(claim.objects)):  # one question about the colour and one about the shape of each object
            tally.add("object", all(of_object[2 * i : 2 * i + 2]))
        tally.add("caption", all(right))
    return tally.match()


def measure_match(
    draw: Callable[[Sequence[str]], Tensor],
    prompts: Sequence[Prompt],
    *,
    tokenizer: VQTokenizer | None = None,
    model: Matcher | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> dict[str, dict[str, Match]]:
    """Return the figures of each judge: on drawn pictures, on the scenes, and on what the tokenizer makes of these.

    Args:
        draw: texts -> pixels (B, 3, S, S) near [-1, 1].
        prompts: see :func:`scene_prompts`.
        tokenizer: tokenizer of the generator, on the device; None leaves its row out.
        model: the second judge, on the device; None leaves it out.
        device: device of the tokenizer and the model.
        batch_size: texts at a time.
    """
    claims = [prompt.claims for prompt in prompts]
    starts = range(0, len(prompts), batch_size)
    drawn = torch.cat([draw([prompt.text for prompt in prompts[i : i + batch_size]]).float().cpu() for i in starts])
    scenes = normalized(torch.stack([torch.from_numpy(prompt.scene.rgb) for prompt in prompts]).movedim(-1, 1))
    pictures = {"drawn": drawn.clamp(-1, 1), "scenes": scenes}
    if tokenizer is not None:
        batches = [tokenizer.decode(tokenizer.encode(batch)) for batch in torch.split(scenes.to(device), batch_size)]
        pictures["reconstructed"] = torch.cat(batches).float().cpu().clamp(-1, 1)
    judges: dict[str, Callable[[Tensor], Match]] = {"pixels": lambda pixels: match_by_pixels(pixels, claims)}
    if model is not None:
        judges["model"] = lambda pixels: match_by_model(model, pixels.to(device), claims)
    return {name: {kind: judge(pixels) for kind, pixels in pictures.items()} for name, judge in judges.items()}


def caption_of(claims: Description) -> str:
    """Return the plainest caption that claims objects and relations; sizes, place and background are left out."""
    names = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape, *_ in claims.objects]
    match names, claims.relations:
        case [one], _:
            return one
        case [a, b], ():
            return f"{a} and {b}"
        case [a, b], ((0, relation, 1),):
            return f"{a} {relation} {b}"
        case [a, b], ((1, relation, 0),):
            return f"{a} with {b} {relation} it"
        case [a, b, c], ((0, first, 1), (2, second, j)):
            return f"{a} {first} {b}, and {c} {second} the {claims.objects[j].colour} {claims.objects[j].shape}"
        case [a, b, c], _:
            return f"{a}, {b} and {c}"
    raise ValueError(f"got {len(names)} objects with the relations {claims.relations}; no caption of Scenes says this")


class _Tally:
    """Right answers and questions, by kind."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, kind: str, right: bool) -> bool:
        self._asked[kind] += 1
        self._right[kind] += right
        return right

    def match(self) -> Match:
        shares = {kind: self._right[kind] / asked for kind, asked in self._asked.items()}
        return Match(**{kind: shares.get(kind) for kind in Match.__dataclass_fields__})


def _best_assignment(found: Sequence[Detection], named: Sequence[Phrase]) -> list[Detection | None]:
    """Return the found object of each named one, so that most colours and shapes are right; None if there is none."""
    padded: list[Detection | None] = [*found[:6], *[None] * len(named)]

    def right(chosen: Iterable[Detection | None]) -> int:
        pairs = zip(chosen, named, strict=True)
        return sum((a.colour == b.colour) + (a.shape == b.shape) for a, b in pairs if a is not None)

    return list(max(permutations(padded, len(named)), key=right))


def _is_seen(first: Detection | None, relation: str, second: Detection | None) -> bool:
    if first is None or second is None:
        return False
    across, down = second.x - first.x, second.y - first.y
    return bool({"above": down, "below": -down, "left of": across, "right of": -across}[relation] >= _MARGIN)


def _questions(claims: Description) -> Iterator[tuple[str, str, list[str]]]:
    """Yield kind, true caption and other captions: colour and shape of each object, then count, then relations."""
    true = caption_of(claims)
    names = {(phrase.colour, phrase.shape) for phrase in claims.objects}

    def with_object(place: int, **changes: str) -> str:
        things = [*claims.objects]
        things[place] = things[place]._replace(**changes)
        return caption_of(replace(claims, objects=tuple(things)))

    for place, phrase in enumerate(claims.objects):
        colours = [c for c in COLOURS if (c, phrase.shape) not in names]
        shapes = [s for s in SHAPES if (phrase.colour, s) not in names]
        yield "colour", true, [with_object(place, colour=colour) for colour in colours]
        yield "shape", true, [with_object(place, shape=shape) for shape in shapes]
    yield "count", _listed(claims.objects), [_listed(things) for things in _other_counts(claims.objects)]
    for k, (i, relation, j) in enumerate(claims.relations):
        changed = [*claims.relations]
        changed[k] = (i, _OPPOSITE[relation], j)
        yield "relation", true, [caption_of(replace(claims, relations=tuple(changed)))]


def _listed(objects: Sequence[Phrase]) -> str:
    return caption_of(Description(tuple(objects)))


def _other_counts(objects: Sequence[Phrase]) -> Iterator[tuple[Phrase, ...]]:
    """Yield the objects with some left out, or one more of another colour and shape; one to three."""
    yield from (tuple(objects[:count]) for count in range(1, len(objects)))
    while len(objects) < 3:
        colour = next(c for c in COLOURS if c not in {phrase.colour for phrase in objects})
        shape = next(s for s in SHAPES if s not in {phrase.shape for phrase in objects})
        objects = (*objects, Phrase(colour, shape, None))
        yield tuple(objects)


def shares_table(found: Mapping[str, Mapping[str, Match]]) -> list[list[str]]:
    """Return figures as rows of a table for people."""
    kinds = [*Match.__dataclass_fields__]
    rows = [["judge", "pictures", *kinds]]
    for judge, by_pictures in found.items():
        for pictures, match in by_pictures.items():
            values = [getattr(match, kind) for kind in kinds]
            rows.append([judge, pictures, *("-" if value is None else f"{value:.1%}" for value in values)])
    return rows
