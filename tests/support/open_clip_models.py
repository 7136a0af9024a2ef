"""Small models of open_clip, with names in its registry like the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip.factory
import open_clip.pretrained
import pytest
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.random_weights import randomised

WIDTH, JOINT = 32, 24
WORDS = ["a", "two", "small", "cats", "dog", "isnt", "it", "long", "caption", "red", "circle", "of", "photo", "the"]

_TEXT = {"context_length": 10, "width": WIDTH, "heads": 4, "layers": 2}
_VISION = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": 2, "head_width": 8}

#: Of a model like CLIP: both towers are open_clip's.
CLIP: dict[str, Any] = {
    "embed_dim": JOINT,
    "vision_cfg": _VISION,
    "text_cfg": {**_TEXT, "context_length": 16, "vocab_size": 49408},
}


@register_model
def tiny_siglip_tower(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """A tower like SigLIP's, by a name of timm's registry."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "class_token": False}
    known = {name: value for name, value in settings.items() if name in ("num_classes", "global_pool")}
    return VisionTransformer(**size, **known)


def siglip(tokenizer: Path, **text: Any) -> dict[str, Any]:
    """Like SigLIP2: a tower of timm's, and a tokenizer of Hugging Face's in a folder."""
    return {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "tiny_siglip_tower",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **_TEXT,
            "vocab_size": 40,
            "hf_tokenizer_name": str(tokenizer),
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "mlp_ratio": 3.7,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
            **text,
        },
    }


def save_tokenizer(folder: Path, template: str = "$A <eos>", **settings: Any) -> Path:
    """Write a tokenizer of whole words as transformers saves one; ``template`` says where its special tokens stand."""
    transformers = pytest.importorskip("transformers")
    special = {"<pad>": 0, "<unk>": 1, "<eos>": 2, "<bos>": 3}
    tokenizer = Tokenizer(models.WordLevel(special | {word: 4 + i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", "bos_token": "<bos>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names | settings).save_pretrained(folder)
    return folder


def register(monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], **tags: dict[str, Any]) -> None:
    """Give a configuration a name, and tags with what open_clip knows of each, until the test ends."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, settings)
    if tags:
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)


def created(name: str, **options: Any) -> torch.nn.Module:
    """A model of a registered name with weights of which none is zero or one."""
    return randomised(open_clip.create_model(name, **options)).eval()
