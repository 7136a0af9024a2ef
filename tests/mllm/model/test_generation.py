"""Generation with pictures: transformers' generate with all its modes, and pictures are encoded once."""

import pytest
import torch
from toklip_mllm.model import PictureEncoder
from transformers import DynamicCache, TextStreamer

from tests.support.small_mllms import FAMILIES, ids, prompt, shared

PLAIN = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)

#: transformers renamed the argument in 5.24.
CACHE_NAMES = ["cache", "past_key_values"]

CHUNKS = {"prefill_chunk_size": 40, "cache_implementation": "static"}


@pytest.fixture
def encoded(monkeypatch):
    """Counts the pictures that are encoded."""
    pictures = []
    forward = PictureEncoder.forward
    counted = lambda self, x, *more: (pictures.append(len(x)), forward(self, x, *more))[1]  # noqa: E731
    monkeypatch.setattr(PictureEncoder, "forward", counted)
    return pictures


def batch_of_two(processor):
    return prompt(processor, "<image> what ?", "<image> the <image> how many ?", image_ids=ids(3))


def single_prompts(processor):
    pictures = ids(3)
    yield prompt(processor, "<image> what ?", image_ids=pictures[:1])
    yield prompt(processor, "<image> the <image> how many ?", image_ids=pictures[1:])


@torch.no_grad()
def by_hand(model, batch, steps=6):
    """Greedy, without a cache: the whole sequence goes through the model for every token."""
    tokens = batch["input_ids"]
    for _ in range(steps):
        logits = model(input_ids=tokens, image_ids=batch["image_ids"]).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1)[:, None]], dim=1)
    return tokens


def refuse_releases_without_chunks(bare):
    """Early releases of transformers 5 cannot: their static cache overflows."""
    try:
        bare.generate(torch.ones(1, 68, dtype=torch.int64), **PLAIN, **CHUNKS)
    except IndexError:
        pytest.skip("this release of transformers cannot prefill a language model by chunks")


def answers(tokens, batch):
    return tokens[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, CHUNKS],
    ids=["cache", "no cache", "static", "prefill by chunks"],
)
def test_every_cache_gives_the_tokens_of_no_cache(family, options):
    model, processor = shared(family)
    batch = next(single_prompts(processor))
    if options == CHUNKS:
        refuse_releases_without_chunks(model.language_model)
    assert torch.equal(model.generate(**batch, **PLAIN, **options), by_hand(model, batch))


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_batch_gives_each_prompt_the_tokens_that_it_has_alone(family, options):
    model, processor = shared(family)
    batch = batch_of_two(processor)
    together = answers(model.generate(**batch, **PLAIN, **options), batch)
    alone = [answers(model.generate(**one, **PLAIN, **options), one)[0] for one in single_prompts(processor)]
    assert together == alone


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}, {"use_cache": False}],
    ids=["greedy", "beams", "samples", "no cache"],
)
def test_a_picture_is_encoded_once_whatever_the_search(options, encoded):
    model, processor = shared()
    model.generate(**batch_of_two(processor), **PLAIN | options)
    assert encoded == [3]


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_cached_logits_are_those_of_the_whole_sequence_within_rounding(family, options):
    model, processor = shared(family)
    batch = next(single_prompts(processor))
    told = {"return_dict_in_generate": True, "output_logits": True}
    found = model.generate(**batch, **PLAIN, **options, **told)
    with torch.no_grad():
        whole = model(input_ids=found.sequences, image_ids=batch["image_ids"]).logits
    cached = torch.stack(found.logits, dim=1)
    torch.testing.assert_close(cached, whole[:, -1 - cached.shape[1] : -1], rtol=1e-4, atol=1e-5)


def test_samples_of_a_seed_are_those_of_the_logits():
    model, processor = shared()
    batch = next(single_prompts(processor))
    torch.manual_seed(0)
    drawn = model.generate(**batch, **PLAIN | {"do_sample": True, "num_return_sequences": 8, "top_k": 5})
    assert len({tuple(row) for row in answers(drawn, batch)}) > 1
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    logits[model.config.image_token_id] = -torch.inf
    assert {row[0] for row in answers(drawn, batch)} <= set(logits.topk(5).indices.tolist())


def test_scores_and_penalties_work_with_pictures_in_the_prompt():
    model, processor = shared()
    batch = batch_of_two(processor)
    found = model.generate(
        **batch, **PLAIN, repetition_penalty=1.3, return_dict_in_generate=True, output_logits=True, output_scores=True
    )
    assert len(found.logits) == len(found.scores) == 6


def test_the_answer_streams_as_text(capsys):
    model, processor = shared()
    batch = next(single_prompts(processor))
    tokens = model.generate(**batch, **PLAIN, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    expected = processor.decode(answers(tokens, batch)[0])
    assert capsys.readouterr().out.split() == expected.split()


def test_prompt_lookup_gives_the_tokens_of_greedy_search():
    model, processor = shared()
    batch = next(single_prompts(processor))
    options = {**PLAIN, "eos_token_id": 2}
    found = model.generate(**batch, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(found, model.generate(**batch, **options))


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_conversation_goes_on_from_its_cache(name):
    model, processor = shared()
    first = prompt(processor, "<image> what ?", image_ids=ids(2)[:1])
    cache = DynamicCache(config=model.config.get_text_config())
    begun = model.generate(**first, **PLAIN, **{name: cache})
    more = prompt(processor, "and <image> ?", image_ids=ids(2)[1:])
    tokens = torch.cat([begun, more["input_ids"]], dim=1)
    whole = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "image_ids": ids(2)}
    assert torch.equal(model.generate(**whole, **PLAIN, **{name: cache}), model.generate(**whole, **PLAIN))


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_forward_goes_on_from_a_cache_by_either_name(name):
    model, processor = shared()
    batch = next(single_prompts(processor))
    whole = model(**batch).logits
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=batch["input_ids"][:, :-2], image_ids=batch["image_ids"], use_cache=True, **{name: cache})
    rest = model(input_ids=batch["input_ids"][:, -2:], use_cache=True, **{name: cache}).logits
    torch.testing.assert_close(rest, whole[:, -2:], rtol=1e-4, atol=1e-5)


def test_two_caches_are_refused():
    model, processor = shared()
    batch = next(single_prompts(processor))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="got cache and past_key_values, two names of one thing; give one"):
            call(**batch, cache=DynamicCache(), past_key_values=DynamicCache())


def test_features_can_be_given_instead_of_ids():
    model, processor = shared()
    batch = next(single_prompts(processor))
    with torch.no_grad():
        features = model.get_image_features(batch["image_ids"]).pooler_output
    text = {name: tensor for name, tensor in batch.items() if name != "image_ids"}
    assert torch.equal(
        model.generate(**text, image_features=features, **PLAIN), model.generate(**batch, **PLAIN)
    )


def test_the_image_token_is_never_generated():
    model, processor = shared()
    batch = next(single_prompts(processor))
    drawn = model.generate(**batch, **PLAIN | {"do_sample": True, "num_return_sequences": 50, "temperature": 100.0})
    assert model.config.image_token_id not in drawn[:, batch["input_ids"].shape[1] :]


def test_a_prompt_without_a_picture_generates_what_the_bare_language_model_does():
    model, processor = shared()
    batch = prompt(processor, "how many red circle ?")
    bare = model.language_model.generate(**batch, **PLAIN, suppress_tokens=[model.config.image_token_id])
    assert torch.equal(model.generate(**batch, **PLAIN), bare)


@pytest.mark.parametrize("pictures", [0, 2])
def test_another_number_of_pictures_than_places_is_refused(pictures):
    model, processor = shared()
    batch = next(single_prompts(processor))
    given = {"image_ids": ids(pictures)} if pictures else {}
    text = {name: tensor for name, tensor in batch.items() if name != "image_ids"}
    with pytest.raises(ValueError, match=f"got {pictures} pictures of 64 tokens, but 64 places for them"):
        model.generate(**text, **given, **PLAIN)


def test_a_prompt_past_the_context_is_refused():
    model, processor = shared()
    batch = prompt(processor, "<image> " * 8 + "what ?", image_ids=ids(8))
    with pytest.raises(
        ValueError, match=r"got a prompt of 514 tokens, 512 of them pictures; the language model's context is 512"
    ):
        model.generate(**batch, **PLAIN)


def test_an_assistant_model_is_refused_with_the_way_out():
    model, processor = shared()
    with pytest.raises(ValueError, match="which does not see the pictures; prompt_lookup_num_tokens=3"):
        model.generate(**next(single_prompts(processor)), **PLAIN, assistant_model=model.language_model)
