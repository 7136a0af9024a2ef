"""A small TokLIP and a small CLIP of random weights, for tests: 32 px, texts in the words of Scenes."""

from functools import cache

import torch
from tokenizers import Tokenizer as WordTokenizer, models, pre_tokenizers
from toklip_core.model import (
    CLIP,
    CLIPConfig,
    EncoderConfig,
    TextConfig,
    TextTokenizer,
    TokLIP,
    TokLIPConfig,
    TrunkConfig,
    VisionConfig,
)
from toklip_core.scenes import COLOURS, SHAPES, SIZES
from toklip_core.tokenizer import Tokenizer, TokenizerRecord

from tests.support.mean_colour import mean_colour

SIZE = 32
WIDTH = 32
TRUNK = TrunkConfig(width=WIDTH, depth=2, heads=2)


@cache
def words() -> str:
    """``tokenizer.json`` of the words of Scenes and a few more; any other word is unknown."""
    known = ["<pad>", "<unk>", "<eos>", *COLOURS, *SHAPES, *SIZES, *"a an and the of on above picture photo".split()]
    tokenizer = WordTokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


def text_config() -> TextConfig:
    """One block of width 32 over 12 words."""
    return TextConfig(
        context_length=12, vocabulary=64, width=WIDTH, heads=2, layers=1, output_dim=WIDTH, eos_id=2, pooling="last"
    )


def toklip_config(tokenizer: Tokenizer | None = None, **changes) -> TokLIPConfig:
    """Over a tokenizer of tests.support.mean_colour, that of its name by default: codes on a grid of 8 x 8."""
    vq = tokenizer or mean_colour()
    grid = vq.embedding.map_grid(vq.grid(SIZE, SIZE))
    encoder = EncoderConfig(codebook_dim=vq.codebook_dim, grid=grid, trunk=TRUNK)
    record = TokenizerRecord(name=vq.name)
    fields = {"tokenizer": record, "image_size": SIZE, "resize": "crop", "encoder": encoder, "text": text_config()}
    return TokLIPConfig(**fields | changes)


def small_toklip(seed: int = 0, tokenizer: Tokenizer | None = None, **changes) -> TokLIP:
    """Saved and loaded again, it needs the fixture ``toy``, which registers its tokenizer."""
    torch.manual_seed(seed)
    config = toklip_config(tokenizer, **changes)
    model = TokLIP(config, tokenizer=tokenizer or mean_colour(), text_tokenizer=TextTokenizer(config.text, words()))
    return model.eval()


def small_clip(seed: int = 0) -> CLIP:
    """The same sizes on pixels."""
    torch.manual_seed(seed)
    config = CLIPConfig(
        image_size=SIZE, resize="squash", vision=VisionConfig(trunk=TRUNK, patch_size=8), text=text_config()
    )
    return CLIP(config, TextTokenizer(config.text, words())).eval()
