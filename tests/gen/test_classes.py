"""Classes: one order for folders and stores, printed and saved names, and drawing by name."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_gen.generator import ClassCondition, Classes, PictureGenerator, load_generator
from toklip_gen.training import GeneratorSamples, train_generator

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.generator_runs import SIZE, config, values
from tests.support.mean_colour import mean_colour
from tests.support.small_generators import small_generator

pytestmark = pytest.mark.usefixtures("toy")


def pictures(folder, *places):
    for number, place in enumerate(places):
        path = folder / place / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return folder


def encoded(*folders, into):
    encode_with(list(folders), into, tokenizer="mean-colour", image_size=SIZE)
    return {"kind": "store", "store": str(into)}


def folder_of(folder):
    return {"kind": "classes", "folder": str(folder)}


def samples(tmp_path, sources, classes, **condition):
    setting = {"kind": "class", "classes": classes, **condition}
    return GeneratorSamples(config(values(tmp_path, data=sources, condition=setting, held_out={})))


NESTED = ["cat/train", "cat/val", "dog/train", "dog/val"]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (NESTED, ["cat", "dog"]),
        (["cat", "dog"], ["cat", "dog"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["a_z", "aZ", "b/c/d"], ["aZ", "a z", "b"]),
        (["cat/train", "dog"], ["cat", "dog"]),
    ],
    ids=["nested", "flat", "numbers", "spaces", "uneven"],
)
def test_a_folder_and_a_store_of_it_have_the_same_classes(places, names, tmp_path):
    folder = pictures(tmp_path / "cats", *places)
    of_store = samples(tmp_path, [encoded(folder, into=tmp_path / "store")], len(names))
    of_folder = samples(tmp_path, [folder_of(folder)], len(names))
    assert list(of_store.classes) == list(of_folder.classes) == names
    labels = [[each[0, i]["label"] for i in range(len(each))] for each in (of_store, of_folder)]
    assert sorted(labels[0]) == sorted(labels[1]) and set(labels[0]) == {*range(len(names))}


def tar_of(path, *places):
    """Write a tar of pictures in these folders of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, place in enumerate(places):
            data = io.BytesIO()
            picture(number).save(data, "PNG")
            member = tarfile.TarInfo(f"{place}/{number}.png")
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))


def test_a_tar_is_no_class_in_a_folder_and_in_a_store_of_it(tmp_path):
    folder = pictures(tmp_path / "cats", "a")
    tar_of(folder / "c/x.tar", ".", "deep")
    of_store = samples(tmp_path, [encoded(folder, into=tmp_path / "store")], 2)
    assert list(of_store.classes) == list(samples(tmp_path, [folder_of(folder)], 2).classes) == ["a", "c"]
    tar_of(folder / "b.tar", ".")
    assert list(samples(tmp_path, [folder_of(folder)], 2).classes) == ["a", "c"]
    with pytest.raises(ValueError, match=r"cats/b.tar/0.png' of .*more lies in no folder of a class; encode FOLDER"):
        samples(tmp_path, [encoded(folder, into=tmp_path / "more")], 2)


def test_folders_in_tars_are_classes_of_a_store_whichever_tar_they_are_in(tmp_path):
    tar_of(tmp_path / "shards/0.tar", "cat", "dog")
    tar_of(tmp_path / "shards/1.tar", "dog", "red_fox")
    found = samples(tmp_path, [encoded(tmp_path / "shards", into=tmp_path / "store")], 3)
    assert list(found.classes) == ["cat", "dog", "red fox"]


def test_a_store_of_one_class_in_a_tar_has_the_class_of_the_folder(tmp_path):
    tar_of(tmp_path / "cats/cat/0.tar", ".", ".")
    store = encoded(tmp_path / "cats", into=tmp_path / "store")
    assert list(samples(tmp_path, [store], 1).classes) == ["cat"]
    assert list(samples(tmp_path, [folder_of(tmp_path / "cats")], 1).classes) == ["cat"]


def test_several_folders_share_one_mapping(tmp_path):
    one, other = pictures(tmp_path / "one", "cat", "dog"), pictures(tmp_path / "other", "bird", "cat")
    found = samples(tmp_path, [folder_of(one), folder_of(other)], 3)
    assert found.classes == {"bird": 0, "cat": 1, "dog": 2}
    assert [found[0, i]["label"] for i in range(4)] == [1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"one, .*other: 3 classes \(such as bird, cat, dog\), but .* is 2"):
        samples(tmp_path, [folder_of(one), folder_of(other)], 2)


def test_the_settings_may_say_which_class_is_which(tmp_path):
    folder = pictures(tmp_path / "cats", *NESTED)
    found = samples(tmp_path, [folder_of(folder)], 2, names=["dog", "cat"])
    assert found.classes == {"dog": 0, "cat": 1} and found[0, 0]["label"] == 1
    with pytest.raises(ValueError, match=r"the class 'cow' is in the data or in condition.names, and not in both"):
        samples(tmp_path, [folder_of(folder)], 2, names=["cat", "cow"])
    with pytest.raises(ValueError, match="got 1 names of 2 classes; wanted another name for each"):
        samples(tmp_path, [folder_of(folder)], 2, names=["cat"])


def test_a_picture_beside_the_folders_of_classes_is_named(tmp_path):
    folder = pictures(tmp_path / "cats", "cat", "dog", ".")
    with pytest.raises(ValueError, match=r"cats/2.png' of .*store lies in no folder of a class; encode FOLDER/CLASS"):
        samples(tmp_path, [encoded(folder, into=tmp_path / "store")], 2)


def test_names_are_printed_and_saved_with_the_run_and_the_model(tmp_path, capsys):
    store = encoded(pictures(tmp_path / "cats", *NESTED), into=tmp_path / "store")
    held_out = encoded(pictures(tmp_path / "others", "dog/val", "dog/test", "cat"), into=tmp_path / "held")
    setting = {"kind": "class", "classes": 2}
    stored = {"store": held_out["store"]}
    given = values(tmp_path, data=[store], condition=setting, held_out=stored, sampling={"prompts": ["dog"]})
    given["run"] |= {"steps": 1}
    train_generator(config(given), tmp_path / "run")
    assert capsys.readouterr().err.startswith("classes: 0 cat, 1 dog\n")
    for file in ("run.json", "model/config.json"):
        assert json.loads((tmp_path / "run" / file).read_text())["condition"]["names"] == ["cat", "dog"]
    done = generate("--class", "dog", "--class", "0", "--model", tmp_path / "run/model", "--out", tmp_path / "x.png")
    assert done.exit_code == 0, done.output


def generate(*words):
    return CliRunner().invoke(cli, ["generate", "--device", "cpu", *map(str, words)])


NAMES = ("cat", "dog", "red fox", "cow", "3")


@pytest.fixture
def named(tmp_path):
    generator = small_generator()
    condition = ClassCondition(classes=5, names=NAMES)
    generator.config = generator.config.model_copy(update={"condition": condition})
    PictureGenerator(generator, tokenizer=mean_colour()).save(tmp_path / "named")
    return tmp_path / "named"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("dog", 1), ("red fox", 2), ("red_fox", 2)])
def test_a_class_is_drawn_by_its_name_as_by_its_number(name, number, named, tmp_path):
    for one in (name, number):
        done = generate("--class", one, "--model", named, "--out", tmp_path / f"{one}.png")
        assert done.exit_code == 0, done.output
    assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / f"{number}.png").read_bytes()
    pictures = load_generator(named)
    assert (pictures.draw([name], seeds=[0]).ids == pictures.draw([number], seeds=[0]).ids).all()


def test_a_number_is_a_number_whatever_the_names_are(named):
    classes = Classes(load_generator(named).config.condition)
    assert classes([3, "3"]).values.tolist() == [3, 4]


def test_a_number_that_is_the_name_of_another_class_is_said(named, tmp_path, caplog):
    assert generate("--class", "3", "--model", named, "--out", tmp_path / "x.png").exit_code == 0
    assert caplog.messages == ["class 3 is drawn, which is named 'cow'; the class that is named '3' is number 4"]


def test_a_name_that_is_none_shows_those_that_are(named, tmp_path):
    done = generate("--class", "dig", "--model", named, "--out", tmp_path / "new")
    assert done.exit_code == 1 and not (tmp_path / "new").exists()
    assert "got 'dig', but the generator draws classes, not texts: dog, ..., or numbers from 0 to 4" in done.stderr


def test_a_model_of_before_has_numbers_alone(named, tmp_path):
    file = Path(named, "config.json")
    old = json.loads(file.read_text())
    del old["condition"]["names"]
    file.write_text(json.dumps(old))
    assert generate("--class", "1", "--model", named, "--out", tmp_path / "x.png").exit_code == 0
    assert "numbers from 0 to 4" in generate("--class", "dog", "--model", named, "--out", tmp_path / "x.png").stderr


def test_a_name_is_no_text():
    done = generate("--class", "red", "--model", "toklip-gen-tiny")
    assert done.exit_code == 1 and "got the class 'red', but the generator draws texts, not classes" in done.stderr
