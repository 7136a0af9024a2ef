"""What `toklip demo` shows: for each chapter some sentences, the commands that are run, and the Python that does it.

Later snippets of Python go on from earlier ones. Scene, texts and seeds were chosen because they work; the figures
beside them, of docs/results.md, say how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

#: In every working folder from the start; its source is in docs/examples/photographs/README.md (admiral.jpg).
PHOTOGRAPH = "photograph.jpg"
#: Row of the store, and picture of the gallery, that most chapters are about.
ROW = 62
SCENE = f"gallery/{ROW:06d}.png"
STORE = "tokens"

_CORE = ("toklip-vq",)


class Shown(NamedTuple):
    """A picture of the working folder."""

    path: str
    caption: str
    #: Of few pixels: enlarged without smoothing.
    small: bool = True


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A chapter of the page."""

    #: Its anchor.
    name: str
    title: str
    text: str
    #: The words of each command, without ``toklip``.
    commands: tuple[tuple[str, ...], ...]
    python: str
    pictures: tuple[Shown, ...] = ()
    #: Distributions that the commands come with, beside toklip-core.
    packages: tuple[str, ...] = _CORE
    #: Whether the numbers of the scene are shown, too.
    numbers: bool = False


CHAPTERS = (
    Chapter(
        name="photograph",
        title="A photograph becomes numbers, and comes back",
        text="A VQ tokenizer cuts a picture into cells of 8 x 8 pixels and gives each the number of one of 1,024 "
        "codes. 196,608 bytes of pixels become 1,024 whole numbers, the ids of the picture; of ids the same tokenizer "
        "makes a picture. This one, llamagen-tiny, has 3 MB and has never seen this photograph: much is lost, and one "
        "still knows her.",
        commands=(
            ("encode", PHOTOGRAPH, "--out", "photograph-tokens"),
            ("decode", "photograph-tokens", "--out", "decoded"),
        ),
        python="""\
from toklip_core import load_tokenizer
from toklip_core.pictures import open_picture, to_picture, to_pixels

tokenizer = load_tokenizer("llamagen-tiny")
ids = tokenizer.encode(to_pixels(open_picture("photograph.jpg"), 256)[None])  # (1, 32, 32)
to_picture(tokenizer.decode(ids)[0]).save("photograph-again.png")
""",
        pictures=(
            Shown(PHOTOGRAPH, "The photograph, 256 x 256 pixels", small=False),
            Shown(f"decoded/{PHOTOGRAPH}.png", "What its 32 x 32 ids give back", small=False),
        ),
    ),
    Chapter(
        name="scene",
        title="One scene, sixty-four numbers",
        text="The small models of these packages know one world, Scenes: coloured shapes, 64 x 64 pixels, drawn from a "
        "seed. A scene is 8 x 8 ids. Sixty-four scenes that no training has seen go into a token store, and from here "
        "on pixels are needed no more: a store is searched, trained on, asked about and drawn from by its ids.",
        commands=(
            ("scenes", "gallery", "--count", "64", "--split", "validation", "--seed", "3", "--background", "plain"),
            ("encode", "gallery", "--out", STORE, "--size", "64", "--workers", "0"),
            ("decode", STORE, "--out", "decoded"),
        ),
        python=f"""\
from toklip_core.store import TokenStore

ids = TokenStore("{STORE}")[{ROW}].ids[None]  # (1, 8, 8): the numbers that are shown
to_picture(tokenizer.decode(ids)[0]).save("scene-again.png")
""",
        pictures=(
            Shown(SCENE, "A scene"),
            Shown(f"decoded/{SCENE}.png", "What its ids give back"),
        ),
        numbers=True,
    ),
    Chapter(
        name="classify",
        title="What it shows, among names that you give",
        text="A semantic encoder reads the ids and puts the picture where texts are, too. Classes are given by name, "
        "and the nearest wins. toklip-tiny (5.2 MB) tells colours well and shapes badly: of scenes of one object, with "
        "pairs of colour and shape that no training showed, it names 93.9 % of the colours and 30.6 % of the shapes "
        "(mean of three trainings).",
        commands=(
            ("classify", SCENE, "--labels", "a yellow square,a red square,a green heart,a purple star,a cyan ring"),
        ),
        python="""\
import torch.nn.functional as F
from toklip_core import load_model

model = load_model("toklip-tiny")
pooled = model.encode_ids(ids).pooled.detach()  # one vector of the 64 ids
print(F.cosine_similarity(pooled, model.text_features(["a yellow square", "a green heart"])))
""",
    ),
    Chapter(
        name="explain",
        title="What its tokens say, one by one",
        text="The encoder reads ids as one reads a page, row by row: a token knows its own id and those before it, and "
        "nothing of what is to come. Here each is compared with two texts. In the upper rows, which have met the blue "
        "square alone, blue is nearer; below, after the yellow one, yellow is, beside the square as well as on it.",
        commands=(
            ("explain", SCENE, "a blue square", "a yellow square", "--relative", "--out", "explained.webp"),
        ),
        python="""\
each = model.encoder.pool_each(model.encode_ids(ids).tokens)[0].detach()  # a vector for each of the 64
print(F.cosine_similarity(each, model.text_features(["a yellow square"])).reshape(8, 8))
""",
        pictures=(Shown("explained.webp", "Lighter: nearer to this text than to the other one", small=False),),
    ),
    Chapter(
        name="search",
        title="Found by a text, from ids alone",
        text="The store is searched: the encoder reads the ids of all 64 scenes, and the nearest to the text are drawn "
        "by the tokenizer: no file of a picture is opened. Asked for a blue star, it finds what is blue, and one star "
        "among it. In 1,000 scenes the right one comes first for 15.0 % of captions, where chance is 0.1 %.",
        commands=(("search", STORE, "a blue star", "--top", "6", "--out", "found.webp"),),
        python=f"""\
from toklip_core.evaluation import search_pictures

for hit in search_pictures("toklip-tiny", ["{STORE}"], "a blue star", top=6).hits:
    print(hit.cosine, hit.picture.name)
""",
        pictures=(Shown("found.webp", "The six nearest, as their ids give them back", small=False),),
    ),
    Chapter(
        name="ask",
        title="Asked in words",
        text="A language model of 1.3 million weights is given the tokens as if they were words. It answers 59.1 % of "
        "questions about such scenes rightly: most about colours and sizes, few about shapes. The scene was chosen "
        "because it does well there. The last of these answers is wrong: what is yellow is no heart.",
        commands=(
            ("ask", SCENE, "is there a yellow square?"),
            ("ask", SCENE, "how many objects are there?"),
            ("ask", SCENE, "what size is the blue square?"),
            ("ask", SCENE, "what shape is the yellow object?"),
        ),
        python="""\
from toklip_mllm import load

mllm, processor = load("toklip-mllm-tiny")
words = [{"role": "user", "content": processor.image_token + "\\nis there a yellow square?"}]
prompt = processor.apply_chat_template(words, add_generation_prompt=True)
batch = processor(text=prompt, image_ids=ids, return_tensors="pt")  # the same ids
print(processor.decode(mllm.generate(**batch, max_new_tokens=8)[0], skip_special_tokens=True))
""",
        packages=("toklip-vq", "toklip-mllm"),
    ),
    Chapter(
        name="generate",
        title="Drawn, number by number",
        text="A generator writes ids as a language model writes words, each after those before it, and the tokenizer "
        "makes pictures of them. Given a text alone it begins at the first; given the upper half of the scene, 32 of "
        "the numbers, it goes on from there. Of its pictures of such captions 69.1 % of the colours are right, 25.5 % "
        "of the shapes, and 9.0 % have all that the caption says. Texts and seeds were chosen.",
        commands=(
            ("generate", "a yellow square right of a blue square", "--prefix", SCENE, "--seed", "5", "--out",
             "continued.png"),
            ("generate", "a large red circle", "a large yellow square", "-n", "6", "--out", "drawn.png"),
        ),
        python="""\
from toklip_gen import load_generator

generator = load_generator("toklip-gen-tiny")
text, upper = "a yellow square right of a blue square", ids[:, :4].flatten(1)  # the same ids
drawn = generator.draw([text], seeds=[5], prefix=upper)
to_picture(generator.pixels(drawn)[0]).save("continued-again.png")
""",
        pictures=(
            Shown("continued.png", "The upper half is the scene's, the lower half is drawn"),
            Shown("drawn.png", "Above: a large red circle. Below: a large yellow square"),
        ),
        packages=("toklip-vq", "toklip-gen"),
    ),
)
