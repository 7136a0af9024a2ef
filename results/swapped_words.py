"""Whether models tell a caption from one whose words are swapped: which colour goes with which shape, and where it is.

    python results/swapped_words.py --page docs/results/swapped_words.md

Validation scenes of two objects with different colours and shapes, on plain backgrounds. Each true caption is compared
with one that swaps the two colours, the two shapes, or the direction of the relation. A CLIP and a TokLIP say which
caption is closer to the picture. For a language model we compare how likely the two are as answers to a request for a
description, and for a generator how likely the picture's ids are after each. A guess is right in 50 %.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _runs import markdown, percent, put
from toklip_core.model import load_model
from toklip_core.pictures import normalized
from toklip_core.scenes.language import Description
from toklip_gen.evaluation import scene_prompts
from toklip_gen.evaluation.scene_match import Prompt
from toklip_gen.generator import load_generator
from toklip_mllm.model import load_language_model
from torch import Tensor
from torch.nn import functional as F

BATCH_SIZE = 32
DESCRIBE = "describe the picture."
_DIRECTIONS = {"left": "right", "right": "left", "above": "below", "below": "above", "over": "under", "under": "over"}

#: Scores of N pairs of pixels (N, 3, S, S) and texts.
Score = Callable[[Tensor, Sequence[str]], Tensor]


def swap_words(text: str, first: str, second: str) -> str:
    """Return a text in which two words have changed places."""
    return re.sub(rf"\b({first}|{second})\b", lambda word: second if word[0] == first else first, text)


def reverse_relation(text: str) -> str:
    """Return a caption that says the opposite about where the objects are."""
    return re.sub(rf"\b({'|'.join(_DIRECTIONS)})\b", lambda word: _DIRECTIONS[word[0]], text)


def swap_colours(text: str, claims: Description) -> str:
    """Return a caption of two objects with their colours swapped, and the articles that go with them."""
    swapped = swap_words(text, *(str(phrase.colour) for phrase in claims.objects))
    return re.sub(r"\ban?(?= ([a-z]))", lambda article: "an" if article[1] in "aeiou" else "a", swapped)


def swap_shapes(text: str, claims: Description) -> str:
    """Return a caption of two objects with their shapes swapped."""
    return swap_words(text, *(str(phrase.shape) for phrase in claims.objects))


CHANGES: dict[str, Callable[[str, Description], str]] = {
    "colours swapped": swap_colours,
    "shapes swapped": swap_shapes,
    "relation reversed": lambda text, claims: reverse_relation(text) if claims.relations else text,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="scenes to compare captions of")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--page", type=Path, help="page in which to replace the table between the script's markers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    put([table(prompts(options.scenes))], options.page, "swapped_words")


def prompts(count: int) -> list[Prompt]:
    """Return captions of scenes of two objects that differ in colour and in shape."""
    found = scene_prompts(3 * count, split="validation", objects=2)
    names = [[(phrase.colour, phrase.shape) for phrase in prompt.claims.objects] for prompt in found]
    return [prompt for prompt, (a, b) in zip(found, names, strict=True) if a[0] != b[0] and a[1] != b[1]][:count]


@torch.no_grad()
def table(shown: Sequence[Prompt]) -> str:
    """Return, for each model and change, how often the true caption is preferred, and by how much."""
    pixels = normalized(torch.stack([torch.from_numpy(prompt.scene.rgb) for prompt in shown]).movedim(-1, 1))
    rows = []
    for model, (what, build) in MODELS.items():
        score = build(model)
        true = scores(score, pixels, [prompt.text for prompt in shown])
        cells = []
        for change in CHANGES.values():
            texts = [change(prompt.text, prompt.claims) for prompt in shown]
            places = [place for place, prompt in enumerate(shown) if texts[place] != prompt.text]
            margin = true[places] - scores(score, pixels[places], [texts[place] for place in places])
            cells.append(f"{percent((margin > 0).double().mean().item())} of {len(places)}, {margin.mean().item():.2f}")
        rows.append([f"`{model}`", what, *cells])
    return markdown(["model", "compares", *CHANGES], rows)


def scores(score: Score, pixels: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the scores of all pairs, some at a time."""
    parts = range(0, len(texts), BATCH_SIZE)
    return torch.cat([score(pixels[at : at + BATCH_SIZE], texts[at : at + BATCH_SIZE]) for at in parts])


def of_matcher(name: str) -> Score:
    """Cosine similarities of pictures and texts, times 100."""
    model = load_model(name)

    def score(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        pictures, words = model.image_features(pixels), model.text_features(texts)
        return 100 * F.cosine_similarity(pictures, words)

    return score


def of_reader(name: str) -> Score:
    """Log likelihoods of texts as descriptions of pictures."""
    model, processor = load_language_model(name)

    def score(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        ids = processor.vq_tokenizer.encode(pixels)
        asked = {"role": "user", "content": f"{processor.image_token}\n{DESCRIBE}"}
        told = [processor.apply_chat_template([asked, {"role": "assistant", "content": text}]) for text in texts]
        batch = processor(text=told, image_ids=ids, return_tensors="pt", padding=True, padding_side="right")
        # All texts follow the same words, so what those have in common drops out of the margin.
        return _likelihoods(model(**batch).logits[:, :-1], batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:])

    return score


def of_generator(name: str) -> Score:
    """Log likelihoods of the ids of pictures after texts."""
    pictures = load_generator(name)

    def score(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        ids = pictures.tokenizer.encode(pixels)
        levels = pictures.generator.levels.split(ids.flatten(1, 2))
        logits = pictures.generator(pictures.inputs(ids)[:, :-1], levels, pictures.conditions(texts))
        return sum_of_levels(logits, levels)

    return score


def sum_of_levels(logits: Sequence[Tensor], levels: Tensor) -> Tensor:
    """Return the log likelihood of each picture: (B, N, V) of each of L levels, and indices (B, N, L) -> (B,)."""
    parts = [_likelihoods(of_level, levels[..., level]) for level, of_level in enumerate(logits)]
    return torch.stack(parts).sum(0)


def _likelihoods(logits: Tensor, right: Tensor, counted: Tensor | None = None) -> Tensor:
    found = logits.float().log_softmax(-1).gather(-1, right[..., None])[..., 0]
    return found.sum(1) if counted is None else (found * counted).sum(1)


MODELS: dict[str, tuple[str, Callable[[str], Score]]] = {
    "clip-tiny": ("pixels and a text", of_matcher),
    "toklip-tiny": ("ids and a text", of_matcher),
    "toklip-mllm-tiny": ("texts after a picture", of_reader),
    "toklip-gen-tiny": ("ids after a text", of_generator),
}


if __name__ == "__main__":
    main()
