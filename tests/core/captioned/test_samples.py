"""Captioned samples depend only on (seed, epoch, index), whatever source and process they come from."""

import io
import json
import pickle
import random
import socket
import sys
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from toklip_core.captioned import CaptionedSamples, CaptionSource, collate, samples as captions
from toklip_core.pictures import open_picture, random_crop, resized
from toklip_core.scenes import Scenes, scene, write_scenes
from toklip_core.store import FeatureInfo, PartWriter, StoreInfo, TokenStore
from toklip_core.tokenizer import TokenizerRecord
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, RandomResizedCrop, functional

from tests.core.conftest import picture
from tests.support.refusals import refusing

INFO = StoreInfo(
    tokenizer=TokenizerRecord(name="mean-colour", checksum="0" * 64),
    codebook_sizes=(300,),
    grid=(8, 8),
    image_size=32,
    resize="crop",
    dtype="float32",
)
TEACHER = FeatureInfo(model="teacher", weights_checksum="1" * 64, width=6)


def source(**settings):
    return TypeAdapter(CaptionSource).validate_python(settings)


def samples(*sources, size=32, **options):
    options = {"image_size": size, "resize": "crop", "seed": 3} | options
    return CaptionedSamples([source(**each) for each in sources], **options)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) if name != "caption" else first[name] == second[name] for name in first
    )


def bytes_of(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Six pictures, four with captions; one of the four is broken, and one caption is empty."""
    path = tmp_path / "pictures"
    path.mkdir()
    for number in range(6):
        picture(number).save(path / f"{number}.png")
    for number, text in [(0, "zero"), (1, "one"), (3, "three"), (5, "")]:
        (path / f"{number}.txt").write_text(text)
    (path / "2.json").write_text('{"caption": "two"}')
    (path / "1.png").write_bytes((path / "1.png").read_bytes()[:200])
    return path


@pytest.fixture
def tar(tmp_path, folder):
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as file:
        for member in sorted(folder.iterdir()):
            file.add(member, member.name)
    return path


@pytest.fixture
def table(tmp_path, folder):
    path = tmp_path / "captions.jsonl"
    rows = [("pictures/0.png", ["zero", "nil", "none"]), ("pictures/3.png", "three")]
    path.write_text("".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in rows))
    return path


def parquet(path, rows, image):
    pictures, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": pa.array(pictures, image), "caption": list(captions)}), path)
    return path


@pytest.fixture
def rows_of_pictures(tmp_path, monkeypatch):
    """A Parquet file as the library writes one; nothing may be asked of the network."""
    connect = socket.socket.connect

    def refuse(self, address):
        assert self.family == socket.AF_UNIX, f"the network was asked: {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [({"bytes": bytes_of(picture(n)), "path": None}, ["many", f"number {n}"]) for n in range(3)]
    return parquet(tmp_path / "p.parquet", rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def stored(path, counts=(7, 4), captions=lambda n: f"caption {n}", **changes):
    """A store of one part for each count."""
    info = INFO.model_copy(update=changes)
    writer = PartWriter(path, info)
    for seed, count in enumerate(counts):
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 300, (count, 8, 8, 1), generator=draw)
        features = {"teacher": torch.randn(count, 6, generator=draw)} if info.teacher else {}
        numbers = range(sum(counts[:seed]), sum(counts[: seed + 1]))
        writer.add([str(n) for n in numbers], ids, [captions(n) for n in numbers], features)
        writer.flush()
    return path


@pytest.fixture
def every(folder, tar, table, rows_of_pictures, tmp_path):
    """Kind -> sources of it."""
    return {
        "scenes": [{"kind": "scenes", "count": 5}],
        "pictures": [{"kind": "pictures", "inputs": [str(folder), str(tar)]}],
        "table": [{"kind": "table", "table": table}],
        "dataset": [{"kind": "dataset", "files": [str(rows_of_pictures)]}],
        "store": [{"kind": "store", "store": stored(tmp_path / "store", teacher=TEACHER)}],
        "mixture": [{"kind": "scenes", "count": 2}, {"kind": "table", "table": table}, {"kind": "scenes", "count": 3}],
    }


KINDS = ["scenes", "pictures", "table", "dataset", "store", "mixture"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_function_of_epoch_and_index_alone(every, kind):
    crop = {} if kind == "store" else {"smallest_crop_area": 0.5}
    first = samples(*every[kind], **crop)
    expected = {(epoch, i): first[epoch, i] for epoch in range(2) for i in range(len(first))}
    again = pickle.loads(pickle.dumps(samples(*every[kind], **crop)))
    assert all(same(again[key], expected[key]) for key in reversed(expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_sends_what_the_process_itself_reads(every, kind):
    data = samples(*every[kind])
    keys = [[(0, 0), (1, 1)], [(2, len(data) - 1), (0, 1)]]
    own, sent = (list(DataLoader(data, batch_sampler=keys, num_workers=n, collate_fn=collate)) for n in (0, 1))
    assert [batch["captions"] for batch in own] == [batch["captions"] for batch in sent]
    for name in own[0].keys() - {"captions"}:
        assert all(torch.equal(mine[name], theirs[name]) for mine, theirs in zip(own, sent, strict=True))


def test_rgb_goes_through_the_pipe_as_bytes():
    batch = collate([samples({"kind": "scenes", "count": 4})[0, i] for i in range(4)])
    assert batch["rgb"].shape == (4, 3, 32, 32) and batch["rgb"].dtype == torch.uint8
    assert len(batch["captions"]) == 4 and set(batch) == {"rgb", "captions"}


def test_scenes_are_new_in_every_epoch_and_their_captions_are_true():
    data = samples({"kind": "scenes", "count": 3, "seed": 7, "objects": 1})
    for epoch in range(2):
        for index in range(3):
            drawn = scene(epoch * 3 + index, seed=7, size=32, objects=1)
            sample = data[epoch, index]
            assert np.array_equal(sample["rgb"].permute(1, 2, 0), drawn.rgb)
            assert sample["caption"] in drawn.captions


def test_all_captions_of_a_picture_are_drawn(table):
    data = samples({"kind": "table", "table": table})
    assert {data[epoch, 0]["caption"] for epoch in range(30)} == {"zero", "nil", "none"}
    assert {data[epoch, 1]["caption"] for epoch in range(5)} == {"three"}


@pytest.mark.parametrize("place", ["folder", "tar"])
def test_pictures_without_captions_are_left_out_and_the_next_stands_for_a_broken_one(place, request, folder, caplog):
    path = request.getfixturevalue(place)
    data = samples({"kind": "pictures", "inputs": [str(path)]})
    assert len(data) == 5  # 4 has no file of a caption
    assert [data[0, i]["caption"] for i in range(5)] == ["zero", "two", "two", "three", "zero"]
    for index, number in [(0, 0), (1, 2), (4, 0)]:
        levels = np.array(resized(open_picture(folder / f"{number}.png"), 32))
        assert np.array_equal(data[1, index]["rgb"].permute(1, 2, 0), levels)
    assert "1.png" in caplog.text or "byte" in caplog.text
    assert "no caption, or an empty one" in caplog.text


def test_squashed_samples_have_the_whole_picture(tmp_path):
    wide = picture(0, (96, 32))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("soft colours")
    pixels = samples({"kind": "pictures", "inputs": [str(tmp_path)]}, resize="squash")[0, 0]["rgb"].permute(1, 2, 0)
    assert np.array_equal(pixels, np.array(resized(wide, 32, "squash")))
    assert not np.array_equal(pixels, np.array(resized(wide, 32, "crop")))


def test_a_source_without_any_caption_is_an_error(tmp_path, folder):
    (tmp_path / "bare").mkdir()
    picture(0).save(tmp_path / "bare/a.png")
    with pytest.raises(ValueError, match=r"none of 1 pictures in .*bare has a caption; the first is .*a.png: no capt"):
        samples({"kind": "pictures", "inputs": [str(tmp_path / "bare")]})
    (tmp_path / "t.csv").write_text("image,caption\npictures/0.png,\npictures/1.png,  \n")
    with pytest.raises(ValueError, match=r"none of 2 rows of .*t.csv has a caption in 'caption'"):
        samples({"kind": "table", "table": tmp_path / "t.csv"})


def test_a_source_of_which_nothing_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("a caption")
    data = samples({"kind": "pictures", "inputs": [str(tmp_path)]})
    with pytest.raises(ValueError, match=r"none of 1 captioned pictures can be used; the last is .*a.png: no pict"):
        data[0, 0]


def test_csv_and_tsv_are_tables_and_their_columns_have_any_name(tmp_path, folder):
    text = '\ufeffcaption,file\n"zero, with ""quotes""\nand lines",0.png\n,1.png\nthree,3.png\n'
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.tsv").write_text("title\tfilepath\nzero\t0.png\nthree\t3.png\n")
    data = samples(
        {"kind": "table", "table": tmp_path / "t.csv", "image": "file", "root": folder},
        {"kind": "table", "table": tmp_path / "t.tsv", "image": "filepath", "caption": "title", "root": folder},
    )
    assert [data[0, i]["caption"] for i in range(4)] == ['zero, with "quotes"\nand lines', "three", "zero", "three"]
    assert torch.equal(data[0, 1]["rgb"], data[0, 3]["rgb"])


def test_scenes_may_have_one_kind_of_background():
    data = samples({"kind": "scenes", "count": 3, "background": "plain"})
    drawn = torch.from_numpy(scene(4, size=32, background="plain").rgb.copy()).movedim(-1, 0)
    assert torch.equal(data[1, 1]["rgb"], drawn)


def test_written_scenes_are_a_table(tmp_path):
    write_scenes(Scenes(3, size=32), tmp_path / "scenes")
    data = samples(
        {"kind": "table", "table": tmp_path / "scenes/captions.jsonl", "image": "file", "caption": "captions"}
    )
    assert data[0, 2]["caption"] in scene(2).captions
    assert np.array_equal(data[0, 2]["rgb"].permute(1, 2, 0), scene(2, size=32).rgb)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,text\na.png,b\n", "t.csv has no column 'caption'; its columns: image, text"),
        ("t.csv", "image,caption\n,b\n", "t.csv, line 2: 'image' is ''; it must be a path"),
        ("t.jsonl", '{"image": "a", "caption": "b"}\n{"image": ', "t.jsonl, line 2 is not JSON"),
        ("t.jsonl", '[1]\n', "t.jsonl, line 1 is a list; it must be an object"),
        ("t.jsonl", '{"image": "a", "caption": 3}', "t.jsonl, line 1: 'caption' is a int; it must be a text"),
        ("t.jsonl", '{"image": "a", "caption": "b"}', r"are not where it says, the first is .*a; set root"),
        ("t.xlsx", "", "got the table .*t.xlsx; known are .csv, .tsv, .jsonl"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        samples({"kind": "table", "table": tmp_path / name})


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("image,caption\na.png,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv is not UTF-8 text"):
        samples({"kind": "table", "table": tmp_path / "t.csv"})


def test_parquet_is_read_without_a_network(rows_of_pictures):
    data = samples({"kind": "dataset", "files": [str(rows_of_pictures)]})
    assert len(data) == 3
    for index in range(3):
        levels = np.array(resized(picture(index), 32))
        assert np.array_equal(data[0, index]["rgb"].permute(1, 2, 0), levels)
    assert {data[epoch, 1]["caption"] for epoch in range(20)} == {"many", "number 1"}


def test_parquet_with_plain_bytes_is_read_and_rows_without_captions_are_passed_over(tmp_path, rows_of_pictures, caplog):
    rows = [(bytes_of(picture(0), "JPEG"), ""), (bytes_of(picture(1)), "one"), (b"broken", "two"), (None, "three")]
    path = parquet(tmp_path / "bytes.parquet", rows, pa.binary())
    data = samples({"kind": "dataset", "files": [str(path)]})
    assert [data[0, i]["caption"] for i in range(len(data))] == ["one"] * 3
    assert f"1 of 4 rows of {path} have no caption" in caplog.text
    for problem in ("row 2: no picture", "row 3: 'image' is a NoneType, not a picture"):
        assert problem in caplog.text


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string())])
def test_rows_of_a_data_set_without_captions_are_dropped_and_one_of_their_pictures_keeps_its_others(
    tmp_path, rows_of_pictures, caplog, kind
):
    captions = pa.array([text and ([text] if pa.types.is_list(kind) else text) for text in (None, "b", " ", "c")], kind)
    pictures = pa.array([bytes_of(picture(number)) for number in (0, 1, 2, 0)])
    path = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"image": pictures, "caption": captions}), path)
    data = samples({"kind": "dataset", "files": [str(path)]})
    assert [data[0, i]["caption"] for i in range(len(data))] == ["c", "b"]
    assert f"2 of 4 rows of {path} have no caption" in caplog.text
    pq.write_table(pa.table({"image": pictures, "caption": pa.array([None] * 4, kind)}), path)
    with pytest.raises(ValueError, match=r"none of 4 rows of .*nulls.parquet has a caption in 'caption'"):
        samples({"kind": "dataset", "files": [str(path)]})


def test_what_is_wrong_with_a_data_set_is_named(tmp_path, rows_of_pictures, monkeypatch):
    with pytest.raises(ValueError, match=r"has no column 'text' .*; its columns: image, caption"):
        samples({"kind": "dataset", "files": [str(rows_of_pictures)], "caption": "text"})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        samples({"kind": "dataset", "files": [str(tmp_path / "nowhere.parquet")]})
    (tmp_path / "cut.parquet").write_bytes(rows_of_pictures.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut.parquet cannot be read: "):
        samples({"kind": "dataset", "files": [str(tmp_path / "cut.parquet")]})
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit")
    with refusing("script cannot be read: ", "give its Parquet files as `files`"):
        samples({"kind": "dataset", "name": str(tmp_path / "script")})
    with pytest.raises(ValueError, match="give files or name, and not both"):
        source(kind="dataset")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LookupError, match=r"datasets is not installed: pip install 'toklip-core\[train\]'"):
        samples({"kind": "dataset", "files": [str(rows_of_pictures)]})


def test_a_store_gives_ids_captions_and_the_teachers_features(tmp_path):
    data = samples({"kind": "store", "store": stored(tmp_path, teacher=TEACHER)})
    batch = collate([data[4, index] for index in (0, 10)])
    assert set(batch) == {"ids", "teacher", "captions"} and batch["captions"] == ["caption 0", "caption 10"]
    assert batch["ids"].shape == (2, 8, 8, 1) and batch["ids"].dtype == torch.int64
    assert batch["teacher"].shape == (2, 6) and batch["teacher"].dtype == torch.float32
    drawn = torch.randint(0, 300, (4, 8, 8, 1), generator=torch.Generator().manual_seed(1))
    assert torch.equal(batch["ids"][1], drawn[3])
    assert data.stored.teacher == TEACHER and samples({"kind": "scenes", "count": 1}).stored is None


def test_rows_of_a_store_without_captions_are_counted(tmp_path):
    path = stored(tmp_path, captions=lambda n: None if n < 3 else "some")
    with pytest.raises(ValueError, match=r"3 of 11 rows of .* have no caption"):
        samples({"kind": "store", "store": path})


def test_pixels_and_stores_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match=r"got the token store .* beside sources of pixels"):
        samples({"kind": "store", "store": stored(tmp_path)}, {"kind": "scenes", "count": 1})


def test_a_store_that_does_not_fit_is_refused(tmp_path):
    path = stored(tmp_path / "a")
    with pytest.raises(ValueError, match=r"has ids of 32 px \(resize 'crop'\), but the model takes 64 px \('squash'\)"):
        samples({"kind": "store", "store": path}, size=64, resize="squash")
    pictures = {"kind": "pictures", "inputs": ["."]}
    with pytest.raises(ValueError, match=r"got resize 'pad' with smallest_crop_area 0.9, but random crops"):
        samples(pictures, smallest_crop_area=0.9, resize="pad")
    with pytest.raises(ValueError, match=r"got smallest_crop_area 0.9, but the pictures of .* were encoded whole"):
        samples({"kind": "store", "store": path}, smallest_crop_area=0.9)
    other = stored(tmp_path / "b", teacher=TEACHER)
    with pytest.raises(ValueError, match=r"does not fit the store .*a: it has .*teacher.model 'teacher' \(the "):
        samples({"kind": "store", "store": path}, {"kind": "store", "store": other})


def test_an_epoch_has_every_row_and_reads_no_group_twice(tmp_path, monkeypatch):
    first, second = stored(tmp_path / "a", (50,) * 8), stored(tmp_path / "b", (30,) * 10)
    data = samples({"kind": "store", "store": first}, {"kind": "store", "store": second}, window=120)
    reads = []
    read = TokenStore._read
    monkeypatch.setattr(TokenStore, "_read", lambda *arguments: reads.append(arguments) or read(*arguments))
    for epoch in range(2):
        places = data.order(len(data), 5, epoch)
        assert torch.equal(places.sort().values, torch.arange(700))
        reads.clear()
        for place in places.tolist():
            data[epoch, place]
        assert 10 < len(reads) <= 18
    assert not torch.equal(data.order(700, 5, 0), data.order(700, 5, 1))
    assert not torch.equal(data.order(700, 5, 0), data.order(700, 6, 0))
    assert torch.equal(data.order(700, 5, 1), places)


def test_a_store_up_to_the_window_is_shuffled_as_one(tmp_path):
    data = samples({"kind": "store", "store": stored(tmp_path, (10,) * 10)})
    firsts = torch.stack([data.order(100, 0, epoch)[:10] // 10 for epoch in range(20)])
    assert all(len(set(groups.tolist())) > 3 for groups in firsts)


def test_distinct_captions_are_known_where_that_is_cheap(tmp_path, table, every):
    store = {"kind": "store", "store": stored(tmp_path / "few", captions=lambda n: f"class {n % 3}")}
    assert samples(store).distinct_captions() == ["class 0", "class 1", "class 2"]
    assert samples(*every["table"]).distinct_captions() == ["nil", "none", "three", "zero"]
    assert samples(store).distinct_captions(most=2) is None
    for kind in ("scenes", "pictures", "dataset", "mixture"):
        assert samples(*every[kind]).distinct_captions() is None


def test_captions_that_are_too_many_are_read_no_further_than_to_one_too_many(tmp_path, monkeypatch):
    data = samples({"kind": "store", "store": stored(tmp_path, captions=lambda n: f"caption {n}")})
    read = []
    captions = TokenStore.captions
    monkeypatch.setattr(TokenStore, "captions", lambda store: (read.append(text) or text for text in captions(store)))
    assert data.distinct_captions(most=3) is None
    assert len(read) == 4


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (7, 5), (3000, 200)])
def test_a_random_crop_has_the_area_and_the_shape_that_it_may_have(size):
    width, height = size
    for seed in range(300):
        left, top, right, bottom = random_crop(width, height, 0.5, random.Random(seed))
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        assert 3 / 4 * (h - 0.5) <= w + 0.5 and 3 / 4 * (w - 0.5) <= h + 0.5
        if size != (3000, 200):  # of which no half has such a shape
            assert (w + 0.5) * (h + 0.5) >= 0.5 * width * height


@pytest.mark.parametrize("size", [(3000, 200), (50, 301), (1, 9)])
def test_what_no_draw_fits_is_cut_as_torchvision_cuts_it(size):
    top, left, h, w = RandomResizedCrop.get_params(Image.new("L", size), [0.9, 1.0], [3 / 4, 4 / 3])
    assert random_crop(*size, 0.9, random.Random(0)) == (left, top, left + w, top + h)


def test_a_crop_has_torchvisions_pixels(table, folder, monkeypatch):
    monkeypatch.setattr(captions, "random_crop", lambda *_: (5, 3, 40, 37))
    cropped = samples({"kind": "table", "table": table}, smallest_crop_area=0.5)[0, 0]["rgb"]
    image = open_picture(folder / "0.png")
    theirs = functional.resized_crop(image, 3, 5, 34, 35, [32, 32], InterpolationMode.BICUBIC)
    assert np.array_equal(cropped.permute(1, 2, 0), theirs)
