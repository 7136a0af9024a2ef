"""Several ids per position, ids of many bits, and ids in a pyramid: the same laws, and no table of bits."""

from functools import cache

import pytest
import torch
from safetensors import safe_open
from toklip_core.embeddings import BitEmbedding
from toklip_mllm.model import TokLIPLMConfig, load_language_model
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.mean_colour import OTHERS, SEVERAL, several
from tests.support.small_mllms import prompt, small_mllm

CLOSE = dict(rtol=1e-4, atol=1e-5)
PLAIN = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


@cache
def over(kind: str, features: str = "concat"):
    """Model and processor over one of the tokenizers."""
    return small_mllm(features=features, vq=several(kind))


def ids(kind: str, pictures: int, seed: int = 0):
    """Random ids of pictures."""
    model, _ = over(kind)
    rows, columns, _ = model.vision.ids_shape
    draw = torch.Generator().manual_seed(seed)
    sizes = model.vision.embedding.codebook_sizes
    return torch.stack([torch.randint(size, (pictures, rows, columns), generator=draw) for size in sizes], dim=-1)


def batch_of_two(kind: str):
    _, processor = over(kind)
    return prompt(processor, "<image> what ?", "<image> the <image> how many ?", image_ids=ids(kind, 3))


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_the_model_reads_the_code_map_of_the_tokenizer_bit_for_bit(kind):
    model, processor = over(kind, "codes")
    codes = processor.vq_tokenizer.code_map(ids(kind, 2))
    assert codes.shape[1:3] == (8, 8) and model.config.tokens_per_picture == 64
    assert torch.equal(model.vision(ids(kind, 2)), codes.flatten(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_the_cache_gives_the_tokens_of_no_cache(kind):
    model, processor = over(kind)
    batch = prompt(processor, "<image> what ?", image_ids=ids(kind, 1))
    tokens = batch["input_ids"]
    for _ in range(6):
        logits = model(input_ids=tokens, image_ids=batch["image_ids"]).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1)[:, None]], dim=1)
    assert torch.equal(model.generate(**batch, **PLAIN), tokens)


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_gives_each_prompt_the_logits_that_it_has_alone(kind):
    model, processor = over(kind)
    pictures, batch = ids(kind, 3), batch_of_two(kind)
    together = model(**batch).logits
    alone = [
        model(**prompt(processor, "<image> what ?", image_ids=pictures[:1])).logits[0],
        model(**prompt(processor, "<image> the <image> how many ?", image_ids=pictures[1:])).logits[0],
    ]
    for row, mask, expected in zip(together, batch["attention_mask"].bool(), alone, strict=True):
        torch.testing.assert_close(row[mask], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", SEVERAL)
def test_every_level_changes_the_logits(kind):
    model, processor = over(kind)
    one = ids(kind, 1)
    expected = model(**prompt(processor, "<image> ?", image_ids=one)).logits
    for level, size in enumerate(model.vision.embedding.codebook_sizes):
        other = one.clone()
        other[..., level] = (other[..., level] + size // 2) % size
        assert not torch.equal(model(**prompt(processor, "<image> ?", image_ids=other)).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_a_saved_model_is_loaded_with_its_embedding(kind, tmp_path):
    model, processor = over(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, other = load_language_model(tmp_path)
    assert loaded.config.embedding_config == processor.vq_tokenizer.embedding.config
    assert torch.equal(loaded(**batch_of_two(kind)).logits, model(**batch_of_two(kind)).logits)
    assert other.tokens_per_picture == 64


@torch.no_grad()
@pytest.mark.parametrize("kind", OTHERS)
def test_in_half_precision_the_codes_stay_in_float32(kind, tmp_path):
    model, _ = over(kind, "codes")
    model.save_pretrained(tmp_path)
    over(kind)[1].save_pretrained(tmp_path)
    half = load_language_model(tmp_path, dtype=torch.bfloat16)[0]
    assert half.connector[0].weight.dtype == torch.bfloat16
    assert torch.equal(half.vision(ids(kind, 2)), model.vision(ids(kind, 2)))


@pytest.mark.parametrize("kind", SEVERAL)
def test_ids_of_another_number_of_levels_are_refused(kind):
    model, processor = over(kind)
    levels = len(model.vision.embedding.codebook_sizes)
    wrong = ids(kind, 1).repeat(1, 1, 1, 2)
    message = rf"got ids \(1, 8, 8, {2 * levels}\); wanted \(pictures, 8, 8, {levels}\)"
    with pytest.raises(ValueError, match=message):
        model(**prompt(processor, "<image>", image_ids=wrong))


def test_a_config_whose_parts_do_not_fit_is_refused():
    model, _ = over("quarter-greys")
    values = model.config.to_dict() | {"grid": [4, 4]}
    with pytest.raises(ValueError, match=r"ids on a grid of 4 x 4 become codes on 4 x 4, 4 wide.* 8 x 8, 4 wide"):
        type(model)(TokLIPLMConfig(**values))


def test_the_folder_of_a_model_over_bits_has_no_table(tmp_path):
    model, _ = over("colour-bits")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert [name for name in file.keys() if "vision.embedding" in name] == []
    assert (tmp_path / "model.safetensors").stat().st_size < 2**20


class Allocations(TorchDispatchMode):
    """Sums the bytes of all tensors that are made while inside."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.nbytes += tensor.untyped_storage().nbytes()
        return result


@torch.no_grad()
def test_a_picture_of_many_bits_takes_little_memory():
    """All tensors together, not only the largest: building the embedding, and reading the ids of one picture."""
    model, _ = over("colour-bits")
    with Allocations() as made:
        embedding = model.config.embedding_config.build()
        model.vision(ids("colour-bits", 1))
    assert isinstance(embedding, BitEmbedding) and embedding.codebook_sizes == (2**28,)
    assert 0 < made.nbytes < 50 * 2**20
