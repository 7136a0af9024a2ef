"""Toy language models of several families, a word tokenizer with chat templates, and models built of them."""

from functools import cache

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from toklip_mllm.model import build_language_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.support.small_models import small_toklip

WORDS = "a the what is how many red green blue square circle one two three picture colour it yes no ? . :".split()

#: Of the kind that most models have: the assistant's turns are not marked.
PLAIN = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)

_SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
)
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=8),
    "gemma": lambda: GemmaConfig(**_SIZES, head_dim=8),
    "gemma2": lambda: Gemma2Config(**_SIZES, head_dim=8, sliding_window=64),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=None),
}
FAMILIES = list(CONFIGS)

#: With learned positions, which padding on the left must not move.
CONFIGS["gpt2"] = lambda: GPT2Config(
    vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=512, pad_token_id=0, bos_token_id=None, eos_token_id=2
)


def tokenizer(template: str | None = PLAIN, bos: str | None = None):
    """With ``bos`` each text begins with that token, as Llama's, Gemma's and Mistral's do."""
    special = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", *([bos] if bos else [])]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        known = [(bos, special.index(bos))]
        words.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=known)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        bos_token=bos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def language_model(family: str = "llama", seed: int = 0, **changes):
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).eval()


def small_mllm(
    family: str = "llama",
    features: str = "concat",
    template: str = PLAIN,
    seed: int = 0,
    bos: str | None = None,
    vq=None,
):
    """Model and processor. 32 px, codes on a grid of 8 x 8: 64 places for a picture. ``vq``: the VQ tokenizer."""
    words = tokenizer(template, bos)
    bare, toklip = language_model(family, seed), small_toklip(seed, vq)
    return build_language_model(bare, toklip, tokenizer=words, features=features)


@cache
def shared(family: str = "llama", features: str = "concat"):
    """The same model and processor for tests that change neither."""
    return small_mllm(family, features)


def ids(pictures: int = 1, seed: int = 0):
    return torch.randint(0, 300, (pictures, 8, 8, 1), generator=torch.Generator().manual_seed(seed))


def prompt(processor, *texts: str, image_ids=None, **options):
    """What the model takes, of texts with <image> in them."""
    return processor(text=list(texts), image_ids=image_ids, return_tensors="pt", **options)
