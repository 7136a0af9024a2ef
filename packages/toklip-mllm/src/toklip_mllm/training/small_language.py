"""A small untrained language model, and a tokenizer of the words of the data, which need no download.

Both are classes of transformers, so that everything works as with a large language model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from toklip_mllm.training.settings import SmallLanguage

PAD, UNKNOWN, END = "<pad>", "<unk>", "<|end|>"
_ROLES = ("system", "user", "assistant")

#: The assistant's turns are marked as generated, up to their end token, because labels are on them.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SPACE = "\u2581"


def word_tokenizer(texts: Iterable[str], *, context_length: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the words of texts, in lower case, with a chat template.

    Words and punctuation marks are tokens. Text of known words is decoded as it was, if it has no needless spaces. The
    vocabulary does not depend on the order of the texts.

    Args:
        texts: texts whose words are known; all other words are one unknown token.
        context_length: maximum number of tokens of the language model.

    Raises:
        ValueError: the texts have no word.
    """
    special = [PAD, UNKNOWN, END, *(f"<|{role}|>" for role in _ROLES)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # A word includes the space before it, so that "circle?" does not come back as "circle ?".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always")
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    if not counts:
        raise ValueError("got no words for a vocabulary; give texts")
    # Digits are added, because questions ask for numbers that a small share of the data may lack.
    words = sorted({*counts, *(_SPACE + digit for digit in "0123456789")}, key=lambda word: (-counts[word], word))
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    return found


def add_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Add the words of texts that a tokenizer of :func:`word_tokenizer` does not know, in place; return them.

    Tokens that it had keep their ids. A tokenizer of another kind is left as it is.

    >>> tokenizer = word_tokenizer(["a red circle"], context_length=8)
    >>> add_words(tokenizer, ["Draw a red cube."]), tokenizer.decode(tokenizer("draw a cube").input_ids)
    (['.', '▁cube', '▁draw'], 'draw a cube')
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordLevel) or backend.normalizer is None:
        return []
    known = tokenizer.get_vocab()
    words = {
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    }
    new = sorted(words - known.keys())
    # With added tokens in the vocabulary too, so that a saved tokenizer gives them the ids that they have.
    first = max(known.values()) + 1
    backend.model = models.WordLevel(known | {word: first + i for i, word in enumerate(new)}, unk_token=UNKNOWN)
    return new


def small_language_model(config: SmallLanguage, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a Qwen3 with random weights for a tokenizer, from torch's global random state.

    Qwen3 is a Llama whose queries and keys are normalized. Initial embeddings are larger than those of transformers by
    the square root of the width, as Gemma scales them, and have no part in the output matrix. Both let a word of a
    question find its match in a picture from the first steps on; see docs/decisions/learning-to-compare.md.
    """
    sizes = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.width // config.heads,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(sizes)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(math.sqrt(config.width))
    return model
