"""``toklip ask``: an answer on stdout, and one line for what is wrong."""

import json

import pytest
import torch
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.pictures import open_picture
from toklip_core.plugins import registry
from toklip_mllm.chat import ChatSettings, unknown_words
from toklip_mllm.commands import pictures_and_question
from toklip_mllm.model import load_language_model

from tests.core.conftest import picture
from tests.support.refusals import last_error, refused
from tests.support.small_mllms import small_mllm


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


def ask(*words):
    given = ["ask", *words, "--model", "model", "--max-new-tokens", "6", "--device", "cpu"]
    return CliRunner().invoke(cli, given, obj=registry())


def test_the_answer_streams_to_stdout(folder):
    result = ask("0.png", "what is it ?")
    assert result.exit_code == 0, result.output
    told = json.loads(ask("0.png", "what is it ?", "--json").stdout)
    assert result.stdout.split() == told["answer"].split() != []


def test_words_that_the_language_model_does_not_know_are_named(folder, caplog):
    assert ask("0.png", "what is zirconium ?").exit_code == 0
    assert caplog.messages == ["unknown to the model, which reads every unknown word alike: zirconium"]


def test_a_model_of_scenes_says_so_of_a_picture_that_is_none(folder, monkeypatch, caplog):
    monkeypatch.setattr("toklip_mllm.commands.FOLDERS", {"model": folder / "model"})
    picture(0).resize((65, 40)).save("large.png")
    picture(0).resize((32, 20)).save("0.png")
    for shown, warned in (("0.png", False), ("scenes:train?count=1&size=128", False), ("large.png", True)):
        caplog.clear()
        assert ask("0.png", shown, "what ?").exit_code == 0
        assert ("model knows drawn scenes of coloured shapes and nothing else" in caplog.text) == warned


def test_a_word_is_named_once_and_without_the_space_that_a_tokenizer_gives_it():
    _, processor = load_language_model("toklip-mllm-tiny")
    assert unknown_words(processor.tokenizer, "zirconium eats zirconium") == ["zirconium", "eats"]


def test_json_says_what_was_asked_and_what_it_took(folder):
    told = json.loads(ask("0.png", "1.png", "how many ?", "--json").stdout)
    assert told.keys() == {"model", "pictures", "question", "answer", "prompt_tokens", "new_tokens", "seconds"}
    assert told["pictures"] == ["0.png", "1.png"] and told["question"] == "how many ?"
    assert told["prompt_tokens"] > 128 and told["new_tokens"] <= 6


def test_a_scene_is_a_picture(folder):
    text = "scenes:held-out?count=1&seed=7"
    open_picture(text).save("scene.png")
    assert ask(text, "what is it ?").stdout == ask("scene.png", "what is it ?").stdout != ""
    several = ask("0.png", "scenes:held-out", "what?")
    assert "picture 2 ('scenes:held-out') cannot be read: it names 100 scenes" in several.stderr


def test_half_a_character_in_a_question_is_replaced(folder):
    told = ask("0.png", "what is \ud83d ?", "--json")
    assert told.exit_code == 0 and json.loads(told.stdout)["question"] == "what is \ufffd ?", told.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("a.png", "what is in b.png"), (["a.png"], "what is in b.png")),
        (("a.png", "why? " * 200), (["a.png"], "why? " * 200)),
        (("0.png", "no picture by its name"), (["0.png"], "no picture by its name")),
    ],
)
def test_the_last_word_is_a_question_unless_it_is_a_file_or_named_as_one(words, expected):
    assert pictures_and_question(words) == expected


def test_a_file_of_any_name_is_a_picture(tmp_path):
    picture(0).save(tmp_path / "my picture", format="png")
    for words in ([str(tmp_path / "my picture")], ["a.png", "b.png"], ["scenes:held-out?count=1"]):
        with pytest.raises(ValueError, match="got pictures and no question; ask one after them, or start a conver"):
            pictures_and_question(words)


def test_a_question_without_quotes_is_named_by_its_first_word(folder):
    result = CliRunner().invoke(cli, ["ask", "0.png", "what", "colour", "is", "it?"], obj=registry())
    refused(result, "what is not there", 'quote the text: toklip ask PICTURE "QUESTION"')


def test_drawing_follows_the_seed(folder):
    options = ("--temperature", "2", "--top-p", "0.9")
    answers = [ask("0.png", "what ?", *options, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert answers[0] == answers[1] != answers[2]


def test_a_temperature_that_is_next_to_nothing_takes_the_likeliest_token(folder):
    likeliest = ask("0.png", "what ?")
    for temperature in ("1e-45", "1e-300"):
        assert ask("0.png", "what ?", "--temperature", temperature).stdout == likeliest.stdout
    assert likeliest.exit_code == 0


@pytest.mark.parametrize("temperature", [(), ("--temperature", "1e-45")], ids=["default", "next to nothing"])
def test_options_of_sampling_are_refused_where_nothing_is_sampled(temperature):
    result = ask("0.png", "what ?", "--top-p", "0.3", *temperature)
    assert result.exit_code == 2
    last_error(result.stderr, "--top-p has no effect at temperature 0", "give a higher --temperature, or")


def test_one_command_serves_for_temperature_0_and_others(folder):
    """A sweep types a seed, and defaults, beside every temperature."""
    done = ask("0.png", "what ?", "--temperature", "0", "--seed", "5", "--top-p", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout == ask("0.png", "what ?").stdout


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
        ChatSettings(**numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["0.png", "what ?", "--temperature", "inf"], "got temperature = inf; wanted 0"),
        (["0.png", "what ?", "--top-p", "nan"], "got top_p = nan; wanted more than 0, up to 1 (all)"),
        (["what is it?"], 'got no picture; name one before the question: toklip ask PICTURE "QUESTION"'),
        ([], "got no picture; name one before the question"),
        (["0.png"], "got pictures and no question; ask one after them"),
        (["0.png", " "], "the question is empty; ask something"),
        (["none.png", "what?"], "picture 1 ('none.png') cannot be read: "),
        (["0.png", "what ?", "--model", "nowhere/at-all"], "'nowhere/at-all' is not a folder, is not in the hub"),
        (["0.png", "what ?", "--model", "."], "'.' is not a model folder: it has no config.json"),
        (["0.png", "what ?", "--device", "cuda:99"], "got the device 'cuda:99'"),
        (["0.png", "what ?", "--device", "meta"], "got the device 'meta', which computes nothing"),
        (["0.png"] * 8 + ["what ?"], "the language model's context is 512"),
    ],
    ids=[
        "hot",
        "no share",
        "no picture",
        "nothing",
        "no question",
        "an empty question",
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
    monkeypatch.setattr("toklip_mllm.model.load_language_model", None)
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
        load_language_model("model")


def test_a_model_loads_in_the_precision_that_is_asked_for(folder):
    model, _ = load_language_model("model", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
