"""Laws of a model that reads and draws: the head changes nothing else, and a step computes what a whole pass does."""

import json
from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toklip_core.drawing import Drawing, Guidance, Sampler
from toklip_mllm.drawing import PictureDrawer
from toklip_mllm.model import ImageHeadSettings, PicturePredictor, PicturePrompt, add_image_head, load_language_model
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, DynamicCache, Trainer, TrainingArguments

from tests.support.mean_colour import several
from tests.support.refusals import refusing
from tests.support.small_mllms import FAMILIES, small_mllm
from tests.support.small_unified import COUNT, HEAD, TOKENIZERS, drawn, small_unified, some_ids, to_draw, unified

pytestmark = pytest.mark.slow

CLOSE = dict(rtol=1e-3, atol=1e-4)
# peft and older callers use names that transformers 5 is giving up.
RENAMED = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
#: Kinds of ids, of language models and of features, each once.
CASES = [
    *((kind, "llama", "concat") for kind in TOKENIZERS),
    *(("residual-greys", family, "concat") for family in ["qwen2", "qwen3", "gemma2", "gpt2"]),
    *(("residual-greys", "llama", features) for features in ["codes", "tokens"]),
]
TEXT = "<begin_image><image> what colour is it ?"


def forced(model, processor, image_ids, *texts):
    """Teacher-forced logits of each level, (P, N, K_q)."""
    batch = drawn(processor, *texts, image_ids=image_ids)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions, output_image_logits=True).image_logits


def stepwise(model, prompt, levels, ids, *, guided=False, known=0):
    """Logits of each level, position by position, of given ids (B, N, Q)."""
    predictor = PicturePredictor(model)
    states, cache = predictor.prefill(prompt, ids[:, :known], guided=guided, steps=0)
    found = []
    for i in range(known, ids.shape[1]):
        if i > known:
            states = predictor.step(ids[:, i - 1 : i], cache)[:, 0]
        before = levels[:, i].repeat(len(states) // len(ids), 1)
        found.append([predictor.logits(states, before[:, :q], cache) for q in range(levels.shape[-1])])
    return [torch.stack(of_level, dim=1) for of_level in zip(*found, strict=True)]


def prompt_of(model, batch):
    return PicturePrompt(model.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_the_head_text_and_reading_are_bit_for_bit_those_without(family):
    model, processor = small_unified(family=family)
    plain, _ = small_mllm(family, vq=several("residual-greys"))
    rows = plain.get_input_embeddings().num_embeddings
    for text, ids in (("how many red circle ?", None), ("<image> what is the picture ?", some_ids())):
        batch = drawn(processor, text, image_ids=ids)
        logits, wanted = model(**batch).logits, plain(**batch).logits
        assert torch.equal(logits[..., :rows], wanted)
        if ids is None:
            assert torch.equal(logits, model.language_model(batch["input_ids"]).logits)


@pytest.mark.parametrize(("kind", "family", "features"), CASES)
@torch.no_grad()
def test_teacher_forced_and_stepwise_logits_of_a_picture_agree(kind, family, features):
    model, processor = unified(kind, family, features)
    ids = some_ids(kind, 2)
    wanted = forced(model, processor, ids, f"red circle {TEXT}", f"one {TEXT}")
    prompt = prompt_of(model, to_draw(processor, "red circle", "one"))
    levels = model.id_levels.split(ids.flatten(1, 2))
    for known in (0, 19):
        found = stepwise(model, prompt, levels, ids.flatten(1, 2), known=known)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other[:, known:], **CLOSE)


@torch.no_grad()
def test_the_row_without_condition_sees_the_begin_token_and_the_picture_alone():
    model, processor = unified()
    ids = some_ids(count=2)
    prompt = prompt_of(model, to_draw(processor, "red circle how many", "one"))
    levels = model.id_levels.split(ids.flatten(1, 2))
    found = stepwise(model, prompt, levels, ids.flatten(1, 2), guided=True)
    alone = forced(model, processor, ids, TEXT, TEXT)
    conditioned = forced(model, processor, ids, f"red circle how many {TEXT}", f"one {TEXT}")
    for both, with_it, without in zip(found, conditioned, alone, strict=True):
        torch.testing.assert_close(both, torch.cat([with_it, without]), **CLOSE)


@pytest.mark.parametrize("features", ["concat", "tokens", "codes"])
@torch.no_grad()
def test_the_features_that_streaming_sees_are_those_of_the_full_pass(features):
    model, _ = unified(features=features)
    ids = some_ids(count=2).flatten(1, 2)
    read, stream = model.vision.stream(ids[:, :5])
    steps = [stream.step(ids[:, i : i + 1]) for i in range(5, COUNT)]
    torch.testing.assert_close(torch.cat([read, *steps], dim=1), model.vision(some_ids(count=2)))


@pytest.mark.parametrize("kind", TOKENIZERS)
@torch.no_grad()
def test_no_position_sees_later_ids(kind):
    model, processor = unified(kind)
    ids = some_ids(kind)
    other = ids.clone().flatten(1, 2)
    other[:, 30:] = some_ids(kind, seed=1).flatten(1, 2)[:, 30:]
    one, two = (forced(model, processor, x, TEXT) for x in (ids, other.view_as(ids)))
    levels = model.id_levels.sizes
    for q, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a[:, :30], b[:, :30])
        assert not torch.equal(a[:, 31:], b[:, 31:])
        if q == 0 or len(levels) == 1:
            assert torch.equal(a[:, 30], b[:, 30])


@torch.no_grad()
def test_a_residual_level_sees_the_levels_before_it_and_none_after():
    model, processor = unified("residual-greys")
    ids = some_ids()
    other = ids.clone()
    other[0, 3, 6, 2] = (other[0, 3, 6, 2] + 1) % 8
    place = 3 * 8 + 6
    one, two = (forced(model, processor, x, TEXT) for x in (ids, other))
    same = [torch.equal(a[:, place], b[:, place]) for a, b in zip(one, two, strict=True)]
    assert same == [True, True, True, False]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
@torch.no_grad()
def test_a_drawn_picture_in_the_cache_gives_the_logits_of_the_same_ids_read(family):
    model, processor = unified(family=family)
    batch = to_draw(processor, "red circle how many", "one")
    options = dict(generation_mode="image", seeds=[3, 4], guidance_scale=2.0, return_dict_in_generate=True)
    found = model.generate(**batch, **options)
    assert found.image_ids.shape == (2, 8, 8, 4) and found.cache.get_seq_length() == found.sequences.shape[1]
    read = model.get_image_features(found.image_ids, return_dict=True).pooler_output
    torch.testing.assert_close(found.image_features, read, **CLOSE)  # as streamed while they were drawn
    asked = torch.cat([found.sequences, torch.tensor([[9, 10, 11]] * 2)], dim=1)
    mask = torch.cat([found.attention_mask, torch.ones(2, 3, dtype=torch.int64)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(input_ids=asked, attention_mask=mask, position_ids=positions, image_ids=found.image_ids).logits
    answer = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    wanted = model.generate(input_ids=asked, attention_mask=mask, image_ids=found.image_ids, **answer)
    told = model.generate(input_ids=asked, attention_mask=mask, cache=found.cache, **answer)
    assert torch.equal(told, wanted)
    again = model.generate(**batch, **options)
    assert torch.equal(again.image_ids, found.image_ids)
    tail = model(
        input_ids=asked[:, -3:], attention_mask=mask, position_ids=positions[:, -3:], cache=again.cache
    ).logits
    torch.testing.assert_close(tail, whole[:, -3:], **CLOSE)


@torch.no_grad()
def test_a_second_picture_is_drawn_after_a_question_about_the_first():
    """From the cache, and from the ids of the first: the same picture."""
    model, processor = unified()
    options = dict(generation_mode="image", guidance_scale=2.0, return_dict_in_generate=True)
    first = model.generate(**to_draw(processor, "red circle"), seeds=[3], **options)
    begin = model.config.head_config.begin_token_id
    asked = torch.cat([first.sequences, torch.tensor([[9, 10, begin]])], dim=1)
    second = model.generate(input_ids=asked, seeds=[5], cache=first.cache, **options)
    read = model.generate(input_ids=asked, seeds=[5], image_ids=first.image_ids, **options)
    assert torch.equal(second.image_ids, read.image_ids)
    assert second.sequences.shape == (1, asked.shape[1] + COUNT)


@torch.no_grad()
def test_the_picture_of_a_seed_is_the_same_alone_and_in_a_batch():
    model, processor = unified()
    texts = ["red circle how many", "one", "blue square ?"]
    options = dict(generation_mode="image", guidance_scale=2.0)
    batch = model.generate(**to_draw(processor, *texts), seeds=[7, 8, 9], **options)
    for i, text in enumerate(texts):
        alone = model.generate(**to_draw(processor, text), seeds=[7 + i], **options)
        assert torch.equal(alone[0], batch[i])
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("kind", TOKENIZERS)
@torch.no_grad()
def test_the_likeliest_ids_are_those_of_the_whole_pass_with_guidance(kind):
    model, processor = unified(kind)
    ids = model.generate(**to_draw(processor, "red circle"), generation_mode="image", do_sample=False)
    with_it = forced(model, processor, ids, f"red circle {TEXT}")
    without = forced(model, processor, ids, TEXT)
    likeliest = [(b + 3 * (a - b)).argmax(-1) for a, b in zip(with_it, without, strict=True)]
    assert torch.equal(model.id_levels.join(torch.stack(likeliest, dim=-1)), ids.flatten(1, 2))


@torch.no_grad()
def test_a_picture_begins_with_its_prefix_and_goes_on_as_if_it_had_been_drawn():
    model, processor = unified()
    batch, options = to_draw(processor, "red circle"), dict(generation_mode="image", seeds=[2], guidance_scale=2.0)
    ids = model.generate(**batch, **options)
    for known in (0, 13, COUNT):
        prefix = ids.flatten(1, 2)[:, :known]
        assert torch.equal(model.generate(**batch, **options, prefix_ids=prefix), ids)
    whole = model.draw(**batch, seeds=[2], prefix_ids=ids.flatten(1, 2))
    assert whole.cache.get_seq_length() == batch["input_ids"].shape[1] + COUNT


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_several_positions_are_read_at_once_and_drafts_are_forgotten(family):
    model, processor = unified(family=family)
    ids, drafts = some_ids(count=2).flatten(1, 2), some_ids(count=2, seed=1).flatten(1, 2)
    prompt = prompt_of(model, to_draw(processor, "red circle", "one"))
    predictor = PicturePredictor(model)
    _, cache = predictor.prefill(prompt, ids[:, :3], guided=True, steps=0)
    one_by_one = [predictor.step(ids[:, i : i + 1], cache) for i in range(3, 9)]
    _, cache = predictor.prefill(prompt, ids[:, :3], guided=True, steps=0)
    predictor.step(torch.cat([ids[:, 3:5], drafts[:, 5:9]], dim=1), cache)
    cache.cut(5)
    torch.testing.assert_close(predictor.step(ids[:, 5:9], cache), torch.cat(one_by_one[2:], dim=1), **CLOSE)
    predictor.step(drafts[:, 9:], cache)
    held = predictor.finish(prompt, ids)
    _, whole = predictor.prefill(prompt, ids, guided=False, steps=0)
    assert torch.equal(held.mask, whole.mask) and held.cache.get_seq_length() == whole.cache.get_seq_length()
    torch.testing.assert_close(held.embeds, whole.embeds, **CLOSE)
    for layer, other in zip(held.cache.layers, whole.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, **CLOSE)


@torch.no_grad()
def test_the_sampler_of_the_core_draws_the_pictures_of_generate():
    model, processor = unified()
    batch = to_draw(processor, "red circle")
    sampler = Sampler(PicturePredictor(model))
    ids = sampler.draw(prompt_of(model, batch), seeds=[2], drawing=Drawing(Guidance(2.0), temperature=0.5, top_k=3)).ids
    options = dict(guidance_scale=2.0, temperature=0.5, top_k=3)
    assert torch.equal(model.generate(**batch, generation_mode="image", seeds=[2], **options), ids)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_a_window_draws_the_same_picture_in_fewer_calls(family):
    if family == "gemma2" and not hasattr(DynamicCache, "activate_past_recording"):
        pytest.skip("this release of transformers cannot cut attention in windows")
    model, processor = unified(family=family)
    batch, how = to_draw(processor, "red circle", "one"), Drawing(Guidance(1.5), temperature=0.1)
    one = model.draw(**batch, seeds=[2, 3], drawing=how)
    several = model.draw(**batch, seeds=[2, 3], drawing=how, window=8)
    assert torch.equal(one.image_ids, several.image_ids) and several.calls < one.calls == COUNT
    torch.testing.assert_close(one.image_features, several.image_features)
    for layer, other in zip(one.cache.layers, several.cache.layers, strict=True):
        last = slice(-32, None)  # gemma2's attention in windows may forget the first ones
        torch.testing.assert_close(layer.keys[:, :, last], other.keys[:, :, last], **CLOSE)


@pytest.mark.parametrize("kind", ["mean-colour", "residual-greys"])
@torch.no_grad()
def test_windows_draw_the_picture_of_a_window_of_1_with_a_schedule_of_guidance_and_a_prefix(kind):
    """Compare in float64, for one id per position and four."""
    model, processor = small_unified(kind)
    model.double()
    batch, how = to_draw(processor, "red circle", "one"), Drawing(Guidance(1.5, last=50, power=1.5), temperature=0.1)
    options = {"seeds": [2, 3], "drawing": how, "prefix_ids": some_ids(kind, 2).flatten(1, 2)[:, :30]}
    one = model.draw(**batch, **options)
    for window in (4, 16, 64):
        several = model.draw(**batch, **options, window=window)
        assert torch.equal(several.image_ids, one.image_ids) and several.calls < one.calls == COUNT - 30


@torch.no_grad()
def test_the_mask_of_a_picture_covers_prompt_and_picture_whether_its_last_position_is_read_or_not():
    model, processor = unified()
    batch = to_draw(processor, "red circle how many", "one")
    masks = []
    for read_last in (True, False):
        output = model.draw(**batch, seeds=[2, 3], read_last=read_last)
        assert output.attention_mask.shape == output.sequences.shape
        assert output.cache.get_seq_length() == output.sequences.shape[1] - (not read_last)
        masks.append(output.attention_mask)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0][:, :-COUNT], batch["attention_mask"])


def test_seeds_come_from_the_random_state_of_torch_if_none_are_given():
    model, processor = unified()
    batch = to_draw(processor, "red circle")
    drawings = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawings.append(model.generate(**batch, generation_mode="image"))
    assert torch.equal(drawings[0], drawings[1]) and not torch.equal(drawings[0], drawings[2])


def test_the_loss_is_that_of_the_text_and_of_the_pictures_that_are_drawn():
    model, processor = unified()
    ids = some_ids(count=3)
    batch = drawn(processor, f"<image> red {TEXT}", "one <begin_image><image>", image_ids=ids, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    found = model(**batch, labels=labels)
    assert [tuple(logits.shape) for logits in found.image_logits] == [(2, 64, 8)] * 4
    levels = model.id_levels.split(ids[1:].flatten(1, 2))
    entropy = torch.nn.functional.cross_entropy(torch.stack(found.image_logits, dim=2).flatten(0, 2), levels.flatten())
    torch.testing.assert_close(found.image_loss, entropy)
    text = model.language_model.loss_function(found.logits, labels, found.logits.shape[-1])
    torch.testing.assert_close(found.loss, text + found.image_loss)
    nothing = model(**batch, labels=torch.full_like(labels, -100))
    torch.testing.assert_close(nothing.loss, found.image_loss)
    assert model(**batch).keys() == {"logits", "cache"}


def test_text_is_trained_by_embeddings_and_pictures_that_are_shown_by_their_features_as_without_a_head():
    model, processor = unified()
    batch = drawn(processor, "how many red ?", image_ids=None)
    ids = batch["input_ids"]
    found = model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids)
    torch.testing.assert_close(found.loss, model(**batch, labels=ids).loss)
    batch = drawn(processor, "<image> red ?", image_ids=some_ids())
    features = model.get_image_features(batch.pop("image_ids"), return_dict=True).pooler_output
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    found = model(**batch, image_features=features, labels=labels)
    assert found.image_loss is None and found.loss.isfinite()
    batch = drawn(processor, TEXT, image_ids=some_ids())
    batch.pop("image_ids")
    with pytest.raises(ValueError, match="got pictures that are drawn, without image_ids, which the head learns"):
        model(**batch, image_features=features, labels=batch["input_ids"])


def test_a_picture_that_is_shown_is_not_learned_and_the_head_gets_gradients_all_the_same():
    model, processor = small_unified()
    model.train()
    batch = drawn(processor, "<image> red", image_ids=some_ids())
    found = model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] > 60, -100))
    assert found.image_loss is None
    found.loss.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.image_head.parameters())


@pytest.mark.parametrize("kind", ["mean-colour", "residual-greys"])
@torch.no_grad()
def test_a_saved_model_draws_the_same_and_the_auto_classes_load_it(kind, tmp_path, toy):
    model, processor = unified(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = dict(generation_mode="image", seeds=[4])
    wanted = model.generate(**to_draw(processor, "red circle"), **options)
    autos = [auto.from_pretrained(tmp_path) for auto in (AutoModel, AutoModelForImageTextToText)]
    for found in (load_language_model(tmp_path)[0], *autos):
        ours = AutoProcessor.from_pretrained(tmp_path)
        assert torch.equal(found.eval().generate(**to_draw(ours, "red circle"), **options), wanted)
        assert {*found.state_dict()} == {*model.state_dict()}


@RENAMED
@torch.no_grad()
def test_adapters_of_peft_leave_the_head_alone_and_the_model_draws_the_same():
    model, processor = small_unified()
    batch, options = to_draw(processor, "red circle"), dict(generation_mode="image", seeds=[4])
    wanted = model.generate(**batch, **options)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    names = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert names and all("language_model" in name for name in names)
    assert torch.equal(adapted.generate(**batch, **options), wanted)


@RENAMED
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_the_trainer_of_transformers_trains_the_head(tmp_path):
    model, processor = small_unified()
    model.train()
    ids = some_ids(count=4)
    batches = [drawn(processor, f"red {TEXT}", image_ids=one[None]) for one in ids]
    rows = [{**batch, "labels": batch["input_ids"].masked_fill(batch["input_ids"] > 60, -100)} for batch in batches]
    before = {name: weight.clone() for name, weight in model.image_head.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )

    def joined(rows):
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    trainer = Trainer(model, arguments, train_dataset=rows * 2, data_collator=joined)
    trainer.train()
    assert all(not torch.equal(weight, before[name]) for name, weight in model.image_head.named_parameters())
    # of the text alone, because only some batches have pictures that are drawn
    words, length = model.config.text_config.vocab_size, rows[0]["input_ids"].shape[1]
    assert trainer.predict(rows).predictions.shape == (4, length, words)


@torch.no_grad()
def test_in_half_precision_the_logits_are_float32():
    model, processor = small_unified()
    model.to(torch.bfloat16)
    logits = forced(model, processor, some_ids(), TEXT)
    assert {x.dtype for x in logits} == {torch.float32}
    assert model.generate(**to_draw(processor, "one"), generation_mode="image", seeds=[1]).shape == (1, 8, 8, 4)


def test_the_begin_token_is_the_tokenizers_own_where_it_has_one():
    model, processor = small_unified(head=ImageHeadSettings(begin_token="<|system|>"))
    assert model.config.head_config.begin_token_id == processor.tokenizer.convert_tokens_to_ids("<|system|>") == 3
    plain, _ = small_mllm(vq=several("residual-greys"))
    assert model.get_input_embeddings().num_embeddings == plain.get_input_embeddings().num_embeddings
    assert {3, model.config.image_token_id} <= {*model.generation_config.suppress_tokens}


def test_a_picture_of_the_assistant_follows_the_begin_token_and_one_of_the_user_does_not():
    _, processor = unified()
    picture = {"type": "image"}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "what ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "it is "}, picture]},
        {"role": "assistant", "content": "one <image> two <begin_image><image>"},
    ]
    text = processor.apply_chat_template(messages, generation_mode="image")
    assert text.count("<image>") == 4 and text.count("<begin_image><image>") == 3
    assert text.endswith("<begin_image>") and "<|user|> <image>" in text


@cache
def without_head():
    return small_mllm(vq=several("residual-greys"))


def test_a_model_without_image_head_does_not_draw():
    model, processor = without_head()
    batch = drawn(processor, "red circle", image_ids=None)
    for call in (
        lambda: model.generate(**batch, generation_mode="image"),
        lambda: model.draw(**batch, seeds=[0]),
        lambda: model(**batch, output_image_logits=True),
    ):
        with pytest.raises(ValueError, match=r"^the model has no image head, so it reads pictures and draws none; "):
            call()
    with pytest.raises(ValueError, match=r"no begin token, because its model has no image head"):
        to_draw(processor, "red circle")


def test_a_prompt_without_room_for_a_picture_is_refused():
    model, _ = unified()
    begin = model.config.head_config.begin_token_id
    prompt = torch.full((1, 512 - COUNT + 1), 9)
    prompt[:, -1] = begin
    message = r"got a prompt of 449 tokens, and a picture takes 64; the language model's context is 512"
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, generation_mode="image")
    assert model.generate(prompt[:, 1:], generation_mode="image", guidance_scale=1).shape == (1, 8, 8, 4)


def test_a_prompt_that_does_not_open_a_picture_is_refused():
    model, processor = unified()
    with pytest.raises(ValueError, match=r"does not end in the begin token \(\d+\).*generation_mode='image'"):
        model.generate(**drawn(processor, "red circle", image_ids=None), generation_mode="image")


def test_another_grid_is_refused():
    model, processor = unified()
    with pytest.raises(ValueError, match=r"got ids \(1, 4, 16, 4\); wanted \(pictures, 8, 8, 4\), the model's one"):
        processor.postprocess(some_ids().view(1, 4, 16, 4))
    with pytest.raises(ValueError, match=r"got ids \(1, 4, 4, 4\); wanted \(pictures, 8, 8, 4\)"):
        forced(model, processor, some_ids()[:, :4, :4], TEXT)
    with pytest.raises(ValueError, match=r"got the prefix \(1, 65, 4\); wanted \(1, n, 4\), n from 0 to 64"):
        model.generate(**to_draw(processor, "one"), generation_mode="image", prefix_ids=some_ids().flatten(1, 2)[
            :, [*range(64), 0]
        ])


def test_a_picture_that_the_context_cuts_off_is_refused():
    _, processor = unified()
    text = f"red circle {TEXT}"
    with pytest.raises(ValueError, match=r"truncation to 40 tokens would leave \d+ of the 64 that stand for pictures"):
        drawn(processor, text, image_ids=some_ids(), max_length=40, truncation=True)


def test_generate_draws_the_same_picture_with_a_window():
    model, processor = unified()
    model.double()
    batch, options = to_draw(processor, "red circle"), dict(generation_mode="image", seeds=[4], temperature=0.05)
    one, wide = (
        model.generate(**batch, **options, window=window, return_dict_in_generate=True) for window in (1, 8)
    )
    assert torch.equal(one.image_ids, wide.image_ids) and (one.window, wide.window) == (1, 8)
    assert wide.calls <= one.calls


def test_what_is_no_option_of_drawing_is_refused():
    model, processor = unified()
    batch = to_draw(processor, "one")
    with pytest.raises(ValueError, match=r"got num_beams, which drawing does not take; it takes guidance_scale, "):
        model.generate(**batch, generation_mode="image", num_beams=3)
    with pytest.raises(ValueError, match=r"got generation_mode 'pictures'; wanted 'text' or 'image'"):
        model.generate(**batch, generation_mode="pictures")
    with pytest.raises(ValueError, match=r"got 2 seeds for 1 pictures"):
        model.generate(**batch, generation_mode="image", seeds=[1, 2])
    with pytest.raises(ValueError, match=r"got return_tensors 'tf'; wanted 'PIL.Image.Image', 'pt' or 'np'"):
        processor.postprocess(some_ids(), return_tensors="tf")


def test_options_that_are_none_are_as_if_they_were_not_given():
    model, processor = unified()
    batch = to_draw(processor, "one")
    ids = model.generate(**batch, generation_mode="image", seeds=[1], temperature=None, streamer=None, num_beams=None)
    assert torch.equal(ids, model.generate(**batch, generation_mode="image", seeds=[1]))
    assert model(**batch, return_dict=None, output_hidden_states=None).hidden_states is None


def test_a_loss_comes_without_hidden_states_unless_they_are_asked_for():
    """A ModelOutput that lost them as an attribute alone would still hand them to ``Trainer``."""
    model, processor = unified()
    batch = dict(drawn(processor, TEXT, image_ids=some_ids()))
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, -100)
    assert "hidden_states" not in model(**batch)
    assert "hidden_states" in model(**batch, output_hidden_states=True)


def test_a_language_model_whose_layers_have_states_is_refused(monkeypatch):
    model, processor = small_mllm("llama")
    monkeypatch.setattr(model.language_model.config, "layer_types", ["conv", "full_attention"], raising=False)
    with refusing("got a language model with layers of the kinds conv, whose cache cannot draw"):
        add_image_head(model, processor, ImageHeadSettings())


def test_a_drawing_that_failed_leaves_nothing_behind():
    model, processor = unified()
    sampler = Sampler(PicturePredictor(model))
    first, second = to_draw(processor, "one"), to_draw(processor, "red circle")
    with pytest.raises(ValueError, match="2 seeds"):
        model.draw(**first, seeds=[0, 1], sampler=sampler)
    sampler.model.prefill(PicturePrompt(model.get_input_embeddings()(first["input_ids"]), first["attention_mask"]),
                          some_ids().flatten(1, 2)[:, :3], guided=False, steps=0)
    kept = model.draw(**second, seeds=[0], prefix_ids=some_ids().flatten(1, 2), sampler=sampler)
    fresh = model.draw(**second, seeds=[0], prefix_ids=some_ids().flatten(1, 2))
    assert kept.cache.get_seq_length() == fresh.cache.get_seq_length()


def test_two_drawn_pictures_are_rendered_alike_as_items_and_as_text():
    _, processor = unified()
    asked = {"role": "user", "content": "two"}
    pair = [{"type": "image"}, {"type": "image"}]
    texts = [
        processor.apply_chat_template([asked, {"role": "assistant", "content": content}])
        for content in (pair, "<image><image>")
    ]
    assert texts[0] == texts[1] and texts[0].count("<begin_image><image>") == 2


def test_a_head_that_cannot_be_is_refused():
    model, processor = small_mllm(vq=several("pyramid-greys"))
    with pytest.raises(ValueError, match="a pyramid of ids"):
        add_image_head(model, processor, HEAD)
    model, processor = small_unified()
    with pytest.raises(ValueError, match="the model has an image head already"):
        add_image_head(model, processor, HEAD)
    model, processor = small_mllm(vq=several("residual-greys"))
    with pytest.raises(ValueError, match="got the image token '<image>' as begin token"):
        add_image_head(model, processor, ImageHeadSettings(begin_token="<image>"))
    rows, words = model.get_input_embeddings().num_embeddings, len(processor.tokenizer)
    for settings, message in (
        ({"begin_token": "red"}, "got 'red' as begin token, which is a word of the tokenizer; name one of its special"),
        ({"top_k": 2000}, r"got top_k = 2000; wanted 0 \(all\) to \d"),
        ({"level_width": 30, "level_heads": 4}, "got level_width 30 and level_heads 4; the heads must divide"),
    ):
        with pytest.raises(ValueError, match=message):
            add_image_head(model, processor, ImageHeadSettings(**settings))
    assert model.config.image_head is None is model.image_head and processor.begin_token is None
    assert (model.get_input_embeddings().num_embeddings, len(processor.tokenizer)) == (rows, words)
    with pytest.raises(ValueError, match="level_width and level_heads have no effect without blocks over levels"):
        ImageHeadSettings(level_blocks=0, level_width=32)
    model, processor = small_mllm()
    with pytest.raises(ValueError, match="got level_heads, but one linear layer predicts the levels of these ids"):
        add_image_head(model, processor, ImageHeadSettings(level_heads=2))


def test_by_default_the_heads_over_levels_divide_their_width():
    model, processor = small_mllm(vq=several("residual-greys"))
    add_image_head(model, processor, ImageHeadSettings(level_width=200))
    head = model.config.head_config
    assert (head.level_blocks, head.level_width, head.level_heads) == (3, 200, 2)
    model, processor = small_mllm()
    add_image_head(model, processor, HEAD)
    assert (model.config.head_config.level_width, model.config.head_config.level_heads) == (None, None)


@torch.no_grad()
def test_drawn_ids_become_pictures():
    _, processor = unified()
    ids = some_ids(count=2)
    pictures = processor.postprocess(ids)["pixel_values"]
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    pixels = processor.postprocess(ids, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, several("residual-greys").decode(ids).clamp(-1, 1))


@pytest.mark.parametrize("part", ["model", "base_model"])
def test_drawn_pictures_are_refused_in_training_without_labels(part):
    model, processor = small_unified()
    model.train()
    batch = drawn(processor, "red ? <begin_image><image>", image_ids=some_ids())
    forward = model if part == "model" else model.base_model
    with pytest.raises(ValueError, match="got drawn pictures in training without labels, so their loss would be left"):
        forward(**batch)
    with torch.no_grad():
        forward(**batch)
    forward(**batch, output_image_logits=False)
    model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100))
    forward(**drawn(processor, "red ? <image>", image_ids=some_ids()))


def test_a_drawing_that_fails_leaves_no_cache_and_a_sampler_draws_with_its_own_model(monkeypatch):
    model, processor = small_unified()
    sampler = Sampler(PicturePredictor(model))
    prompt = to_draw(processor, "red circle")
    with pytest.raises(ValueError, match="got the sampler of another model"):
        unified()[0].draw(**prompt, seeds=[0], sampler=sampler)
    monkeypatch.setattr(PicturePredictor, "logits", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.draw(**prompt, seeds=[0], sampler=sampler)
    assert sampler.model._read is None


@RENAMED
def test_a_model_with_adapters_draws_as_one_of_the_toolkit():
    model, processor = small_unified()
    wanted = PictureDrawer(model, processor).draw(["red circle"], seeds=[0]).ids
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert torch.equal(PictureDrawer(adapted, processor).draw(["red circle"], seeds=[0]).ids, wanted)


def test_a_processor_with_another_vq_tokenizer_draws_nothing():
    with pytest.raises(ValueError, match="the processor"):
        PictureDrawer(unified()[0], unified("mean-colour")[1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resize": "squash"}, "the model's resize is crop, and the processor's is squash"),
        ({"image_size": 48}, "and the processor's is 48"),
        ({"begin_token": "<|system|>"}, "the model's begin token is <begin_image>, and the processor's is"),
        ({"begin_token": None}, "and the processor's is None"),
    ],
)
def test_a_folder_whose_processor_is_of_another_model_is_refused(change, message, tmp_path, toy):
    model, processor = small_unified()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_language_model(tmp_path)


def test_a_begin_token_that_ends_answers_is_refused():
    model, processor = small_unified(head=None)
    with pytest.raises(ValueError, match=r"got '<[|]end[|]>' as begin token, which begins, ends or pads texts"):
        add_image_head(model, processor, ImageHeadSettings(begin_token="<|end|>"))
