"""The processor: placeholders become places, pictures ids, messages the language model's own prompts."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from toklip_core.pictures import to_pixels
from toklip_mllm.model import TokLIPProcessor, build_language_model, load_language_model
from transformers import AutoProcessor

from tests.core.conftest import picture
from tests.support.mean_colour import MeanColour, mean_colour
from tests.support.refusals import refusing
from tests.support.small_mllms import MARKED, PLAIN, ids, language_model, shared, small_mllm, tokenizer
from tests.support.small_models import small_toklip


def turn(role, *parts):
    content = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "image": x} for x in parts]
    return {"role": role, "content": content}


def test_a_placeholder_becomes_as_many_places_as_a_picture_has_tokens():
    _, processor = shared()
    tokens = processor(text="what is <image> ?", image_ids=ids())["input_ids"][0]
    plain = processor.tokenizer("what is <image> ?")["input_ids"]
    place = processor.image_token_id
    assert tokens == [*plain[:2], *[place] * 64, plain[3]]


def test_pictures_become_the_ids_of_toklip():
    _, processor = shared()
    pictures = [picture(0), picture(1)]
    batch = processor(images=pictures, text="<image> <image>", return_tensors="pt")
    assert torch.equal(batch["image_ids"], small_toklip().encode_pictures(pictures).ids)


def test_a_processor_of_a_toklip_that_squashes_pictures_encodes_the_whole_of_them():
    _, processor = build_language_model(language_model(), small_toklip(resize="squash"), tokenizer=tokenizer())
    wide = picture(0, (96, 32))
    found = processor.encode([wide])
    expected = {way: mean_colour().encode(to_pixels(wide, 32, way)[None]) for way in ("squash", "crop")}
    assert torch.equal(found, expected["squash"]) and not torch.equal(found, expected["crop"])


def test_a_picture_of_any_mode_and_a_file_give_the_same_ids(tmp_path):
    _, processor = shared()
    grey = picture(0).convert("L")
    grey.save(tmp_path / "grey.png")
    found = processor.encode([grey, grey.convert("RGBA"), tmp_path / "grey.png", str(tmp_path / "grey.png")])
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_tiff_that_lies_on_its_side_has_the_same_ids_as_a_file_and_as_a_picture(tmp_path):
    _, processor = shared()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "a.tif", exif=exif)
    opened = Image.open(tmp_path / "a.tif")
    found = processor.encode([tmp_path / "a.tif", opened, Image.open(tmp_path / "a.tif").copy()])
    assert all(torch.equal(one, found[0]) for one in found)


def test_pictures_in_lists_belong_to_the_text_of_their_place():
    _, processor = shared()
    nested = processor(
        images=[[picture(0)], [picture(1), picture(2)]], text=["<image>", "<image> <image>"], return_tensors="pt"
    )
    assert torch.equal(nested["image_ids"], processor.encode([picture(0), picture(1), picture(2)]))


def test_lists_are_padded_only_when_tensors_are_asked_for():
    _, processor = shared()
    assert [len(row) for row in processor(text=["what is it", "yes"])["input_ids"]] == [3, 1]
    padded = processor(text=["what is it", "yes"], return_tensors="pt")
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    right = processor(text=["what is it", "yes"], return_tensors="pt", padding_side="right")
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image> ?", None, r"got 0 pictures for 1 places \(<image>\) in the text"),
        ("<image> ?", [picture(0), picture(1)], "got 2 pictures for 1 places"),
        ("what ?", picture(0), "got 1 pictures for 0 places"),
        (["<image>", "<image>"], [[picture(0), picture(1)], []], "text 1: got 2 pictures for 1 places"),
        (["<image>", "<image>"], [picture(0)], "got 1 pictures for 2 places"),
    ],
)
def test_pictures_and_placeholders_that_differ_in_number_are_refused(text, images, message):
    _, processor = shared()
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=images)


def test_a_broken_picture_is_named(tmp_path):
    _, processor = shared()
    broken = tmp_path / ("long" * 20) / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"picture 2 \('.*broken.png'\) cannot be read: no picture in a format"):
        processor(text="<image> <image>", images=[picture(0), broken])


def test_a_text_is_needed():
    _, processor = shared()
    with pytest.raises(ValueError, match="got no text; wanted one, with '<image>' where a picture goes"):
        processor(images=picture(0))


def test_a_text_longer_than_is_taken_is_refused():
    _, processor = shared()
    with pytest.raises(ValueError, match="got a text of 65 tokens with its pictures; the longest taken is 64"):
        processor(text="what <image>", image_ids=ids(), max_length=64)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length", "max_length": 100},
        {"truncation": True, "max_length": 5},
        {"padding": "max_length", "truncation": "longest_first", "max_length": 7, "padding_side": "right"},
        {"pad_to_multiple_of": 16, "padding": True},
    ],
)
def test_what_the_tokenizer_takes_reaches_it_from_the_chat_template_as_from_the_call(options, direct):
    _, processor = shared()
    questions = ("how many ?", "what is the colour of the circle ?")
    conversations = [[{"role": "user", "content": question}] for question in questions]
    texts = processor.apply_chat_template(conversations)
    wanted = processor.tokenizer(texts, add_special_tokens=False, **options)
    given = options if direct else {"processor_kwargs": options}
    found = processor.apply_chat_template(conversations, tokenize=True, return_dict=True, **given)
    called = processor(text=texts, **options)
    for key in ("input_ids", "attention_mask"):
        assert found[key] == called[key] == wanted[key]


def test_one_picture_may_come_beside_the_messages():
    _, processor = shared()
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    beside = processor.apply_chat_template([turn("user", "<image> red")], images=picture(0), **options)
    within = processor.apply_chat_template([turn("user", picture(0), " red")], **options)
    assert torch.equal(beside["image_ids"], within["image_ids"])
    assert torch.equal(beside["input_ids"], within["input_ids"])


def test_where_pictures_are_is_told_where_that_is_asked_for():
    _, processor = shared()
    batch = processor(text=["what <image>", "red"], image_ids=ids(), padding=True, return_mm_token_type_ids=True)
    assert batch["mm_token_type_ids"] == [[0, *[1] * 64], [0] * 65]
    assert processor._get_num_multimodal_tokens([(30, 40), (9, 9)])["num_image_tokens"] == [64, 64]
    with pytest.raises(ValueError, match="return_text_replacement_offsets is not offered; count the image tokens"):
        processor(text="red", return_text_replacement_offsets=True)


def test_options_of_the_text_may_come_as_those_of_every_processor_do():
    _, processor = shared()
    padded = processor(text="what ?", text_kwargs={"padding": "max_length", "max_length": 9}, return_tensors="pt")
    assert padded["input_ids"].shape == (1, 9)
    with pytest.raises(ValueError, match="got padding in text_kwargs and beside it; give each once"):
        processor(text="what ?", text_kwargs={"padding": False}, padding=True)


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_that_leaves_a_picture_whole_is_done(side):
    _, processor = small_mllm()
    processor.tokenizer.truncation_side = side
    text = "<image> how many red ?" if side == "right" else "how many red ? <image>"
    cut = processor(text=text, image_ids=ids(), truncation=True, max_length=66)["input_ids"][0]
    whole = processor(text=text, image_ids=ids())["input_ids"][0]
    assert cut == (whole[:66] if side == "right" else whole[-66:]) and len(whole) == 68


@pytest.mark.parametrize("direct", [True, False])
def test_truncation_that_would_cut_a_picture_is_refused(direct):
    _, processor = shared()
    options = dict(truncation=True, max_length=40)
    message = "text 2: truncation to 40 tokens would leave 39 of the 64 that stand for pictures; raise max_length"
    with pytest.raises(ValueError, match=message) as caught:
        if direct:
            processor(text=["what", "what <image>"], image_ids=ids(), **options)
        else:
            conversations = [[turn("user", "red")], [turn("user", picture(0), "?")]]
            processor.apply_chat_template(conversations, tokenize=True, **options)
    assert len(str(caught.value)) < 240


def test_a_text_is_longer_than_what_is_taken_only_if_that_is_said():
    _, processor = shared()
    with pytest.raises(ValueError, match="text 2: got a text of 3 tokens with its pictures; the longest taken is 2"):
        processor(text=["what", "what is it"], max_length=2, padding="max_length")
    assert len(processor(text="what is it", max_length=2, truncation=False)["input_ids"][0]) == 3


def test_a_word_that_becomes_the_image_token_is_no_place_for_a_picture():
    _, processor = build_language_model(language_model(), small_toklip(), tokenizer=tokenizer(), image_token="<unk>")
    with pytest.raises(ValueError, match="1 words become '<unk>', which stands for pictures"):
        processor(text="what <unk> giraffe", image_ids=ids())


def test_texts_of_which_some_begin_with_the_first_token_are_refused():
    _, processor = small_mllm(bos="<s>")
    with pytest.raises(ValueError, match="some of the texts begin with '<s>', others do not; give add_special_tokens"):
        processor(text=["<s> red", "red"])
    rows = processor(text=["<s> red", "<s> what red"])["input_ids"]
    assert [row.count(processor.tokenizer.bos_token_id) for row in rows] == [1, 1]


def test_arrays_of_numpy_are_arrays_of_all_that_the_model_takes():
    _, processor = shared()
    batch = processor(text=["<image> what", "red"], images=picture(0), return_tensors="np")
    assert {*batch} == {*processor.model_input_names} == {"input_ids", "attention_mask", "image_ids"}
    assert all(isinstance(value, np.ndarray) for value in batch.values())
    assert batch["image_ids"].tolist() == processor(text="<image>", images=picture(0))["image_ids"]


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_of_the_assistant_is_what_is_learnt_of_a_conversation(side, tensors):
    _, processor = small_mllm(template=MARKED)
    conversations = [
        [turn("user", picture(0), "?"), turn("assistant", "red circle"), turn("user", "?"), turn("assistant", "no")],
        [turn("user", "how many ?"), turn("assistant", "two")],
    ]
    batch = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors=tensors,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side, "add_special_tokens": False},
    )
    assert {*batch} == {"input_ids", "attention_mask", "image_ids", "assistant_masks"}
    rows = zip(batch["input_ids"], batch["assistant_masks"], strict=True)
    said = [processor.decode([token for token, mark in zip(*row, strict=True) if mark]) for row in rows]
    assert said == ["red circle <|end|> no <|end|>", "two <|end|>"]


def test_a_mask_of_the_assistant_is_refused_where_the_template_does_not_tell():
    _, processor = shared()
    options = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    with pytest.raises(ValueError, match=r"does not mark what the assistant says; put \{% generation %\}"):
        processor.apply_chat_template([turn("user", "red"), turn("assistant", "no")], **options)


def test_text_alone_is_rendered_whatever_is_asked_of_its_tokens():
    _, processor = shared()
    conversation = [turn("user", "red"), turn("assistant", "no")]
    wanted = processor.apply_chat_template(conversation)
    assert processor.apply_chat_template(conversation, return_assistant_tokens_mask=True, padding=True) == wanted


def test_one_of_several_chat_templates_is_named():
    _, processor = small_mllm()
    processor.chat_template = {"default": "what", "other": "red"}
    conversation = [turn("user", "yes")]
    assert processor.apply_chat_template(conversation) == "what"
    assert processor.apply_chat_template(conversation, "other") == "red"
    assert processor.apply_chat_template(conversation, "{{ messages[0].content }}") == "yes"


def test_a_message_goes_on_or_an_answer_begins():
    _, processor = shared()
    conversation = [turn("user", "what ?"), turn("assistant", "red")]
    assert processor.apply_chat_template(conversation, continue_final_message=True).endswith("<|assistant|> red")
    with pytest.raises(ValueError, match="got continue_final_message and add_generation_prompt; give one"):
        processor.apply_chat_template(conversation, continue_final_message=True, add_generation_prompt=True)


def test_pictures_may_stand_beside_messages():
    _, processor = shared()
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    options = dict(tokenize=True, return_dict=True, return_tensors="pt")
    batch = processor.apply_chat_template(conversation, processor_kwargs={"images": [picture(0)]}, **options)
    assert torch.equal(batch["image_ids"], processor.encode([picture(0)]))


def test_messages_without_pictures_have_the_tokens_of_the_language_models_own_template():
    _, processor = shared()
    messages = [{"role": "user", "content": "how many ?"}]
    own = processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    found = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert found[0] == list(own["input_ids"])


def test_pictures_may_be_in_any_turn_of_messages():
    _, processor = shared()
    messages = [
        turn("system", "the picture"),
        turn("user", picture(0), "what is it ?"),
        turn("assistant", "red circle ."),
        turn("user", "is it", picture(1), "or", picture(2)),
    ]
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert torch.equal(batch["image_ids"], processor.encode([picture(0), picture(1), picture(2)]))
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        "<|system|> the picture<|end|>\n<|user|> <image>\nwhat is it ?<|end|>\n<|assistant|> red circle .<|end|>\n"
        "<|user|> is it<image>\nor<image><|end|>\n<|assistant|> "
    )
    assert (batch["input_ids"] == processor.image_token_id).sum() == 3 * 64


def test_several_conversations_are_one_batch():
    _, processor = shared()
    both = [[turn("user", picture(0), "?")], [turn("user", "what ?")]]
    batch = processor.apply_chat_template(both, tokenize=True, return_dict=True, return_tensors="pt")
    assert batch["input_ids"].shape[0] == 2 and len(batch["image_ids"]) == 1


@pytest.mark.parametrize("key", ["image", "path", "url"])
def test_a_picture_may_stand_under_each_key_of_transformers_messages(key, tmp_path):
    _, processor = shared()
    picture(0).save(tmp_path / "a.png")
    part = {"type": "image", "image": None, "path": None} | {key: str(tmp_path / "a.png")}
    batch = processor.apply_chat_template(
        [{"role": "user", "content": [part]}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch["image_ids"], processor.encode([picture(0)]))


def test_a_rendered_text_has_its_first_token_once():
    _, processor = small_mllm(template="{{ bos_token }}" + PLAIN, bos="<s>")
    messages = [{"role": "user", "content": "red"}]
    text = processor.apply_chat_template(messages)
    tokens = processor.apply_chat_template(messages, tokenize=True)
    assert processor(text=text)["input_ids"] == tokens and tokens[0].count(processor.tokenizer.bos_token_id) == 1
    assert processor(text="red")["input_ids"][0][0] == processor.tokenizer.bos_token_id


def test_templates_that_can_think_are_asked_for_no_thoughts_unless_they_are_wanted():
    _, processor = small_mllm(template="{% if enable_thinking is not false %}what{% else %}red{% endif %}")
    messages = [{"role": "user", "content": "red"}]
    assert processor.apply_chat_template(messages) == "red"
    assert processor.apply_chat_template(messages, enable_thinking=True) == "what"


def test_a_part_of_another_kind_is_refused():
    _, processor = shared()
    with pytest.raises(ValueError, match="got an item of type 'video' in a message; known are image and text"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_a_template_that_refuses_messages_says_why():
    _, processor = small_mllm(template="{{ raise_exception('System role not supported') }}")
    with pytest.raises(ValueError, match="the chat template refuses these messages: System role not supported"):
        processor.apply_chat_template([{"role": "system", "content": "red"}])


def test_a_processor_without_a_chat_template_says_so():
    words = tokenizer(None)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    with pytest.raises(ValueError, match="has no chat template; take an instruction-tuned model"):
        TokLIPProcessor(words).apply_chat_template([{"role": "user", "content": "red"}])


def test_a_tokenizer_without_the_image_token_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has no token '<image>'; add it as a special token first"):
        TokLIPProcessor(tokenizer())


def test_the_image_token_may_be_one_that_the_tokenizer_has():
    model, processor = build_language_model(
        language_model(), small_toklip(), tokenizer=tokenizer(), image_token="<unk>"
    )
    assert processor.image_token_id == model.config.image_token_id == 1
    assert processor(text="what <unk>", image_ids=ids())["input_ids"][0].count(1) == 64


def test_pictures_are_made_square_as_the_model_was_built_for(tmp_path):
    """LLaVA pads pictures, whatever the TokLIP was trained on."""
    toklip = small_toklip()
    with pytest.raises(ValueError, match="got resize 'stretch'; known are 'crop', 'squash', 'pad'"):
        build_language_model(language_model(), toklip, tokenizer=tokenizer(), resize="stretch")
    model, processor = build_language_model(language_model(), toklip, tokenizer=tokenizer(), resize="pad")
    wide = picture(0).resize((90, 40))
    wanted, cropped = (toklip.tokenizer.encode(to_pixels(wide, 32, how)[None]) for how in ("pad", "crop"))
    assert torch.equal(processor.encode([wide]), wanted) and not torch.equal(wanted, cropped)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, other = load_language_model(tmp_path)
    assert loaded.config.resize == other.resize == "pad"


def test_a_saved_processor_loads_its_tokenizer_when_a_picture_comes(tmp_path, toy):
    _, processor = small_mllm()
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded._loaded is None
    assert torch.equal(loaded.encode([picture(0)]), processor.encode([picture(0)]))
    assert loaded.apply_chat_template([turn("user", "red")]) == processor.apply_chat_template([turn("user", "red")])


def test_the_vq_tokenizers_own_weights_are_saved_and_loaded(tmp_path, toy):
    own = MeanColour(gamma=0.5)
    toklip = small_toklip(tokenizer=mean_colour(weights={"levels": own.levels}))
    _, processor = build_language_model(language_model(), toklip, tokenizer=tokenizer())
    processor.save_pretrained(tmp_path)
    assert torch.equal(AutoProcessor.from_pretrained(tmp_path).vq_tokenizer.module.levels, own.levels)


def test_a_model_contains_the_rows_of_the_codebook_and_no_tokenizer():
    model, processor = shared()
    names = [name for name in model.state_dict() if not name.startswith(("language_model", "connector"))]
    assert [name for name in names if not name.startswith("vision.encoder")] == ["vision.embedding.table_0"]
    assert not any(isinstance(module, MeanColour) for module in model.modules())
    assert model.config.tokenizer_record == processor.vq_record == processor.vq_tokenizer.record


def test_weights_in_a_folder_are_saved_over_those_of_a_save_before(tmp_path):
    _, processor = small_mllm()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights.txt").write_text("1.0")
    processor.use_vq_tokenizer(mean_colour(weights=tmp_path / "own"))
    for _ in range(2):
        processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer" / "weights.txt").read_text() == "1.0"


@pytest.fixture
def own_weights(tmp_path, toy):
    """A saved processor, in saved/, whose VQ tokenizer has weights of its own."""
    own = MeanColour(gamma=0.5)
    toklip = small_toklip(tokenizer=mean_colour(weights={"levels": own.levels}))
    _, processor = build_language_model(language_model(), toklip, tokenizer=tokenizer())
    processor.save_pretrained(tmp_path / "saved")
    return processor


def test_the_vq_tokenizers_own_weights_are_found_from_another_working_folder(own_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = AutoProcessor.from_pretrained("saved")
    monkeypatch.chdir("/")
    assert torch.equal(loaded.encode([picture(0)]), own_weights.encode([picture(0)]))


def test_the_vq_tokenizers_own_weights_are_those_of_the_processors_revision(own_weights, tmp_path, monkeypatch):
    asked = []

    def downloaded(*where, **which):
        asked.append((where, which))
        return tmp_path / "saved" / "tokenizer.safetensors"

    monkeypatch.setattr("toklip_mllm.model.processing.hf_hub_download", downloaded)
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved", revision="v2", token="secret")
    loaded._source = "owner/name"
    loaded.encode([picture(0)])
    assert asked == [(("owner/name", "tokenizer.safetensors"), {"revision": "v2", "token": "secret"})]
    loaded.save_pretrained(tmp_path / "again")
    assert not [file for file in (tmp_path / "again").iterdir() if b"secret" in file.read_bytes()]


def test_what_is_pushed_has_the_vq_tokenizers_own_weights(own_weights, tmp_path, monkeypatch):
    pushed = []

    def upload(self, name, **options):
        self.save_pretrained(tmp_path / "uploaded", max_shard_size=None)  # as transformers does
        pushed.append((name, options))

    monkeypatch.setattr(TokLIPProcessor, "push_to_hub", upload)
    own_weights.save_pretrained(tmp_path / "mine", push_to_hub=True, private=True)
    assert pushed == [("mine", {"private": True})]
    for folder in ("mine", "uploaded"):
        names = {file.name for file in (tmp_path / folder).iterdir()}
        assert {"tokenizer.safetensors", "processor_config.json"} <= names


@pytest.mark.parametrize("name", ["..", "../other/vq.safetensors", "/etc/passwd", "", ".", "a/b", ".hidden", "vq\n"])
def test_a_config_names_the_vq_tokenizers_weights_beside_itself_or_it_is_refused(own_weights, tmp_path, name):
    file = tmp_path / "saved" / "processor_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"vq": config["vq"] | {"file": name}}), "utf-8")
    with refusing("processor_config.json: file", repr(name), "should match pattern"):
        AutoProcessor.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert {entry.name for entry in tmp_path.iterdir()} <= {"saved", "again", "site"}


def test_a_vq_tokenizer_with_other_weights_is_refused(tmp_path, toy):
    toklip = small_toklip(tokenizer=mean_colour(gamma=0.5))
    _, processor = build_language_model(language_model(), toklip, tokenizer=tokenizer())
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was made with the tokenizer 'mean-colour'"):
        AutoProcessor.from_pretrained(tmp_path).encode([Image.new("RGB", (32, 32))])


def test_a_list_of_pictures_is_wanted():
    _, processor = shared()
    with pytest.raises(ValueError, match=r"got \[\]; wanted a list of pictures"):
        processor.encode([])


def test_a_picture_beside_the_messages_may_be_a_file(tmp_path):
    _, processor = shared()
    picture(0).save(tmp_path / "a.png")
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    asked = [{"role": "user", "content": "<image> what ?"}]
    one = processor.apply_chat_template(asked, images=tmp_path / "a.png", **options)
    both = processor.apply_chat_template([asked, asked], images=[tmp_path / "a.png", picture(0)], **options)
    assert torch.equal(one["image_ids"], both["image_ids"][:1]) and torch.equal(*both["image_ids"].chunk(2))


def test_a_list_of_pictures_for_each_text_is_wanted_where_there_are_such_lists():
    _, processor = shared()
    pictures = [picture(number) for number in range(3)]
    with pytest.raises(ValueError, match="got 1 lists of pictures for 2 texts; wanted one for each text"):
        processor(images=[pictures], text=["<image>", "<image> <image>"])


@pytest.mark.parametrize("token, what", [("red", "is a word of the tokenizer"), ("<|end|>", "begins, ends or pads")])
def test_an_image_token_that_means_something_else_is_refused(token, what):
    with pytest.raises(ValueError, match=f"got '{re.escape(token)}' as image token, which {what}"):
        build_language_model(language_model(), small_toklip(), tokenizer=tokenizer(), image_token=token)
