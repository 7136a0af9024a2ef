"""Speed of a language model that reads TokLIP's tokens, beside the same language model alone and the encoder alone.

    python benchmarks/comprehension.py --json comprehension.json

Weights are random, of published shapes: TokLIP-S (256 px, 256 tokens) over LlamaGen's VQ-16, and SmolLM2-135M, a
small language model, beside which whatever is added weighs most. All contestants take turns in one process, and each
figure is the smallest of the repeats. Decoding is the difference of generating many tokens and one, after prompts of
equal length, so that both have the same cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _race import Row, machine_name, race, table, write_json
from toklip_core.data import normalized
from toklip_core.model import TokLIP
from toklip_core.published import model_spec
from toklip_mllm import build
from toklip_mllm.language import word_tokenizer
from toklip_mllm.model import TokLIPForConditionalGeneration
from toklip_vq.llamagen import CONFIGS
from toklip_vq.vqgan import VQGANTokenizer, build_vqgan
from transformers import AutoModelForCausalLM, LlamaConfig

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


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32, help="of decoding")
    parser.add_argument("--part", choices=["decoding", "prefill", "training"], help="one part of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine = machine_name(options.threads)
    print(machine)
    model, vq = shaped()
    parts: dict[str, Callable[[], list[Row]]] = {
        "decoding": lambda: decoding_rows(model, options.repeats, options.new_tokens),
        "prefill": lambda: prefill_rows(model, options.repeats),
        "training": lambda: training_rows(model, vq, options.repeats),
    }
    rows = [row for name, measure in parts.items() if options.part in (None, name) for row in measure()]
    print(table(rows))
    if options.json:
        write_json(options.json, machine, rows)


def shaped() -> tuple[TokLIPForConditionalGeneration, VQGANTokenizer]:
    """Return the model, and its VQ tokenizer."""
    vq = VQGANTokenizer(build_vqgan(CONFIGS["VQ-16"]))
    toklip = TokLIP(model_spec("toklip-s-256").config, tokenizer=vq, text=False)
    language_model = AutoModelForCausalLM.from_config(LANGUAGE).eval()
    words = word_tokenizer(["what is it"], context_length=LANGUAGE.max_position_embeddings)
    model, _ = build(language_model, toklip, tokenizer=words)
    return model, vq


def prompts(model: TokLIPForConditionalGeneration, batch: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prompts with a picture, and texts of the same length for the language model alone."""
    config = model.config
    picture = torch.full((batch, config.tokens_per_picture), config.image_token_id)
    text = torch.randint(100, 1000, (batch, WORDS))
    rows, columns = config.encoder_config.grid
    seen = {"input_ids": torch.cat([picture, text], 1)}
    seen["image_ids"] = torch.randint(0, config.codebook_size, (batch, rows, columns))
    bare = {"input_ids": torch.randint(100, 1000, seen["input_ids"].shape)}
    mask = {"attention_mask": torch.ones_like(seen["input_ids"])}
    return seen | mask, bare | mask


def decoding_rows(model: TokLIPForConditionalGeneration, repeats: int, tokens: int) -> list[Row]:
    """Tokens after a picture, beside tokens of the bare language model after as long a text."""
    seen, bare = prompts(model)
    with torch.no_grad():
        seen["image_features"] = model.get_image_features(seen.pop("image_ids"))
    rows = []
    for cache in ("dynamic", "static"):
        options = {"do_sample": False, "eos_token_id": None, "cache_implementation": cache, "pad_token_id": 0}

        def answer(which: Any, batch: dict[str, Any], new: int, options: dict[str, Any] = options) -> Callable[[], Any]:  # noqa: ANN401
            return lambda: which.generate(**batch, max_new_tokens=new, min_new_tokens=new, **options)

        seconds, _ = race(
            {
                "ours, many": answer(model, seen, tokens + 1),
                "bare, many": answer(model.language_model, bare, tokens + 1),
                "ours, one": answer(model, seen, 1),
                "bare, one": answer(model.language_model, bare, 1),
            },
            repeats,
        )
        ours, alone = ((seconds[f"{who}, many"] - seconds[f"{who}, one"]) / tokens for who in ("ours", "bare"))
        note = f"{alone / ours:.2f} of the bare language model's {1 / alone:.1f} tokens/s"
        rows.append(Row(f"decoding a token, {cache} cache, float32", "ms", 1000 * ours, target="0.95", note=note))
    return rows


@torch.no_grad()
def prefill_rows(model: TokLIPForConditionalGeneration, repeats: int) -> list[Row]:
    """A prompt with one picture, beside the encoder and the language model, each alone."""
    seen, bare = prompts(model)
    assert model.vision.encoder is not None
    codes = model.vision.codebook[seen["image_ids"]]
    seconds, _ = race(
        {
            "ours": lambda: model(**seen, logits_to_keep=1),
            "encoder": lambda: model.vision.encoder(codes),
            "language model": lambda: model.language_model(**bare, logits_to_keep=1),
        },
        repeats,
    )
    parts = seconds["encoder"] + seconds["language model"]
    note = (
        f"{seconds['ours'] / parts:.2f} times the encoder's {seconds['encoder']:.2f} s and the language model's "
        f"{seconds['language model']:.2f} s"
    )
    length = seen["input_ids"].shape[1]
    return [Row(f"prefill of {length} tokens, one picture, float32", "s", seconds["ours"], target="1.10", note=note)]


def training_rows(model: TokLIPForConditionalGeneration, vq: VQGANTokenizer, repeats: int) -> list[Row]:
    """Forward and backward pass of stage one on two pictures: from pixels, from ids, and from ids and tokens.

    Pixels, ids and tokens are in memory. Of a run from pictures this leaves out reading, decoding and resizing them, of
    a run from a store reading and unpacking rows, and of both the optimizer's step on the connector.
    """
    model.train().requires_grad_(False)
    model.connector.requires_grad_(True)
    assert model.vision.encoder is not None
    seen, _ = prompts(model, batch=2)
    labels = seen["input_ids"].masked_fill(seen["input_ids"] == model.config.image_token_id, -100)
    pixels = torch.randint(0, 256, (2, 3, model.config.image_size, model.config.image_size), dtype=torch.uint8)
    ids = seen.pop("image_ids")
    tokens = model.vision.encoder(model.vision.codebook[ids]).tokens

    def step(pictures: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            loss = model(**seen, labels=labels, **pictures()).loss
            assert loss is not None
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss)

        return run

    contestants = {
        "pixels": step(lambda: {"image_ids": vq.encode(normalized(pixels))}),
        "ids": step(lambda: {"image_ids": ids}),
        "ids and tokens": step(lambda: {"image_ids": ids, "image_tokens": tokens}),
    }
    seconds, _ = race(contestants, min(repeats, 3))
    return [
        Row(
            f"stage one on 2 x 256 px from stored {stored}, float32",
            "s",
            seconds[stored],
            target="1.5x pixels",
            note=f"{seconds['pixels'] / seconds[stored]:.2f} times as long from pixels, {seconds['pixels']:.2f} s; "
            "all in memory: no file is read, no picture decoded",
        )
        for stored in ("ids", "ids and tokens")
    ]


if __name__ == "__main__":
    main()
