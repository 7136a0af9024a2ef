"""The contract kit on every registered tokenizer: the shipped ones as they are, the published ones from files of
the published layout with other numbers in them.

Each is full-sized, so each is built once, meets all the laws, and is dropped before the next one is built. Published
tokenizers of one design differ in their numbers alone, which are none of the published ones here: one of them meets
the laws, and the others are held to its design.
"""

import pytest
from toklip_core.plugins import registry
from toklip_core.testing import check_nothing_is_trainable, check_the_description_fits, tokenizer_checks
from toklip_core.tokenizer import load_tokenizer

from tests.support.published_vqgans import PUBLISHED, write_published

pytestmark = pytest.mark.slow

#: What `toklip train vq` writes is loaded under this name: it has no weights of its own.
TRAINED = "vqgan"

SHIPPED = [name for name, spec in registry().tokenizers.items() if not spec.source and name != TRAINED]

#: They meet the laws in tests of their own, at a small size: at full size that takes minutes.
SMALL = {
    *("qlip-b-16-256", "qlip-b-8-256", "qlip-l-14-392"),
    "unitok",
    "emu3-5-vision",
    *("vila-u-256", "vila-u-384"),
    *("tokenflow-clipb", "tokenflow-siglip"),
    *("open-magvit2-256", "open-magvit2-256-raw", "open-magvit2-128", "open-magvit2-128-raw"),
    *("open-magvit2-16384-pretrain", "open-magvit2-16384-pretrain-raw"),
    *("open-magvit2-262144-pretrain", "open-magvit2-262144-pretrain-raw"),
}

#: Tokenizer -> another one of its design, whose file has the same layout.
TWINS = {
    "llamagen-vq16-t2i": "llamagen-vq16-c2i",
    **{name: name.removesuffix("-raw").removesuffix("-pretrain") for name in PUBLISHED if name.startswith("ibq-")},
}
TWINS = {name: other for name, other in TWINS.items() if name != other}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*SHIPPED, *PUBLISHED] if name not in TWINS])
def test_contract(name, tmp_path):
    weights = write_published(name, tmp_path) if name in PUBLISHED else None
    tokenizer = load_tokenizer(name, weights)
    for check in tokenizer_checks():
        check(tokenizer)


def design(tokenizer):
    """Its modules, what each was told, and the sizes of its tensors."""
    told = [
        (name, {key: value for key, value in vars(module).items() if isinstance(value, str | int | float | tuple)})
        for name, module in tokenizer.module.named_modules()
    ]
    return repr(tokenizer.module), told, [(key, t.shape, t.dtype) for key, t in tokenizer.module.state_dict().items()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), TWINS.items())
def test_a_tokenizer_of_the_same_design_differs_in_numbers_alone(name, other, tmp_path):
    weights = write_published(other, tmp_path)
    one, two = load_tokenizer(name, weights), load_tokenizer(other, weights)
    assert design(one) == design(two)
    check_nothing_is_trainable(one)
    check_the_description_fits(one)


def test_every_registered_tokenizer_meets_the_contract():
    assert {*SHIPPED, *PUBLISHED, *SMALL, TRAINED} == registry().tokenizers.keys()
