"""Building a model from a TokLIP and a language model, and loading a saved one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from toklip_core.config import refuse_drawing
from toklip_core.drawing import IdLevels
from toklip_core.files import is_machine_error, one_line, read_json_object
from toklip_core.model import FeatureKind, TokLIP
from toklip_core.pictures import Resize
from toklip_core.weights import (
    load_strict,
    refuse_damaged,
    refuse_other_kind,
    weights_checksum,
    why_not_fetched,
    without_values,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedConfig

from toklip_mllm.model.config import TokLIPLMConfig
from toklip_mllm.model.head_config import ImageHeadConfig, ImageHeadSettings
from toklip_mllm.model.image_head import ImageHead
from toklip_mllm.model.model import TokLIPForConditionalGeneration, build_connector
from toklip_mllm.model.processing import TokLIPProcessor
from toklip_mllm.model.vision import PictureEncoder, cast_weights, encoder_checksum
from toklip_mllm.published import FOLDERS, TINY_NAME


def build_language_model(
    language_model: Any,  # noqa: ANN401
    toklip: TokLIP | str | Path,
    *,
    tokenizer: Any = None,  # noqa: ANN401
    features: FeatureKind = "concat",
    image_token: str = "<image>",
    image_head: ImageHeadSettings | None = None,
    resize: Resize | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[TokLIPForConditionalGeneration, TokLIPProcessor]:
    """Build a model and its processor from a TokLIP's encoder, a new connector and a language model.

    Nothing is copied: the encoder, language model and tokenizer that are given become parts of the result and are
    changed. The encoder is frozen (``requires_grad`` off); it and the language model are cast to ``dtype``, and the
    encoder moves to the language model's device. The tokenizer pads on the left from then on, with its eos token if it
    has no padding token. If it has no ``image_token``, one is added, and the language model gets an embedding row for
    it unless it has one to spare. The image token is never generated.

    Args:
        language_model: any causal language model of transformers: a module, or a name or folder for
            ``AutoModelForCausalLM``.
        toklip: TokLIP with its VQ tokenizer, or a name for :meth:`toklip_core.TokLIP.from_pretrained`.
        tokenizer: tokenizer of the language model; None: ``AutoTokenizer`` of its name.
        features: input of the connector.
        image_token: token that stands for nothing else, such as a reserved one.
        image_head: image head to build, for a model that also draws pictures; None: it reads them alone.
        resize: way to make a picture square, see :func:`toklip_core.pictures.resized`; None: the TokLIP's.
        dtype: dtype of the whole model; None: the language model's own.

    Raises:
        ValueError: ``resize`` is another word, the tokenizer is missing or has no chat template, the language model
            reads pictures already, the image token means something else, or with an image head,
            :func:`add_image_head` raises it.
        OSError: a model is missing and cannot be downloaded.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> words = load_language_model("toklip-mllm-tiny")[1].tokenizer
    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> language_model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes))
    >>> model, processor = build_language_model(language_model, "toklip-tiny", tokenizer=words)
    >>> sum(weight.requires_grad for weight in model.vision.parameters())
    0
    """
    if resize not in (None, *get_args(Resize)):
        raise ValueError(f"got resize {resize!r}; known are {', '.join(map(repr, get_args(Resize)))}")
    if isinstance(language_model, str | Path):
        with _named(language_model):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(language_model)
            loaded = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype or "auto")
            refuse_damaged(loaded, language_model)
        language_model = loaded
    if tokenizer is None:
        raise ValueError("got a language model without its tokenizer; give both, or its name")
    if tokenizer.chat_template is None:
        raise ValueError(
            "the language model's tokenizer has no chat template; take an instruction-tuned model, or set "
            "tokenizer.chat_template"
        )
    _refuse_unfit(language_model)
    _refuse_word(tokenizer, image_token, "image token", language_model.generation_config)
    if isinstance(toklip, str | Path):
        toklip = TokLIP.from_pretrained(toklip, text=False)
    _make_room(language_model, tokenizer, image_token)
    tokenizer.padding_side = "left"  # so that the prompts of a batch end together
    embedding, side = toklip.tokenizer.embedding, toklip.config.image_size
    config = TokLIPLMConfig(
        text_config=language_model.config,
        encoder=toklip.config.encoder.model_dump(mode="json"),
        features=features,
        encoder_checksum=None if features == "codes" else encoder_checksum(toklip.encoder),
        tokenizer=toklip.tokenizer.record.model_dump(),
        embedding=embedding.config.model_dump(mode="json"),
        embedding_checksum=weights_checksum(embedding),
        grid=[*toklip.tokenizer.grid(side, side)],
        image_size=side,
        resize=resize or toklip.config.resize,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token),
    )
    model = _assembled(config, language_model, toklip, dtype)
    model.generation_config = _generation_config(language_model, tokenizer, config.image_token_id)
    processor = TokLIPProcessor(
        tokenizer,
        vq=config.tokenizer,
        image_size=config.image_size,
        resize=config.resize,
        tokens_per_picture=config.tokens_per_picture,
        image_token=image_token,
    )
    processor.use_vq_tokenizer(toklip.tokenizer)
    if image_head is not None:
        add_image_head(model, processor, image_head)
    return model.eval(), processor


def add_image_head(
    model: TokLIPForConditionalGeneration, processor: TokLIPProcessor, settings: ImageHeadSettings
) -> None:
    """Add a new image head to a model that reads pictures, and the begin token to its processor, in place.

    If the tokenizer has no such token, it is appended, and the language model gets an embedding row for it unless it
    has one to spare. The begin token is never generated in text, like the image token. The logits of all words that
    were there before stay the same, bit for bit.

    Args:
        model: model without an image head.
        processor: processor of the model.
        settings: image head to build.

    Raises:
        ValueError: the model draws already; a layer of the language model is neither full nor sliding attention; the
            begin token is the image token, an ordinary word, or one that begins, ends or pads texts; the sizes of the
            head do not fit one another; or ids cannot be drawn one after another: the encoder is not causal, or they
            form a pyramid. Then nothing is changed.

    >>> model, processor = load_language_model("toklip-mllm-tiny")
    >>> add_image_head(model, processor, ImageHeadSettings(guidance=2.0))
    >>> prompt = processor(text="a red circle", generation_mode="image", return_tensors="pt")
    >>> tuple(model.generate(**prompt, generation_mode="image", seeds=[0]).shape)
    (1, 8, 8, 4)
    """
    if model.image_head is not None:
        raise ValueError("the model has an image head already; train that one")
    language_model, tokenizer = model.language_model, processor.tokenizer
    if found := other_layers(language_model.config):
        raise ValueError(
            f"got a language model with {found}, whose cache cannot draw; take one with full or sliding attention alone"
        )
    if settings.begin_token == processor.image_token:
        raise ValueError(f"got the image token {processor.image_token!r} as begin token; name another one")
    _refuse_word(tokenizer, settings.begin_token, "begin token", model.generation_config)
    embedding, encoder = model.vision.embedding, model.vision.encoder
    levels = IdLevels.of_embedding(embedding)
    refuse_drawing(top_k=settings.top_k, most=max(levels.sizes))
    if encoder is not None:
        encoder.refuse_steps()
    width = language_model.config.get_text_config().hidden_size
    blocks = settings.level_blocks
    if blocks is None:
        blocks = 3 if embedding.levels_are_residual else 0  # UniTok has 3 blocks over 8 levels
    sizes = {"level_width": settings.level_width, "level_heads": settings.level_heads}
    if blocks:
        sizes = _sizes_over_levels(settings, width)
    elif given := [name for name, value in sizes.items() if value is not None]:
        names = " and ".join(given)
        raise ValueError(f"got {names}, but one linear layer predicts the levels of these ids; leave {names} out")
    config = ImageHeadConfig(
        begin_token_id=0,  # until the tokenizer has the token
        levels=levels.sizes,
        level_blocks=blocks,
        guidance=settings.guidance,
        top_k=settings.top_k,
        **sizes,
    )
    weight = next(model.connector.parameters())
    head = ImageHead(config, width).to(weight.device, weight.dtype)
    _make_room(language_model, tokenizer, settings.begin_token)
    model.config.text_config = language_model.config
    begin = tokenizer.convert_tokens_to_ids(settings.begin_token)
    model.config.image_head = config.model_dump(mode="json") | {"begin_token_id": begin}
    model.image_head = head
    suppressed = model.generation_config.suppress_tokens or []
    model.generation_config.suppress_tokens = [*suppressed, begin]
    processor.use_begin_token(settings.begin_token)


def other_layers(config: PreTrainedConfig) -> str:
    """Return, in words, which layers of a language model are neither full nor sliding attention; "" if there are none.

    The state of a convolution or a recurrence cannot be taken back, and has no place for a mask.
    """
    if config.model_type in ("rwkv", "xlstm"):  # they have no layer_types
        return "states in place of attention"
    other = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    return f"layers of the kinds {', '.join(sorted(other))}" if other else ""


def _sizes_over_levels(settings: ImageHeadSettings, width: int) -> dict[str, int | None]:
    """Return width and heads of the transformer over levels; ValueError if the heads do not divide the width."""
    width = settings.level_width or width
    heads = settings.level_heads or next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
    if width % heads:
        raise ValueError(f"got level_width {width} and level_heads {heads}; the heads must divide the width")
    return {"level_width": width, "level_heads": heads}


def _refuse_word(tokenizer: Any, name: str, what: str, generation: Any) -> None:  # noqa: ANN401
    """Raise ValueError for an image or begin token that means something else: a word, or the end of an answer."""
    token = tokenizer.get_vocab().get(name)
    if token is None:
        return
    ends = getattr(generation, "eos_token_id", None)
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if token in used | {*(ends if isinstance(ends, list) else [ends])}:
        raise ValueError(
            f"got {name!r} as {what}, which begins, ends or pads texts; name another special token, or one that "
            "the tokenizer does not have"
        )
    known = tokenizer.added_tokens_decoder.get(token)
    if known is None or (what == "begin token" and not known.special):
        raise ValueError(
            f"got {name!r} as {what}, which is a word of the tokenizer; name one of its special tokens, or one that it "
            "does not have"
        )


def load_language_model(
    name: str | Path = TINY_NAME,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[TokLIPForConditionalGeneration, TokLIPProcessor]:
    """Load a saved model, in evaluation mode, and its processor.

    Args:
        name: ``toklip-mllm-tiny``, ``toklip-uni-tiny``, a folder, or owner/name on the hub.
        device: device to move the model to; None: where transformers loads it.
        dtype: dtype of the weights; None: as stored.

    Raises:
        FileNotFoundError: the model is missing and cannot be downloaded.
        ValueError: model and processor do not belong together, or the codebook is not the model's.

    >>> model, processor = load_language_model("toklip-mllm-tiny")
    >>> model.config.image_size, model.config.tokens_per_picture, model.context
    (64, 64, 512)
    """
    place = FOLDERS.get(str(name), name)
    if Path(place).is_dir() and not Path(place, "config.json").is_file():
        raise FileNotFoundError(f"{str(place)!r} is not a model folder: it has no config.json")
    if Path(place).is_dir():
        values = read_json_object(Path(place, "config.json"))
        refuse_other_kind(values, place, kind=TokLIPLMConfig.model_type, wanted="language model over TokLIP")
    if not Path(place).exists() and "/" not in str(place):
        raise FileNotFoundError(
            f"there is no model {str(name)!r}, and no folder of that name; name {' or '.join(FOLDERS)}, a folder, or "
            "owner/name of the hub"
        )
    with _named(place):
        model = TokLIPForConditionalGeneration.from_pretrained(place, dtype=dtype or "auto")
        processor = TokLIPProcessor.from_pretrained(place)
    model.config.tokenizer_record.refuse_other_ids(processor.vq_record, f"the processor of {str(name)!r}")
    _refuse_other_processor(model, processor, str(name))
    if device is not None:
        model.to(device)
    return model.eval(), processor


def _refuse_other_processor(model: TokLIPForConditionalGeneration, processor: TokLIPProcessor, name: str) -> None:
    """Raise ValueError if a model and a processor make or read pictures in different ways."""
    config, tokenizer = model.config, processor.tokenizer
    begin = None if config.image_head is None else tokenizer.convert_ids_to_tokens(config.head_config.begin_token_id)
    both = {
        "image_size": (config.image_size, processor.image_size),
        "resize": (config.resize, processor.resize),
        "number of tokens per picture": (config.tokens_per_picture, processor.tokens_per_picture),
        "image token": (tokenizer.convert_ids_to_tokens(config.image_token_id), processor.image_token),
        "begin token": (begin, processor.begin_token),
    }
    for what, (ours, theirs) in both.items():
        if ours != theirs:
            raise ValueError(
                f"in {name!r} the model's {what} is {ours}, and the processor's is {theirs}; save both from one build"
            )


@contextmanager
def _named(model: str | Path) -> Iterator[None]:
    """Add the name of the model to transformers' errors about missing or damaged files."""
    try:
        yield
    except OSError as error:
        if Path(model).exists() or is_machine_error(error):
            raise
        raise FileNotFoundError(
            f"{str(model)!r} is not a folder, is not in the hub's cache and cannot be downloaded "
            f"({why_not_fetched(error)}); fetch it where there is a network (`hf download {model}`)"
        ) from error
    except Exception as error:  # transformers raises too many kinds of errors to list
        if is_machine_error(error):
            raise
        if type(error) in (ValueError, LookupError) and str(model) in str(error):
            raise
        words = one_line(error, longest=160)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"the files of {str(model)!r} are damaged, or not of one model: {kind}{words}") from error


def _refuse_unfit(language_model: Any) -> None:  # noqa: ANN401 - any causal language model of transformers
    """Raise ValueError for a model of transformers that cannot read pictures as a language model does."""
    config = language_model.config
    if config.get_text_config() is not config:
        raise ValueError(
            f"got a {type(language_model).__name__}, which has more parts than a language model; load that part alone "
            "by its own class, as Gemma3ForCausalLM for Gemma 3, and give it with its tokenizer"
        )
    embedded = language_model.get_input_embeddings().weight.shape[1]
    if embedded != config.hidden_size:
        raise ValueError(
            f"got a language model with embeddings of width {embedded} and layers of width {config.hidden_size}; the "
            "connector needs one width: take another language model"
        )
    if {*(getattr(config, "layer_types", None) or ())} == {"linear_attention"}:
        raise ValueError(
            f"got a {type(language_model).__name__}, none of whose layers has attention, so its cache does not "
            "tell how many tokens it has read; take a language model with attention in some layers"
        )


def valid_generation_config(config: GenerationConfig) -> GenerationConfig:
    """Return a copy of a generation config that can be saved.

    Some published ones cannot: they have sampling options, which have no effect, beside greedy search. The copy is
    without these.

    Raises:
        ValueError: it cannot be saved for another reason.
    """
    config = copy.deepcopy(config)
    if not config.do_sample:
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"):
            setattr(config, name, None)
    if (config.num_beams or 1) == 1:
        config.length_penalty = config.early_stopping = None
    try:
        config.validate(strict=True)
    except ValueError as error:
        words = one_line(error, longest=200)
        raise ValueError(f"the language model's generation config cannot be saved, so fix it: {words}") from error
    return config


@torch.no_grad()
def give_rows(language_model: Any, count: int) -> None:  # noqa: ANN401
    """Let a language model have at least so many tokens; the rows of new ones are the mean of the others."""
    before = language_model.get_input_embeddings().num_embeddings
    if count <= before:
        return
    language_model.resize_token_embeddings(count, mean_resizing=False)
    for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        layer.weight[before:] = layer.weight[:before].mean(dim=0)


def _make_room(language_model: Any, tokenizer: Any, name: str) -> None:  # noqa: ANN401
    """Add a special token to the tokenizer, and to the language model a row for it, the mean of the others."""
    if name not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [name]}, False)
    give_rows(language_model, tokenizer.convert_tokens_to_ids(name) + 1)


def _assembled(
    config: TokLIPLMConfig,
    language_model: Any,  # noqa: ANN401
    toklip: TokLIP,
    dtype: torch.dtype | None,
) -> TokLIPForConditionalGeneration:
    dtype = dtype or language_model.dtype
    device = language_model.device
    with without_values():
        model = TokLIPForConditionalGeneration(config)
        vision = PictureEncoder(config)
    tokenizer = toklip.tokenizer
    load_strict(vision.embedding, tokenizer.embedding.state_dict(), source=f"the tokenizer {tokenizer.name}")
    if vision.encoder is not None:
        vision.encoder = toklip.encoder.to(dtype)
    model.vision = vision.to(device).requires_grad_(False)
    model.connector = build_connector(config).to(device, dtype)
    cast_weights(language_model, dtype)
    model.language_model = language_model
    config.dtype = dtype
    model.remember_encoder()
    return model


def _generation_config(language_model: Any, tokenizer: Any, image_token_id: int) -> Any:  # noqa: ANN401
    config = valid_generation_config(language_model.generation_config)
    config.suppress_tokens = [*(config.suppress_tokens or []), image_token_id]
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    return config
