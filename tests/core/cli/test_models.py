"""The commands that use a model, as they are typed: their output, and the one line if they fail."""

import json
import math

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.model import TokLIP, official_name
from toklip_core.plugins import Registry
from toklip_core.weights import weights_checksum

from tests.support.mean_colour import MeanColour
from tests.support.refusals import last_error, refused
from tests.support.small_models import small_toklip, toklip_config, words


@pytest.fixture
def saved(toy, tmp_path):
    """The folder of a small TokLIP, for --model."""
    model = small_toklip()
    model.logit_scale.data.fill_(math.log(20.0))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def official(tmp_path):
    """A file of the official layout, its config, and the tokenizer of its texts."""
    tensors = {official_name(name): tensor for name, tensor in small_toklip().state_dict().items()}
    tensors["visual.trunk.vq.levels"] = MeanColour().levels
    torch.save({"state_dict": {f"module.{name}": x for name, x in tensors.items()}, "epoch": 3}, tmp_path / "small.pt")
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, **toklip_config().model_dump(mode="json")}))
    (tmp_path / "words.json").write_text(words())
    return tmp_path / "small.pt"


def toklip(*arguments, status=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def width(file):
    with Image.open(file) as image:
        return image.width


def data(*arguments):
    return json.loads(toklip(*arguments, "--json").stdout)


def test_models_are_listed_with_size_source_licence_and_whether_they_are_cached(monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: asked.append(a) or ("S" in a[1] and "x"))
    rows = {row["name"]: row for row in data("models")}
    ours = [name for name, row in rows.items() if row["kind"] == "TokLIP"]
    assert ours == ["toklip-tiny", "toklip-s-256", "toklip-l-384", "toklip-xl-512"]
    assert asked[0] == ("TencentARC/TokLIP", "TokLIP_S_256.pt")
    small = rows["toklip-s-256"]
    assert (small["aliases"], small["status"], small["image_size"]) == (["toklip-b-256"], "cached", 256)
    assert (rows["toklip-l-384"]["status"], rows["toklip-l-384"]["tokens"]) == ("not cached", 576)
    text = toklip("models").stdout
    assert "8.3 GB, cached; TencentARC/TokLIP/TokLIP_S_256.pt" in text
    assert "TencentARC's own for research" in text


def test_models_of_plugins_are_those_of_the_registry_that_the_caller_gives():
    result = CliRunner().invoke(cli, ["models", "--json"], obj=Registry((), {}))
    assert {row["kind"] for row in json.loads(result.stdout)} == {"TokLIP", "CLIP"}


def test_convert_makes_a_folder_that_loads_as_the_file_did(toy, official, tmp_path):
    out = tmp_path / "out"
    options = ["--config", tmp_path / "config.json", "--text-tokenizer", tmp_path / "words.json"]
    made = data("convert", official, out, *options)
    assert made["missing"] == []
    assert set(made["files"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.safetensors"}
    loaded, model = TokLIP.from_pretrained(out), small_toklip()
    assert_equal(loaded.text_features(["a red circle"]), model.text_features(["a red circle"]))
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert_equal(loaded.image_features(pixels), model.image_features(pixels))


def test_convert_refuses_a_config_for_a_folder_which_has_one(saved, tmp_path):
    (tmp_path / "other.json").write_text((saved / "config.json").read_text())
    result = toklip("convert", saved, tmp_path / "out", "--config", tmp_path / "other.json", status=1)
    refused(result, f"{str(saved)!r} is a model folder with a config of its own; leave out the other")
    assert not (tmp_path / "out").exists()


def test_convert_says_that_the_text_tokenizer_is_missing(toy, official, tmp_path):
    result = toklip("convert", official, tmp_path / "out", "--config", tmp_path / "config.json")
    assert "model.safetensors" in result.stdout
    assert "Missing: " in result.stderr and "texts cannot be read" in result.stderr


def test_classify_prints_the_labels_of_each_picture_best_first(saved, photos):
    labels = "red circle,blue square,green star"
    rows = data("classify", photos / "a.jpg", photos / "b.png", "--labels", labels, "--model", saved)["pictures"]
    assert [row["picture"] for row in rows] == [str(photos / "a.jpg"), str(photos / "b.png")]
    for row in rows:
        shares = [label["probability"] for label in row["labels"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
    result = toklip("classify", photos / "a.jpg", "--labels", labels, "--model", saved, "--top", 1)
    best = rows[0]["labels"][0]
    assert result.stdout == f"{photos / 'a.jpg'}\n  {best['probability']:7.2%}  {best['label']}\n"
    assert "softmax over 3 labels of 20 x cosine" in result.stderr


def test_classify_names_what_it_cannot_read_and_goes_on(saved, photos):
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    result = toklip("classify", photos, "--labels", "red,blue", "--model", saved)
    assert f"cannot be read: {photos / 'cut.jpg'}: " in result.stderr
    assert str(photos / "deep" / "d.jpg") in result.stdout


def test_explain_writes_a_picture(saved, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = toklip("explain", photos / "a.jpg", "a red circle", "--model", saved)
    assert result.stderr.endswith("written: a-explained.png\n")
    assert width("a-explained.png") > 1000
    toklip("explain", photos / "a.jpg", "a red circle", "a star", "--relative", "--out", "other.jpg", "--model", saved)
    assert width("other.jpg") > 1500
    result = toklip("explain", "scenes:held-out?count=1&seed=7", "a star", "--model", saved)
    assert result.stderr.endswith("written: scenes-held-out,seed=7-000000-explained.png\n")


def test_words_without_quotes_are_noted_or_refused(saved, photos):
    done = toklip("explain", photos / "a.jpg", "red", "circle", "--json", "--model", saved)
    assert "read 2 texts of one word each" in done.stderr and "toklip explain PICTURE 'red circle'" in done.stderr
    done = CliRunner().invoke(cli, ["search", str(photos), "a", "blue", "star", "--model", saved])
    refused(done, "a is not there", 'quote the text: toklip search WHERE "a blue star"')


def test_explain_gives_the_grid_as_data_and_writes_nothing_unasked(saved, photos, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    found = data("explain", photos / "a.jpg", "a red circle", "--model", saved)
    assert len(found["texts"][0]["tokens"]) == 8
    assert list((tmp_path / "empty").iterdir()) == []


def test_zero_shot_is_measured_on_a_folder_of_classes(saved, photos, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "x.jpg").write_bytes((photos / "a.jpg").read_bytes())
    report = data("evaluate", "zero-shot", tmp_path / "classes", "--template", "a {}", "--model", saved)
    assert report["top1"] == 0.5
    assert report["protocol"]["templates"] == "a {}"
    assert report["protocol"]["inputs"] == str(tmp_path / "classes")
    text = toklip("evaluate", "zero-shot", tmp_path / "classes", "--model", saved).stdout
    assert text.startswith("top-1  50.00%   (chance 50.00%)\ntop-5  100.00%  (chance 100.00%)\n")


def test_retrieval_is_measured_on_a_file_of_captions(saved, photos, tmp_path):
    named = {"a.jpg": "red", "b.png": "blue"}
    rows = [{"image": name, "captions": ["a circle", f"a {word} star"]} for name, word in named.items()]
    (photos / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = data("evaluate", "retrieval", photos / "pairs.jsonl", "--model", saved)
    assert report["image_to_text"]["R@5"] == 1
    assert (report["protocol"]["pictures"], report["protocol"]["captions"]) == (2, 4)
    assert "text to image" in toklip("evaluate", "retrieval", "scenes:held-out?count=3", "--model", saved).stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["classify", "absent.png", "--labels", "red"], "there is no file or folder 'absent.png'"),
        (["classify", "a.jpg"], "and not both (--labels, --labels-file)"),
        (["classify", "a.jpg", "--labels", ","], "none of them empty"),
        (["classify", "a.jpg", "--labels", "red,red"], "the label 'red' occurs twice"),
        (["classify", "a.jpg", "--labels-file", "absent.txt"], "absent.txt"),
        (["classify", "a.jpg", "--labels", "red", "--model", "toklip-l-38"], "Did you mean 'toklip-l-384'?"),
        (["classify", "cut.jpg", "--labels", "red"], "none of 1 pictures can be read; the first is cut.jpg"),
        (["explain", "cut.jpg", "a star"], "cut.jpg: "),
        (["explain", "scenes:held-out", "a star"], "scenes:held-out: it names 100 scenes; wanted one picture"),
        (["explain", "a.jpg", "a star", "--out", "x.gif"], "got --out x.gif; wanted a name that ends in .png"),
        (["explain", "a.jpg", "a star", "--out", "absent/x.png"], "there is no folder"),
        (["evaluate", "zero-shot", "absent"], "absent is not a folder"),
        (["evaluate", "zero-shot", ".", "--imagenet"], "wanted ImageNet's 1000"),
        (["evaluate", "zero-shot", "scenes:held-out?count=3", "--imagenet"], "got ImageNet's names for scenes"),
        (["evaluate", "zero-shot", "scenes:held-out?count=3"], "name some of one object: scenes:SPLIT?objects=1"),
        (["evaluate", "retrieval", "absent.jsonl"], "absent.jsonl"),
        (["convert", "absent.pt", "out"], "absent.pt"),
        (["convert", "a.jpg", "model"], "is a model folder already"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(saved, photos, monkeypatch, arguments, line):
    monkeypatch.chdir(photos)
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    (photos / "model").symlink_to(saved)
    if "--model" not in arguments and arguments[0] != "convert":
        arguments = [*arguments, "--model", "model"]
    last = last_error(toklip(*arguments, status=1).stderr)
    assert line in last


def test_a_model_without_a_text_tokenizer_says_what_to_put_where(saved, photos):
    (saved / "tokenizer.json").unlink()
    measured = ["evaluate", "zero-shot", "scenes:held-out?objects=1"]
    for arguments in (["classify", photos / "a.jpg", "--labels", "red"], measured):
        result = toklip(*arguments, "--model", saved, status=1)
        assert "the text tokenizer is missing: put its tokenizer.json beside the weights" in result.stderr


def test_an_answer_waits_for_no_checksum_of_the_whole_model_and_an_evaluation_reports_it(saved, photos, monkeypatch):
    hashed = []

    def counted(weights):
        hashed.append(weights)
        return weights_checksum(weights)

    monkeypatch.setattr("toklip_core.evaluation.matcher.weights_checksum", counted)
    photo = photos / "a.jpg"
    for asked in (["classify", "--labels", "red,blue", photo], ["explain", photo, "a star"]):
        report = data(*asked, "--model", saved)
        assert report["protocol"]["model"] == str(saved)
    data("search", photos, "a star", "--model", saved)
    assert not hashed
    scenes = "scenes:held-out?count=2&objects=1"
    report = data("evaluate", "zero-shot", scenes, "--model", saved)
    assert len(hashed) == 1 and report["protocol"]["weights"] == f"sha256 {weights_checksum(hashed[0])}"
    assert report["protocol"]["tokenizer"] == f"mean-colour, sha256 {weights_checksum(MeanColour())}"


def test_features_that_are_no_numbers_are_named_with_the_first_picture(saved, photos):
    """The weights are numbers, and what is made of them is too large for one."""
    model = TokLIP.from_pretrained(saved)
    model.encoder.norm.weight.data.fill_(3e38)
    model.save_pretrained(saved)
    result = toklip("classify", photos / "a.jpg", "--labels", "red", "--model", saved, status=1)
    assert f"the model's feature of '{photos / 'a.jpg'}' is not finite" in result.stderr
