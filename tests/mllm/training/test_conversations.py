"""Conversations: both forms are read, and labels are on the assistant's tokens in the chat template."""

import json
from pathlib import Path

import pytest
import torch
from toklip_mllm.model import IGNORED
from toklip_mllm.training import (
    Conversation,
    Example,
    collate,
    label_conversation,
    parse_conversation,
    read_conversations,
)

from tests.core.conftest import picture
from tests.support.small_mllms import MARKED, PLAIN, ids, small_mllm
from tests.support.small_unified import some_ids, unified

FAULTS = Path(__file__).parents[2] / "faults"
QUESTION = {"role": "user", "content": "<image>\nwhat is it ?"}
CONVERSATION = Conversation(
    "file.json, row 3",
    (
        QUESTION,
        {"role": "assistant", "content": "a red circle ."},
        {"role": "user", "content": "how many ?"},
        {"role": "assistant", "content": "two"},
    ),
)


def labelled_text(example, processor):
    return processor.tokenizer.decode(example.labels[example.labels != IGNORED])


@pytest.fixture(scope="module", params=[PLAIN, MARKED], ids=["plain", "marked"])
def processor(request):
    return small_mllm(template=request.param)[1]


def with_template(template):
    return small_mllm(template=template)[1]


def test_labels_are_what_the_assistant_says_and_the_ends_of_its_turns(processor):
    example = label_conversation(CONVERSATION, processor, image_ids=ids())
    assert labelled_text(example, processor) == "a red circle .<|end|> two<|end|>".replace("<|end|>", " <|end|>")


def test_labels_stand_where_their_tokens_do(processor):
    example = label_conversation(CONVERSATION, processor, image_ids=ids())
    known = example.labels != IGNORED
    assert torch.equal(example.labels[known], example.input_ids[known])
    assert (example.input_ids == processor.image_token_id).sum() == 64
    assert not known[example.input_ids == processor.image_token_id].any()


def test_what_is_labelled_is_what_an_answer_to_the_prompt_would_be(processor):
    example = label_conversation(CONVERSATION, processor, image_ids=ids())
    asked = processor.apply_chat_template(
        [QUESTION], add_generation_prompt=True, tokenize=True, image_ids=ids(), return_tensors="pt"
    )[0]
    assert torch.equal(example.input_ids[: len(asked)], asked)
    assert (example.labels[: len(asked)] == IGNORED).all() and example.labels[len(asked)] != IGNORED


def test_marked_and_plain_templates_give_the_same_example():
    processors = map(with_template, (PLAIN, MARKED))
    one, other = (label_conversation(CONVERSATION, processor, image_ids=ids()) for processor in processors)
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)


def test_a_repeated_answer_is_labelled_in_the_assistants_turns_alone(processor):
    conversation = Conversation(
        "x", ({"role": "user", "content": "red <|assistant|> red"}, {"role": "assistant", "content": "red"})
    )
    example = label_conversation(conversation, processor)
    assert labelled_text(example, processor) == "red <|end|>"
    assert example.labels[:-2].eq(IGNORED).all(), "not the words of the question, though they are the same"


def test_a_header_that_the_prompt_does_not_have_is_learnt():
    template = PLAIN.replace("{% if add_generation_prompt %}<|assistant|> {% endif %}", "")
    processor = with_template(template)
    example = label_conversation(CONVERSATION, processor, image_ids=ids())
    assert labelled_text(example, processor).startswith("<|assistant|> a red circle")


def test_pictures_are_encoded_if_there_are_no_ids(processor):
    conversation = Conversation("x", CONVERSATION.messages, (picture(0),))
    assert torch.equal(label_conversation(conversation, processor).image_ids, processor.encode([picture(0)]))


def test_an_example_whose_labels_are_all_masked_is_named(processor):
    silent = Conversation("file.json, row 3", (QUESTION,))
    with pytest.raises(ValueError, match=r"file.json, row 3: no token has a label: the assistant says nothing in it"):
        label_conversation(silent, processor, image_ids=ids())


@pytest.mark.parametrize("pictures", [0, 2])
def test_an_example_with_other_numbers_of_placeholders_and_pictures_is_named(pictures, processor):
    with pytest.raises(ValueError, match=rf"file.json, row 3: 1 placeholders \(<image>\) for {pictures} pictures"):
        label_conversation(CONVERSATION, processor, image_ids=ids(pictures))


def test_an_example_that_is_too_long_is_named(processor):
    with pytest.raises(ValueError, match=r"file.json, row 3: \d+ tokens with its pictures, more than the 50"):
        label_conversation(CONVERSATION, processor, image_ids=ids(), max_length=50)


def test_a_broken_picture_names_its_example(processor, tmp_path):
    conversation = Conversation("file.json, row 3", CONVERSATION.messages, (tmp_path / "none.png",))
    with pytest.raises(ValueError, match=r"file.json, row 3: picture 1 .* cannot be read"):
        label_conversation(conversation, processor)


def test_a_template_that_renders_past_turns_in_another_way_is_refused_by_name():
    forgets = (
        "{% for message in messages %}<|{{ message['role'] }}|> {% if loop.last %}so {% endif %}"
        "{{ message['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )
    with pytest.raises(ValueError, match=r"file.json, row 3: .* cannot be told: .* turn 2 in another"):
        label_conversation(CONVERSATION, with_template(forgets), image_ids=ids())


def test_a_token_that_is_partly_of_a_turn_is_refused_by_name():
    glued = PLAIN.replace("<|{{ message['role'] }}|> ", "{{ message['role'][0] }}").replace("<|assistant|> ", "a")
    with pytest.raises(ValueError, match=r"cannot be told: the token 'ared' is partly of one; save model and"):
        label_conversation(
            Conversation("x", ({"role": "user", "content": "how"}, {"role": "assistant", "content": "red"})),
            with_template(glued),
        )


def test_a_template_that_drops_pictures_is_refused_by_name():
    deaf = PLAIN.replace("{{ message['content'] }}", "{{ message['content'] | replace('<image>', '') }}")
    with pytest.raises(ValueError, match=r"file.json, row 3: the chat template renders 0 of 1 pictures"):
        label_conversation(CONVERSATION, with_template(deaf), image_ids=ids())


LLAVA = {
    "id": 7,
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red circle ."}],
}
MESSAGES = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "what is it ?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle ."}]},
    ]
}


@pytest.mark.parametrize("row", [LLAVA, MESSAGES], ids=["llava", "messages"])
@pytest.mark.parametrize("lines", [False, True], ids=["json", "jsonl"])
def test_both_forms_are_read_from_lists_and_lines(row, lines, tmp_path):
    file = tmp_path / "conversations.json"
    file.write_text("\n".join([json.dumps(row)] * 2) if lines else json.dumps([row] * 2, indent=2))
    found = list(read_conversations(file))
    assert len(found) == 2
    assert found[1].messages == CONVERSATION.messages[:2]
    assert found[1].pictures == (tmp_path / "a.png",)
    assert found[1].name.startswith(f"{file}, row 2")


def test_pictures_of_messages_may_stand_beside_them(tmp_path):
    file = tmp_path / "conversations.jsonl"
    file.write_text(json.dumps({"messages": list(CONVERSATION.messages), "images": ["a.png"]}))
    assert next(read_conversations(file, root="/elsewhere")).pictures[0].as_posix() == "/elsewhere/a.png"


def test_what_the_assistant_says_before_anybody_asked_is_left_out(tmp_path):
    turns = [{"from": "gpt", "value": "hello"}, *LLAVA["conversations"]]
    (tmp_path / "conversations.json").write_text(json.dumps([LLAVA | {"conversations": turns}]))
    assert next(read_conversations(tmp_path / "conversations.json")).messages == CONVERSATION.messages[:2]


def test_llavas_system_is_the_first_turn(tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([LLAVA | {"system": "the colour"}]))
    first, *rest = next(read_conversations(tmp_path / "conversations.json")).messages
    assert first == {"role": "system", "content": "the colour"} and tuple(rest) == CONVERSATION.messages[:2]


def test_a_byte_order_mark_is_no_part_of_a_conversation():
    [conversation] = read_conversations(FAULTS / "bom.jsonl")
    assert conversation.name.endswith("bom.jsonl, row 1 (id 1)") and conversation.messages[1]["content"] == "a"


def test_another_encoding_is_refused_by_the_name_of_the_file(tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([LLAVA]), encoding="utf-16")
    with pytest.raises(ValueError, match=r"conversations.json is not UTF-8 text \(.*\); save it as UTF-8"):
        list(read_conversations(tmp_path / "conversations.json"))


def test_rows_of_sharegpt_have_their_pictures_in_images():
    [conversation] = read_conversations(FAULTS / "images-list.json")
    assert conversation.pictures == (FAULTS / "s/000000.png",)


@pytest.mark.parametrize("form", [LLAVA, MESSAGES], ids=["llava", "messages"])
@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("empty", ["", None, [], [""], [None], float("nan")], ids=str)
def test_a_row_without_a_picture_may_say_so_in_any_way(form, key, empty, tmp_path):
    words = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = words if form is LLAVA else {"messages": turns}
    (tmp_path / "conversations.json").write_text(json.dumps([row | {key: empty}]))
    [conversation] = read_conversations(tmp_path / "conversations.json")
    assert conversation.pictures == () and conversation.messages[0]["content"] == "q"


def test_the_text_only_rows_of_llava_are_read():
    [conversation] = read_conversations(FAULTS / "image-empty.json")
    assert conversation.pictures == ()


def test_an_empty_image_beside_images_is_read_over(tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([LLAVA | {"image": "", "images": ["a.png"]}]))
    assert next(read_conversations(tmp_path / "conversations.json")).pictures == (tmp_path / "a.png",)


def test_half_a_character_in_a_conversation_is_replaced(processor):
    first, second = read_conversations(FAULTS / "lone-surrogate.json")
    assert first.messages[0]["content"] == "what is there? \ufffd"
    expected = labelled_text(label_conversation(second, processor), processor)
    assert labelled_text(label_conversation(first, processor), processor) == expected


def test_half_a_character_of_a_caller_is_replaced_too():
    asked = {"role": "user", "content": [{"type": "text", "text": "q\ud83d"}]}
    conversation = parse_conversation({"messages": [asked, {"role": "assistant", "content": "a\udce9"}]}, name="x")
    assert [turn["content"] for turn in conversation.messages] == ["q\ufffd", "a\ufffd"]


def test_an_id_that_a_table_made_a_float_is_a_whole_number(tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([LLAVA | {"id": 7.0}]))
    assert next(read_conversations(tmp_path / "conversations.json")).name.endswith("row 1 (id 7)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1, "text": "x"}]', r"row 1 \(id 1\): no conversation that is known here: wanted \"conversations\""),
        ('[{"conversations": [{"from": "cat", "value": "x"}]}]', "row 1: .* got the speaker 'cat'; known are human"),
        ('[{"conversations": [{"from": "human", "value": 3}]}]', "row 1: .* got a int where a text is wanted"),
        ('[{"conversations": 3}]', "row 1: no conversation that is known here"),
        ("[3]", "row 1: got a int; wanted an object with a conversation"),
        ("[{", "conversations.json is not JSON"),
        ('{"messages": []}\n{', "row 2 is not JSON"),
        (json.dumps([LLAVA | {"image": None}]), r"row 1 \(id 7\): 1 placeholders \(<image>\) for 0 pictures"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(text, message, tmp_path):
    file = tmp_path / "conversations.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_conversations(file))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_without_labels(side):
    long, short = torch.tensor([5, 6, 7]), torch.tensor([8])
    batch = collate([Example(long, long, ids(2)), Example(short, short, ids(0))], pad_id=0, padding_side=side)
    padded = [0, 0, 8] if side == "left" else [8, 0, 0]
    assert batch["input_ids"].tolist() == [[5, 6, 7], padded]
    assert batch["labels"].tolist() == [[5, 6, 7], [x or IGNORED for x in padded]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [int(x > 0) for x in padded]]
    assert torch.equal(batch["image_ids"], ids(2))


def test_a_batch_without_pictures_has_no_ids():
    text = torch.tensor([5])
    assert "image_ids" not in collate([Example(text, text, torch.empty(0, 0, 0, 0, dtype=torch.int64))], pad_id=0)


def test_a_picture_of_the_user_that_follows_the_begin_token_is_refused_by_name():
    processor = unified()[1]
    shown = {"role": "user", "content": "<begin_image><image> what ?"}
    conversation = Conversation("file.json, row 3", (shown, {"role": "assistant", "content": "red"}))
    message = "row 3: the begin token '<begin_image>' comes before a picture that the assistant does not draw"
    with pytest.raises(ValueError, match=message):
        label_conversation(conversation, processor, image_ids=some_ids())
    drawn = ({"role": "user", "content": "red ?"}, {"role": "assistant", "content": "<image>"})
    label_conversation(Conversation("a drawing", drawn), processor, image_ids=some_ids())
