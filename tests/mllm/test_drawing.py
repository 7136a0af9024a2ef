"""A language model that draws: conversations in words and pictures, and `toklip generate --model FOLDER`."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_core.drawing import Drawing, Guidance
from toklip_core.drawing.window import Pace
from toklip_mllm.chat import Chat
from toklip_mllm.drawing import PictureDrawer, load_drawer
from toklip_mllm.model import ContextError, TokLIPForConditionalGeneration
from transformers import LogitsProcessor, LogitsProcessorList

from tests.support.refusals import last_error
from tests.support.small_unified import COUNT, small_unified, to_draw, unified

pytestmark = pytest.mark.slow

#: The real one, which the fixture replaces.
GENERATE = TokLIPForConditionalGeneration.generate


class Opens(LogitsProcessor):
    """Makes the token after ``words`` new tokens the begin token, once for each of ``after``."""

    def __init__(self, begin: int, prompt: int, after: tuple[int, ...]):
        self.begin, self.places = begin, [prompt + place for place in after]

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] in self.places:
            scores = torch.full_like(scores, -1e4)
            scores[:, self.begin] = 0
        return scores


@pytest.fixture
def opening(monkeypatch):
    """Make models open a picture after so many new tokens of each answer."""
    begun = []

    def opens_after(*after: int):
        def forced(model, *args, **options):
            if options["cache"] is None:
                begun[:] = [options["input_ids"].shape[1]]
            begin = model.config.head_config.begin_token_id
            opens = LogitsProcessorList([Opens(begin, begun[0], after)])
            return GENERATE(model, *args, **options, logits_processor=opens)

        monkeypatch.setattr(TokLIPForConditionalGeneration, "generate", forced)

    return opens_after


def test_an_answer_has_words_a_picture_and_words(opening):
    model, processor = unified()
    opening(2)
    chat, how = Chat(model, processor), Drawing(Guidance(2.0), top_k=5)
    told = chat.ask("red circle ?", max_new_tokens=5, drawing=how, seed=3)
    assert told.image_ids.shape == (1, 8, 8, 4) and told.new_tokens == 5 + COUNT
    assert told.text.count("<image>") == 1
    # The same by hand: the prompt with the words said, drawn; then the words after it, with the picture read.
    prompt = processor.apply_chat_template([{"role": "user", "content": "red circle ?"}], add_generation_prompt=True)
    begun = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = dict(max_new_tokens=2, do_sample=False)
    words = GENERATE(model, begun, **plain)
    begin = torch.tensor([[model.config.head_config.begin_token_id]])
    drawn = model.draw(torch.cat([words, begin], dim=1), seeds=[3], drawing=how)
    assert torch.equal(drawn.image_ids, told.image_ids)
    rest = GENERATE(model, drawn.sequences, image_ids=drawn.image_ids, **plain)[0, drawn.sequences.shape[1] :]
    assert told.text.rpartition("<image>")[2].strip() == processor.decode(rest, skip_special_tokens=True).strip()


def test_the_next_question_is_asked_about_the_picture_without_encoding_it(opening, monkeypatch):
    model, processor = unified()
    opening(0)
    chat = Chat(model, processor)
    told = chat.ask("red circle ?", max_new_tokens=2)
    opening(999)
    messages = [*chat.messages, {"role": "user", "content": "what ?"}]
    batch = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, image_ids=told.image_ids,
        return_tensors="pt",
    )
    begin = model.config.head_config.begin_token_id
    assert (batch["input_ids"] == begin).sum() == 1
    wanted = GENERATE(model, **batch, max_new_tokens=3, do_sample=False)[0, batch["input_ids"].shape[1] :]
    monkeypatch.setattr(model.vision, "forward", None)  # nothing is encoded
    answer = chat.ask("what ?", max_new_tokens=3)
    assert answer.image_ids is None and answer.text == processor.decode(wanted, skip_special_tokens=True).strip()


def test_a_picture_for_which_the_context_has_no_room_is_refused(opening):
    model, processor = unified()
    opening(0)
    with pytest.raises(ContextError, match=r"a picture takes 64; the language model's context is 512: say less, or st"):
        Chat(model, processor).ask("how many red circle ? " * 90, max_new_tokens=2)


@pytest.fixture
def folder(tmp_path, toy):
    model, processor = small_unified("mean-colour")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path


def toklip(*words):
    return CliRunner().invoke(cli, list(map(str, words)), obj=plugins.registry())


def test_generate_draws_with_the_model_of_a_folder(folder):
    words = ["generate", "red circle", "one", "--model", folder / "model", "--device", "cpu", "--seed", 4]
    done = toklip(*words, "--out", folder / "drawn.png", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["settings"]["guidance"] == 3.0
    drawer = load_drawer(folder / "model")
    ids = drawer.draw(["red circle", "one"], seeds=[4, 4]).ids
    with Image.open(folder / "drawn.png") as grid:
        for place, picture in enumerate(drawer.processor.postprocess(ids)["pixel_values"]):
            assert grid.crop((0, place * 34, 32, place * 34 + 32)).tobytes() == picture.tobytes()
    batch = to_draw(drawer.processor, drawer.processor.apply_chat_template(
        [{"role": "user", "content": "one"}], add_generation_prompt=True
    ))
    assert torch.equal(drawer.model.generate(**batch, generation_mode="image", seeds=[4])[0], ids[1])
    done = toklip(*words, "--out", folder / "windows.png", "--window", 4)
    assert done.exit_code == 0, done.output
    assert (folder / "windows.png").read_bytes() == (folder / "drawn.png").read_bytes()


def test_the_calls_of_a_window_are_timed_once_for_all_batches(monkeypatch):
    paces, note = set(), Pace.note

    def noting(pace, width, **call):
        paces.add(pace)
        note(pace, width, **call)

    monkeypatch.setattr(Pace, "note", noting)
    drawer = PictureDrawer(*unified())
    for seed in (1, 2):
        assert 0 < drawer.draw(["red circle"], seeds=[seed], window="auto").calls <= COUNT
    assert len(paces) == 1


def test_what_such_a_model_cannot_draw_is_refused(folder):
    model = ["--model", folder / "model", "--out", folder / "drawn.png", "--device", "cpu"]
    for words, about in (
        (["--class", "3"], "draws texts, not classes"),
        (["red", "--compile"], "has no step that can be compiled"),
        (["red", "--toklip", "x"], "is loaded without a TokLIP of yours"),
        (["red " * 500], "the language model's context is 512"),
    ):
        done = toklip("generate", *words, *model)
        assert done.exit_code == 1 and about in last_error(done.output), done.output
    drawer = PictureDrawer(*unified())
    with pytest.raises(ValueError, match="got the class 3, but a language model draws texts; say what to draw"):
        drawer.draw([3], seeds=[0])
    assert drawer.cut_texts(["red"]) == [] and drawer.classes is None
