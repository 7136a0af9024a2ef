"""`toklip evaluate vqa`: its questions, its figures, the command, and one line for bad input."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.scenes import Scenes
from toklip_core.weights import weights_checksum
from toklip_mllm.chat import Chat, ChatSettings
from toklip_mllm.evaluation import (
    Columns,
    HeldOutQuestions,
    VQAAnswer,
    VQAQuestion,
    answer_questions,
    evaluate_answers,
    evaluate_vqa,
    exact_match,
    held_out_questions,
    make_prompt,
    read_questions,
    refuse_long_questions,
    report_answers,
    scene_questions,
    yes_no,
)
from toklip_mllm.evaluation.answers import to_text
from toklip_mllm.model import ContextError, TokLIPForConditionalGeneration, TokLIPProcessor

from tests.support.refusals import last_error
from tests.support.small_mllms import MARKED, shared, small_mllm
from tests.support.starved import failing_to_open, system_error


def question(*truths: str, kind: str = "all", choices: tuple[str, ...] = ()) -> VQAQuestion:
    return VQAQuestion("row", (), "what?", truths, kind, choices)


@pytest.fixture
def rows(tmp_path):
    """Writes rows as JSONL, with two pictures beside them; returns the file."""
    for name in ("red", "blue"):
        Image.new("RGB", (40, 32), name).save(tmp_path / f"{name}.png")

    def write(*found: dict) -> Path:
        file = tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in found))
        return file

    return write


FAULTS = Path(__file__).parents[2] / "faults"
ROW = {"image": "red.png", "question": "what is it ?", "answer": "red"}


def test_scenes_have_all_their_questions_and_each_picture_is_its_scene():
    scenes = Scenes(3, split="held-out", size=32)
    found = scene_questions(scenes)
    mine = [(one.text, one.truths[0], one.kind) for one in found]
    assert mine == [question for scene in scenes for question in scene.questions]
    assert [one.pictures[0].name for one in found][-1] == "scenes/held-out,size=32/000002.png"
    assert found[-1].pictures[0].read().tobytes() == scenes[2].rgb.tobytes()


def test_a_file_of_pope_is_read_by_the_names_of_its_columns(rows):
    file = rows({"question_id": 1, "image": "red.png", "text": "Is it red?", "label": "yes"})
    [one] = read_questions(file, columns=Columns(question="text", answer="label"))
    assert (one.text, one.truths, one.kind) == ("Is it red?", ("yes",), "all")
    assert one.pictures[0].read().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("answer", ["a cat", "B", 1, "1"])
def test_a_choice_is_right_by_text_letter_or_number(answer, rows):
    [one] = read_questions(rows(ROW | {"choices": ["a dog", "a cat"], "answer": answer}))
    assert one.truths == ("a cat",)
    assert VQAAnswer(one, "B.").right and VQAAnswer(one, "the cat").right and not VQAAnswer(one, "A").right


@pytest.mark.parametrize(
    ("choices", "answer", "truth"),
    [
        (["2", "0", "1"], "1", "1"),  # words first
        (["2", "0", "1"], "1.0", "1"),
        (["1.0", "1"], "1.0", "1.0"),
        (["2", "0", "1.5"], 1, "0"),
        (["0", "1", "2"], 1, "1"),  # either way
        (["a dog", "a cat"], "1.0", "a cat"),
    ],
)
def test_a_number_beside_choices_is_which_one_and_a_text_its_words_first(choices, answer, truth, rows):
    assert read_questions(rows(ROW | {"choices": choices, "answer": answer}))[0].truths == (truth,)


@pytest.mark.parametrize("answer", [2, 2.0, [2], {"answer": 2}])
@pytest.mark.parametrize("choices", [["1", "2", "3"], [1, 2, 3], ["1.0", "2.0", "3.0"], ["3", " 2", "1"], ["2", "3"]])
def test_a_number_that_is_one_choice_and_counts_to_another_is_refused_with_what_to_write(choices, answer, rows):
    letter = "A" if choices == ["2", "3"] else "B"
    expected = rf"jsonl, row 2: the answer 2 is .*write its letter, such as \"{letter}\", or its words as a text"
    with pytest.raises(ValueError, match=expected) as raised:
        read_questions(rows(ROW, ROW | {"choices": choices, "answer": answer}))
    assert "\n" not in str(raised.value)


def test_texts_that_a_table_made_of_numbers_are_right_with_and_without_the_point(rows):
    questions = read_questions(rows(*(ROW | {"answer": answer} for answer in ("1", "1.0", 1, 1.0, ["1.0"] * 4))))
    report = report_answers([VQAAnswer(one, said) for one in questions for said in ("1", "1.0")])
    assert report.exact_match.right == 1 and report.vqa_accuracy == 1
    [nan] = read_questions(rows(ROW | {"answer": "nan"}))
    assert nan.truths == ("nan",) and VQAAnswer(nan, "NaN").right


def test_answers_of_several_people_are_read_as_vqa_has_them(rows):
    people = [{"answer": "red", "answer_id": 1}, {"answer": "dark red", "answer_confidence": "maybe"}, "red"]
    assert read_questions(rows(ROW | {"answer": people}))[0].truths == ("red", "dark red", "red")


def test_answers_that_a_table_made_floats_are_the_same_as_before(tmp_path):
    found = read_questions(FAULTS / "answers-as-floats.jsonl", root=tmp_path)
    assert [one.truths for one in found] == [("1",)] * 3
    report = report_answers([VQAAnswer(one, "1") for one in found])
    assert report.exact_match is not None and report.exact_match.right == 1


@pytest.mark.parametrize(
    ("answer", "truths"),
    [
        (1.0, ("1",)),
        (-0.0, ("0",)),
        (1.5, ("1.5",)),
        (1, ("1",)),
        ("1.0", ("1.0",)),
        ([1.0, {"answer": 2.0}], ("1", "2")),
    ],
)
def test_a_whole_number_is_a_text_without_a_point(answer, truths, rows):
    assert read_questions(rows(ROW | {"answer": answer}))[0].truths == truths


def test_ids_types_and_choices_of_a_table_are_whole_numbers_too(rows):
    numbers = {"question_id": 7.0, "type": 2.0, "choices": [3.0, 4.0], "answer": 1.0}
    [one] = read_questions(rows(ROW | numbers))
    assert one.name.endswith("row 1 (id 7)") and one.kind == "2"
    assert (one.choices, one.truths) == (("3", "4"), ("4",))


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_what_a_table_left_empty_is_not_there(empty, rows):
    [one] = read_questions(rows(ROW | {"id": empty, "question_id": empty, "type": empty, "choices": empty}))
    assert one.name.endswith("row 1") and (one.kind, one.choices) == ("all", ())


NAN = float("nan")


@pytest.mark.parametrize("answer", [None, NAN, "", " ", [], ["red", None], ["red", NAN], [""], [{"answer": None}]])
def test_a_missing_answer_is_refused_with_its_line(answer, rows):
    with pytest.raises(ValueError, match=r"jsonl, row 2: it has no answer"):
        read_questions(rows(ROW, ROW | {"answer": answer}))


def test_of_several_people_one_may_have_said_nothing(rows):
    assert read_questions(rows(ROW | {"answer": ["red", ""]}))[0].truths == ("red", "")


def test_questions_are_read_from_a_list_as_well(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([ROW, ROW], indent=1))
    found = read_questions(tmp_path / "q.json")
    assert [one.name for one in found] == [f"{tmp_path / 'q.json'}, row {number}" for number in (1, 2)]


@pytest.mark.parametrize(("encoding", "read"), [("utf-8-sig", True), ("utf-16", False)])
def test_a_byte_order_mark_is_read_over_and_another_encoding_refused_by_name(encoding, read, rows):
    file = rows(ROW)
    file.write_text(file.read_text(), encoding=encoding)
    if read:
        assert read_questions(file)[0].truths == ("red",)
        return
    with pytest.raises(ValueError, match=rf"{file.name} is not UTF-8 text"):
        read_questions(file)


def test_half_a_character_in_a_question_or_an_answer_is_replaced(rows):
    [one] = read_questions(rows(ROW | {"question": "what \ud83d?", "answer": "red\udc00"}))
    assert (one.text, one.truths) == ("what \ufffd?", ("red\ufffd",))


def test_a_line_ends_where_json_lines_end(rows):
    row = ROW | {"question": "what\u2028is it ?"}
    file = rows(ROW)
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_questions(file)[0].text == row["question"]


def test_choices_are_asked_with_letters_and_other_questions_by_the_prompt():
    one = question("a cat", choices=("a dog", "a cat"))
    assert make_prompt(one, "{} Briefly.").splitlines()[:3] == ["what?", "A. a dog", "B. a cat"]
    assert make_prompt(question("red"), "{} Briefly.") == "what? Briefly."


def test_figures_are_of_the_questions_that_they_are_for():
    answered = [
        VQAAnswer(question("red", kind="colour"), "Red."),
        VQAAnswer(question("red", kind="colour"), "blue"),
        VQAAnswer(question("yes", kind="existence"), "yes"),
        VQAAnswer(question("no", kind="existence"), "yes"),
        VQAAnswer(question("a cat", kind="choice", choices=("a dog", "a cat")), "B"),
        VQAAnswer(question(*["two"] * 3, *["three"] * 7, kind="number"), "2"),
    ]
    report = report_answers(answered)
    assert report.exact_match.questions == 5 and report.exact_match.right == pytest.approx(2 / 5)
    assert report.multiple_choice == (1, 1.0, 1.0)
    assert report.by_type["colour"] == (2, 0.5, 1.0) and report.by_type["existence"] == (2, 0.5, 0.5)
    assert report.vqa_accuracy == pytest.approx(0.9)
    assert report.yes_no.questions == 2 and report.yes_no.yes_share == 1.0
    assert json.loads(json.dumps(report.as_json()))["by_type"]["colour"]["right"] == 0.5
    assert "exact match" in report.as_text() and "share of yes" in report.as_text()


def test_a_figure_without_questions_is_none():
    report = report_answers([VQAAnswer(question("red"), "red")])
    assert report.multiple_choice is None and report.vqa_accuracy is None and report.yes_no is None


def test_answers_do_not_depend_on_the_batch_and_a_picture_of_it_is_encoded_once(monkeypatch):
    model, processor = shared()
    questions = scene_questions(Scenes(3, size=32))
    encoded: list[int] = []
    encode = TokLIPProcessor.encode

    def counted(self, pictures, *rest):
        encoded.append(len(pictures))
        return encode(self, pictures, *rest)

    monkeypatch.setattr(TokLIPProcessor, "encode", counted)
    whole = Compute(batch_size=len(questions))
    together = [*answer_questions(model, processor, questions, [], compute=whole, max_new_tokens=3)]
    assert encoded == [3]
    alone = [*answer_questions(model, processor, questions, [], compute=Compute(batch_size=1), max_new_tokens=3)]
    assert [one.answer for one in together] == [one.answer for one in alone]


def test_a_question_that_writes_a_placeholder_is_asked_as_one_without(rows):
    model, processor = shared()
    both = read_questions(rows(ROW, ROW | {"question": "<image>\n" + ROW["question"]}))
    one, other = answer_questions(model, processor, both, [], max_new_tokens=3)
    assert one.answer == other.answer


def test_answers_are_greedy_whatever_the_models_own_generation_config_has():
    model, processor = small_mllm()
    questions = scene_questions(Scenes(1, size=32))
    bare = [one.answer for one in answer_questions(model, processor, questions, [], max_new_tokens=8)]
    model.generation_config.update(repetition_penalty=9.0, do_sample=True, temperature=2.0, top_k=3)
    assert bare == [one.answer for one in answer_questions(model, processor, questions, [], max_new_tokens=8)]
    chat = Chat(model, processor, ChatSettings(max_new_tokens=8))
    assert chat.ask(questions[0].text, [questions[0].pictures[0].read()]).text == bare[0]


def test_an_answer_ends_where_the_context_does(rows):
    model, processor = small_mllm()
    model.generation_config.suppress_tokens = [*range(6), *range(28, 64)]  # all but words
    [question] = read_questions(rows(ROW | {"image": ["red.png"] * 7, "question": "red " * 50}))
    [found] = answer_questions(model, processor, [question], [], max_new_tokens=100)
    assert 0 < len(processor.tokenizer(found.answer)["input_ids"]) <= 512 - 7 * 64 - 50 < 100


def test_a_long_prompt_takes_no_room_from_the_others_of_its_batch(rows):
    model, processor = small_mllm()
    model.generation_config.suppress_tokens = [*range(6), *range(28, 64)]  # all but words
    long, short = read_questions(rows(ROW | {"image": ["red.png"] * 7, "question": "red " * 50}, ROW))
    both = [*answer_questions(model, processor, [long, short], [], max_new_tokens=40)]
    alone = [*answer_questions(model, processor, [short], [], max_new_tokens=40)]
    assert both[1].answer == alone[0].answer


def test_a_run_is_refused_if_a_held_out_question_leaves_no_room_for_an_answer(rows):
    model, processor = small_mllm()
    questions = read_questions(rows(ROW, ROW | {"image": ["red.png"] * 7, "question": "red " * 99}))
    refuse_long_questions(model, processor, questions[:1], "{}")
    with pytest.raises(ValueError, match=r"row 2: got a prompt of \d+ tokens with its pictures; the language model's"):
        refuse_long_questions(model, processor, questions, "{}")


def test_questions_about_unreadable_pictures_are_named_and_in_no_figure(rows, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model, processor = shared()
    unreadable: list[str] = []
    questions = read_questions(rows(ROW, ROW | {"image": ["red.png", "broken.png"], "id": "b"}, ROW))
    found = [*answer_questions(model, processor, questions, unreadable, max_new_tokens=2)]
    assert len(found) == 2
    assert len(unreadable) == 1 and "row 2 (id b)" in unreadable[0] and "broken.png: no picture" in unreadable[0]
    with failing_to_open("broken.png", system_error("EIO")):
        assert len([*answer_questions(model, processor, questions, unreadable, max_new_tokens=2)]) == 2
    assert "broken.png: [Errno 5] " in unreadable[1]


def test_a_run_is_refused_if_pictures_of_its_held_out_questions_cannot_be_read(rows, tmp_path):
    file = rows(ROW, ROW | {"image": "blue.png"}, ROW | {"image": ["red.png", "blue.png"]})
    assert len(held_out_questions(HeldOutQuestions(questions=file), image_size=32)) == 3
    (tmp_path / "blue.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"^1 of 2 held-out pictures cannot be read, the first is .*blue\.png: "):
        held_out_questions(HeldOutQuestions(questions=file), image_size=32)


def test_pictures_that_can_no_longer_be_read_during_a_run_are_counted_and_named(rows, tmp_path, caplog):
    model, processor = small_mllm(template=MARKED)
    questions = held_out_questions(HeldOutQuestions(questions=rows(ROW, ROW | {"image": "blue.png"})), image_size=32)
    (tmp_path / "blue.png").unlink()
    evaluate_answers(model, processor, questions)
    assert re.search(r"1 held-out pictures cannot be read and are left out .*; the first is .*blue\.png", caplog.text)


@pytest.fixture
def model(toy, tmp_path):
    """A folder of a model of random weights."""
    made, processor = small_mllm(template=MARKED)
    made.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def run(*words: str):
    return CliRunner().invoke(cli, ["evaluate", "vqa", *words])


def test_options_of_files_are_refused_for_scenes():
    for words in (["--root", "x"], ["--image", "a"], ["--question", "a"], ["--answer", "a"], ["--type", "a"]):
        result = run("scenes:held-out?count=2", "--model", "nowhere", *words)
        assert result.exit_code == 2
        last_error(result.stderr, f"{words[0]} has no effect with scenes, which have no files; leave it out")


def test_the_command_measures_scenes_and_writes_the_answers(model, tmp_path):
    answers = tmp_path / "answers.jsonl"
    options = ("--answers", str(answers), "--max-new-tokens", "2")
    done = run("scenes:held-out?count=2", "--model", model, "--json", *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert report["exact_match"]["questions"] == len(written) == report["protocol"]["questions"]
    right = [exact_match(row["said"], row["truths"]) for row in written]
    assert right == [row["right"] for row in written] and report["exact_match"]["right"] == sum(right) / len(right)
    assert report["protocol"]["inputs"] == "scenes:held-out?count=2"
    assert report["protocol"]["decoding"] == "greedy, up to 2 tokens"


@pytest.mark.parametrize("taken", ["questions", "picture", "folder"])
def test_the_answers_are_written_over_no_input(taken, model, rows, tmp_path):
    file = rows(ROW)
    out = {"questions": file, "picture": tmp_path / "red.png", "folder": tmp_path}[taken]
    before = None if taken == "folder" else out.read_bytes()
    done = run(str(file), "--model", model, "--answers", str(out))
    assert done.exit_code == 1 and f"got --answers {out}, which is" in done.output, done.output
    assert taken == "folder" or out.read_bytes() == before


def test_answers_are_in_the_file_batch_by_batch(rows, tmp_path, monkeypatch):
    file, out, calls = rows(ROW, ROW, ROW), tmp_path / "answers.jsonl", []
    out.write_text("of another model")

    def said(model, processor, questions, *_):
        calls.append(out.read_text())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ["red"] * len(questions)

    monkeypatch.setattr("toklip_mllm.evaluation.vqa._answer", said)
    with pytest.raises(KeyboardInterrupt):
        evaluate_vqa("toklip-mllm-tiny", file, answers=out, compute=Compute(batch_size=1))
    assert calls[0] == "of another model" and [len(text.splitlines()) for text in calls[1:]] == [1, 2]
    assert [json.loads(line)["said"] for line in out.read_text().splitlines()] == ["red", "red"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checksum_is_that_of_the_stored_weights_whatever_the_model_computes_in(model, dtype):
    report = evaluate_vqa(model, "scenes:held-out?count=1", max_new_tokens=1, compute=Compute(dtype=dtype))
    stored = TokLIPForConditionalGeneration.from_pretrained(model)
    assert report.protocol["weights"] == f"sha256 {weights_checksum(stored)}"


def test_half_precision_leaves_the_codebook_and_says_so(model):
    options = ("--dtype", "bfloat16", "--max-new-tokens", "1", "--device", "cpu")
    done = run("scenes:held-out?count=1", "--model", model, *options)
    assert done.exit_code == 0, done.output
    assert "in bfloat16 on cpu" in done.stdout and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "a"}, "row 1: it has no 'image'; it has question, answer"),
        (ROW | {"answer": None}, "row 1: it has no answer"),
        (ROW | {"choices": ["a", "b"], "answer": "c"}, "the answer 'c' is none of its choices: a, b"),
        (ROW | {"choices": ["a"], "answer": "a"}, "got 1 choices; wanted 2 to 26"),
        (ROW | {"answer": float("inf")}, "got the answer or choice inf; wanted a text or a number"),
        (ROW | {"answer": True}, "got the answer or choice True; wanted a text or a number"),
        (ROW | {"answer": [{"text": "a"}]}, "got the answer or choice {'text': 'a'}; wanted a text"),
        (ROW | {"choices": "ab", "answer": "a"}, "got the choices 'ab'; wanted a list"),
        (ROW | {"image": 3}, "wanted paths in 'image' and a text in 'question'"),
        (3, "got a int; wanted an object"),
    ],
)
def test_a_malformed_row_is_one_line_that_names_it(row, message, rows):
    done = run(str(rows(row)), "--model", "none")
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1, done.output
    last_error(done.output, message)


@pytest.mark.parametrize(
    "row",
    [
        {f"key{number}": "?" for number in range(500)},
        ROW | {"answer": {"k": "v" * 2000}},
        ROW | {"answer": "a", "choices": "v" * 2000},
        ROW | {"answer": "v" * 2000, "choices": ["w" * 2000, "x" * 2000]},
        ROW | {"type": ["v" * 2000]},
    ],
    ids=["keys", "answer", "choices", "answer of choices", "type"],
)
def test_a_long_value_of_a_malformed_row_is_cut_in_its_message(row, rows):
    file = rows(row)
    with pytest.raises(ValueError, match="row 1: ") as raised:
        read_questions(file)
    assert len(str(raised.value)) - len(str(file)) < 300


def test_bad_arguments_are_one_line(rows, model):
    for words, message in [
        (["scenes:held-out?count=none"], "'count=none' does not fit; wanted scenes:SPLIT?count=N"),
        (["missing.jsonl"], "there is no file 'missing.jsonl'"),
        ([str(rows())], "holds no question"),
        ([str(rows(ROW)), "--prompt", "say"], "put {} where the question goes"),
        ([str(rows(ROW | {"image": "none.png"})), "--model", model], "the pictures of none of 1 questions can be read"),
        ([str(rows(ROW)), "--answers", "nowhere/answers.jsonl"], "nowhere to write answers.jsonl into; make it first"),
        ([str(rows(ROW)), "--device", "cuda:99", "--model", model], "got the device 'cuda:99'"),
    ]:
        done = run(*words)
        assert done.exit_code == 1 and message in done.output, done.output


def test_a_question_without_room_for_an_answer_is_named_before_any_is_answered(rows, tmp_path, monkeypatch):
    long = ROW | {"question": "red " * 600, "id": 7}
    monkeypatch.setattr(TokLIPForConditionalGeneration, "generate", lambda *args, **options: 1 / 0)
    with pytest.raises(ContextError, match=r"row 2 [(]id 7[)]: got a prompt of .* leave the question out"):
        evaluate_vqa("toklip-mllm-tiny", rows(ROW, long))


def test_no_questions_give_no_answers_and_their_figures_are_refused():
    assert [*answer_questions(*shared(), [], [])] == []
    with pytest.raises(ValueError, match="got no answers; POPE's figures need at least one"):
        yes_no([], [])


def test_a_choice_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="got the choice nan; wanted a text or a number"):
        to_text(float("nan"), "choice")


def test_the_first_choice_is_no_free_answer_of_nought():
    free, chosen = question("0"), question("a", choices=("a", "b"))
    assert report_answers([VQAAnswer(free, "0"), VQAAnswer(chosen, "A")]).by_type["all"].prior == 0.5


def test_yes_with_a_full_stop_is_a_yes():
    report = report_answers([VQAAnswer(question("Yes."), "yes")])
    assert report.yes_no is not None and report.yes_no.accuracy == 1
