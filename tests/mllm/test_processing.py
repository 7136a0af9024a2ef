"""The processor: placeholders become places, pictures ids, messages the language model's own prompts."""

import pytest
import torch
from PIL import Image
from toklip_mllm.building import build
from toklip_mllm.processing import TokLIPProcessor
from transformers import AutoProcessor

from tests.core.conftest import picture
from tests.core.mean_colour import MeanColour
from tests.core.small_models import small_toklip
from tests.mllm.small_mllms import PLAIN, ids, language_model, shared, small_mllm, tokenizer


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
    broken = tmp_path / "broken.png"
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


@pytest.mark.parametrize("address", ["https://host/a.png", "data:image/png;base64,AAAA"])
def test_a_picture_that_is_no_file_is_refused_with_the_way_out(address):
    _, processor = shared()
    with pytest.raises(ValueError, match=r"got the picture '(https|data).*'; download it first, and give the file"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "url": address}]}])


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
    with pytest.raises(ValueError, match="got a part of type 'video' in a message; known are image and text"):
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
    model, processor = build(language_model(), small_toklip(), tokenizer=tokenizer(), image_token="<unk>")
    assert processor.image_token_id == model.config.image_token_id == 1
    assert processor(text="what <unk>", image_ids=ids())["input_ids"][0].count(1) == 64


def test_a_saved_processor_loads_its_tokenizer_when_a_picture_comes(tmp_path, toy):
    _, processor = small_mllm()
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded._loaded is None
    assert torch.equal(loaded.encode([picture(0)]), processor.encode([picture(0)]))
    assert loaded.apply_chat_template([turn("user", "red")]) == processor.apply_chat_template([turn("user", "red")])


def test_the_vq_tokenizers_own_weights_are_saved_and_loaded(tmp_path, toy):
    toklip = small_toklip()
    own = MeanColour(gamma=0.5)
    toklip._outside, toklip.tokenizer_weights = (own,), dict(own.state_dict())
    _, processor = build(language_model(), toklip, tokenizer=tokenizer())
    processor.save_pretrained(tmp_path)
    assert torch.equal(AutoProcessor.from_pretrained(tmp_path).vq_tokenizer.levels, own.levels)


def test_weights_in_a_folder_are_saved_over_those_of_a_save_before(tmp_path):
    _, processor = small_mllm()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "weights.txt").write_text("1.0")
    processor.use_vq_tokenizer(MeanColour(), tmp_path / "own")
    for _ in range(2):
        processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "vq" / "weights.txt").read_text() == "1.0"


@pytest.fixture
def own_weights(tmp_path, toy):
    """A saved processor, in saved/, whose VQ tokenizer has weights of its own."""
    toklip = small_toklip()
    own = MeanColour(gamma=0.5)
    toklip._outside, toklip.tokenizer_weights = (own,), dict(own.state_dict())
    _, processor = build(language_model(), toklip, tokenizer=tokenizer())
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
        return tmp_path / "saved" / "vq.safetensors"

    monkeypatch.setattr("toklip_mllm.processing.hf_hub_download", downloaded)
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved", revision="v2", token="secret")
    loaded._source = "owner/name"
    loaded.encode([picture(0)])
    assert asked == [(("owner/name", "vq.safetensors"), {"revision": "v2", "token": "secret"})]
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
        assert {"vq.safetensors", "processor_config.json"} <= {file.name for file in (tmp_path / folder).iterdir()}


def test_a_vq_tokenizer_with_other_weights_is_refused(tmp_path, toy):
    toklip = small_toklip()
    toklip._outside = (MeanColour(gamma=0.5),)
    _, processor = build(language_model(), toklip, tokenizer=tokenizer())
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer 'mean-colour' has other weights"):
        AutoProcessor.from_pretrained(tmp_path).encode([Image.new("RGB", (32, 32))])


def test_a_list_of_pictures_is_wanted():
    _, processor = shared()
    with pytest.raises(ValueError, match=r"got \[\]; wanted a list of pictures"):
        processor.encode([])
