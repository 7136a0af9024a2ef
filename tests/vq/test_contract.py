"""The contract kit on every registered tokenizer: the shipped ones as they are, the published ones from files of
the published layout with other numbers in them.

Each is full-sized, so each is built once, meets all the laws, and is dropped before the next one is built. Published
tokenizers of one design differ in their numbers alone, which are none of the published ones here, or in the size of
their codebook: one of them meets the laws, and the others are held to its design.
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

#: Tokenizer -> another one of its design, whose file has the same layout. IBQ's smallest and largest meet the laws.
TWINS = {
    "llamagen-vq16-t2i": "llamagen-vq16-c2i",
    **{
        name: "ibq-262144" if name.startswith("ibq-262144") else "ibq-1024"
        for name in PUBLISHED
        if name.startswith("ibq-")
    },
}
TWINS = {name: other for name, other in TWINS.items() if name != other}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*SHIPPED, *PUBLISHED] if name not in TWINS])
def test_contract_and_tokenizers_of_the_same_design(name, tmp_path):
    weights = write_published(name, tmp_path) if name in PUBLISHED else None
    tokenizer = load_tokenizer(name, weights)
    for check in tokenizer_checks():
        check(tokenizer)
    sizes, expected = tokenizer.codebook_sizes, design(tokenizer)
    for twin in (twin for twin, other in TWINS.items() if other == name):
        if registry().tokenizers[twin].codebook_sizes != sizes:
            weights, sizes = write_published(twin, tmp_path), registry().tokenizers[twin].codebook_sizes
        tokenizer = load_tokenizer(twin, weights)
        assert tokenizer.codebook_sizes == sizes and design(tokenizer) == expected, twin
        check_nothing_is_trainable(tokenizer)
        check_the_description_fits(tokenizer)


def design(tokenizer):
    """Its modules, what each was told, and the sizes of its tensors, but for the size of its codebook."""
    told = [
        (name, {key: value for key, value in vars(module).items() if isinstance(value, str | int | float | tuple)})
        for name, module in tokenizer.module.named_modules()
    ]
    tensors = [(key, tensor.shape, tensor.dtype) for key, tensor in tokenizer.module.state_dict().items()]
    return repr((repr(tokenizer.module), told, tensors)).replace(str(tokenizer.codebook_sizes[0]), "K")


def test_every_registered_tokenizer_meets_the_contract():
    assert {*SHIPPED, *PUBLISHED, *SMALL, TRAINED} == registry().tokenizers.keys()
