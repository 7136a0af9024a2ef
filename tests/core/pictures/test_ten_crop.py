"""Ten crops at two sizes: equal to torchvision's, and stored as ids after those of the whole picture."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.pictures import RANGES, UPRIGHT, VIEWS, all_views, normalized, open_picture, resized, upright_crops
from toklip_core.store import PartWriter, TokenStore

from tests.core.conftest import picture
from tests.core.store.test_reader import INFO, rows_of
from tests.support.mean_colour import MeanColour


def views_of(image: Image.Image, size: int) -> torch.Tensor:
    """(VIEWS, 3, size, size), uint8."""
    crops = torch.from_numpy(upright_crops(image, size, "crop")).movedim(-1, 1)
    return all_views(crops[None])[0]


@pytest.mark.parametrize("size", [32, 50, 61])
def test_the_views_are_those_of_torchvisions_ten_crop(size):
    from torchvision.transforms import TenCrop

    image, views = picture(3, (90, 80)), views_of(picture(3, (90, 80)), size)
    for number, share in enumerate(RANGES):
        theirs = [np.asarray(crop) for crop in TenCrop(size)(resized(image, int(size * share), "crop"))]
        mine = [view.movedim(0, -1).numpy() for view in views[10 * number : 10 * number + 10]]
        # A mirrored left crop is the right crop of the mirrored picture: the same ten, in another order.
        odd = (int(size * share) - size) % 2  # then their second centre lies a pixel aside
        assert len({crop.tobytes() for crop in mine} ^ {crop.tobytes() for crop in theirs}) <= 2 * odd
        assert all(np.array_equal(a, b) for a, b in zip(mine[:5], theirs[:5], strict=True))


def test_the_upright_views_are_those_that_are_not_mirrored():
    views = views_of(picture(5, (80, 64)), 32)
    assert [view for view in range(VIEWS) if view not in UPRIGHT] == [view + 5 for view in UPRIGHT]
    for view in UPRIGHT:
        assert torch.equal(views[view].flip(-1), views[view + 5])


def test_a_store_has_the_ids_of_the_views_beside_those_of_the_picture(toy, photos, tmp_path):
    arguments = ["encode", str(photos), "--tokenizer", "mean-colour", "--workers", "0", "--batch-size", "2"]
    plain = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "plain")], catch_exceptions=False)
    result = CliRunner().invoke(
        cli, [*arguments, "--out", str(tmp_path / "store"), "--augment", "ten-crop", "--json"], catch_exceptions=False
    )
    assert (plain.exit_code, result.exit_code) == (0, 0) and json.loads(result.stdout)["pictures"] == 5
    for row, before in zip(TokenStore(tmp_path / "store"), TokenStore(tmp_path / "plain"), strict=True):
        assert torch.equal(row.ids, before.ids) and before.crops is None
        image = open_picture(photos / row.key.split("photos/")[1])
        assert torch.equal(row.crops, MeanColour().encode(normalized(views_of(image, 32))))


def test_an_encode_without_crops_is_not_mixed_with_one_that_has_them(toy, photos, tmp_path):
    arguments = ["encode", str(photos), "--tokenizer", "mean-colour", "--workers", "0", "--out", str(tmp_path / "s")]
    assert CliRunner().invoke(cli, [*arguments, "--augment", "ten-crop"]).exit_code == 0
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1 and "augment None (the store: 'ten-crop')" in result.stderr


def test_a_store_without_crops_is_as_it_was(tmp_path):
    """Neither column nor key of the metadata: older versions read it, and this one reads theirs."""
    writer = PartWriter(tmp_path, INFO)
    writer.add(*rows_of(3))
    writer.flush()
    schema = pq.read_schema(tmp_path / "part-00000-000001.parquet")
    assert schema.names == ["key", "ids", "height", "width", "caption"]
    assert "augment" not in json.loads(schema.metadata[b"toklip"])
    assert TokenStore(tmp_path)[0].crops is None


def test_crops_are_left_unread_where_they_are_not_wanted(tmp_path):
    writer = PartWriter(tmp_path, INFO.model_copy(update={"augment": "ten-crop"}))
    crops = torch.randint(0, 300, (3, VIEWS, 4, 4, 1))
    writer.add(*rows_of(3), crops=crops)
    writer.flush()
    assert torch.equal(TokenStore(tmp_path)[1].crops, crops[1])
    assert TokenStore(tmp_path, features=())[1].crops is None


def test_crops_of_a_wrong_size_are_damage(tmp_path):
    writer = PartWriter(tmp_path, INFO.model_copy(update={"augment": "ten-crop"}))
    writer.add(*rows_of(2), crops=torch.zeros(2, 4, 4, 4, 1, dtype=torch.int64))
    writer.flush()
    with pytest.raises(ValueError, match=r"damaged: row 0 \('0/0.jpg'\): 'crops' has 64 numbers, not 320"):
        TokenStore(tmp_path)[0]
