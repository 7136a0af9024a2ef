"""TokLIP's encoder over VILA-U, with four residual ids per position, and over the code map of TokenFlow."""

from pathlib import Path

import pytest
import torch
from toklip_core import plugins
from toklip_core.drawing import IdLevels
from toklip_core.model import TokLIP
from toklip_core.store import TokenStore
from toklip_core.tasks import train_encoder

from tests.support import mean_colour, small_published
from tests.support.encoder_runs import config, encode, pictures, write_world

pytestmark = pytest.mark.slow

#: Name -> grid of the ids, number of levels, grid of the code map.
SHAPES = {"small-vila-u": ((4, 4), 4, (4, 4)), "small-tokenflow": ((1, 30), 1, (4, 4))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Captioned pictures and a teacher; small tokenizers are registered."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(small_published.install(mean_colour.install(folder / "site"))))
        plugins.registry.cache_clear()
        write_world(folder)
        yield folder
    plugins.registry.cache_clear()


@pytest.mark.parametrize("kind", ["pictures", "store"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_encoder_is_trained_and_loaded_over_them(world: Path, tmp_path: Path, name: str, kind: str):
    grid, levels, map_grid = SHAPES[name]
    source = pictures(world)
    if kind == "store":
        source = encode(world, tmp_path / "store", tokenizer=name, image_size=64, teacher=world / "teacher")
        assert TokenStore(tmp_path / "store")[0].ids.shape == (*grid, levels)
    settings = config(world, source, tokenizer=name, image_size=64)
    assert train_encoder(settings, tmp_path / "run").step == 4
    model = TokLIP.from_pretrained(tmp_path / "run/model")
    encoded = model.encode_pictures(sorted((world / "pictures").glob("*.png"))[:3])
    assert encoded.ids.shape == (3, *grid, levels)
    assert encoded.codes.shape[:3] == (3, *map_grid)
    assert torch.equal(encoded.codes, model.tokenizer.code_map(encoded.ids))
    assert encoded.tokens.shape[:2] == (3, 16)


def test_a_generator_draws_the_levels_of_vila_u_and_refuses_tokenflow(tmp_path: Path):
    levels = IdLevels.of_embedding(small_published.vila_u(tmp_path).embedding)
    assert levels.sizes == (2048,) * 4
    with pytest.raises(ValueError, match=r"a pyramid of ids.* so no model can draw it id by id; name a tokenizer with"):
        IdLevels.of_embedding(small_published.tokenflow(tmp_path).embedding)
