"""The pictures that fit a text best: among files, and in token stores."""

import json
import random

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.evaluation import PictureIndex, draw_search, load_matcher, pictures_to_search, search_pictures
from toklip_core.pictures import PANEL_SIDE, open_picture, to_pixels
from toklip_core.store import TokenStore

from tests.support.encoding import encode_with
from tests.support.mean_colour import MeanColour
from tests.support.refusals import last_error
from tests.support.small_models import SIZE, small_clip, small_toklip


@pytest.fixture
def saved(toy, tmp_path):
    """The folder of a small TokLIP."""
    small_toklip().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def store(toy, photos, tmp_path):
    """The ids of the photos, and nothing else."""
    encode_with([photos], tmp_path / "store", tokenizer="mean-colour", image_size=SIZE)
    return tmp_path / "store"


def expected(photos, text):
    """Cosine of each photo with a text."""
    model = small_toklip()
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    pixels = torch.stack([to_pixels(open_picture(path), SIZE) for path in paths])
    cosines = model.image_features(pixels) @ model.text_features([text])[0]
    return dict(zip((path.name for path in paths), cosines.tolist(), strict=True))


def cosines(search):
    """By the name of the file, in the order of the hits."""
    return {hit.picture.name.rsplit("/", 1)[-1]: hit.cosine for hit in search.hits}


@pytest.mark.parametrize("batch_size", [2, 32])
def test_pictures_come_by_their_cosine_with_the_text_greatest_first(saved, photos, batch_size):
    found = cosines(search_pictures(saved, [photos], "a red star", top=3, compute=Compute(batch_size=batch_size)))
    wanted = expected(photos, "a red star")
    best = sorted(wanted, key=lambda name: -wanted[name])[:3]
    assert list(found) == best
    assert found == pytest.approx({name: wanted[name] for name in best}, abs=1e-5)


def test_fewer_pictures_than_asked_for_are_all_of_them(saved, photos):
    found = search_pictures(saved, [photos], "a red star", top=100)
    assert len(found.hits) == found.searched == 5


def test_equal_pictures_come_in_the_order_in_which_they_are_listed(saved, tmp_path):
    for name in "abcd":
        Image.new("RGB", (40, 40), (90, 20, 30)).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in "dbac"]
    found = search_pictures(saved, files, "a star", top=3, compute=Compute(batch_size=1))
    assert list(cosines(found)) == ["d.png", "b.png", "a.png"]


def test_a_store_is_searched_by_its_ids_alone(saved, photos, store):
    from_files = cosines(search_pictures(saved, [photos], "a blue heart"))
    from_store = cosines(search_pictures(saved, [store], "a blue heart", compute=Compute(batch_size=2)))
    assert from_store == pytest.approx(from_files, abs=1e-5)


def test_stored_features_are_taken_if_they_are_the_models_own(saved, photos, tmp_path, monkeypatch):
    encode_with([photos], tmp_path / "features", model=saved)
    from_files = cosines(search_pictures(saved, [photos], "a blue heart"))
    small_toklip(seed=1).save_pretrained(tmp_path / "other")
    of_other = cosines(search_pictures(tmp_path / "other", [photos], "a blue heart"))
    assert cosines(search_pictures(tmp_path / "other", [tmp_path / "features"], "a blue heart")) == pytest.approx(
        of_other, abs=1e-5
    )
    monkeypatch.setattr("toklip_core.model.toklip.TokLIP.encode_ids", lambda *_: pytest.fail("ids were encoded"))
    found = cosines(search_pictures(saved, [tmp_path / "features"], "a blue heart"))
    assert found == pytest.approx(from_files, abs=2e-3)  # stored with 11 bits


def test_a_group_of_a_store_is_read_once_to_search_it_and_once_for_the_hits(saved, tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for place, level in enumerate(random.Random(0).sample(range(0, 240, 12), 20)):
        Image.new("RGB", (40, 40), (level, level, level)).save(folder / f"{place:02d}.png")
    monkeypatch.setattr("toklip_core.store.writer._ROWS_PER_GROUP", 2)
    encode_with([folder], tmp_path / "store", tokenizer="mean-colour", image_size=SIZE)
    reads = []
    read = TokenStore._read
    monkeypatch.setattr(TokenStore, "_read", lambda *arguments: reads.append(arguments[1:]) or read(*arguments))
    search_pictures(saved, [tmp_path / "store"], "a star", top=20)
    assert sorted(group for group, columns in reads if "ids" in columns) == sorted([*range(10), *range(10)])
    assert [group for group, columns in reads if columns == ["key"]] == [*range(10)]  # no two may be the same


def test_what_a_store_gives_back_is_the_picture_of_its_ids(saved, photos, store):
    hit = search_pictures(saved, [store], "a star", top=1).hits[0]
    pixels = to_pixels(open_picture(next(photos.rglob(hit.picture.name.rsplit("/", 1)[-1]))), SIZE)
    wanted = MeanColour().decode(MeanColour().encode(pixels[None]))[0]
    torch.testing.assert_close(to_pixels(hit.picture.read(), SIZE), wanted, rtol=0, atol=1 / 127)


def test_a_hit_of_a_store_is_decoded_where_the_tokenizer_is(toy, store):
    """The meta device stands for a GPU that the tokenizer was not moved to."""
    model = small_toklip()
    hit = PictureIndex(model, TokenStore(store), protocol={"model": "model"}).search("a star", top=1).hits[0]
    model.to("meta")
    assert hit.picture.read().size == (SIZE, SIZE)


def test_the_best_are_kept_whatever_the_batches_are(saved, store):
    found = search_pictures(saved, [store], "a star", top=4, compute=Compute(batch_size=1)).hits
    again = search_pictures(saved, [store], "a star", top=5, compute=Compute(batch_size=5)).hits
    assert [hit.picture.name for hit in found] == [hit.picture.name for hit in again[:4]]
    assert [hit.cosine for hit in again] == sorted((hit.cosine for hit in again), reverse=True)


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_answers_as_a_search_of_its_own_does_and_kept_vectors_are_computed_once(
    saved, photos, store, kept, monkeypatch
):
    model, protocol = load_matcher(saved)
    for where, method in ((photos, "image_features"), (store, "encode_ids")):
        index = PictureIndex(model, pictures_to_search([where]), protocol=protocol, kept=kept)
        calls, compute = [], getattr(model, method)
        with monkeypatch.context() as patch:
            patch.setattr(model, method, lambda batch, calls=calls, compute=compute: calls.append(0) or compute(batch))
            found = [cosines(index.search(text, top=2)) for text in ("a star", "a heart")]
        assert found == [cosines(search_pictures(saved, [where], text, top=2)) for text in ("a star", "a heart")]
        assert len(calls) == (1 if kept else 2)


def test_a_sheet_shows_the_pictures_that_were_found(saved, photos, store):
    for where in (photos, store):
        assert draw_search(search_pictures(saved, [where], "a star", top=2)).width == 2 * (PANEL_SIDE + 24) + 24


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokenizer": "mean-colour-slow"}, r"with the tokenizer 'mean-colour-slow' .* this is 'mean-colour' "),
        ({"image_size": 64}, r"ids of 64 px, and .* those of 32 px; .* encode the pictures with --model"),
        ({"weights": "gamma.txt"}, r"with the tokenizer 'mean-colour' \(sha256 .* this is 'mean-colour' \(sha256"),
    ],
)
def test_a_store_of_other_ids_than_the_models_is_refused(saved, photos, tmp_path, change, problem):
    if "weights" in change:
        change = {"weights": tmp_path / "gamma.txt"}
        change["weights"].write_text("0.5")
    encode_with([photos], tmp_path / "other", **{"tokenizer": "mean-colour", "image_size": SIZE} | change)
    with pytest.raises(ValueError, match=problem):
        search_pictures(saved, [tmp_path / "other"], "a star")


def test_a_clip_cannot_search_a_store(store, tmp_path):
    small_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="is a CLIP, which reads none; name a TokLIP, or the pictures themselves"):
        search_pictures(tmp_path / "clip", [store], "a star")


def test_a_store_beside_pictures_and_an_empty_text_are_refused(saved, photos, store):
    with pytest.raises(ValueError, match="beside other pictures; search one after the other"):
        search_pictures(saved, [photos, store], "a star")
    with pytest.raises(ValueError, match="wanted one text or more, and none of them empty"):
        search_pictures(saved, [photos], " ")


def test_features_that_are_no_numbers_are_named_with_the_first_key(toy, store, tmp_path):
    """The weights are numbers, and what is made of them is too large for one."""
    model = small_toklip()
    model.encoder.pos_embed.data.fill_(3e38)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"the model's feature of '.*a\.jpg' is not finite"):
        search_pictures(tmp_path / "broken", [store], "a star")


def toklip(*words, status=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_the_command_prints_cosines_and_names_and_says_what_it_cannot_read(saved, photos, tmp_path):
    (photos / "broken.png").write_text("no picture")
    done = toklip("search", photos, "a red star", "--top", 2, "--model", saved, "--out", tmp_path / "sheet.png")
    wanted = expected_best(photos, "a red star")
    assert [line.split() for line in done.stdout.splitlines()] == wanted[:2]
    assert "broken.png: no picture" in done.stderr and "5 pictures searched" in done.stderr
    assert (tmp_path / "sheet.png").is_file()


def expected_best(photos, text):
    (photos / "broken.png").unlink()
    rows = [(cosine, next(photos.rglob(name))) for name, cosine in expected(photos, text).items()]
    return [[f"{cosine:.4f}", str(path)] for cosine, path in sorted(rows, reverse=True)]


def test_pictures_without_a_text_are_told_from_a_text_without_pictures():
    done = toklip("search", "photos", status=2)
    assert "Error: got 'photos' alone; name pictures or a token store, and after them a text" in done.stderr


def test_a_limit_of_pixels_is_refused_for_a_store(store):
    done = toklip("search", store, "a star", "--max-pixels", 1, "--model", "absent", status=2)
    last_error(done.stderr, "--max-pixels has no effect on a token store, which has ids and no pictures; leave it out")


def test_a_picture_that_is_searched_is_not_written_over(saved, photos):
    picture = photos / "a.jpg"
    before = picture.read_bytes()
    done = toklip("search", photos, "a star", "--model", saved, "--out", picture, status=1)
    assert "which is one of the inputs and would be written over; choose another name" in done.stderr
    assert picture.read_bytes() == before


def test_a_sheet_replaces_an_earlier_one_and_leaves_nothing_beside_it(saved, store, tmp_path):
    (tmp_path / "sheets").mkdir()
    for _ in range(2):
        toklip("search", store, "a star", "--model", saved, "--out", tmp_path / "sheets/sheet.png")
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["sheet.png"]


def test_the_command_gives_data(saved, store):
    found = json.loads(toklip("search", store, "a red star", "--model", saved, "--json").stdout)
    assert (found["text"], found["searched"], found["protocol"]["model"]) == ("a red star", 5, str(saved))
    assert all(set(row) == {"picture", "cosine"} for row in found["pictures"])


def test_the_command_names_words_that_the_model_does_not_know(saved, store, caplog):
    toklip("search", store, "a red zebra", "--model", saved)
    assert "zebra" in caplog.text


@pytest.mark.parametrize(
    ("out", "line"), [("sheet.gif", "ends in .png or .jpg or .jpeg or .webp"), ("no/s.png", "there is no")]
)
def test_a_sheet_that_cannot_be_written_is_refused_before_the_search(photos, out, line):
    done = toklip("search", photos, "a star", "--model", "absent", "--out", out, status=1)
    assert line in done.stderr and len(done.stderr.splitlines()) == 1
