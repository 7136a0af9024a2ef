import pytest
import torch
from toklip_core import load_tokenizer
from toklip_core.testing import tokenizer_checks


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract(check):
    check(load_tokenizer("toy"))
