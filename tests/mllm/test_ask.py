"""``toklip ask``: an answer on stdout, a conversation without a question, and one line for what is wrong."""

import json

import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.plugins import registry
from toklip_mllm.chat import Chat, unknown_words
from toklip_mllm.commands import pictures_and_question
from toklip_mllm.model import PictureEncoder, load

from tests.core.conftest import picture
from tests.support.refusals import refused
from tests.support.small_mllms import shared, small_mllm


@pytest.fixture
def folder(tmp_path, toy, monkeypatch):
    """A saved model in model/, two pictures, and this as the working folder."""
    model, processor = small_mllm()
    model.generation_config.suppress_tokens = [*range(6), *range(28, 64)]  # all but words
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*words, stdin=""):
    given = ["ask", *words, "--model", "model", "--max-new-tokens", "6", "--device", "cpu"]
    return CliRunner().invoke(cli, given, input=stdin, obj=registry())


def test_the_answer_streams_to_stdout(folder):
    result = ask("0.png", "what is it ?")
    assert result.exit_code == 0, result.output
    told = json.loads(ask("0.png", "what is it ?", "--json").stdout)
    assert result.stdout.split() == told["answer"].split() != []


def test_words_that_the_language_model_does_not_know_are_named(folder, caplog):
    assert ask("0.png", "what is zirconium ?").exit_code == 0
    assert caplog.messages == ["unknown to the model, which reads every unknown word alike: zirconium"]


def test_a_word_is_named_once_and_without_the_space_that_a_tokenizer_gives_it():
    _, processor = load("toklip-mllm-tiny")
    assert unknown_words(processor.tokenizer, "zirconium eats zirconium") == ["zirconium", "eats"]


def test_json_says_what_was_asked_and_what_it_took(folder):
    told = json.loads(ask("0.png", "1.png", "how many ?", "--json").stdout)
    assert told.keys() == {"model", "pictures", "question", "answer", "prompt_tokens", "new_tokens", "seconds"}
    assert told["pictures"] == ["0.png", "1.png"] and told["question"] == "how many ?"
    assert told["prompt_tokens"] > 128 and told["new_tokens"] <= 6


def test_half_a_character_in_a_question_is_replaced(folder):
    told = ask("0.png", "what is \ud83d ?", "--json")
    assert told.exit_code == 0 and json.loads(told.stdout)["question"] == "what is \ufffd ?", told.output
    typed = ask("0.png", "--json", stdin=b"what is \xe9 ?\n")
    assert typed.exit_code == 0 and json.loads(typed.stdout)["question"] == "what is \ufffd ?", typed.output


def test_a_conversation_remembers_what_was_asked_and_answered():
    model, processor = shared()
    chat = Chat(model, processor)
    chat.show([picture(0)])
    chat.ask("what ?", max_new_tokens=2)
    chat.ask("how many ?", max_new_tokens=2)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[0]["content"] == "<image>\nwhat ?" and chat.messages[2]["content"] == "how many ?"


def test_an_answer_is_what_generate_gives_for_the_rendered_conversation():
    model, processor = shared()
    chat = Chat(model, processor)
    chat.show([picture(0)])
    told = chat.ask("what ?", max_new_tokens=6)
    message = {"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what ?"}]}
    batch = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert told.text == processor.decode(tokens, skip_special_tokens=True).strip()
    assert told.prompt_tokens == batch["input_ids"].shape[1]


def test_in_a_conversation_a_picture_is_encoded_when_it_is_shown_and_never_again(folder, monkeypatch):
    pictures = []
    forward = PictureEncoder.forward
    counted = lambda self, x, *more: (pictures.append(len(x)), forward(self, x, *more))[1]  # noqa: E731
    monkeypatch.setattr(PictureEncoder, "forward", counted)
    result = ask("0.png", "--json", stdin="what is it ?\n\nhow many ?\n/picture 1.png\nred ?\n")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["question"] for answer in told] == ["what is it ?", "how many ?", "red ?"]
    assert told[2]["pictures"] == ["0.png", "1.png"]
    assert told[1]["prompt_tokens"] > told[0]["prompt_tokens"]
    assert pictures == [1, 1]


def test_a_conversation_outlives_a_picture_that_cannot_be_read(folder):
    result = ask("0.png", stdin="/picture none.png\nwhat ?\n")
    assert result.exit_code == 0
    assert "Error: picture 1 ('none.png') cannot be read: " in result.stderr and result.stdout.strip()


def test_new_starts_a_conversation_over_with_its_pictures(folder):
    result = ask("0.png", "--json", stdin="what is it ?\nhow many ?\n/new\nwhat is it ?\n")
    first, _, again = [json.loads(line) for line in result.stdout.splitlines()]
    assert first["answer"] == again["answer"] and first["prompt_tokens"] == again["prompt_tokens"]


def test_a_conversation_past_the_context_says_how_to_go_on(folder):
    long = "red " * 200
    result = ask("0.png", stdin=f"{long}\n{long}\n{long}\n/new\nwhat ?\n")
    assert "the language model's context is 512" in result.stderr and "/new starts over" in result.stderr
    assert len(result.stderr.split("Error: ")) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("a.png", "what is in b.png"), (["a.png"], "what is in b.png")),
        (("a.png", "b.png"), (["a.png", "b.png"], None)),
        (("a.png", "why? " * 200), (["a.png"], "why? " * 200)),
        (("0.png", "no picture by its name"), (["0.png"], "no picture by its name")),
    ],
)
def test_the_last_word_is_a_question_unless_it_is_a_file_or_named_as_one(words, expected):
    assert pictures_and_question(words) == expected


def test_a_file_of_any_name_is_a_picture(tmp_path):
    picture(0).save(tmp_path / "my picture", format="png")
    assert pictures_and_question([str(tmp_path / "my picture")]) == ([str(tmp_path / "my picture")], None)


def test_drawing_follows_the_seed(folder):
    options = ("--temperature", "2", "--top-p", "0.9")
    answers = [ask("0.png", "what ?", *options, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


def test_a_temperature_that_is_next_to_nothing_takes_the_likeliest_token(folder):
    likeliest = ask("0.png", "what ?")
    for temperature in ("1e-45", "1e-300"):
        assert ask("0.png", "what ?", "--temperature", temperature, "--top-p", "0.5").stdout == likeliest.stdout
    assert likeliest.exit_code == 0


def test_the_highest_temperature_draws_words(folder):
    done = ask("0.png", "what ?", "--temperature", "1e30")
    assert done.exit_code == 0 and done.stdout.split(), done.output


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": float("nan")}, "got temperature = nan; wanted 0"),
        ({"top_p": 0.0}, "got top_p = 0.0; wanted more than 0"),
        ({"max_new_tokens": 0}, "got max_new_tokens = 0; wanted 1"),
    ],
)
def test_numbers_of_callers_have_the_ranges_of_the_command(numbers, message):
    with pytest.raises(ValueError, match=message):
        Chat(*shared()).ask("what ?", **numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["0.png", "what ?", "--temperature", "inf"], "got temperature = inf; wanted 0"),
        (["0.png", "what ?", "--top-p", "nan"], "got top_p = nan; wanted more than 0, up to 1 (all)"),
        (["what is it?"], 'got no picture; name one before the question: toklip ask PICTURE "QUESTION"'),
        ([], "got no picture; name one before the question"),
        (["none.png", "what?"], "picture 1 ('none.png') cannot be read: "),
        (["0.png", "what ?", "--model", "nowhere/at-all"], "'nowhere/at-all' is no folder, is not in the hub's cache"),
        (["0.png", "what ?", "--model", "."], "'.' is no model folder: it has no config.json"),
        (["0.png", "what ?", "--device", "cuda:99"], "got the device 'cuda:99'"),
        (["0.png", "what ?", "--device", "meta"], "got the device 'meta', which computes nothing"),
        (["0.png"] * 8 + ["what ?"], "the language model's context is 512"),
    ],
    ids=[
        "hot",
        "no share",
        "no picture",
        "nothing",
        "no such picture",
        "no model",
        "no model folder",
        "no device",
        "no numbers",
        "too long",
    ],
)
def test_bad_input_gets_one_line(words, line, folder):
    result = CliRunner().invoke(cli, ["ask", "--model", "model", "--device", "cpu", *words], obj=registry())
    refused(result, line)


def test_a_picture_that_cannot_be_read_is_refused_before_the_model_is_loaded(folder, monkeypatch):
    monkeypatch.setattr("toklip_mllm.model.load", None)
    result = CliRunner().invoke(cli, ["ask", "none.png", "what ?", "--model", "model"], obj=registry())
    refused(result, "picture 1 ('none.png') cannot be read: ")


def test_a_model_without_a_chat_template_gets_one_line(folder):
    (folder / "model" / "chat_template.jinja").unlink()
    result = ask("0.png", "what ?")
    assert result.exit_code == 1
    assert "Error: the language model's tokenizer has no chat template; take an instruction-tuned" in result.stderr


def test_a_model_and_a_processor_of_other_tokenizers_are_refused(folder):
    file = folder / "model" / "processor_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"vq": values["vq"] | {"checksum": "0" * 64}}))
    with pytest.raises(ValueError, match=r"the processor of 'model' was made with the tokenizer 'mean-colour'"):
        load("model")


def test_a_model_loads_in_the_precision_that_is_asked_for(folder):
    model, _ = load("model", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
