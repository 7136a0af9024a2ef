"""Training data of the language model: order, cuts, left-out samples, stores, and refused data."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from toklip_core import plugins
from toklip_core.pictures import picture_to_rgb, resized
from toklip_core.scenes import scene
from toklip_core.weights import weights_checksum
from toklip_mllm.training import (
    Conversations,
    ConversationSamples,
    Drawings,
    PictureFormat,
    SceneConversations,
    iterate_texts,
    open_sources,
    use_stored_tokens,
    with_plain_template,
    word_tokenizer,
)
from toklip_mllm.training.sources import american, as_typed

from tests.core.conftest import picture
from tests.support import mean_colour
from tests.support.encoding import encode_with
from tests.support.mllm_runs import file_data, said, write_tokens, write_world
from tests.support.small_mllms import MARKED, PLAIN, small_mllm
from tests.support.small_models import small_toklip

PICTURING = PictureFormat(32, "crop")
PLACES = 64


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        write_tokens(folder)
        yield folder
    plugins.registry.cache_clear()


@pytest.fixture(scope="module")
def processor():
    return small_mllm(template=MARKED)[1]


def file_source(world: Path, **changes) -> Conversations:
    return Conversations.model_validate(file_data(world, **changes))


def samples(processor, *sources, max_length=512, batch_size=None, seed=0):
    return ConversationSamples(
        open_sources(sources, PICTURING, seed=seed), processor, max_length=max_length, batch_size=batch_size
    )


def written(folder: Path, *rows: dict) -> Conversations:
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Conversations(kind="conversations", file=folder / "rows.jsonl")


def text_row(words: int) -> dict:
    return {"conversations": said([("human", "red " * words), ("gpt", "yes")])}


def test_a_row_in_which_nobody_answers_is_refused_by_name_at_the_start(processor, tmp_path):
    silent = {"conversations": said([("human", "red ?")])}
    with pytest.raises(ValueError, match=r"rows.jsonl, row 2: the assistant says nothing in it"):
        samples(processor, written(tmp_path, text_row(1), silent))


def test_turns_that_cannot_be_told_are_refused_by_name_before_a_sample_is_read(tmp_path):
    last_alone = PLAIN.replace("{{ message['content'] }}", "{% if loop.last %}so {% endif %}{{ message['content'] }}")
    long = {"conversations": said([("human", "red ?"), ("gpt", "yes"), ("human", "blue ?"), ("gpt", "no")])}
    found = samples(small_mllm(template=last_alone)[1], written(tmp_path, *[text_row(1)] * 3, long))
    with pytest.raises(ValueError, match=r"row 1: .* cannot be told"):
        found.try_templates()
    marked = samples(small_mllm(template=MARKED)[1], written(tmp_path, text_row(1), long))
    marked.try_templates()


def test_each_sequence_of_speakers_is_tried_once(tmp_path):
    long = {"conversations": said([("human", "red ?"), ("gpt", "yes"), ("human", "blue ?"), ("gpt", "no")])}
    system = text_row(1) | {"system": "red"}
    [source] = open_sources([written(tmp_path, *[text_row(1), long, system] * 2)], PICTURING, seed=0)
    tried = [conversation.name.rsplit(" ", 1)[-1] for conversation in source.of_each_kind()]
    assert tried == ["1", "2", "3"]


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_plain_texts_begin_as_those_of_the_tokenizer_do(bos, world):
    words = with_plain_template(small_mllm(bos=bos)[1])
    example = samples(words, file_source(world, file=str(world / "captions.json")))[0, 0].example
    first = words.tokenizer("red")["input_ids"][0] if bos else words.image_token_id
    assert example.input_ids[0] == first and example.input_ids[int(bool(bos))] == words.image_token_id
    assert example.labels[0] == -100 and (example.input_ids == first).sum() == (1 if bos else PLACES)


def test_samples_depend_on_seed_epoch_and_index_alone(processor):
    source = SceneConversations(kind="scenes", count=3)
    one, same, other = (samples(processor, source, seed=seed) for seed in (0, 0, 1))
    keys = [(epoch, index) for epoch in (0, 1) for index in range(3)]
    for key in keys:
        assert all(map(torch.equal, one[key].example[:3], same[key].example[:3]))
    assert any(one[key].example.input_ids.tolist() != other[key].example.input_ids.tolist() for key in keys)
    assert len({one[key].rgb.numpy().tobytes() for key in keys}) == 6, "another epoch draws new scenes"


def test_a_conversation_about_a_scene_has_its_questions_and_answers():
    [source] = open_sources([SceneConversations(kind="scenes", count=5, caption_share=1.0)], PICTURING, seed=0)
    for index in range(5):
        drawn = scene(5 + index, size=32)
        conversation = source[1, index].conversation
        pairs = [(ask["content"].removeprefix("<image>\n"), answer["content"]) for ask, answer in
                 zip(conversation.messages[::2], conversation.messages[1::2], strict=True)]  # fmt: skip
        questions = [*drawn.questions, *drawn.questions_of_places]
        asked = {(american(question.text).rstrip("?"), question.answer) for question in questions}
        pairs = [(american(question).rstrip("?"), answer) for question, answer in pairs]
        captions = [answer for question, answer in pairs if (question, answer) not in asked]
        assert asked <= set(pairs) and len(captions) == 1 and captions[0] in drawn.captions
        places = [message["content"].count("<image>") for message in conversation.messages]
        assert places == [1] + [0] * (len(places) - 1)


def test_questions_about_scenes_come_as_people_type_them():
    question = "which colour does the circle have?"
    typed = {as_typed(question, random.Random(seed)) for seed in range(100)}
    assert typed == {question, question[:-1], american(question), american(question)[:-1]}


def test_the_words_of_all_ways_to_ask_are_known():
    [source] = open_sources([SceneConversations(kind="scenes", count=200)], PICTURING, seed=0)
    tokenizer = word_tokenizer(iterate_texts([source], 200), context_length=64)
    typed = ("What color is the upper one?", "where is the red circle?", "Please draw a red circle.", "what size is it")
    for text in (*typed, "show me a blue star."):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_turns_bound_the_questions_and_no_share_asks_for_no_caption():
    scenes = SceneConversations(kind="scenes", count=20, caption_share=0.0, turns=2)
    [source] = open_sources([scenes], PICTURING, seed=0)
    assert {len(source[0, index].conversation.messages) for index in range(20)} == {4}


def test_independent_questions_each_show_the_picture_and_share_its_tokens(processor):
    options = {"kind": "scenes", "count": 6, "questions": ["existence", "count"], "objects": 2, "caption_share": 1.0}
    source = SceneConversations(**options, rounds=3, independent=True)
    [reader] = open_sources([source], PICTURING, seed=0)
    found = samples(processor, source)
    for index in range(6):
        loaded = reader[0, index]
        alone = [loaded.conversation, *loaded.others]
        assert all(len(one.messages) == 2 and one.messages[0]["content"].startswith("<image>\n") for one in alone)
        drawn = scene(index, size=32, objects=2)
        rounds = [q for number in range(3) for q in drawn.questions_of_round(number)]
        wanted = {(q.text, q.answer) for q in rounds if q.kind in ("existence", "count")}
        assert len(loaded.rgb) == 1 and len(alone) == len(wanted) + 1
        example = found[0, index].example
        assert (example.input_ids == processor.image_token_id).sum() == PLACES
        assert example.branches.unique().tolist() == list(range(len(alone) + 1))
    assert found[0, 0].example.cut(PLACES + 5).branches.shape == (PLACES + 5,)


@pytest.mark.parametrize("independent", [False, True])
def test_a_scene_that_allows_none_of_the_questions_is_asked_for_its_caption(independent):
    options = {"kind": "scenes", "count": 3, "objects": 1, "caption_share": 0.0, "independent": independent}
    [reader] = open_sources([SceneConversations(**options, questions=("relation",))], PICTURING, seed=0)
    for index in range(3):
        loaded = reader[0, index]
        assert not loaded.others and len(loaded.conversation.messages) == 2
        assert loaded.conversation.messages[1]["content"] in scene(index, objects=1).captions


def test_independent_questions_are_about_one_picture_that_the_user_shows():
    for change in ({"scenes": 2}, {"drawn_share": 0.5}):
        with pytest.raises(ValidationError, match="got independent questions with scenes"):
            SceneConversations(kind="scenes", count=1, independent=True, **change)


def test_the_vocabulary_comes_from_all_sources(world):
    sources = open_sources([file_source(world), SceneConversations(kind="scenes", count=50)], PICTURING, seed=0)
    words = {word for text in iterate_texts(sources, 62) for word in text.split()}
    assert {"square", "describe", "picture."} <= words and "<image>" not in words


def test_an_order_visits_every_sample_once_and_depends_on_seed_and_epoch(processor, tmp_path):
    grouped = samples(processor, written(tmp_path, *(text_row(n % 17) for n in range(70))), batch_size=4)
    orders = [grouped.order(70, seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert all(sorted(order) == list(range(70)) for order in orders)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_batches_of_every_epoch_have_one_length_nearly_and_pictures_apart(processor, world, tmp_path):
    turns = [[("human", "<image>"), ("gpt", "red " * words)] for words in range(1, 50)]
    pictures = [{"image": f"{world}/pictures/00.png", "conversations": said(conversation)} for conversation in turns]
    grouped = samples(processor, written(tmp_path, *pictures, *(text_row(n) for n in range(50))), batch_size=8)
    lengths = [len(grouped[0, index].example.input_ids) for index in range(99)]
    kinds = [len(grouped[0, index].example.image_ids) for index in range(99)]
    visited = [index for epoch in range(3) for index in grouped.order(99, 0, epoch).tolist()]
    batches = [visited[start : start + 8] for start in range(0, len(visited) - 8, 8)]
    spans = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert sorted(spans)[len(spans) * 3 // 4] <= 16, "a batch that spans two epochs, or kinds, may be uneven"
    assert sum(len({kinds[i] for i in batch}) == 1 for batch in batches) > 0.8 * len(batches)


def test_squashed_pictures_are_whole_to_read_and_to_draw(tmp_path):
    wide = picture(0, (96, 32))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("soft colours")
    conversation = said([("human", "<image> what"), ("gpt", "red")])
    read = written(tmp_path, {"image": "wide.png", "conversations": conversation})
    drawn = {"kind": "drawings", "pictures": {"kind": "pictures", "inputs": [str(tmp_path)]}}
    squashed, cropped = (picture_to_rgb(resized(wide, 32, way)) for way in ("squash", "crop"))
    for reader in open_sources([read, Drawings.model_validate(drawn)], PictureFormat(32, "squash"), seed=0):
        [rgb] = reader[0, 0].rgb
        assert torch.equal(rgb, squashed) and not torch.equal(rgb, cropped)


def test_a_long_conversation_is_cut_behind_its_pictures(processor, tmp_path, world):
    conversation = said([("human", "<image> what"), ("gpt", "red " * 40)])
    row = {"image": f"{world}/pictures/00.png", "conversations": conversation}
    cut = samples(processor, written(tmp_path, row), max_length=PLACES + 10)[0, 0].example
    assert len(cut.input_ids) == len(cut.labels) == PLACES + 10 and len(cut.image_ids) == 1


@pytest.mark.parametrize(("max_length", "reason"), [(PLACES - 4, "within its pictures"), (PLACES + 3, "nothing that")])
def test_what_a_cut_leaves_nothing_of_is_named_and_the_next_takes_its_place(
    max_length, reason, processor, tmp_path, world, caplog
):
    row = {"id": "long", "image": f"{world}/pictures/00.png",
           "conversations": said([("human", "<image> what is it"), ("gpt", "red")])}  # fmt: skip
    found = samples(processor, written(tmp_path, row, text_row(3)), max_length=max_length)
    assert torch.equal(found[0, 0].example.input_ids, found[0, 1].example.input_ids)
    assert "(id long)" in caplog.text and reason in caplog.text


def test_a_broken_picture_is_named_and_the_next_takes_its_place(processor, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    row = {"image": "broken.png", "conversations": said([("human", "<image>"), ("gpt", "red")])}
    found = samples(processor, written(tmp_path, row, text_row(3)))
    assert found[0, 0].rgb is None and "broken.png: no picture in a format" in caplog.text


#: Only the text of the assistant is marked, without the token that ends it.
SPOKEN = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")


def test_a_row_that_the_template_cannot_label_is_named_and_the_next_takes_its_place(processor, tmp_path, caplog):
    rows = [text_row(3), {"id": "silent", "conversations": said([("human", "red ?"), ("gpt", "")])}]
    found = samples(small_mllm(template=SPOKEN)[1], written(tmp_path, *rows))
    assert torch.equal(found[0, 1].example.input_ids, found[0, 0].example.input_ids)
    assert "(id silent): no token has a label" in caplog.text


@pytest.mark.parametrize(("picture", "kind"), [({"path": "a.jpg", "bytes": None}, "dict"), (3, "int")])
def test_a_picture_that_is_no_path_is_refused_by_name_at_the_start(picture, kind, processor, tmp_path):
    row = {"image": picture, "conversations": said([("human", "<image> what"), ("gpt", "red")])}
    with pytest.raises(ValueError, match=rf"rows.jsonl, row 1: got a picture that is a {kind}; wanted the path"):
        samples(processor, written(tmp_path, row))


def test_a_file_of_broken_pictures_alone_is_an_error(processor, tmp_path):
    row = {"image": "missing.png", "conversations": said([("human", "<image>"), ("gpt", "red")])}
    with pytest.raises(ValueError, match=r"none of 1 conversations can be used; the last is .*missing\.png"):
        samples(processor, written(tmp_path, row))[0, 0]


def test_a_store_gives_the_ids_of_the_pictures(processor, world):
    stored = samples(processor, file_source(world, store=world / "store"))
    read = samples(processor, file_source(world))
    for index in range(12):
        ids, rgb = stored[0, index].example.image_ids, read[0, index].rgb
        expected = mean_colour.MeanColour().encode(rgb / 127.5 - 1) if rgb is not None else ids[:0]
        assert torch.equal(ids, expected) and stored[0, index].rgb is None


@pytest.mark.parametrize(("independent", "background"), [(False, None), (True, None), (False, "plain")])
def test_a_store_of_scenes_gives_the_ids_of_the_scenes_in_each_epoch(
    processor, world, tmp_path, independent, background
):
    store, scenes = tmp_path / "scenes", "scenes:train?count=6&seed=2&size=32"
    wanted = f"{scenes}&background={background}" if background else scenes
    encode_with([wanted], store, tokenizer="mean-colour", image_size=32, resize="crop")
    source = SceneConversations(kind="scenes", count=6, seed=2, independent=independent, background=background)
    stored, read = (samples(processor, of) for of in (source.model_copy(update={"store": store}), source))
    for index in range(6):
        found, drawn = stored[0, index], read[0, index]
        assert found.rgb is None and torch.equal(found.example.input_ids, drawn.example.input_ids)
        expected = mean_colour.MeanColour().encode(drawn.rgb / 127.5 - 1)
        assert torch.equal(found.example.image_ids, expected)
        assert torch.equal(stored[1, index].example.image_ids, expected)


def test_a_store_of_other_scenes_says_how_to_make_one(world, tmp_path):
    store = tmp_path / "scenes"
    encode_with(["scenes:train?count=6&size=32"], store, tokenizer="mean-colour", image_size=32, resize="crop")
    source = SceneConversations(kind="scenes", count=7, objects=1, background="plain", store=store)
    wanted = r"not in .*scenes:train\?count=7&seed=0&size=32&objects=1&background=plain"
    with pytest.raises(ValueError, match=wanted):
        open_sources([source], PICTURING, seed=0)


def test_a_store_without_a_picture_says_which_and_what_its_keys_are_like(world, tmp_path):
    row = {"image": "other.png", "conversations": said([("human", "<image>"), ("gpt", "red")])}
    source = written(tmp_path, row).model_copy(update={"store": world / "store"})
    with pytest.raises(ValueError, match=r"1 pictures are not in .*other.png'.* keys like '.*09.png'; encode the"):
        open_sources([source], PICTURING, seed=0)


def test_a_store_of_another_size_says_how_to_encode(world):
    with pytest.raises(ValueError, match=r"has ids of 32 px .* takes 64 px .*--size 64 --resize squash"):
        open_sources([file_source(world, store=world / "store")], PictureFormat(64, "squash"), seed=0)


def test_stores_beside_pixels_are_refused(world):
    with pytest.raises(ValueError, match="beside sources without one, but a batch has either ids or pixels"):
        scenes = SceneConversations(kind="scenes", count=1)
        open_sources([file_source(world, store=world / "store"), scenes], PICTURING, seed=0)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no conversation"):
        open_sources([written(tmp_path)], PICTURING, seed=0)


def test_the_plain_template_has_pictures_and_what_the_assistant_says(processor, world):
    example = samples(with_plain_template(processor), file_source(world, file=world / "captions.json"))[0, 1].example
    assert (example.input_ids[:PLACES] == processor.image_token_id).all()
    assert processor.tokenizer.decode(example.input_ids[PLACES:]).split() == ["blue", "square"]
    assert torch.equal(example.labels[PLACES:], example.input_ids[PLACES:])


TOKEN_BYTES = 2 * PLACES * 32
CHECKSUM = weights_checksum(small_toklip().encoder)


def token_samples(processor, *sources, checksum=CHECKSUM, window=2**29, batch_size=None):
    """Samples that read tokens, from a store of five groups of two pictures."""
    opened = open_sources(sources, PICTURING, seed=0)
    assert use_stored_tokens(opened, checksum)
    return ConversationSamples(opened, processor, max_length=512, batch_size=batch_size, window=window)


def about(world: Path, *numbers: int, words: int = 1) -> dict:
    """A row about some pictures."""
    pictures = [f"{world}/pictures/{number:02}.png" for number in numbers]
    return {"image": pictures, "conversations": said([("human", "<image>" * len(numbers)), ("gpt", "red " * words)])}


@torch.no_grad()
def test_stored_tokens_are_those_of_the_pictures_in_their_order(processor, world, tmp_path):
    source = written(tmp_path, about(world, 7, 0, 4), text_row(1), about(world, 3))
    source = source.model_copy(update={"store": world / "tokens"})
    found = token_samples(processor, source)
    batch = found.collate([found[0, 0], found[0, 1], found[0, 2]])
    wanted = small_toklip().encode_ids(batch["image_ids"]).tokens
    assert batch["image_tokens"].shape == (4, PLACES, 32) and batch["image_tokens"].dtype == torch.float16
    torch.testing.assert_close(batch["image_tokens"].float(), wanted, rtol=2**-10, atol=1e-6)
    assert "image_tokens" not in found.collate([found[0, 1]])


def many(world: Path, tmp_path: Path) -> Conversations:
    """Five conversations about each of ten pictures, and fifty of text alone behind them."""
    rows = [about(world, number % 10, words=number // 10) for number in range(10, 60)]
    source = written(tmp_path, *rows, *(text_row(number) for number in range(50)))
    return source.model_copy(update={"store": world / "tokens"})


def groups_visited(order: list[int], batch: int = 1) -> list[set[int]]:
    """The groups of the store that each batch of :func:`many` reads."""
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [{index % 10 // 2 for index in found if index < 50} for found in batches]


def test_an_order_over_stored_tokens_visits_every_sample_once_and_depends_on_seed_and_epoch(
    processor, world, tmp_path
):
    found = token_samples(processor, many(world, tmp_path), window=4 * TOKEN_BYTES)
    orders = [found.order(100, seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_the_groups_of_a_window_are_read_once_and_text_alone_comes_anywhere(processor, world, tmp_path):
    found = token_samples(processor, many(world, tmp_path), window=4 * TOKEN_BYTES)
    order = found.order(100, 0, 0).tolist()
    visits = [group for read in groups_visited(order) for group in read]
    windows = [set(visits[:20]), set(visits[20:40]), set(visits[40:])]
    assert [len(window) for window in windows] == [2, 2, 1] and set.union(*windows) == set(range(5))
    assert len({visits[0], *visits[:6]}) == 2, "within a window they are mixed"
    texts = [place for place, index in enumerate(order) if index >= 50]
    assert min(sum(start <= place < start + 25 for place in texts) for start in range(0, 100, 25)) > 4


def test_batches_of_one_length_keep_to_two_windows_of_groups(processor, world, tmp_path):
    found = token_samples(processor, many(world, tmp_path), window=4 * TOKEN_BYTES, batch_size=8)
    head = -100 % 8
    order = found.order(100, 0, 1).tolist()
    assert sorted(order) == list(range(100))
    first, last = {}, {}
    for number, read in enumerate(groups_visited(order[head:], 8)):
        for group in read:
            first.setdefault(group, number)
            last[group] = number
    held = [sum(first[g] <= number <= last[g] for g in first) for number in range(len(order) // 8)]
    assert max(held) <= 4, "what is kept in memory is two windows"
    lengths = [len(found[0, index].example.input_ids) for index in order[head:]]
    spans = [max(lengths[i : i + 8]) - min(lengths[i : i + 8]) for i in range(0, 88, 8)]
    shuffle = [lengths[i::11] for i in range(11)]
    assert sum(spans) < 0.7 * sum(max(batch) - min(batch) for batch in shuffle)


def test_in_one_window_stored_tokens_change_no_order(processor, world):
    plain_ids = samples(processor, file_source(world, store=world / "tokens"), batch_size=4)
    stored = token_samples(processor, file_source(world, store=world / "tokens"), batch_size=4)
    for epoch in range(3):
        assert torch.equal(stored.order(12, 0, epoch), plain_ids.order(12, 0, epoch))


@pytest.mark.parametrize(
    ("checksum", "stores", "reason"),
    [
        ("f" * 64, ["tokens"], f"of another encoder .sha256 {CHECKSUM[:16]}. than the model's .{'f' * 16}"),
        (None, ["tokens"], "does not tell whose tokens"),
        (CHECKSUM, ["tokens", "store"], "store has none"),
    ],
)
def test_tokens_of_no_use_are_left_alone_with_one_warning(checksum, stores, reason, processor, world, caplog):
    opened = open_sources([file_source(world, store=world / name) for name in stores], PICTURING, seed=0)
    assert not use_stored_tokens(opened, checksum)
    [record] = caplog.records
    assert "stored tokens are not used" in record.message and re.search(reason, record.message)
    found = ConversationSamples(opened, processor, max_length=512)
    assert found[0, 0].tokens is None and found[0, 0].example.image_ids.shape == (1, 8, 8, 1)


def test_a_store_without_tokens_is_no_cause_for_a_warning(world, caplog):
    opened = open_sources([file_source(world, store=world / "store")], PICTURING, seed=0)
    assert not use_stored_tokens(opened, CHECKSUM) and not caplog.records
