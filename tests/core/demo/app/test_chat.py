"""A conversation of `toklip app`: who answers, who draws, and what is shown."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from toklip_core.demo.app.chat import ChatSession


class Chat:
    """A conversation that answers with what it was told, and draws on request if it can."""

    def __init__(self, draws=False):
        self.draws = draws
        self.told = []

    def say(self, text, pictures=()):
        if text == "too long":
            raise ValueError("the conversation is too long; start a new one")
        self.told.append((text, [picture.getpixel((0, 0)) for picture in pictures]))
        if text == "draw a circle":
            yield SimpleNamespace(image=Image.new("RGB", (8, 8), "blue"))
            yield "there it is"
        elif text:
            yield from ("  seen", " ", f"{len(pictures)}")


class Drawer:
    """A model that draws one colour, and keeps what it was asked for."""

    def __init__(self):
        self.drawn = []

    def refuse_prompts(self, prompts):
        if prompts == ["nothing"]:
            raise ValueError("got an empty text")

    def draw(self, prompts, *, seeds):
        self.drawn += zip(prompts, seeds, strict=True)
        return SimpleNamespace(ids=torch.zeros(1, 2, 2, 1))

    def pixels(self, ids):
        return torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)


@pytest.fixture
def green(tmp_path):
    Image.new("RGB", (8, 8), (0, 200, 0)).save(tmp_path / "green.png")
    return tmp_path / "green.png"


def session(chat, folder, drawer=None, seed=3):
    return ChatSession(lambda given: chat, drawer, folder, seed=seed, max_pixels=100)


def answer(session, text, files=()):
    """The messages after an answer; a picture is its first pixel."""
    for _ in session.answer(text, files):
        pass
    return [(one["role"], read_content(one["content"])) for one in session.messages]


def read_content(content):
    return content if isinstance(content, str) else Image.open(content["path"]).getpixel((0, 0))


def test_an_answer_grows_and_says_what_the_model_says(tmp_path, green):
    talk = session(Chat(), tmp_path)
    grown = [talk.messages[-1]["content"] for _ in talk.answer("what is it?", [green])]
    assert grown == ["what is it?", "seen", "seen ", "seen 1", "seen 1"]
    assert [one["role"] for one in talk.messages] == ["user", "user", "assistant"]


def test_a_drawing_is_the_generators_and_is_read_with_the_next_question(tmp_path):
    chat, drawer = Chat(), Drawer()
    talk = session(chat, tmp_path, drawer)
    assert answer(talk, "Draw a red circle")[-1] == ("assistant", (255, 0, 0))
    assert chat.told == []
    answer(talk, "draw a star ")
    assert drawer.drawn == [("a red circle", 3), ("a star ", 4)]
    assert answer(talk, "what is it?")[-1] == ("assistant", "seen 2")
    assert answer(talk, "and now?")[-1] == ("assistant", "seen 0")
    assert chat.told == [("what is it?", [(255, 0, 0), (255, 0, 0)]), ("and now?", [])]


def test_nobody_can_guess_the_file_of_a_drawn_picture(tmp_path):
    talk = session(Chat(), tmp_path, Drawer())
    answer(talk, "draw a star")
    answer(talk, "draw a star")
    files = [Path(one["content"]["path"]) for one in talk.messages if one["role"] == "assistant"]
    assert len(set(files)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", file.stem) and file.parent == tmp_path for file in files)


def test_a_model_that_draws_needs_no_generator(tmp_path):
    drawer = Drawer()
    messages = answer(session(Chat(draws=True), tmp_path, drawer), "draw a circle")
    assert messages[1:] == [("assistant", (0, 0, 255)), ("assistant", "there it is")]
    assert drawer.drawn == []


def test_without_a_generator_the_model_answers_for_itself(tmp_path):
    assert answer(session(Chat(), tmp_path), "draw a star")[-1] == ("assistant", "seen 0")


def test_a_picture_beside_one_that_cannot_be_read_is_not_kept(tmp_path, green):
    (tmp_path / "broken.png").write_bytes(b"broken")
    talk = session(Chat(), tmp_path)
    for files, says in (([green, tmp_path / "broken.png"], "⚠ no picture"), ([green], "seen 1")):
        assert [talk.messages[-1]["content"] for _ in talk.answer("what is it?", files)][-1].startswith(says)


def test_pictures_without_words_wait_for_the_question(tmp_path, green):
    talk = session(Chat(), tmp_path)
    assert answer(talk, "", [green]) == [("user", (0, 200, 0))]
    assert answer(talk, "what is it?")[-1] == ("assistant", "seen 1")


def test_pictures_of_a_message_that_is_too_long_are_left_out_and_the_next_message_is_answered(tmp_path, green):
    talk = session(Chat(), tmp_path)
    answer(talk, "", [green])
    too_long = "⚠ the conversation is too long; start a new one"
    said = f"{too_long}; the pictures before this message are left out"
    assert answer(talk, "too long")[-1] == ("assistant", said)
    assert answer(talk, "too long")[-1] == ("assistant", too_long)
    assert answer(talk, "what is it?")[-1] == ("assistant", "seen 0")


def test_an_error_is_an_answer_and_the_conversation_goes_on_with_its_pictures(tmp_path, green):
    talk = session(Chat(), tmp_path, Drawer())
    answer(talk, "", [green])
    assert answer(talk, "draw nothing")[-1] == ("assistant", "⚠ got an empty text")
    (tmp_path / "broken.png").write_text("no picture")
    list(talk.answer("what is it?", [tmp_path / "broken.png"]))
    assert talk.messages[-1]["content"].startswith("⚠ no picture in a format")
    list(talk.answer("what is it?"))
    assert talk.messages[-1]["content"] == "seen 1"


def test_a_picture_of_too_many_pixels_is_refused(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    talk = session(Chat(), tmp_path)
    list(talk.answer("what is it?", [tmp_path / "large.png"]))
    assert "20 x 20 pixels are more than the limit of 100" in talk.messages[-1]["content"]


def test_a_model_that_says_nothing_is_seen_to(tmp_path):
    chat = Chat()
    chat.say = lambda text, pictures: iter(())
    assert answer(session(chat, tmp_path), "well?")[-1] == ("assistant", "(The model says nothing.)")
