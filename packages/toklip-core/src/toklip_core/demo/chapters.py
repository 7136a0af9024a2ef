"""The chapters of `toklip demo`: for each a text, the commands that are run, and the same in Python.

Each Python snippet continues the ones before it. The scene, the texts and the seeds were chosen because they work well;
the rates in the texts, from the pages in docs/results, say how often that is so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: Present in every working folder from the start; its source is in docs/examples/photographs/README.md (admiral.jpg).
PHOTOGRAPH = "photograph.jpg"
#: Row of the store, and picture of the gallery, that most chapters are about.
ROW = 62
SCENE = f"gallery/{ROW:06d}.png"
STORE = "tokens"

_CORE = ("toklip-vq",)


class Figure(NamedTuple):
    """A picture in the working folder."""

    path: str
    caption: str
    #: Whether it has few pixels, and is enlarged without smoothing.
    small: bool = True


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A chapter of the page."""

    #: Anchor of the chapter on the page.
    name: str
    title: str
    text: str
    #: Words of each command, without ``toklip``.
    commands: tuple[tuple[str, ...], ...]
    python: str
    pictures: tuple[Figure, ...] = ()
    #: Distributions that the commands come with, beside toklip-core.
    packages: tuple[str, ...] = _CORE
    #: Whether the ids of the scene are shown as well.
    numbers: bool = False


CHAPTERS = (
    Chapter(
        name="photograph",
        title="A photograph becomes ids, and a photograph again",
        text="A VQ tokenizer cuts a picture into cells of 8 x 8 pixels and describes each cell by codes: this one, "
        "vqgan-tiny, by the sum of four, each one of 1,024. The ids of the picture are the numbers of these codes: "
        "196,608 bytes of pixels become 4,096 whole numbers below 1,024. From the ids alone, the same tokenizer "
        "decodes a picture. It has 7 MB and was never trained on this photograph.",
        commands=(
            ("encode", PHOTOGRAPH, "--out", "photograph-tokens"),
            ("decode", "photograph-tokens", "--out", "decoded"),
        ),
        python="""\
from toklip_core import load_tokenizer
from toklip_core.pictures import open_picture, to_picture, to_pixels

tokenizer = load_tokenizer("vqgan-tiny")
ids = tokenizer.encode(to_pixels(open_picture("photograph.jpg"), 256)[None])  # (1, 32, 32, 4)
to_picture(tokenizer.decode(ids)[0]).save("photograph-again.png")
""",
        pictures=(
            Figure(PHOTOGRAPH, "The photograph, 256 x 256 pixels", small=False),
            Figure(f"decoded/{PHOTOGRAPH}.png", "Decoded from its 32 x 32 x 4 ids", small=False),
        ),
    ),
    Chapter(
        name="scene",
        title="One scene, 8 x 8 positions of four ids",
        text="The small models in these packages know only Scenes: coloured shapes on 64 x 64 pixels, generated from "
        "a seed. The same tokenizer makes 8 x 8 positions of four ids each of a scene. Here 64 scenes that no "
        "model was trained on are encoded into a token store. From now on the pixels are not needed: searching, "
        "training, asking questions and generating all start from the ids in the store.",
        commands=(
            ("scenes", "gallery", "--count", "64", "--split", "validation", "--seed", "3", "--background", "plain"),
            ("encode", "gallery", "--out", STORE, "--tokenizer", "vqgan-tiny", "--size", "64", "--workers", "0"),
            ("decode", STORE, "--out", "decoded"),
        ),
        python=f"""\
from toklip_core.store import TokenStore

ids = TokenStore("{STORE}")[{ROW}].ids[None]  # (1, 8, 8, 4): the first of each four is shown above
to_picture(tokenizer.decode(ids)[0]).save("scene-again.png")
""",
        pictures=(
            Figure(SCENE, "A scene"),
            Figure(f"decoded/{SCENE}.png", "Decoded from its ids"),
        ),
        numbers=True,
    ),
    Chapter(
        name="classify",
        title="Classify it, with class names that you choose",
        text="A semantic encoder turns the ids into a vector that can be compared with texts. You name the classes, "
        "and the most similar one wins; here both squares of the scene come first. toklip-tiny (5.9 MB) reads ids "
        "alone. On scenes of one object, with pairs of colour and shape that it was not trained on, it names 95.7 % "
        "of them, out of 64 classes.",
        commands=(
            ("classify", SCENE, "--labels", "a yellow square,a blue square,a red square,a purple star,a cyan ring"),
        ),
        python="""\
import torch.nn.functional as F
from toklip_core import load_model

model = load_model("toklip-tiny")
pooled = model.encode_ids(ids).pooled.detach()  # one vector for all 256 ids
print(F.cosine_similarity(pooled, model.text_features(["a yellow square", "a green heart"])))
""",
    ),
    Chapter(
        name="explain",
        title="See what each token says",
        text="The encoder reads ids row by row, like a page: a token depends on its own id and the ids before it, and "
        "on nothing after it. Here each token is compared with two texts. From the second row on the encoder has read "
        "some of the blue square, and most tokens are closer to blue. In the second row of the yellow square its "
        "tokens turn to yellow, and almost all tokens after them do, too.",
        commands=(
            ("explain", SCENE, "a blue square", "a yellow square", "--relative", "--out", "explained.webp"),
        ),
        python="""\
each = model.encoder.pool_each(model.encode_ids(ids).tokens)[0].detach()  # one vector for each of the 64 tokens
print(F.cosine_similarity(each, model.text_features(["a yellow square"])).reshape(8, 8))
""",
        pictures=(Figure("explained.webp", "Lighter cells are closer to this text than to the other", small=False),),
    ),
    Chapter(
        name="search",
        title="Search by text, using the ids alone",
        text="The encoder reads the ids of all 64 scenes in the store, and the tokenizer decodes the scenes that "
        "match the text best; no picture file is opened. Two of the 64 scenes show a blue star, and both are among "
        "the first three. Among 1,000 scenes of held-out combinations, the right one comes first for 61.4 % of the "
        "captions; chance is 0.1 %.",
        commands=(("search", STORE, "a blue star", "--top", "6", "--out", "found.webp"),),
        python=f"""\
from toklip_core.evaluation import search_pictures

for hit in search_pictures("toklip-tiny", ["{STORE}"], "a blue star", top=6).hits:
    print(hit.cosine, hit.picture.name)
""",
        pictures=(Figure("found.webp", "The six best matches, decoded from their ids", small=False),),
    ),
    Chapter(
        name="ask",
        title="Ask about it",
        text="A language model with 2.7 million weights reads the tokens as if they were words. It answers 98.1 % of "
        "the questions about scenes like this one correctly, and 96.9 % about scenes with a combination of colour and "
        "shape that it has never seen.",
        commands=(
            ("ask", SCENE, "is there a yellow square?"),
            ("ask", SCENE, "how many objects are there?"),
            ("ask", SCENE, "where is the yellow square?"),
            ("ask", SCENE, "is the yellow square left of the blue square?"),
        ),
        python="""\
from toklip_mllm import load_language_model

mllm, processor = load_language_model("toklip-mllm-tiny")
words = [{"role": "user", "content": processor.image_token + "\\nis there a yellow square?"}]
prompt = processor.apply_chat_template(words, add_generation_prompt=True)
batch = processor(text=prompt, image_ids=ids, return_tensors="pt")
print(processor.decode(mllm.generate(**batch, max_new_tokens=8)[0], skip_special_tokens=True))
""",
        packages=("toklip-vq", "toklip-mllm"),
    ),
    Chapter(
        name="generate",
        title="Generate it, id by id",
        text="A generator writes ids as a language model writes words, each one after those before it, and the "
        "tokenizer decodes them into a picture. Given only a text, it starts with the first id; given the upper "
        "half of the scene, which is 128 ids, it continues from there. For captions like these, 91.7 % of the "
        "colours and 77.3 % of the shapes are right, and in 56.1 % of the pictures all objects, their number and their "
        "relations are. The texts and seeds were chosen.",
        commands=(
            ("generate", "a yellow square right of a blue square", "--prefix", SCENE, "--seed", "5", "--out",
             "continued.png"),
            ("generate", "a large red circle", "a large yellow square", "-n", "6", "--out", "drawn.png"),
        ),
        python="""\
from toklip_gen import load_generator

generator = load_generator("toklip-gen-tiny")
text, upper = "a yellow square right of a blue square", ids[:, :4].flatten(1, 2)  # the same ids
drawn = generator.draw([text], seeds=[5], prefix=upper).ids
to_picture(generator.pixels(drawn)[0]).save("continued-again.png")
""",
        pictures=(
            Figure("continued.png", "The upper half is the scene's; the lower half is generated"),
            Figure("drawn.png", "Upper row: a large red circle. Lower row: a large yellow square"),
        ),
        packages=("toklip-vq", "toklip-gen"),
    ),
)
