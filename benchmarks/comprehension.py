"""A language model that reads TokLIP's tokens, beside the same language model alone, and the encoder alone.

Weights are of published shapes: TokLIP-S (256 px, 256 tokens) over LlamaGen's VQ-16, and SmolLM2-135M, a small language
model, beside which whatever is added weighs most. Decoding is the difference of generating many tokens and one, after
prompts of equal length, so that both have the same cache. All in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from toklip_core.model import TokLIP
from toklip_core.pictures import normalized
from toklip_core.tokenizer import Tokenizer
from toklip_mllm import build_language_model
from toklip_mllm.model import TokLIPForConditionalGeneration
from toklip_mllm.training import word_tokenizer
from toklip_vq.autoencoder import AutoencoderTokenizer
from toklip_vq.published import CONFIGS
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks._race import Options, Row, floor, published, race, vqgan, weight_bytes

#: Tokens of a prompt beside the picture's.
WORDS = 32
#: Source of the sizes: config.json of HuggingFaceTB/SmolLM2-135M-Instruct.
LANGUAGE = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)


def rows(options: Options) -> Iterator[Row]:
    """Yield what decoding, reading a prompt, and training take."""
    model, vq = shaped(options)
    yield from decoding_rows(model, options)
    yield prefill_row(model, options)
    yield from training_rows(model, vq, options)


def shaped(options: Options) -> tuple[TokLIPForConditionalGeneration, AutoencoderTokenizer]:
    """Return the model, and its VQ tokenizer."""
    vq = vqgan(CONFIGS["VQ-16"], options).tokenizer()
    config = published("toklip-s-256", options)
    toklip = TokLIP(config, tokenizer=Tokenizer(config.tokenizer.name, vq), text=False)
    if options.quick:
        LANGUAGE.num_hidden_layers = 2
    language_model = AutoModelForCausalLM.from_config(LANGUAGE).eval()
    words = word_tokenizer(["what is it"], context_length=LANGUAGE.max_position_embeddings)
    model, _ = build_language_model(language_model, toklip, tokenizer=words)
    return model.to(options.device), vq


def prompts(model: TokLIPForConditionalGeneration, batch: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prompts with a picture, and texts of the same length for the language model alone."""
    config, device = model.config, model.device
    picture = torch.full((batch, config.tokens_per_picture), config.image_token_id, device=device)
    text = torch.randint(100, 1000, (batch, WORDS), device=device)
    *grid, _ = model.vision.ids_shape
    seen = {"input_ids": torch.cat([picture, text], 1)}
    levels = [torch.randint(size, (batch, *grid), device=device) for size in model.vision.embedding.codebook_sizes]
    seen["image_ids"] = torch.stack(levels, dim=-1)
    bare = {"input_ids": torch.randint(100, 1000, seen["input_ids"].shape, device=device)}
    mask = {"attention_mask": torch.ones_like(seen["input_ids"])}
    return seen | mask, bare | mask


def decoding_rows(model: TokLIPForConditionalGeneration, options: Options) -> Iterator[Row]:
    """Tokens after a picture, beside tokens of the bare language model after as long a text."""
    seen, bare = prompts(model)
    with torch.no_grad():
        seen["image_features"] = model.get_image_features(seen.pop("image_ids")).pooler_output
    tokens = 2 if options.quick else 32
    least = 1000 * floor(options, 0, read=weight_bytes(model.language_model))
    for cache in ("dynamic", "static"):

        def answer(which: Any, batch: dict[str, Any], new: int, cache: str = cache) -> Callable[[], Any]:  # noqa: ANN401
            words = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "cache_implementation": cache}
            return lambda: which.generate(**batch, max_new_tokens=new, min_new_tokens=new, **words)

        seconds, _ = race(
            {
                "ours, many": answer(model, seen, tokens + 1),
                "bare, many": answer(model.language_model, bare, tokens + 1),
                "ours, one": answer(model, seen, 1),
                "bare, one": answer(model.language_model, bare, 1),
            },
            options.repeats,
        )
        ours, alone = (
            (seconds[f"{who}, many"] + seconds[f"{who}, one"] * -1) * (1000 / tokens) for who in ("ours", "bare")
        )
        yield Row(f"decoding a token, {cache} cache", "ms", ours, alone, "language model alone", least, "above 0.95")


@torch.no_grad()
def prefill_row(model: TokLIPForConditionalGeneration, options: Options) -> Row:
    """A prompt with one picture, beside the encoder and the language model, each alone."""
    seen, bare = prompts(model)
    assert model.vision.encoder is not None
    codes = model.vision.embedding.code_map(seen["image_ids"])
    seconds, _ = race(
        {
            "ours": lambda: model(**seen, logits_to_keep=1),
            "encoder": lambda: cast(Any, model.vision.encoder)(codes),
            "language model": lambda: model.language_model(**bare, logits_to_keep=1),
        },
        options.repeats,
    )
    what = f"prefill of {seen['input_ids'].shape[1]} tokens, one picture"
    peer = "the encoder alone and the language model alone, together"
    parts = seconds["encoder"] + seconds["language model"]
    return Row(what, "s", seconds["ours"], parts, peer, wanted="above 0.91")


def training_rows(
    model: TokLIPForConditionalGeneration, vq: AutoencoderTokenizer, options: Options
) -> Iterator[Row]:
    """Forward and backward pass of stage one on two pictures: from pixels, from ids, and from ids and tokens.

    Pixels, ids and tokens are in memory. Of a run from pictures this leaves out reading, decoding and resizing them, of
    a run from a store reading and unpacking rows, and of both the optimizer's step on the connector.
    """
    model.train().requires_grad_(False)
    model.connector.requires_grad_(True)
    assert model.vision.encoder is not None
    seen, _ = prompts(model, batch=2)
    labels = seen["input_ids"].masked_fill(seen["input_ids"] == model.config.image_token_id, -100)
    side = model.config.image_size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device=model.device)
    ids = seen.pop("image_ids")
    tokens = model.vision.encoder(model.vision.embedding.code_map(ids)).tokens

    def step(pictures: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            loss = model(**seen, labels=labels, **pictures()).loss
            assert loss is not None
            loss.backward()
            return float(loss.detach())

        return run

    contestants = {
        "pixels": step(lambda: {"image_ids": vq.encode(normalized(pixels))}),
        "ids": step(lambda: {"image_ids": ids}),
        "ids and tokens": step(lambda: {"image_ids": ids, "image_tokens": tokens}),
    }
    seconds, _ = race(contestants, options.repeats)
    for stored in ("ids", "ids and tokens"):
        what = f"stage one, forward and backward on 2 x {side} px from stored {stored}"
        note = "all in memory: no file is read, no picture decoded"
        yield Row(what, "s", seconds[stored], seconds["pixels"], "ours from pixels", wanted="1.5x", note=note)
