"""Write toklip-gen-tiny as a language model with an image head, from which the training of toklip-uni-tiny starts.

    python docs/examples/generator_as_language_model.py runs/generator-as-language-model

A block of the generator and one of Qwen3 are the same function, except that the generator rotates half of the pairs of
a head by the row and half by the column of a position, and Qwen3 rotates all by the place in the text. The next row is
as many places further as a row has columns, so each pair is put where Qwen3 rotates at about its speed. The result
draws badly at first and needs training; it has not learned to read.

Shape letters: W width, H heads, d = W / H.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch
from toklip_core.model import TextTower
from toklip_gen.generator import Generator, GeneratorConfig, load_generator
from toklip_mllm.model import (
    ImageHeadSettings,
    TokLIPForConditionalGeneration,
    build_language_model,
    load_language_model,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

#: Base of Qwen3's rotation. With the generator's 10,000 its slowest pair would be six times as fast as
#: the generator's slowest pair of rows.
ROPE_BASE = 57_000.0
#: Norm of the embeddings of words that the generator does not know, about that of the words that it knows.
WORD_NORM = 200.0


def language_model_of(generator: Generator, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Return a Qwen3 with the blocks of a generator, and random embeddings and output matrix."""
    config = generator.config
    sizes = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads or config.heads,
        head_dim=config.width // config.heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(sizes)
    order = channel_order(config.width // config.heads, columns=config.grid[1], base=config.rope_base)
    for block, layer in zip(generator.blocks, model.model.layers, strict=True):
        copy_block(block, layer, order)
    model.model.norm.load_state_dict(generator.norm.state_dict())
    return model


def channel_order(width: int, *, columns: int, base: float) -> Tensor:
    """Return for each channel of a head of Qwen3, (width,), the channel of the generator's head that goes there.

    The generator has the pairs (0, 1), (2, 3) and so on, first those of rows; Qwen3 has (0, d / 2), (1, d / 2 + 1), the
    fastest first.
    """
    half = width // 4
    speeds = base ** (-torch.arange(half) / half)
    along_text = torch.cat([speeds / columns, speeds])  # radians per place, rows and then columns
    pairs = along_text.argsort(descending=True, stable=True)
    return torch.cat([2 * pairs, 2 * pairs + 1])


@torch.no_grad()
def copy_block(block: nn.Module, layer: nn.Module, order: Tensor) -> None:
    """Copy the weights of a block of the generator into a layer of Qwen3, with the channels of its heads in order."""
    attention, width = layer.self_attn, len(order)
    parts = block.qkv.weight.split([heads * width for heads in (block.heads, block.kv_heads, block.kv_heads)])
    for projection, part in zip((attention.q_proj, attention.k_proj), parts, strict=False):
        projection.weight.copy_(part.unflatten(0, (-1, width))[:, order].flatten(0, 1))
    attention.v_proj.weight.copy_(parts[2])
    attention.o_proj.weight.copy_(block.proj.weight)
    for norm, weight in zip((attention.q_norm, attention.k_norm), block.qk_norms, strict=True):
        norm.weight.copy_(weight.weight[order])
    gate, up = block.gate_up.weight.chunk(2)
    layer.mlp.gate_proj.weight.copy_(gate)
    layer.mlp.up_proj.weight.copy_(up)
    layer.mlp.down_proj.weight.copy_(block.down.weight)
    layer.input_layernorm.weight.copy_(block.norm1.weight)
    layer.post_attention_layernorm.weight.copy_(block.norm2.weight)


@torch.no_grad()
def copy_words(
    generator: Generator,
    tower: TextTower,
    model: TokLIPForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Give words the embeddings that the generator has of them, each without neighbours; return how many it knows.

    The token that opens a picture gets that of the end of a text, after which the generator begins to draw.
    """
    rows = cast(Tensor, model.get_input_embeddings().weight)
    rows.mul_(WORD_NORM / rows.norm(dim=1).mean())

    def alone(feature: Tensor) -> Tensor:
        features = torch.zeros(1, generator.config.condition.length, len(feature))
        features[0, -1] = feature
        return generator.condition(features)[0, -1]

    count = 0
    for token, row in tokenizer.get_vocab().items():
        word = token.replace("\u2581", "").strip()
        if not word.isalnum() or tower.tokenizer.unknown_words([word]):
            continue
        features, _ = tower.embeddings([word])
        rows[row] = alone(features[0, 0])
        count += 1
    features, mask = tower.embeddings(["circle"])
    rows[model.config.head_config.begin_token_id] = alone(features[0, int(mask.sum()) - 1])
    return count


def image_head_of(config: GeneratorConfig) -> ImageHeadSettings:
    """Return the settings of an image head that is the generator's."""
    heads = config.heads if config.level_blocks else None
    return ImageHeadSettings(
        level_blocks=config.level_blocks, level_heads=heads, guidance=config.guidance, top_k=config.top_k
    )


def main() -> None:
    """Write the language model into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--generator", default="toklip-gen-tiny", help="name or folder of the generator")
    args = parser.parse_args()
    torch.manual_seed(0)
    whole = load_generator(args.generator, dtype=torch.float32)
    generator, toklip = whole.generator, whole.toklip
    config = generator.config
    if toklip is None or config.features != "concat" or config.condition.kind != "text" or not config.qk_norm:
        parser.error(f"{args.generator} is another kind: it takes one of texts, codes with tokens, and qk_norm")
    words = load_language_model("toklip-mllm-tiny")[1].tokenizer
    model, processor = build_language_model(
        language_model_of(generator, words),
        toklip,
        tokenizer=words,
        image_head=image_head_of(config),
    )
    model.connector.load_state_dict(generator.input.state_dict())
    model.image_head.predict.load_state_dict(generator.head.state_dict())
    count = copy_words(generator, toklip.text, model, processor.tokenizer)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    print(f"{args.out}: {count} of {len(processor.tokenizer)} words are the generator's")


if __name__ == "__main__":
    main()
