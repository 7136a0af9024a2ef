"""Conversations: what is said and drawn stays in the cache, and `toklip chat` leads them line by line."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.drawing import Drawing, Guidance
from toklip_core.plugins import registry
from toklip_mllm.chat import Chat, ChatSettings, DrawnPicture
from toklip_mllm.model import ContextError, PictureEncoder, TokLIPForConditionalGeneration
from transformers import LogitsProcessor, LogitsProcessorList

from tests.core.conftest import picture
from tests.support.refusals import checked, last_error, refused
from tests.support.small_mllms import shared, small_mllm
from tests.support.small_unified import COUNT, small_unified, unified

#: Those that the fixture replaces.
GENERATE, PROMPT = TokLIPForConditionalGeneration.generate, Chat._prompt
#: Suppressed tokens: all that are not words.
WORDS_ALONE = [*range(6), *range(28, 64)]
TWO, THREE = ChatSettings(max_new_tokens=2), ChatSettings(max_new_tokens=3)


class Opens(LogitsProcessor):
    """Makes the token at each of ``places`` the begin token."""

    def __init__(self, begin: int, places: list[int]):
        self.begin, self.places = begin, places

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] in self.places:
            scores = torch.full_like(scores, -1e4)
            scores[:, self.begin] = 0
        return scores


@pytest.fixture
def opening(monkeypatch):
    """Make models open a picture after so many new tokens of each answer, those of pictures among them."""
    prompts = []

    def opens_after(*after: int):
        def forced(model, *args, **options):
            begin = model.config.head_config.begin_token_id
            places = [prompts[-1].shape[1] + place for place in after]
            opens = LogitsProcessorList([Opens(begin, places)])
            return GENERATE(model, *args, **options, logits_processor=opens)

        monkeypatch.setattr(Chat, "_prompt", lambda *args: prompts.append(PROMPT(*args)) or prompts[-1])
        monkeypatch.setattr(TokLIPForConditionalGeneration, "generate", forced)

    return opens_after


def rendered(processor, messages, **options):
    """What the model takes of a whole conversation, and the length of it."""
    batch = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    return batch, batch["input_ids"].shape[1]


def greedy(model, batch, count):
    return GENERATE(model, **batch, max_new_tokens=count, do_sample=False)[0, batch["input_ids"].shape[1] :]


def read_tokens(model, monkeypatch):
    """The numbers of tokens that the language model reads from now on, call by call."""
    found, backbone = [], model.language_model.base_model
    forward = type(backbone).forward

    def counted(self, *args, **options):
        given = [*args, options.get("input_ids"), options.get("inputs_embeds")]
        found.append(next(value for value in given if value is not None).shape[1])
        return forward(self, *args, **options)

    monkeypatch.setattr(type(backbone), "forward", counted)
    return found


def test_a_conversation_remembers_what_was_asked_and_answered():
    chat = Chat(*shared(), TWO)
    chat.ask("what ?", [picture(0)])
    chat.ask("how many ?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[0]["content"] == "<image>\nwhat ?" and chat.messages[2]["content"] == "how many ?"


def test_an_answer_is_what_generate_gives_for_the_rendered_conversation():
    model, processor = shared()
    chat = Chat(model, processor, ChatSettings(max_new_tokens=6))
    told = chat.ask("what ?", [picture(0)])
    message = {"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what ?"}]}
    batch, length = rendered(processor, [message])
    tokens = greedy(model, batch, 6)
    assert told.text == processor.decode(tokens, skip_special_tokens=True).strip()
    assert told.prompt_tokens == length and told.new_tokens == len(tokens)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_next_answer_reads_new_tokens_alone_and_is_that_of_the_whole_conversation(family, monkeypatch):
    """But where the cache cannot be cut, as a sliding window that has forgotten what came before."""
    model, processor = small_mllm(family)
    model.generation_config.suppress_tokens = WORDS_ALONE
    chat = Chat(model, processor, THREE)
    first = chat.ask("what ?", [picture(0)])
    messages = [*chat.messages, {"role": "user", "content": "how many ?"}]
    ids = processor.encode([picture(0)])
    batch, length = rendered(processor, messages, image_ids=ids)
    wanted = processor.decode(greedy(model, batch, 3), skip_special_tokens=True).strip()
    read = read_tokens(model, monkeypatch)
    assert chat.ask("how many ?").text == wanted
    assert read == [length - first.prompt_tokens - first.new_tokens + 1, 1, 1]


def changing(processor):
    """A chat template that shows messages in other words once they are not the last."""
    return processor.tokenizer.chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'] }}{% if not loop.last %} yes{% endif %}"
    )


@pytest.mark.parametrize("forgets", [True, False])
def test_a_cache_that_does_not_fit_is_cut_or_read_anew(forgets, monkeypatch):
    """As for a template that shows an earlier answer in other words."""
    model, processor = small_mllm()
    processor.chat_template = changing(processor)
    chat = Chat(model, processor, THREE)
    first = chat.ask("what ?", [picture(0)])
    if forgets:
        def crop(_):
            raise RuntimeError("the window was reached")
        chat._cache.crop = crop
    read = read_tokens(model, monkeypatch)
    answer = chat.ask("how many ?")
    batch, length = rendered(processor, chat.messages[:-1], image_ids=processor.encode([picture(0)]))
    assert read[0] == (length if forgets else length - first.prompt_tokens + 2)
    assert answer.text == processor.decode(greedy(model, batch, 3), skip_special_tokens=True).strip()


def test_windows_that_have_drawn_are_read_anew_where_they_cannot_be_cut_back(opening):
    """They keep what leaves them from the drawing on, and have forgotten some of what came before."""
    model, processor = small_unified(family="gemma2")
    model.generation_config.suppress_tokens = WORDS_ALONE
    processor.chat_template = changing(processor)
    chat = Chat(model, processor, THREE)
    opening(1)
    assert len(chat.ask("what ?", [picture(0)]).pictures) == 1
    opening()
    told = chat.ask("how many ?")
    prompt = PROMPT(chat, chat.messages[:-1])
    whole = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "use_cache": False}
    wanted = greedy(model, whole | {"image_features": torch.stack(chat._features)}, 3)
    assert told.text == processor.decode(wanted, skip_special_tokens=True).strip()


#: Options of a language model's own generation config that would change or break an answer token by token.
OWN = {
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 3,
    "stop_strings": ["."],
    "forced_eos_token_id": 7,
    "begin_suppress_tokens": [*range(6, 28)],
    "guidance_scale": 2.0,
}


@pytest.mark.parametrize("option", OWN)
def test_an_answer_does_not_depend_on_options_of_the_models_own_generation(option):
    model, processor = small_mllm()
    model.generation_config.suppress_tokens = WORDS_ALONE
    wanted = Chat(model, processor, THREE).ask("what ?", [picture(0)]).text
    setattr(model.generation_config, option, OWN[option])
    assert Chat(model, processor, THREE).ask("what ?", [picture(0)]).text == wanted != ""


def test_pieces_make_the_answer(opening):
    model, processor = unified()
    opening(2)
    chat = Chat(model, processor, ChatSettings(max_new_tokens=5))
    pieces = list(chat.say("red circle ?"))
    kinds = [type(piece) for piece in pieces]
    assert kinds.count(DrawnPicture) == 1 and kinds.index(DrawnPicture) not in (0, len(kinds) - 1)
    text = "".join(piece if isinstance(piece, str) else "<image>" for piece in pieces)
    assert text.strip() == chat.messages[-1]["content"]


@pytest.mark.slow
def test_a_window_changes_no_picture_of_a_conversation(opening, monkeypatch):
    model, processor = unified()
    model.double()
    drawn, calls, draw = [], [], model.draw
    monkeypatch.setattr(model, "draw", lambda *args, **how: calls.append(draw(*args, **how)) or calls[-1])
    for window in (1, 4, "auto"):
        opening(0)
        chat = Chat(model, processor, ChatSettings(max_new_tokens=2, window=window))
        drawn.append([chat.ask(text).pictures[0].ids for text in ("red circle ?", "one")])
    assert all(torch.equal(one, other) for ids in drawn[1:] for one, other in zip(drawn[0], ids, strict=True))
    assert [found.window for found in calls[:4]] == [1, 1, 4, 4]
    # Each of the 64 positions has a call of its own while a window of 1 is tried, which ends in the first picture.
    assert calls[0].calls == COUNT and calls[5].calls < calls[4].calls
    with pytest.raises(ValueError, match="window"):
        ChatSettings(window=0)


@pytest.mark.slow
def test_an_answer_has_words_a_picture_and_words(opening):
    model, processor = unified()
    opening(2)
    how = Drawing(Guidance(2.0), top_k=5)
    chat = Chat(model, processor, ChatSettings(max_new_tokens=5, drawing=how, seed=3))
    told = chat.ask("red circle ?")
    [found] = told.pictures
    assert found.ids.shape == (8, 8, 4) and found.seed == 3 and told.new_tokens == 5 + COUNT
    assert found.image.tobytes() == processor.postprocess(found.ids[None])["pixel_values"][0].tobytes()
    assert told.text.count("<image>") == 1
    # The same by hand: the prompt with the words said, drawn; then the words after it, with the picture read.
    prompt = processor.apply_chat_template([{"role": "user", "content": "red circle ?"}], add_generation_prompt=True)
    begun = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = dict(max_new_tokens=2, do_sample=False)
    words = GENERATE(model, begun, **plain)
    begin = torch.tensor([[model.config.head_config.begin_token_id]])
    drawn = model.draw(torch.cat([words, begin], dim=1), seeds=[3], drawing=how)
    assert torch.equal(drawn.image_ids[0], found.ids)
    rest = GENERATE(model, drawn.sequences, image_ids=drawn.image_ids, **plain)[0, drawn.sequences.shape[1] :]
    assert told.text.rpartition("<image>")[2].strip() == processor.decode(rest, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_the_next_question_is_asked_about_the_picture_without_encoding_it(opening, monkeypatch):
    model, processor = unified()
    opening(0)
    chat = Chat(model, processor, TWO)
    told = chat.ask("red circle ?")
    opening(999)
    messages = [*chat.messages, {"role": "user", "content": "what ?"}]
    batch, _ = rendered(processor, messages, image_ids=told.pictures[0].ids[None])
    begin = model.config.head_config.begin_token_id
    assert (batch["input_ids"] == begin).sum() == 1
    wanted = greedy(model, batch, 3)
    monkeypatch.setattr(model.vision, "forward", None)  # nothing is encoded
    read = read_tokens(model, monkeypatch)
    chat.settings = THREE
    answer = chat.ask("what ?")
    assert not answer.pictures and answer.text == processor.decode(wanted, skip_special_tokens=True).strip()
    assert sum(read) < COUNT  # the picture is not read again, either


@pytest.mark.slow
def test_each_picture_of_a_conversation_has_the_next_seed(opening):
    opening(0)
    chat = Chat(*unified(), ChatSettings(max_new_tokens=1, seed=7))
    first, second = (chat.ask("red circle ?").pictures[0] for _ in range(2))
    assert (first.seed, second.seed) == (7, 8)
    chat.clear()
    again = chat.ask("red circle ?").pictures[0]
    assert again.seed == 7 and torch.equal(again.ids, first.ids) and not torch.equal(first.ids, second.ids)


@pytest.mark.slow
def test_a_picture_for_which_the_context_has_no_room_is_refused_and_the_conversation_goes_on(opening):
    opening(0)
    chat = Chat(*unified(), TWO)
    with pytest.raises(ContextError, match=r"a picture takes 64; the language model's context is 512: say less, or st"):
        chat.ask("how many red circle ? " * 90)
    assert chat.messages == [] and chat.ask("red circle ?").pictures


@pytest.mark.slow
def test_a_picture_may_fill_the_context(opening):
    opening(0)
    chat = Chat(*unified(), TWO)
    told = chat.ask("red " * (512 - COUNT - 4))
    assert told.prompt_tokens + told.new_tokens == 512 and len(told.pictures) == 1
    with pytest.raises(ContextError, match="the language model's context is 512"):
        chat.ask("what ?")


def test_an_answer_that_is_not_finished_leaves_the_conversation_as_it_was():
    model, processor = small_mllm()
    model.generation_config.suppress_tokens = WORDS_ALONE
    settings = ChatSettings(max_new_tokens=6)
    chat, other = Chat(model, processor, settings), Chat(model, processor, settings)
    for one in (chat, other):
        one.ask("what ?", [picture(0)])
    pieces = chat.say("how many ?", [picture(1)])
    next(pieces)
    pieces.close()
    assert chat.messages == other.messages
    assert chat.ask("red ?").text == other.ask("red ?").text


def test_without_an_image_head_or_by_the_settings_an_answer_has_words_alone(monkeypatch):
    model, processor = unified()
    opens = LogitsProcessorList([Opens(model.config.head_config.begin_token_id, range(999))])
    forced = lambda self, *args, **options: GENERATE(self, *args, **options, logits_processor=opens)  # noqa: E731
    monkeypatch.setattr(TokLIPForConditionalGeneration, "generate", forced)
    chat = Chat(model, processor, ChatSettings(max_new_tokens=1))
    assert chat.draws and chat.ask("one").pictures
    chat.settings = ChatSettings(max_new_tokens=1, draws=False)
    assert not chat.draws and not chat.ask("one").pictures
    assert not Chat(*shared()).draws


@pytest.fixture
def folder(tmp_path, toy, monkeypatch):
    """A saved model in model/, one in draws/ that also draws, two pictures, and this as the working folder."""
    for name, (model, processor) in (("model", small_mllm()), ("draws", small_unified("mean-colour"))):
        model.generation_config.suppress_tokens = [*WORDS_ALONE]
        if model.image_head is not None:
            model.generation_config.suppress_tokens.append(model.config.head_config.begin_token_id)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chat_command(*words, typed="", model="model", tokens=6):
    given = ["chat", *map(str, words), "--model", model, "--max-new-tokens", str(tokens), "--device", "cpu"]
    return CliRunner().invoke(cli, given, input=typed, obj=registry())


def objects(result, status=0):
    assert result.exit_code == status, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_in_a_conversation_a_picture_is_encoded_when_it_is_shown_and_never_again(folder, monkeypatch):
    pictures = []
    forward = PictureEncoder.forward
    counted = lambda self, x, *more: (pictures.append(len(x)), forward(self, x, *more))[1]  # noqa: E731
    monkeypatch.setattr(PictureEncoder, "forward", counted)
    told = objects(chat_command("0.png", "--json", typed="what is it ?\n\nhow many ?\n/image 1.png\nred ?\n"))
    assert [answer["question"] for answer in told] == ["what is it ?", "how many ?", "red ?"]
    assert told[0]["pictures"] == ["0.png"] and told[2]["pictures"] == ["0.png", "1.png"]
    assert told[1]["prompt_tokens"] > told[0]["prompt_tokens"]
    assert told[0].keys() == {
        "model", "question", "pictures", "answer", "prompt_tokens", "new_tokens", "seconds", "drawn"
    }
    assert pictures == [1, 1]


@pytest.mark.slow
def test_a_drawn_picture_is_a_new_file_that_the_transcript_names(folder, opening):
    (folder / "out").mkdir()
    (folder / "out/drawn-1.png").write_bytes(b"mine")
    opening(1)
    words = ["--out", "out", "--seed", "4", "--guidance", "2", "--picture-temperature", "0.5"]
    done = chat_command(*words, typed="red circle ?\nwhat ?\n", model="draws", tokens=3)
    assert done.exit_code == 0 and done.stderr == "", done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "> red circle ?" and lines[2] == "out/drawn-2.png" and "> what ?" in lines
    assert "out/drawn-3.png" in lines and (folder / "out/drawn-1.png").read_bytes() == b"mine"
    chat = Chat(*small_unified("mean-colour"), ChatSettings(3, seed=4, drawing=Drawing(Guidance(2.0), 0.5)))
    chat.model.generation_config.suppress_tokens = WORDS_ALONE
    for number, message in ((2, "red circle ?"), (3, "what ?")):
        with Image.open(folder / f"out/drawn-{number}.png") as found:
            assert found.tobytes() == chat.ask(message).pictures[0].image.tobytes()
    told = objects(chat_command(*words, "--json", typed="red circle ?\n", model="draws", tokens=3))
    assert told[0]["drawn"] == ["out/drawn-4.png"] and told[0]["answer"].count("<image>") == 1


def test_the_words_of_an_answer_are_on_stdout_after_the_message(folder):
    done = chat_command("0.png", typed="what is it ?\n/exit\nhow many ?\n")
    told = objects(chat_command("0.png", "--json", typed="what is it ?\n"))
    assert done.stdout.splitlines() == ["> what is it ?", told[0]["answer"]]
    assert done.stderr == "model has no image head, so it talks about pictures and cannot draw any\n"


def test_options_of_drawing_are_refused_for_a_model_that_draws_nothing(folder):
    done = chat_command("--out", "out", "--guidance", "2", "--picture-temperature", "0.5", typed="what is it ?\n")
    assert done.exit_code == 2 and done.stdout == ""
    options = "--out, --guidance, --picture-temperature"
    last_error(done.stderr, f"{options} have no effect with model, which has no image head; leave them out")


def test_a_seed_and_defaults_are_accepted_where_nothing_is_drawn(folder):
    done = chat_command("--seed", "4", "--out", ".", "--picture-temperature", "1", typed="what is it ?\n")
    assert done.exit_code == 0 and done.stdout == chat_command(typed="what is it ?\n").stdout, done.output


def test_a_model_of_scenes_says_so_of_a_picture_that_is_none(folder, monkeypatch, caplog):
    monkeypatch.setattr("toklip_mllm.commands.FOLDERS", {"model": folder / "model"})
    for name, side in (("0.png", 32), ("large.png", 65)):
        Image.new("RGB", (side, 20), "red").save(name)
    said = "model knows drawn scenes of coloured shapes and nothing else; `toklip models` lists models of photographs"
    for words, typed, times in (
        (["0.png", "large.png"], "what ?\n", 1),
        (["scenes:train?count=1&size=128"], "what ?\n", 0),
        ([], "/image 0.png\n/image large.png\nwhat ?\n", 1),
    ):
        caplog.clear()
        assert chat_command(*words, typed=typed).exit_code == 0 and caplog.messages.count(said) == times


def test_half_a_character_in_a_message_is_replaced(folder):
    told = objects(chat_command("0.png", "--json", typed=b"what is \xe9 ?\n"))
    assert told[0]["question"] == "what is \ufffd ?"


def test_clear_starts_a_conversation_over(folder):
    typed = "what is it ?\nhow many ?\n/clear\n/image 0.png\nwhat is it ?\n"
    first, _, again = objects(chat_command("0.png", "--json", typed=typed))
    assert first["answer"] == again["answer"] and first["prompt_tokens"] == again["prompt_tokens"]
    assert again["pictures"] == ["0.png"]


def test_help_lists_the_commands(folder):
    done = chat_command(typed="/help\n")
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == {"/image", "/clear", "/help", "/exit"}


@pytest.mark.slow
def test_a_conversation_outlives_bad_input(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    long = "red " * 300
    typed = f"/image none.png\n/image broken.png\n/image\n/say ?\n<image> ?\n{long}\n{long}\nwhat ?\n"
    done = chat_command("0.png", typed=typed)
    errors = [line.removeprefix("Error: ") for line in done.stderr.splitlines()[1:]]
    abouts = [
        ["picture 1 ('none.png') cannot be read"],
        ["picture 1 ('broken.png') cannot be read"],
        ["got '/image', which is not a command; wanted /image PATH, /clear"],
        ["got '/say ?', which is not a command"],
        ["the message has '<image>' in it"],
        ["the language model's context is 512", "/clear starts over"],
    ]
    for error, about in zip(errors, abouts, strict=True):
        checked(error, *about)
    assert done.exit_code == 1 and done.stdout.splitlines()[-1].split()
    told = objects(chat_command("0.png", "--json", typed="/image none.png\nwhat ?\n"), status=1)
    assert told[0]["question"] == "/image none.png" and "cannot be read" in told[0]["error"] and told[1]["answer"]


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_said_and_the_conversation_goes_on(folder, opening):
    (folder / "file").write_text("")
    opening(0)
    done = chat_command("--out", "file/in", typed="one\nwhat ?\n", model="draws", tokens=2)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 2, done.output
    assert all(line.startswith("Error: ") and "file/in" in line for line in done.stderr.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none.png"], "picture 1 ('none.png') cannot be read: "),
        (["--picture-temperature", "inf"], "got picture_temperature = inf; wanted 0"),
        (["--temperature", "nan"], "got temperature = nan; wanted 0"),
        (["--guidance", "-1"], "got guidance = -1.0; wanted 0 or more"),
    ],
)
def test_bad_options_end_it_before_the_model_is_loaded(words, line, folder, monkeypatch):
    monkeypatch.setattr("toklip_mllm.model.load_language_model", None)
    refused(chat_command(*words), line)


def test_ctrl_c_ends_the_answer_and_where_somebody_types_not_the_conversation(folder, monkeypatch):
    asked = []
    say = Chat.say

    def stopped_once(self, text, pictures=()):
        asked.append(text)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return say(self, text, pictures)
        yield

    monkeypatch.setattr(Chat, "say", lambda self, *args: stopped_once(self, *args) if not asked else say(self, *args))
    monkeypatch.setattr("toklip_mllm.commands._is_typed", lambda: True)
    done = chat_command("0.png", typed="what ?\nhow many ?\n")
    assert done.exit_code == 0 and "stopped; the conversation goes on" in done.stderr and done.stdout.split()
    asked.clear()
    monkeypatch.setattr("toklip_mllm.commands._is_typed", lambda: False)
    assert chat_command("0.png", typed="what ?\nhow many ?\n").exit_code == 130


def test_an_answer_that_spells_the_image_token_stands_for_no_picture(monkeypatch):
    chat = Chat(*unified(), TWO)
    with monkeypatch.context() as patch:
        patch.setattr(type(chat.processor), "decode", lambda *args, **options: "a <im<image>age> or <begin_image>")
        assert chat.ask("what ?").text == "a  or"
    assert chat.ask("red ?").prompt_tokens


def test_the_language_models_own_beams_and_forbidden_repeats_are_none_of_an_answers():
    model, processor = small_mllm()
    own = dict(num_beams=3, no_repeat_ngram_size=1, min_new_tokens=9, min_length=99, num_return_sequences=2, min_p=0.9)
    for settings in (ChatSettings(max_new_tokens=6), ChatSettings(max_new_tokens=6, temperature=1.0)):
        answers = []
        for changes in ({}, own):
            model.generation_config.update(**changes)
            torch.manual_seed(0)
            answers.append(Chat(model, processor, settings).ask("what ?", [picture(0)]))
        assert answers[0].text == answers[1].text and answers[0].new_tokens == answers[1].new_tokens
        assert not {*own} - {*settings.options}, "each of them is overridden"
        model.generation_config.update(**dict.fromkeys(own))


def test_one_file_may_be_shown_twice(folder):
    told = objects(chat_command("0.png", "0.png", "--json", typed="what ?\n/image 1.png\n/image 1.png\nred ?\n"))
    assert [len(answer["pictures"]) for answer in told] == [2, 4]


def test_an_answer_that_ends_with_an_error_leaves_whole_lines(folder, monkeypatch):
    def says_and_fails(self, text, pictures=()):
        yield "red"
        raise ContextError("no room")

    monkeypatch.setattr(Chat, "say", says_and_fails)
    done = chat_command(typed="what ?\nhow many ?\n")
    assert done.stdout.splitlines() == ["> what ?", "red", "> how many ?", "red"]
    assert done.stderr.splitlines()[-1] == "Error: no room; /clear starts over"
