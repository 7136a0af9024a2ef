"""Training data of a generator: views, classes, captions, their order, and refused data."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toklip_core.pictures import UPRIGHT
from toklip_core.scenes import CLASSES, Scenes, scene
from toklip_core.store import TokenStore
from toklip_gen.training import GeneratorSamples, held_out_prompts, load_networks

from tests.core.conftest import picture
from tests.support.encoding import encode_with
from tests.support.generator_runs import concat, config, encode, store, values
from tests.support.small_models import SIZE


def test_views_are_drawn_anew_in_each_epoch_and_are_those_of_the_store(world):
    samples = GeneratorSamples(config(values(world)))
    stored = TokenStore(world / "crops")
    drawn = [samples[epoch, 5]["ids"] for epoch in range(30)]
    views = stored[5].crops
    found = [next(i for i, view in enumerate(views) if torch.equal(view, ids)) for ids in drawn]
    assert len(set(found)) > 8 and max(found) > 9
    assert torch.equal(samples[3, 5]["ids"], GeneratorSamples(config(values(world)))[3, 5]["ids"])


def test_of_captioned_pictures_no_mirrored_view_is_drawn(world):
    samples = GeneratorSamples(config(concat(world)))
    views = TokenStore(world / "crops")[0].crops
    upright = [views[view] for view in UPRIGHT]
    for epoch in range(12):
        sample = samples[epoch, 0]
        assert any(torch.equal(sample["ids"], view) for view in upright) and sample["caption"] == "a red circle"


def test_without_crops_the_whole_square_is_read(world):
    rows = list(TokenStore(world / "store"))
    for source in (store(world, "store"), store(world) | {"crops": False}):
        samples = GeneratorSamples(config(values(world, data=[source])))
        assert torch.equal(samples[4, 7]["ids"], rows[7].ids)


def test_the_class_of_a_stored_picture_is_its_folder(world):
    samples = GeneratorSamples(config(values(world)))
    keys = list(TokenStore(world / "crops").keys())
    assert [samples[0, i]["label"] for i in range(12)] == [int(Path(key).parent.name[-1]) for key in keys]


def test_a_share_of_the_conditions_is_dropped_the_same_for_the_same_sample(world):
    samples = GeneratorSamples(config(values(world, condition_dropout=0.25)))
    dropped = [[samples[epoch, i]["drop"] for i in range(12)] for epoch in range(60)]
    assert sum(map(sum, dropped)) / 720 == pytest.approx(0.25, abs=0.05)
    assert dropped[7] == [samples[7, i]["drop"] for i in range(12)] and dropped[7] != dropped[8]


def test_pixels_of_folders_are_cropped_and_mirrored_and_keep_their_class(world):
    folder = {"kind": "classes", "folder": str(world / "pictures")}
    samples = GeneratorSamples(config(values(world, data=[folder])))
    assert [samples[0, i]["label"] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({samples[epoch, 0]["rgb"].numpy().tobytes() for epoch in range(5)}) == 5
    assert samples[0, 0]["rgb"].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("smallest", [0.5, 1.0])
def test_crops_of_folders_have_sides_from_the_smallest_to_the_short_side(world, tmp_path, smallest):
    """A ramp of 4 levels a column: the slope of a crop says how many columns it has."""
    for name in "abc":
        (tmp_path / name).mkdir()
        ramp = np.arange(0, 4 * 2 * SIZE, 4, dtype=np.uint8)[None, :, None]
        Image.fromarray(ramp.repeat(2 * SIZE, 0).repeat(3, 2)).save(tmp_path / name / "ramp.png")
    folder = {"kind": "classes", "folder": str(tmp_path), "smallest_crop_side": smallest, "flip": False}
    samples = GeneratorSamples(config(values(world, data=[folder])))
    crops = [samples[epoch, index]["rgb"][0, 0].float() for epoch in range(20) for index in range(3)]
    sides = [((crop[-4] - crop[3]) / (SIZE - 7) / (4 * 2)).item() for crop in crops]
    assert min(sides) == pytest.approx(smallest, abs=0.05) and max(sides) == pytest.approx(1, abs=0.05)


def test_scenes_of_one_object_have_a_class(world):
    scenes = {"kind": "scenes", "count": 5, "objects": 1}
    classes = {"kind": "class", "classes": len(CLASSES)}
    sample = GeneratorSamples(config(values(world, data=[scenes], condition=classes)))[1, 2]
    assert 0 <= sample["label"] < len(CLASSES) and sample["rgb"].dtype == torch.uint8


def test_a_store_without_captions_is_refused_for_texts_in_training_and_as_held_out_data(world, tmp_path):
    (world / "pictures/class 0/00.txt").rename(tmp_path / "kept")
    try:
        encode(world, "uncaptioned")
        with pytest.raises(ValueError, match=r"1 of 12 rows of .* have no caption"):
            GeneratorSamples(config(concat(world, data=[store(world, "uncaptioned")])))
        settings = config(concat(world, held_out={"store": str(world / "uncaptioned")}))
        with pytest.raises(ValueError, match=r"1 of 12 rows of .* have no caption"):
            held_out_prompts(settings, load_networks(settings), {})
    finally:
        (tmp_path / "kept").rename(world / "pictures/class 0/00.txt")


@pytest.fixture(scope="module")
def sorted_stores(world):
    """Four classes of 16 pictures: in the order of their folders, and shuffled; 16 rows a group."""
    for number in range(64):
        path = world / f"many/{number // 16}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    settings = {"tokenizer": "mean-colour", "image_size": SIZE, "resize": "crop", "part_rows": 16, "batch_size": 16}
    for name, shuffle in (("in order", False), ("shuffled", True)):
        encode_with([world / "many"], world / name, shuffle=shuffle, **settings)
    return world


def of_four(world: Path, name: str, window: int) -> GeneratorSamples:
    found = values(world, data=[store(world, name)], condition={"kind": "class", "classes": 4})
    return GeneratorSamples(config(found), window=window)


def test_batches_of_a_shuffled_store_have_many_classes_though_a_window_is_small(sorted_stores, caplog):
    caplog.set_level(logging.WARNING)
    samples = of_four(sorted_stores, "shuffled", 16)
    order = samples.order(64, 0, 0)
    assert all(len({samples[0, int(i)]["label"] for i in batch}) >= 3 for batch in order.split(16))
    assert not caplog.records


def test_a_store_in_the_order_of_its_classes_is_warned_of(sorted_stores, caplog):
    of_four(sorted_stores, "in order", 16)
    assert "16 rows that are shuffled together have 1 classes, and 4 if" in caplog.text and "--shuffle" in caplog.text
    caplog.clear()
    of_four(sorted_stores, "in order", 64)
    assert not caplog.records


def test_rows_without_crops_are_shuffled_in_the_large_window(world):
    """crops = true is the default, whatever the store has."""
    settings = [config(values(world, data=[store(world, name)])) for name in ("store", "crops")]
    windows = [GeneratorSamples(each, window=50, window_of_crops=1)._window for each in settings]
    assert windows == [50, 1]


def test_a_source_without_crops_reads_none_beside_one_with_crops(world):
    sources = [store(world), store(world) | {"crops": False}]
    samples = GeneratorSamples(config(values(world, data=sources)))
    rows = [stored[3] for stored in samples._stores]
    assert rows[0].crops is not None and rows[1].crops is None
    assert torch.equal(samples[4, 15]["ids"], rows[1].ids)


def test_several_stores_keep_one_window_in_memory_together(sorted_stores):
    sources = [store(sorted_stores, name) for name in ("in order", "shuffled")]
    settings = values(sorted_stores, data=sources, condition={"kind": "class", "classes": 4})
    samples = GeneratorSamples(config(settings), window=32)
    for index in samples.order(128, 0, 0):
        samples[0, int(index)]
        kept = {id(stored._cache): len(stored._cache) for stored in samples._stores}
        assert sum(kept.values()) <= 2


def test_a_held_out_class_is_the_number_that_it_has_in_training(world, tmp_path):
    for name in ("class 2", "class 1"):
        path = tmp_path / "held out" / name / "x.png"
        path.parent.mkdir(parents=True)
        picture(20).save(path)
    encode_with([tmp_path / "held out"], tmp_path / "ids", tokenizer="mean-colour", image_size=SIZE)
    settings = config(values(world, held_out={"store": str(tmp_path / "ids")}))
    held_out = held_out_prompts(settings, load_networks(settings), GeneratorSamples(settings).classes)
    assert held_out.prompts == [1, 2]
    (tmp_path / "held out/class 1").rename(tmp_path / "held out/class 7")
    encode_with([tmp_path / "held out"], tmp_path / "other", tokenizer="mean-colour", image_size=SIZE)
    settings = config(values(world, held_out={"store": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match="lies in the folder 'class 7', which is not a class of the training"):
        held_out_prompts(settings, load_networks(settings), GeneratorSamples(settings).classes)


def test_held_out_scenes_have_the_numbers_that_their_classes_have_in_training(world):
    condition = {"kind": "class", "classes": len(CLASSES)}
    settings = config(values(world, condition=condition, held_out={"scenes": 4}))
    numbers = {name: number for number, name in enumerate(sorted(CLASSES))}
    held_out = held_out_prompts(settings, load_networks(settings), numbers)
    asked = [sorted(CLASSES)[prompt] for prompt in held_out.prompts]
    assert asked == [CLASSES[scene.labels[0]] for scene in Scenes(4, split="validation", size=SIZE, objects=1)]
    with pytest.raises(ValueError, match=f"a training without the class '{asked[0]}' of scenes"):
        held_out_prompts(settings, load_networks(settings), {})


def test_held_out_rows_are_evenly_chosen_from_the_first_to_the_last(world):
    settings = config(values(world, held_out={"store": str(world / "store"), "pictures": 7}))
    held_out = held_out_prompts(settings, load_networks(settings), GeneratorSamples(settings).classes)
    rows = list(TokenStore(world / "store"))
    assert torch.equal(held_out.ids, torch.stack([rows[i].ids for i in (0, 2, 4, 6, 7, 9, 11)]))


def test_scenes_of_another_number_of_classes_are_refused(world):
    scenes = {"kind": "scenes", "count": 5, "objects": 1}
    with pytest.raises(ValueError, match=r"scenes: 64 classes \(such as red circle, .*\), but condition\.classes is 3"):
        GeneratorSamples(config(values(world, data=[scenes])))


def test_scenes_have_the_background_that_is_asked_for(world):
    scenes = {"kind": "scenes", "count": 5, "objects": 1, "background": "plain"}
    classes = {"kind": "class", "classes": len(CLASSES)}
    pixels = GeneratorSamples(config(values(world, data=[scenes], condition=classes)))[0, 0]["rgb"]
    drawn = scene(0, size=SIZE, objects=1, background="plain").rgb
    assert torch.equal(pixels, torch.from_numpy(drawn.copy()).movedim(-1, 0))
