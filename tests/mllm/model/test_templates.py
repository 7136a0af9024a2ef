"""Chat templates in the manner of published ones: labels are the assistant's words and its end mark, or it is refused.

The templates are written here after what the models' own render: first tokens, marks of turns, where a system's words
go, thoughts, spaces that are stripped.
"""

from dataclasses import dataclass

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from toklip_mllm.model import IGNORED, build_language_model
from toklip_mllm.training import Conversation, label_conversation
from transformers import PreTrainedTokenizerFast

from tests.support.small_mllms import WORDS, ids, language_model
from tests.support.small_models import small_toklip

#: Qwen2.5: a system turn of its own where there is none.
QWEN2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nthe colour<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Qwen3: thoughts, though empty, before the last answer alone; none are asked for by an empty block in the prompt.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: Llama 3: begins with a token, strips what is said.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
#: Gemma: the assistant is called model, and its turns end by a token that is not the tokenizer's eos.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
#: Mistral v0.3: what a system says goes into the last question; no header asks for an answer.
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ said if loop.index0 >= rest | length - 2 and "
    "rest[loop.index0:] | selectattr('role', 'equalto', 'user') | list | length == 1 else '' }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
#: LLaVA's and its like: contents are lists of parts, and nothing else.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>\n{% else %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ part.text }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ part.text }}<|im_end|>{% endif %}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Those that read both.
BOTH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Template, first token, eos, the end of a turn, other marks.
KINDS = {
    "qwen2": (QWEN2, None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "qwen3": (QWEN3, None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "llama3": (LLAMA3, "<|begin|>", "<|eot_id|>", "<|eot_id|>", ["<|head|>", "<|/head|>"]),
    "parts": (PARTS, None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "both": (BOTH, None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "gemma": (GEMMA, "<bos>", "<eos>", "<end_of_turn>", ["<start_of_turn>"]),
    "mistral": (MISTRAL, "<s>", "</s>", "</s>", ["[INST]", "[/INST]"]),
}

ASK = {"role": "user", "content": "<image>\nwhat is it ?"}
SAY = {"role": "assistant", "content": "a red circle"}
MORE = ({"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "two"})
SYSTEM = {"role": "system", "content": "a picture"}


def made(kind: str):
    """A processor whose tokenizer keeps spaces and new lines as tokens, as the published ones do."""
    template, bos, eos, end, marks = KINDS[kind]
    special = [token for token in dict.fromkeys(["<pad>", "<unk>", bos, eos, end, *marks]) if token]
    words = [*special, "\n", "\n\n", " ", "system", "user", "assistant", "model", "<think>", "</think>", *WORDS]
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+| +|[^\s]+"), "isolated")
    found.decoder = decoders.Fuse()
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=bos,
        eos_token=eos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return build_language_model(language_model(), small_toklip(), tokenizer=tokenizer)[1], end


def learnt(kind: str, *messages: dict) -> str:
    processor, _ = made(kind)
    example = label_conversation(Conversation("row 3", messages), processor, image_ids=ids())
    assert (example.input_ids == processor.image_token_id).sum() == 64
    return processor.tokenizer.decode(example.labels[example.labels != IGNORED])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt_of_one_turn_are_its_words_and_its_end(kind):
    assert learnt(kind, ASK, SAY).strip() == f"a red circle{KINDS[kind][3]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "llama3", "gemma", "mistral", "parts", "both"])
def test_what_is_learnt_of_several_turns_are_the_words_and_the_ends_of_each(kind):
    end = KINDS[kind][3]
    assert learnt(kind, ASK, SAY, *MORE).replace(" ", "") == f"aredcircle{end}two{end}".replace(" ", "")


@pytest.mark.parametrize("kind", ["qwen2", "llama3"])
def test_what_a_system_says_is_not_learnt(kind):
    assert learnt(kind, SYSTEM, ASK, SAY).strip() == f"a red circle{KINDS[kind][3]}"


@pytest.mark.parametrize("kind", ["parts", "both", "qwen2"])
def test_a_template_is_given_messages_in_the_form_that_it_reads(kind):
    processor, end = made(kind)
    parts = [{"type": "image"}, {"type": "text", "text": "what is it ?"}]
    for content in (parts, "<image>\nwhat is it ?"):
        conversation = [{"role": "user", "content": content}, SAY, {"role": "user", "content": "how many ?"}]
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        assert text.endswith(
            f"<|im_start|>user\n<image>\nwhat is it ?{end}\n<|im_start|>assistant\na red circle{end}\n"
            f"<|im_start|>user\nhow many ?{end}\n<|im_start|>assistant\n"
        )
        batch = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, image_ids=ids())
        assert batch["input_ids"][0].count(processor.image_token_id) == 64


def test_messages_may_be_objects():
    @dataclass
    class Said:
        role: str
        content: list
        tool_calls: list | None = None

    @dataclass
    class Address:
        image_url: dict
        type: str = "image_url"

    template = (
        "{% for m in messages %}{{ m.role }}{% if m.tool_calls is defined %} (tools){% endif %}:"
        "{% for part in m.content %} {{ part.type }}={{ part.url or part.text }}{% endfor %}{% endfor %}"
    )
    conversation = [Said("user", [Address({"url": "https://host/a.png"}), {"type": "text", "text": "what ?"}])]
    processor, _ = made("qwen2")
    wanted = "user: image=https://host/a.png text=what ?"
    assert processor.apply_chat_template(conversation, template) == wanted
    assert processor.apply_chat_template([conversation, conversation], template) == [wanted, wanted]
    assert processor.apply_chat_template(conversation).endswith("<|im_start|>user\n<image>\nwhat ?<|im_end|>\n")
    with pytest.raises(ValueError, match="got 'what' in a conversation; wanted a message: a role and its content"):
        processor.apply_chat_template(["what"])


def test_spaces_that_a_template_strips_are_no_doubt():
    assert learnt("gemma", ASK, {"role": "assistant", "content": " a red circle \n"}) == "a red circle<end_of_turn>"


@pytest.mark.parametrize(
    ("kind", "messages"),
    [("qwen3", (ASK, SAY, *MORE)), ("mistral", (SYSTEM, ASK, SAY, *MORE))],
    ids=["thoughts", "a system's words that move"],
)
def test_turns_that_are_rendered_in_another_way_later_are_refused_with_a_way_out(kind, messages):
    with pytest.raises(ValueError, match=r"row 3: .* cannot be told: .* turn .*\{% generation %\} .*chat_template"):
        learnt(kind, *messages)


def test_the_way_out_works():
    marked = QWEN3.replace("{{ m.content }}<|im_end|>", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}")  # fmt: skip
    processor, end = made("qwen3")
    processor.chat_template = marked
    example = label_conversation(Conversation("row 3", (ASK, SAY, *MORE)), processor, image_ids=ids())
    assert processor.tokenizer.decode(example.labels[example.labels != IGNORED]) == f"a red circle{end}two{end}"


@pytest.mark.parametrize(
    ("messages", "reason"), [((SYSTEM, ASK, SAY), "System role not supported"), ((SAY, ASK, SAY), "must alternate")]
)
def test_what_a_template_refuses_is_refused_by_name(messages, reason):
    with pytest.raises(ValueError, match=rf"row 3: the chat template refuses these messages: .*{reason}"):
        learnt("gemma", *messages)
