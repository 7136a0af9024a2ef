"""Zero-shot classification: parity with open_clip, laws of the figures, folders, templates and labels."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from PIL import Image
from toklip_core.config import Compute
from toklip_core.evaluation import (
    class_features,
    class_folders,
    classify_pictures,
    described_templates,
    evaluate_zero_shot,
    known_templates,
    measure_zero_shot,
    read_labels,
)
from toklip_core.pictures import LabelledPictures, LazyPicture, labelled_scenes, open_picture, to_pixels
from toklip_core.scenes import CLASSES, Scenes

from tests.support.small_models import small_clip, small_toklip

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


class Eyes:
    """A model that is right: the mean colour of a picture, and that of the word for it."""

    config = SimpleNamespace(image_size=8, resize="crop")
    logit_scale = torch.tensor(math.log(5.0))

    def image_features(self, pixels):
        return F.normalize(pixels.mean((2, 3)), dim=-1)

    def text_features(self, texts):
        colours = [next(colour for word, colour in COLOURS.items() if word in text) for text in texts]
        return F.normalize(torch.tensor(colours) / 127.5 - 1, dim=-1)


class Blind(Eyes):
    """All texts are one to it."""

    def text_features(self, texts):
        return torch.ones(len(texts), 3)


def plain(colour):
    return LazyPicture(colour, lambda: Image.new("RGB", (9, 9), COLOURS[colour]))


def coloured(names=tuple(COLOURS), shown=tuple(COLOURS)):
    return LabelledPictures(names, [plain(colour) for colour in shown], [names.index(colour) for colour in shown])


def folder_of_colours(path, *colours):
    for colour in colours:
        (path / colour).mkdir(parents=True)
        Image.new("RGB", (40, 32), COLOURS[colour.split("_")[-1]]).save(path / colour / f"{colour}.jpg")
    return path


def test_class_features_are_those_of_open_clip():
    model = small_toklip()
    adapter = SimpleNamespace(encode_text=lambda ids, normalize: F.normalize(model.text(ids), dim=-1))
    names, templates = [f"a {name}" for name in CLASSES[:9]], ["{}", "a photo of {}", "a small {}"]
    theirs = build_zero_shot_classifier(adapter, model.text.tokenizer, names, templates, num_classes_per_batch=4)
    torch.testing.assert_close(class_features(model, names, templates), theirs.T, rtol=0, atol=1e-6)


def test_a_model_that_is_right_is_always_right():
    report = measure_zero_shot(Eyes(), coloured(), ["a photo of a {}."])
    assert (report.top1, report.top5) == (1, 1)


def test_a_model_that_scores_all_alike_is_right_as_often_as_chance():
    names = tuple(f"{colour} {i}" for i in range(4) for colour in COLOURS)
    labelled = LabelledPictures(names, [plain(colour) for colour in COLOURS], [0, 7, 3, 19, 12])
    report = measure_zero_shot(Blind(), labelled, ["{}"])
    assert (report.top1, report.top5) == (pytest.approx(1 / 20), pytest.approx(5 / 20))
    assert (report.chance_top1, report.chance_top5) == (1 / 20, 5 / 20)


def test_of_two_classes_with_one_name_each_counts_half():
    names = ("red", "green", "blue", "red")
    labelled = LabelledPictures(names, [plain("red"), plain("green")], [3, 1])
    assert measure_zero_shot(Eyes(), labelled, ["{}"]).top1 == 0.75


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_no_figure(batch_size):
    labelled = labelled_scenes(Scenes(12, size=32, objects=1))
    one, other = (
        measure_zero_shot(small_toklip(), labelled, ["{}"], Compute(batch_size=size)) for size in (batch_size, 12)
    )
    assert one == other


def test_a_teacher_and_its_student_are_measured_alike(toy, tmp_path):
    for model in (small_toklip(), small_clip()):
        path = tmp_path / type(model).__name__
        model.save_pretrained(path)
        report = evaluate_zero_shot(path, "scenes:validation?count=10&size=32&objects=1")
        scenes = Scenes(10, split="validation", size=32, objects=1)
        pixels = torch.stack([to_pixels(Image.fromarray(scene.rgb), 32) for scene in scenes])
        names = [f"an {name}" if name.startswith("orange") else f"a {name}" for name in CLASSES]
        scores = model.image_features(pixels) @ model.text_features(names).T
        labels = torch.tensor([scene.label for scene in scenes])
        assert report.top1 == (scores.argmax(1) == labels).double().mean()
        assert report.top5 == (scores.topk(5).indices == labels[:, None]).any(1).double().mean()
        assert report.protocol["model"] == str(path)
        assert report.protocol["inputs"] == "scenes:validation?count=10&size=32&objects=1"
        assert (report.protocol["pictures"], report.protocol["classes"]) == (10, 64)
        assert ("tokenizer" in report.protocol) == (path.name == "TokLIP")


def test_a_report_holds_figures_chance_and_protocol_as_data_and_as_text():
    report = measure_zero_shot(Eyes(), coloured(shown=("red", "blue")), ["a {}", "the {}"])
    data = json.loads(json.dumps(report.as_json()))
    assert (data["top1"], data["chance_top1"], data["protocol"]["templates"]) == (1, 0.2, "a {} | the {}")
    text = report.as_text()
    assert text.startswith("top-1  100.00%  (chance 20.00%)\ntop-5  100.00%  (chance 100.00%)\n\nProtocol\n")
    assert all(str(line) in text for line in report.protocol.values())


def test_pictures_that_cannot_be_read_are_named_and_in_no_figure(tmp_path):
    folder = folder_of_colours(tmp_path, "red", "blue")
    whole = (folder / "red" / "red.jpg").read_bytes()
    (folder / "blue" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    report = measure_zero_shot(Eyes(), class_folders(folder), ["{}"])
    assert report.protocol["pictures"] == 2
    assert [line.split(": ")[0] for line in report.unreadable] == [str(folder / "blue" / "cut.jpg")]


def test_a_class_is_named_after_its_folder_and_may_be_empty(tmp_path):
    folder = folder_of_colours(tmp_path, "light_red", "blue")
    (folder / "green").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("not a class")
    names, pictures, labels = class_folders(folder)
    assert names == ["blue", "green", "light red"]
    assert [picture.name for picture in pictures] == [
        str(folder / "blue" / "blue.jpg"),
        str(folder / "light_red" / "light_red.jpg"),
    ]
    assert labels == [0, 2]


@pytest.mark.parametrize(
    "name", [lambda i: f"n{10_000_000 + i}", str, lambda i: f"{i:04d}"], ids=["synsets", "numbers", "padded"]
)
def test_the_folders_of_imagenet_have_the_names_of_open_clip_in_their_order(tmp_path, name):
    for i in range(1000):
        (tmp_path / name(i)).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / name(207) / "dog.png")
    names, _, labels = class_folders(tmp_path, imagenet=True)
    assert names == list(IMAGENET_CLASSNAMES)
    assert [names[label] for label in labels] == ["Golden Retriever"]


@pytest.mark.parametrize(("count", "first", "problem"), [(999, "0", "has 999 folders"), (1000, "dog", "such as 'dog'")])
def test_other_folders_than_those_of_imagenet_are_refused(tmp_path, count, first, problem):
    for i in range(1, count):
        (tmp_path / str(i)).mkdir()
    (tmp_path / first).mkdir()
    with pytest.raises(ValueError, match=f"{problem}.*; wanted ImageNet's 1000, named n01440764 and so on, or 0 to"):
        class_folders(tmp_path, imagenet=True)


def test_two_folders_of_one_name_are_refused(tmp_path):
    for name in ("light_red", "light red"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="the class 'light red' occurs twice"):
        class_folders(tmp_path)


def test_a_folder_without_classes_or_without_pictures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        class_folders(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="has no folders; wanted one for each class"):
        class_folders(tmp_path)
    (tmp_path / "red").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in any of the 1 folders"):
        class_folders(tmp_path)


def test_the_names_of_the_template_sets_stand_for_those_of_open_clip():
    assert known_templates(["openai"]) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert known_templates(["a {}", "simple"]) == ["a {}", *(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)]
    assert described_templates(known_templates(["openai"])) == "openai, the 80 of open_clip"
    assert described_templates(["a {}", "the {}"]) == "a {} | the {}"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["a photo"], r"got the template 'a photo'; wanted a text with \{\} where the name goes"),
        (["a {}", "a {}"], r"the template 'a \{\}' occurs twice"),
    ],
)
def test_a_template_without_a_place_for_the_name_or_given_twice_is_refused(given, problem):
    with pytest.raises(ValueError, match=problem):
        known_templates(given)


def test_labels_come_from_a_line_or_from_a_file(tmp_path):
    assert read_labels("red circle, blue square", None) == ["red circle", "blue square"]
    (tmp_path / "labels.txt").write_text("\ufeffred, or orange\n\n blue \n", "utf-8")
    assert read_labels(None, tmp_path / "labels.txt") == ["red, or orange", "blue"]


@pytest.mark.parametrize(
    ("labels", "content", "problem"),
    [
        (None, None, "name the labels, or a file"),
        ("red", "red", "name the labels, or a file"),
        ("", None, "wanted one label or more, and none of them empty"),
        ("red,,blue", None, "none of them empty"),
        ("red,blue,red", None, "the label 'red' occurs twice"),
        (None, "\n\n", "has no label; wanted one in each line"),
        (None, "red\nred\n", "the label 'red' occurs twice"),
        (None, b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_labels_that_are_none_or_alike_are_refused(tmp_path, labels, content, problem):
    file = None if content is None else tmp_path / "labels.txt"
    if file:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=problem):
        read_labels(labels, file)


@pytest.mark.parametrize(("colours", "named"), [(99, None), (20, ("w 20", "w 21")), (8, ("w 8", "w 9"))])
def test_the_first_two_labels_that_are_one_to_the_model_are_named_without_comparing_each_pair(
    monkeypatch, photos, colours, named
):
    """Labels are compared five at a time; a later pair is alike, too."""

    class Names(Eyes):
        def text_features(self, texts):
            return F.normalize(torch.tensor([[1.0, min(int(text.split()[1]), colours), 0.0] for text in texts]), dim=-1)

    monkeypatch.setattr("toklip_core.evaluation.zero_shot._COMPARED", 5)
    monkeypatch.setattr("toklip_core.evaluation.zero_shot.load_matcher", lambda *_: (Names(), {}))
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: pytest.fail("a pair was compared"))
    labels = [f"w {number}" for number in range(30)]
    if named is None:
        assert len(classify_pictures("names", [photos / "a.jpg"], labels).pictures) == 1
    else:
        with pytest.raises(ValueError, match="the model reads {!r} and {!r} alike; give labels".format(*named)):
            classify_pictures("names", [photos / "a.jpg"], labels)


def test_probabilities_are_a_softmax_with_the_models_own_scale(toy, tmp_path, photos):
    model = small_toklip()
    model.logit_scale.data.fill_(math.log(7.0))
    model.save_pretrained(tmp_path / "model")
    labels = ["red circle", "blue square", "green star", "pink heart"]
    found = classify_pictures(tmp_path / "model", [photos / "a.jpg", photos / "b.png"], labels, top=3)
    assert list(found.pictures) == [str(photos / "a.jpg"), str(photos / "b.png")]
    for path, guesses in found.pictures.items():
        cosines = model.image_features(to_pixels(open_picture(path), 32)[None]) @ model.text_features(labels).T
        shares = (7 * cosines[0]).softmax(0)
        assert [guess.label for guess in guesses] == [labels[i] for i in shares.argsort(descending=True)[:3]]
        assert [guess.probability for guess in guesses] == pytest.approx(sorted(shares.tolist())[:0:-1], rel=1e-5)
        assert [guess.cosine for guess in guesses] == pytest.approx(sorted(cosines[0].tolist())[:0:-1], rel=1e-4)
    assert found.protocol["probability"] == "softmax over 4 labels of 7 x cosine"


def test_a_model_of_scenes_says_so_of_a_picture_that_is_none(tmp_path, caplog):
    """Scenes may be drawn at any size, and the picture need not be the first."""
    for name, side in (("photograph.png", 65), ("icon.png", 40)):
        Image.new("RGB", (side, 40), "red").save(tmp_path / name)
    scenes, icon, photograph = "scenes:train?count=1&size=128", tmp_path / "icon.png", tmp_path / "photograph.png"
    for pictures, times in (([scenes, icon], 0), ([icon, photograph, photograph], 1)):
        caplog.clear()
        classify_pictures("toklip-tiny", pictures, ["a red circle", "a blue square"])
        assert caplog.text.count("toklip-tiny knows drawn scenes of coloured shapes and nothing else") == times
