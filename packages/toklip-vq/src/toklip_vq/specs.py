"""Tokenizers and models by name: their published files, sizes, and what loads them. It does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toklip_core.plugins import NamedModel, TokenizerSpec, VQTokenizer, Weights

if TYPE_CHECKING:
    from torch import nn

_README = "README of FoundationVision/LlamaGen"
_VOKEN = "docs/IBQ.md of TencentARC/SEED-Voken"

#: Name -> size, file on the hub (repository/file), its bytes where they are known, rFID. Source: README of
#: FoundationVision/LlamaGen.
_LLAMAGEN: dict[str, tuple[Literal["VQ-16", "VQ-8"], str, int | None, str]] = {
    "llamagen-vq16-c2i": ("VQ-16", "FoundationVision/LlamaGen/vq_ds16_c2i.pt", None, f"2.19 (ImageNet, {_README})"),
    "llamagen-vq16-t2i": ("VQ-16", "peizesun/llamagen_t2i/vq_ds16_t2i.pt", 288_000_000, f"2.47 (ImageNet, {_VOKEN})"),
    "llamagen-vq8-c2i": ("VQ-8", "FoundationVision/LlamaGen/vq_ds8_c2i.pt", None, f"0.59 (ImageNet, {_README})"),
}

#: Name -> codebook size, file on the hub, rFID on ImageNet of the averaged weights. Source: docs/IBQ.md of
#: TencentARC/SEED-Voken.
_IBQ: dict[str, tuple[int, str, str]] = {
    "ibq-1024": (1024, "TencentARC/IBQ-Tokenizer-1024/imagenet256_1024.ckpt", "2.24"),
    "ibq-8192": (8192, "TencentARC/IBQ-Tokenizer-8192/imagenet256_8192.ckpt", "1.87"),
    "ibq-16384": (16384, "TencentARC/IBQ-Tokenizer-16384/imagenet256_16384.ckpt", "1.37"),
    "ibq-262144": (262144, "TencentARC/IBQ-Tokenizer-262144/imagenet256_262144.ckpt", "1.00"),
    "ibq-16384-pretrain": (16384, "TencentARC/IBQ-Tokenizer-16384-Pretrain/IBQ_pretrain_16384.ckpt", "2.06"),
    "ibq-262144-pretrain": (262144, "TencentARC/IBQ-Tokenizer-262144-Pretrain/IBQ_pretrain_262144.ckpt", "1.53"),
}

#: Name -> bits, picture side, file on the hub, rFID. Source: docs/Open-MAGVIT2.md of
#: TencentARC/SEED-Voken, where the rFID is that of ImageNet.
_OPEN_MAGVIT2: dict[str, tuple[int, int, str, str]] = {
    "256": (18, 256, "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution/imagenet_256_L.ckpt", "1.17"),
    "128": (18, 128, "TencentARC/Open-MAGVIT2-Tokenizer-128-resolution/imagenet_128_L.ckpt", "1.18"),
    "16384-pretrain": (14, 256, "TencentARC/Open-MAGVIT2-Tokenizer-16384-Pretrain/pretrain256_16384.ckpt", "2.55"),
    "262144-pretrain": (18, 256, "TencentARC/Open-MAGVIT2-Tokenizer-262144-Pretrain/pretrain256_262144.ckpt", "1.67"),
}

#: Name -> patch side, picture side, file on the hub, its bytes where known, rFID. Source: README of NVlabs/QLIP.
_QLIP: dict[str, tuple[int, int, str, int | None, str]] = {
    "qlip-b-16-256": (16, 256, "nvidia/QLIP-B-16-256/model.safetensors", 958_000_000, "3.21"),
    "qlip-b-8-256": (8, 256, "nvidia/QLIP-B-8-256/model.safetensors", 957_000_000, "0.70"),
    "qlip-l-14-392": (14, 392, "nvidia/QLIP-L-14-392/model.safetensors", None, "1.46"),
}

#: Meta's own file. Meta gives it out only on request; Anole passes it on unchanged, under Meta's licence.
_CHAMELEON = "GAIR/Anole-7b-v0.1/tokenizer/vqgan.ckpt"
_EMU3 = "BAAI/Emu3-VisionTokenizer/model.safetensors"
_EMU3_5 = "BAAI/Emu3.5-VisionTokenizer/model.safetensors"
_JANUS = "deepseek-ai/Janus-Pro-1B/pytorch_model.bin"
_UNITOK = "FoundationVision/unitok_tokenizer/unitok_tokenizer.pth"

#: Picture side -> bytes of the weights of the hub's vila-u-7b-SIDE, where they are known, and rFID.
_VILA_U: dict[int, tuple[int | None, str]] = {
    256: (
        2_712_592_654,
        "1.80 (ImageNet, README of FoundationVision/UniTok); 6.40 with the published weights (mit-han-lab/vila-u, "
        "issue 22)",
    ),
    384: (None, ""),
}

#: Variant -> picture side, number of maps, ids of all maps, file on the hub, bytes of its weights, rFID.
_TOKENFLOW: dict[Literal["clipb", "siglip"], tuple[int, int, int, str, int, str]] = {
    "clipb": (256, 9, 817, "tokenflow_clipb_32k_enhanced.pt", 1_506_802_860, ""),
    "siglip": (384, 15, 2227, "tokenflow_siglip_32k.pt", 2_216_564_164, "0.63 (ImageNet, arXiv 2412.03069)"),
}


#: Folder of the tokenizers that ship with the package, so that everything works without a network.
_SHIPPED = Path(__file__).parent / "models"


def _vqgan_tiny(weights: Weights | None) -> VQTokenizer:
    from toklip_core.weights import read_weights

    from toklip_vq.vqgan import load_vqgan

    if isinstance(weights, Path) and weights.is_dir():
        raise ValueError(f"got the folder {str(weights)!r} as weights of vqgan-tiny; load it as the tokenizer vqgan")
    return load_vqgan(_SHIPPED / "vqgan-tiny", None if weights is None else read_weights(weights))


def _vqgan(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.vqgan import load_vqgan

    if not isinstance(weights, Path):
        raise FileNotFoundError(
            "the tokenizer 'vqgan' is a folder that `toklip train vq` wrote: pass it as weights (`--weights FOLDER`, "
            "or `vqgan=FOLDER` for `toklip compare tokenizers`)"
        )
    return load_vqgan(weights)


def _llamagen(size: Literal["VQ-16", "VQ-8"], source: str) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import load_llamagen

        return load_llamagen(_published(source) if weights is None else weights, size)

    return factory


def _ibq(codebook_size: int, source: str, *, averaged: bool) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import load_ibq

        return load_ibq(_published(source) if weights is None else weights, codebook_size, averaged=averaged)

    return factory


def _chameleon(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.published import load_chameleon

    return load_chameleon(_published(_CHAMELEON) if weights is None else weights)


def _emu3(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.published import load_emu3

    return load_emu3(_published(_EMU3) if weights is None else weights)


def _emu3_5(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.published import load_emu3_5

    return load_emu3_5(_published(_EMU3_5) if weights is None else weights)


def _janus(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.published import load_janus

    return load_janus(_published(_JANUS) if weights is None else weights)


def _open_magvit2(sizes: str, source: str, *, averaged: bool) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import OPEN_MAGVIT2_CONFIGS, load_open_magvit2

        file = _published(source) if weights is None else weights
        return load_open_magvit2(file, OPEN_MAGVIT2_CONFIGS[sizes], averaged=averaged)

    return factory


def _qlip(patch_size: int, image_size: int, source: str) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import load_qlip

        return load_qlip(_published(source) if weights is None else weights, patch_size, image_size)

    return factory


def _unitok(weights: Weights | None) -> VQTokenizer:
    from toklip_vq.published import load_unitok

    return load_unitok(_published(_UNITOK) if weights is None else weights)


def _vila_u(side: int, source: str) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import VILA_U_CONFIGS, load_vila_u

        return load_vila_u(_published(source) if weights is None else weights, VILA_U_CONFIGS[side])

    return factory


def _tokenflow(variant: Literal["clipb", "siglip"], source: str) -> Callable[[Weights | None], VQTokenizer]:
    def factory(weights: Weights | None) -> VQTokenizer:
        from toklip_vq.published import TOKENFLOW_CONFIGS, load_tokenflow

        return load_tokenflow(_published(source) if weights is None else weights, TOKENFLOW_CONFIGS[variant])

    return factory


def _unitok_clip(weights: Path | None) -> nn.Module:
    from toklip_vq.published import load_unitok_clip

    way_out = "name it with the model (`--model unitok=PATH/{}`)"
    return load_unitok_clip(_published(_UNITOK, way_out=way_out) if weights is None else weights)


def _published(source: str, **advice: str) -> Path:
    from toklip_core.weights import hub_file

    owner, name, filename = source.split("/", 2)
    return hub_file(f"{owner}/{name}", filename, **advice)


def _llamagen_spec(
    name: str, size: Literal["VQ-16", "VQ-8"], source: str, file_size: int | None, rfid: str
) -> TokenizerSpec:
    task = "class" if name.endswith("c2i") else "text"
    side = 256 // int(size.removeprefix("VQ-"))
    return TokenizerSpec(
        name=name,
        factory=_llamagen(size, source),
        summary=f"LlamaGen {size} of the {task}-to-image models, 16384 codes.",
        source=source,
        licence="MIT",
        size=file_size,
        codebook_sizes=(16384,),
        grid=(side, side),
        rfid=rfid,
    )


def _ibq_spec(name: str, size: int, source: str, rfid: str, *, averaged: bool) -> TokenizerSpec:
    data = "200M pictures" if name.endswith("pretrain") else "ImageNet"
    return TokenizerSpec(
        name=name if averaged else f"{name}-raw",
        factory=_ibq(size, source, averaged=averaged),
        summary=f"IBQ, {size} codes, trained on {data}; {'averaged' if averaged else 'raw'} weights.",
        source=source,
        licence="Apache-2.0 (the code)",
        codebook_sizes=(size,),
        grid=(16, 16),
        rfid=f"{rfid} (ImageNet, {_VOKEN})" if averaged else "",
    )


def _open_magvit2_spec(
    sizes: str, bits: int, image_size: int, source: str, rfid: str, *, averaged: bool
) -> TokenizerSpec:
    data = "100M pictures" if sizes.endswith("pretrain") else "ImageNet"
    return TokenizerSpec(
        name=f"open-magvit2-{sizes}" + ("" if averaged else "-raw"),
        factory=_open_magvit2(sizes, source, averaged=averaged),
        summary=f"Open-MAGVIT2, {bits} bits, trained on {data}; {'averaged' if averaged else 'raw'} weights.",
        image_size=image_size,
        source=source,
        licence="Apache-2.0 (the code and the hub repository)",
        codebook_sizes=(2**bits,),
        grid=(16, 16),
        rfid=f"{rfid} (ImageNet, docs/Open-MAGVIT2.md of TencentARC/SEED-Voken)" if averaged else "",
    )


def _qlip_spec(
    name: str, patch_size: int, image_size: int, source: str, file_size: int | None, rfid: str
) -> TokenizerSpec:
    side = image_size // patch_size
    return TokenizerSpec(
        name=name,
        factory=_qlip(patch_size, image_size, source),
        summary=f"QLIP (BSQ), one id of 28 bits per {patch_size} x {patch_size} px; weights for noncommercial use.",
        image_size=image_size,
        source=source,
        licence="CC-BY-NC-4.0, for noncommercial use only",
        size=file_size,
        codebook_sizes=(2**28,),
        grid=(side, side),
        fixed_size=True,
        rfid=f"{rfid} (ImageNet, README of NVlabs/QLIP)",
    )


def _vila_u_spec(side: int, file_size: int | None, rfid: str) -> TokenizerSpec:
    source = f"mit-han-lab/vila-u-7b-{side}/vision_tower/model.safetensors"
    levels, grid, doubt = (4, 16, "") if side == 256 else (16, 27, "; its sizes are not verified")
    return TokenizerSpec(
        name=f"vila-u-{side}",
        factory=_vila_u(side, source),
        summary=f"VILA-U's tokenizer, {levels} residual ids of 16384 per position{doubt}; needs "
        "toklip-vq[transformers].",
        image_size=side,
        source=source,
        licence="MIT",
        size=file_size,
        codebook_sizes=(16384,) * levels,
        grid=(grid, grid),
        fixed_size=True,
        rfid=rfid,
    )


def _tokenflow_spec(variant: Literal["clipb", "siglip"]) -> TokenizerSpec:
    side, maps, ids, file, file_size, rfid = _TOKENFLOW[variant]
    source = f"ByteFlow-AI/TokenFlow/{file}"
    needs = "; needs toklip-vq[transformers]" if variant == "siglip" else ""
    return TokenizerSpec(
        name=f"tokenflow-{variant}",
        factory=_tokenflow(variant, source),
        summary=f"TokenFlow on {'SigLIP' if needs else 'CLIP'}, 32768 codes on a pyramid of {maps} maps{needs}.",
        image_size=side,
        source=source,
        licence="MIT (the weights; Apache-2.0 the code)",
        size=file_size,
        codebook_sizes=(32768,),
        grid=(1, ids),
        fixed_size=True,
        rfid=rfid,
    )


def _own_specs() -> list[TokenizerSpec]:
    """Return what this toolkit trains."""
    return [
        TokenizerSpec(
            name="vqgan",
            factory=_vqgan,
            summary="Your own tokenizer, trained by `toklip train vq`; needs --weights FOLDER.",
        ),
        TokenizerSpec(
            name="vqgan-tiny",
            factory=_vqgan_tiny,
            summary="Small VQGAN, 4 residual ids of 1024 per position of 8 px, trained on generated scenes and "
            "photographs; in the package.",
            licence="Apache-2.0",
            size=(_SHIPPED / "vqgan-tiny/model.safetensors").stat().st_size,
            codebook_sizes=(1024,) * 4,
            grid=(32, 32),
        ),
    ]


def _single_specs() -> list[TokenizerSpec]:
    """Return the families that are published in one size."""
    return [
        TokenizerSpec(
            name="chameleon-vqgan",
            factory=_chameleon,
            summary="Chameleon's tokenizer, 8192 codes; for noncommercial research.",
            image_size=512,
            source=_CHAMELEON,
            licence="Chameleon Research License, for noncommercial research only",
            codebook_sizes=(8192,),
            grid=(32, 32),
        ),
        TokenizerSpec(
            name="emu3-vision",
            factory=_emu3,
            summary="Emu3's tokenizer, 32768 codes of 8 px; needs toklip-vq[transformers].",
            image_size=512,
            source=_EMU3,
            licence="Apache-2.0",
            codebook_sizes=(32768,),
            grid=(64, 64),
        ),
        TokenizerSpec(
            name="emu3-5-vision",
            factory=_emu3_5,
            summary="Emu3.5's tokenizer: IBQ, 131072 codes.",
            image_size=512,  # the area to which its own code resizes by default
            source=_EMU3_5,
            licence="Apache-2.0",
            size=1_821_347_852,
            codebook_sizes=(131072,),
            grid=(32, 32),
        ),
        TokenizerSpec(
            name="janus-vq16",
            factory=_janus,
            summary="Tokenizer that Janus and Janus-Pro generate with: LlamaGen VQ-16, 16384 codes.",
            image_size=384,
            source=_JANUS,
            licence="DeepSeek Model License",
            size=4_000_000_000,  # of the whole model, as its page rounds it
            codebook_sizes=(16384,),
            grid=(24, 24),
        ),
        TokenizerSpec(
            name="unitok",
            factory=_unitok,
            summary="UniTok, 8 ids per position, each of 4096 codes, trained on pictures and their captions.",
            source=_UNITOK,
            licence="MIT",
            codebook_sizes=(4096,) * 8,
            grid=(16, 16),
            rfid="0.41 (ImageNet, README of FoundationVision/UniTok)",
        ),
        *(_vila_u_spec(side, *described) for side, described in _VILA_U.items()),
        *(_tokenflow_spec(variant) for variant in _TOKENFLOW),
    ]


def tokenizer_specs() -> list[TokenizerSpec]:
    """Return the specifications of the tokenizers of this package."""
    return [
        *_own_specs(),
        *(_llamagen_spec(name, *described) for name, described in _LLAMAGEN.items()),
        *(
            _ibq_spec(name, *described, averaged=averaged)
            for name, described in _IBQ.items()
            for averaged in (True, False)
        ),
        *(
            _open_magvit2_spec(sizes, *described, averaged=averaged)
            for sizes, described in _OPEN_MAGVIT2.items()
            for averaged in (True, False)
        ),
        *(_qlip_spec(name, *described) for name, described in _QLIP.items()),
        *_single_specs(),
    ]


def named_models() -> list[NamedModel]:
    """Return UniTok, which compares pictures with texts."""
    return [
        NamedModel(
            name="unitok",
            kind="CLIP",
            summary="UniTok with its text tower: the vector of a picture is made of its ids; 256 px.",
            size=3_281_334_032,  # of its tensors; the file also has the states of its training
            licence="MIT",
            source=_UNITOK,
            image_size=256,
            tokens=256,
            match=_unitok_clip,
        )
    ]
