"""TokLIP's tokens in a causal language model of transformers.

    ids (P, h, w, Q) --embedding--> codes --encoder--> tokens      [codes ; tokens] (P, N, F)
    [codes ; tokens] --connector F -> D -> D--> in the places of the image token among input embeddings (B, L, D)
    states at the begin token and at image tokens --image head--> logits of the next ids of a picture that is drawn

A picture that the assistant draws follows the begin token, and no other picture does: its ids are predicted by the
image head, everything else by the language model's own head. A model without an image head reads pictures alone.

The model takes ids, never pixels; the VQ tokenizer belongs to the processor. The embedding of the ids, with its tables
if it has any, is saved with the model, so a token store and the model are enough for training.

Shape letters: P pictures of a batch, in reading order: all of row 0, then all of row 1; h and w grid of ids, Q ids per
position; N tokens per picture, mostly h w; F width of codes, of tokens, or of both; B batch, L prompt, D width of the
language model.

Source: Lin et al., TokLIP, https://arxiv.org/abs/2505.05422, section 3.3; the connector is LLaVA-1.5's,
https://arxiv.org/abs/2310.03744.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from toklip_core.drawing import Drawing, Guidance, IdLevels, Sampler, Window
from toklip_core.embeddings import CodeEmbedding
from toklip_core.training import next_id_loss
from toklip_core.weights import refuse_damaged, weights_checksum
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LogitsProcessorList,
    initialization,
)
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import torch_compilable_check

from toklip_mllm.model.adapters import keep_out
from toklip_mllm.model.config import NO_HEAD, TokLIPLMConfig
from toklip_mllm.model.image_head import ImageHead
from toklip_mllm.model.logits import FiniteLogits
from toklip_mllm.model.outputs import PictureOutput, ReadAndDrawOutput
from toklip_mllm.model.predictor import PicturePredictor, PicturePrompt
from toklip_mllm.model.vision import PictureEncoder, fill_encoder, left_out_encoder, round_to

#: Whether a model is loaded whose file leaves the encoder out; transformers would warn that it has random weights.
_LEAVES_OUT_ENCODER: ContextVar[bool] = ContextVar("leaves out encoder", default=False)
#: transformers' name of the cache: the first from 5.24 on, the second before.
_CACHE_NAMES = ("cache", "past_key_values")
#: Name of the cache in the installed release.
_CACHE = next(
    name
    for name in _CACHE_NAMES
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)

#: Options of ``generate`` that drawing takes, as transformers names them.
_OF_DRAWING = ("guidance_scale", "temperature", "top_k", "top_p", "do_sample")

#: Prefix of the semantic encoder's weights in a state dict.
_ENCODER = "vision.encoder."
#: Dtypes in which models are saved.
_SAVED = (torch.float32, torch.bfloat16, torch.float16)


#: Label of tokens without a loss, as in transformers.
IGNORED = -100


class ContextError(ValueError):
    """A prompt is longer than the language model's context, or leaves no room for a picture."""


class TokLIPForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Causal language model that reads pictures as TokLIP's tokens, with all of transformers' ``generate``.

    Its parts are ``vision`` (embedding of ids and semantic encoder), ``connector``, ``language_model`` and, if it draws
    pictures, ``image_head``; ``vision`` is frozen (``requires_grad`` off) unless you turn its training on. Use
    :func:`toklip_mllm.model.build_language_model` to make a model from a TokLIP and a language model, and
    :func:`toklip_mllm.model.load_language_model` to load a saved one.

    >>> from toklip_mllm.model import load_language_model
    >>> model, processor = load_language_model("toklip-mllm-tiny")
    >>> ids = torch.zeros(1, 8, 8, 4, dtype=torch.int64)
    >>> prompt = torch.full((1, model.config.tokens_per_picture), model.config.image_token_id)
    >>> model(input_ids=prompt, image_ids=ids).logits.shape
    torch.Size([1, 64, 116])
    """

    config_class = TokLIPLMConfig
    config: TokLIPLMConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["vision.embedding"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    # The language model itself refuses what it does not support.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: TokLIPLMConfig) -> None:
        super().__init__(config)
        self.vision = PictureEncoder(config)
        self.connector = build_connector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.image_head = build_image_head(config)
        self._no_split_modules = ["PictureEncoder", *(self.language_model._no_split_modules or ())]
        self._can_compile_fullgraph = self.language_model._can_compile_fullgraph
        self._is_stateful = self.language_model._is_stateful
        self._takes = frozenset(inspect.signature(type(self.language_model).forward).parameters)
        self.post_init()
        if _LEAVES_OUT_ENCODER.get():
            ignored = getattr(self, "_keys_to_ignore_on_load_missing", None) or ()  # a set, or a list before 5.24
            self._keys_to_ignore_on_load_missing = [*ignored, r"^vision\.encoder\."]
        self.vision.requires_grad_(False)
        #: Checksums of the semantic encoder's weights when they were loaded, by dtype; empty if the weights were not
        #: accessible, None if none were loaded.
        self._encoder_read: dict[torch.dtype, str] | None = None

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute. Once peft has added adapters it sets ``peft_config``; then they are removed from all parts
        but the language model.

        See :func:`toklip_mllm.model.keep_out`.
        """
        super().__setattr__(name, value)
        if name == "peft_config":
            self._keep_adapters_out()

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Yield names and modules, as PyTorch does.

        Before peft adds a second adapter it calls this with the adapter's settings in ``peft_config``; they are changed
        here to exclude all parts but the language model.
        """
        self._keep_adapters_out()
        return super().named_modules(*args, **kwargs)

    def _keep_adapters_out(self) -> None:
        """Exclude all parts but the language model from adapters that are new in ``peft_config``."""
        settings, known = self.__dict__.get("peft_config") or {}, self.__dict__.get("_kept_out", {})
        new = {adapter: config for adapter, config in settings.items() if known.get(adapter) is not config}
        if new or len(known) > len(settings):
            self._kept_out = {**settings}  # first, because the next calls ask for the modules
        if new:
            keep_out(self, new, parts=("vision", "connector", *(["image_head"] if self.image_head is not None else [])))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Save the model, as in transformers; its config gets the checksum of the saved encoder.

        The checksum stays the same if weights were only rounded. It is None if the weights are not accessible: not in
        ``state_dict``, sharded, or on the meta device.
        """
        mine = self.config.encoder_checksum
        self.config.encoder_checksum = self._checksum_of_saved(state_dict)
        try:
            return super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        finally:
            self.config.encoder_checksum = mine

    def remember_encoder(self) -> None:
        """Record the checksums of the semantic encoder's weights, whose checksum is in the config."""
        if self.vision.encoder is not None and self.config.encoder_checksum is not None:
            weights = self._encoder_weights(None)
            self._encoder_read = {dtype: weights_checksum(round_to(weights, dtype)) for dtype in _SAVED if weights}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Load a saved model, as in transformers.

        Raises:
            ValueError: the weights do not fit the config exactly, one of them is NaN or infinite, or the codebook is
                not the one that the model was built with.
        """
        told = kwargs.pop("output_loading_info", False)
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        encoder = None if place is None else left_out_encoder(Path(place))
        token = _LEAVES_OUT_ENCODER.set(encoder is not None)
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        finally:
            _LEAVES_OUT_ENCODER.reset(token)
        for what in ("missing", "unexpected"):
            if names := sorted(map(str, info[f"{what}_keys"])):
                raise ValueError(
                    f"in {model.name_or_path!r} {len(names)} weights are {what}, such as {', '.join(names[:3])}; save "
                    "the whole model again, with its own config"
                )
        if encoder is not None:
            fill_encoder(model.vision, encoder, str(place))
        model.config.encoder_model = None  # it has all its weights, and whoever saves it saves them
        model.vision.requires_grad_(False)  # loaded parameters are new ones
        refuse_damaged(model, model.name_or_path)
        model.check_embedding()
        model.remember_encoder()
        return cast(Self, (model, info) if told else model)

    def forward(  # noqa: PLR0913 - transformers' signature
        self,
        input_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,  # noqa: ANN401
        inputs_embeds: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        image_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Any = None,  # noqa: ANN401
        output_image_logits: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> CausalLMOutputWithPast:
        """Run the language model: return logits (B, L, V), the cache, and the loss if there are labels.

        If ``input_ids`` have pictures that are drawn, there are also the logits of their ids, and with labels their
        loss, which is added to that of the text; see :class:`toklip_mllm.model.ReadAndDrawOutput`.

        Args:
            input_ids: (B, L), with the image token N times for every picture.
            image_ids: (P, h, w, Q), the ids of the pictures, in reading order.
            attention_mask: (B, L), 0 where a row is padded, on either side.
            position_ids: positions, as the language model takes them.
            cache: keys and values of the tokens before, as the language model takes them.
            inputs_embeds: (B, L, D), instead of ``input_ids``, for a prompt without pictures.
            image_tokens: (P, N, width of the encoder), the encoder's tokens of ``image_ids``, if a store has them.
            image_features: (P, N, D), instead of ``image_ids``: the pooler_output of :meth:`get_image_features`.
            image_embeds: (B, L, D), instead of both: embeddings for the places of the image token; used by
                :meth:`generate`.
            labels: (B, L), -100 where there is no loss, as at every image token; the language model shifts them.
            use_cache: return the cache.
            logits_to_keep: number of last tokens, or indices of tokens, to compute logits for; 0 means all.
            past_key_values: the cache, under the name that transformers used before 5.24.
            output_image_logits: return the logits of the pictures that are drawn, which needs their ``image_ids``;
                None: if there are labels and the model has an image head.
            kwargs: further arguments of the language model's forward.

        Raises:
            ValueError: places and pictures differ in number, the ids are of another grid, there are two caches, logits
                of pictures are asked of a model without image head or without ids, or :meth:`refuse_unlearned` raises
                it.
        """
        if output_image_logits is None:
            output_image_logits = labels is not None and self.image_head is not None
            if labels is None:
                self.refuse_unlearned(input_ids)
        text = self._text_inputs(input_ids, inputs_embeds, image_ids, image_tokens, image_features, image_embeds)
        known: dict[str, Any] = {"position_ids": position_ids, "use_cache": use_cache}
        known |= _cache_by_its_name({"cache": cache, "past_key_values": past_key_values})
        if "logits_to_keep" in self._takes:
            known["logits_to_keep"] = logits_to_keep
        known = {name: value for name, value in known.items() if value is not None}
        if not output_image_logits:
            found = self.language_model(**text, attention_mask=attention_mask, labels=labels, **known, **kwargs)
            return cast(CausalLMOutputWithPast, found)
        self.required_head()
        learned = labels
        if labels is not None and not bool((labels[:, 1:] != IGNORED).any()):
            learned = None  # because transformers' mean over no token is NaN
        known |= kwargs | {"output_hidden_states": True, "return_dict": True}
        found = self.language_model(**text, attention_mask=attention_mask, labels=learned, **known)
        output = self._with_pictures_drawn(found, input_ids, image_ids, learns=labels is not None)
        asked = {name: kwargs.get(name) for name in ("output_hidden_states", "return_dict")}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        if not asked["output_hidden_states"]:
            output = ReadAndDrawOutput(**{name: value for name, value in output.items() if name != "hidden_states"})
        return output if asked["return_dict"] else output.to_tuple()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' ``Trainer`` may give the number of labelled tokens of all micro-batches.

        With an image head it may not, because the loss is that of ids, too: it is a mean over the micro-batch.
        """
        return self.image_head is None

    def refuse_unlearned(self, input_ids: Tensor | None) -> None:
        """Raise ValueError for drawn pictures in training without labels, because the head would not learn them.

        Trainers that compute the loss themselves (label smoothing, TRL's loss from hidden states) leave out the labels.
        """
        if self.image_head is None or input_ids is None or not (self.training and torch.is_grad_enabled()):
            return
        opened = input_ids[:, :-1] == self.config.head_config.begin_token_id
        drawn = (opened & (input_ids[:, 1:] == self.config.image_token_id)).any()
        torch_compilable_check(
            ~drawn,
            lambda: (
                "got drawn pictures in training without labels, so their loss would be left out; let the model compute "
                "the loss, as Trainer does without label smoothing, or give output_image_logits=False to leave it out"
            ),
        )

    def required_head(self) -> ImageHead:
        """Return the image head; ValueError if the model has none."""
        if self.image_head is None:
            raise ValueError(NO_HEAD)
        return self.image_head

    @property
    def id_levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted; ValueError if the model has no image head."""
        return IdLevels(self.vision.embedding.codebook_sizes, self.config.head_config.levels)

    def image_logits(
        self, states: Tensor, input_ids: Tensor, image_ids: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the logits (P', N, K_q) of each level of the pictures that are drawn, and their levels (P', N, L).

        P' is the number of pictures after a begin token; it may be 0.

        Args:
            states: (B, L, D), the last hidden states of the language model.
            input_ids: (B, L), the tokens that they are states of.
            image_ids: (P, h, w, Q), the ids of all pictures; None if none of them is drawn.

        Raises:
            ValueError: the model has no image head, or there are drawn pictures without their ids.
        """
        head = self.required_head()
        states, drawn = self.drawn_states(states, input_ids)
        if image_ids is None:
            if len(states):
                raise ValueError("got pictures that are drawn, without image_ids, which the head learns; give both")
            image_ids = input_ids.new_zeros(len(drawn), *self.vision.ids_shape)  # none of them is drawn
        levels = self.id_levels.split(image_ids[drawn.to(image_ids.device)].flatten(1, 2))
        return head(states, levels), levels

    def drawn_states(self, states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (P', N, D) that the image head reads, and which of P pictures are drawn, (P,), bool.

        Args:
            states: (B, L, D), the last hidden states of the language model.
            input_ids: (B, L), the tokens that they are states of.

        Raises:
            ValueError: the model has no image head.
        """
        self.required_head()
        each = self.config.tokens_per_picture
        firsts = (input_ids == self.config.image_token_id).nonzero()[::each]
        rows, columns = firsts.unbind(1)
        begin = self.config.head_config.begin_token_id
        drawn = (columns > 0) & (input_ids[rows, (columns - 1).clamp(min=0)] == begin)
        places = columns[drawn, None] - 1 + torch.arange(each, device=columns.device)
        return states[rows[drawn, None], places], drawn

    def connect(self, features: Tensor) -> Tensor:
        """Return features (..., F), inputs of the connector, in the language model's embedding space, (..., D)."""
        return cast(Tensor, self.connector(features.to(self._connector_dtype)))

    def read_embeds(self, embeds: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Read embeddings (R, M, D) after a cache; return their states (R, M, D), and the cache.

        Args:
            embeds: embeddings of tokens and of pictures.
            mask: (R, L), 0 where a row does not read, for the cache and these.
            cache: keys and values of the first L - M tokens; None if M = L.
        """
        backbone = self.language_model.base_model
        known: dict[str, Any] = {} if cache is None else {_CACHE: cache}
        if "position_ids" in inspect.signature(backbone.forward).parameters:
            known["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        found = backbone(inputs_embeds=embeds, attention_mask=mask, use_cache=True, **known)
        return found.last_hidden_state, getattr(found, _CACHE)

    @torch.no_grad()
    def draw(  # noqa: PLR0913 - a prompt as transformers has it, and the settings of a sampler
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        seeds: Sequence[int],
        drawing: Drawing = Drawing(),
        prefix_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        cache: Any = None,  # noqa: ANN401
        read_last: bool = True,
        window: Window = 1,
        sampler: Sampler[PicturePrompt] | None = None,
        progress: bool = False,
    ) -> PictureOutput:
        """Draw a picture after each prompt, id by id, and read it: the cache that is returned holds it.

        Apart from rounding, a picture depends on its prompt, its prefix and its seed alone.

        Args:
            input_ids: (B, L), prompts that end in the begin token, padded on the left.
            attention_mask: (B, L), 0 where a prompt is padded.
            seeds: one seed per picture.
            drawing: settings; those that are None are the model's own.
            prefix_ids: (B, n, Q), ids that the pictures start with, in raster order.
            image_ids: (P, h, w, Q), ids of the pictures in the prompts that the cache does not hold.
            image_tokens: see :meth:`forward`.
            image_features: see :meth:`forward`.
            cache: cache of the first tokens of the prompts, which is extended in place.
            read_last: read the last position, too. If text is to follow at once, ``generate`` reads it itself, given
                the ``image_features`` of all pictures so far.
            window: largest number of positions that a call of the language model draws, or "auto"; the picture is the
                same.
            sampler: sampler of a :class:`PicturePredictor` of this model, which knows from earlier drawings how long a
                call takes, for "auto". None: a new one.
            progress: show a progress bar on stderr.

        Raises:
            ContextError: the language model's context has no room for the picture.
            ValueError: the model has no image head, a prompt does not end in the begin token, the sampler is of
                another model, or :meth:`toklip_core.drawing.Sampler.draw` raises it.

        >>> from toklip_mllm.model import load_language_model
        >>> model, processor = load_language_model("toklip-mllm-tiny")
        >>> model.draw(torch.zeros(1, 4, dtype=torch.int64), seeds=[0])
        Traceback (most recent call last):
        ValueError: the model has no image head, so it reads pictures and draws none; train one ...
        """
        sampler = sampler or Sampler(PicturePredictor(self))
        predictor = cast(PicturePredictor, sampler.model)
        # Their heads are compared, because peft and torch.compile wrap the model.
        if predictor.model.required_head() is not self.required_head():
            raise ValueError("got the sampler of another model; make one: Sampler(PicturePredictor(model))")
        predictor.forget()  # what a sampler that was used by itself has left
        self._refuse_other_end(input_ids)
        self.refuse_no_room(input_ids.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = 0 if cache is None else int(cache.get_seq_length())
        if not seen < input_ids.shape[1] == mask.shape[1]:
            raise ValueError(
                f"got input_ids {tuple(input_ids.shape)}, a mask {tuple(mask.shape)} and a cache of {seen} tokens; "
                "wanted whole prompts, also of what the cache holds, and a mask of their shape"
            )
        text = self._text_inputs(input_ids[:, seen:], None, image_ids, image_tokens, image_features, None)
        embeds = text.get("inputs_embeds")
        if embeds is None:
            embeds = cast(Tensor, self.get_input_embeddings()(input_ids[:, seen:]))
        prompt = PicturePrompt(embeds, mask, cache)
        try:
            ids, calls, width = sampler.draw(
                prompt, seeds=seeds, drawing=drawing, prefix=prefix_ids, window=window, progress=progress
            )
            read = predictor.finish(prompt, ids.flatten(1, 2), last=read_last)
        finally:
            predictor.forget()
        places = input_ids.new_full((len(ids), self.config.tokens_per_picture), self.config.image_token_id)
        sequences = torch.cat([input_ids, places], dim=1)
        mask = torch.cat([mask, torch.ones_like(places, dtype=mask.dtype)], dim=1)
        return PictureOutput(ids, sequences, mask, read.embeds, read.cache, calls, width)

    def _refuse_other_end(self, prompt: Tensor) -> None:
        """Raise an error unless prompts end in the begin token."""
        begin = self.config.head_config.begin_token_id
        if prompt.ndim != 2 or not prompt.shape[1] or not bool((prompt[:, -1] == begin).all()):
            raise ValueError(
                f"got a prompt that does not end in the begin token ({begin}), which opens a picture; let the "
                "processor make it, with generation_mode='image'"
            )

    def refuse_no_room(self, length: int) -> None:
        """Raise ContextError if the language model's context has no room for a picture after ``length`` tokens."""
        each, context = self.config.tokens_per_picture, self.context
        if context is not None and length + each > context:
            raise ContextError(
                f"got a prompt of {length} tokens, and a picture takes {each}; the language model's context is "
                f"{context}: say less, or start over"
            )

    def room_for_answer(self, length: int, wanted: int) -> int:
        """Return the number of tokens of an answer to a prompt of ``length``: ``wanted``, or fewer for the context."""
        context = self.context
        return wanted if context is None else max(1, min(wanted, context - length))

    def _with_pictures_drawn(
        self, found: Any, input_ids: Tensor | None, image_ids: Tensor | None, *, learns: bool  # noqa: ANN401
    ) -> ReadAndDrawOutput:
        """Return an output of the language model with the logits of the pictures that are drawn, and their loss."""
        states = found.hidden_states[-1]
        if input_ids is None:  # embeddings are those of a prompt without pictures
            input_ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        logits, levels = self.image_logits(states, input_ids, image_ids)
        known = {field.name: found.get(field.name) for field in fields(CausalLMOutputWithPast)}
        loss = next_id_loss(logits, levels).loss if learns and len(levels) else None
        if learns:
            # Where nothing is drawn, DDP and FSDP still wait for the gradients of the head.
            drawn = loss if loss is not None else self.idle_head(states)
            known["loss"] = drawn if known["loss"] is None else known["loss"] + drawn
        return ReadAndDrawOutput(**known, image_loss=loss, image_logits=logits if len(levels) else None)

    def idle_head(self, states: Tensor) -> Tensor:
        """Return 0, a scalar, which depends on all weights of the image head."""
        levels = torch.zeros(1, len(self.id_levels.sizes), dtype=torch.int64, device=states.device)
        return 0 * torch.stack([part.sum() for part in self.required_head()(states[:1, 0], levels)]).sum()

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        image_ids: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        generation_mode: str = "text",
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Generate text as transformers does, or draw pictures; pictures that are read are encoded once.

        With ``generation_mode="image"`` the prompts end in the begin token, as the processor makes them in that mode.
        The ids (B, h, w, Q) of a picture for each are returned, or with ``return_dict_in_generate`` a
        :class:`toklip_mllm.model.PictureOutput`, whose cache holds the pictures: the next turn takes it with its
        ``sequences``, and needs no ``image_ids``. Ids are sampled unless ``do_sample`` is False.

        Args:
            inputs: (B, L), the prompts; may also be given as ``input_ids``.
            generation_config: generation config of transformers.
            image_ids: (P, h, w, Q), the ids of the pictures, in reading order.
            image_tokens: (P, N, width of the encoder), the encoder's tokens of ``image_ids``, if a store has them.
            image_features: (P, N, D), instead of ``image_ids``: the pooler_output of :meth:`get_image_features`.
            generation_mode: "text" or "image".
            kwargs: all that transformers' ``generate`` takes: attention_mask, max_new_tokens, num_beams, streamer, ...;
                a cache as ``cache`` or, as before transformers 5.24, ``past_key_values``, whose pictures need not be
                given again. For pictures: attention_mask, a cache, ``guidance_scale``, ``temperature``, ``top_k``,
                ``top_p``, ``do_sample``, ``return_dict_in_generate``; ``seeds``, one per picture, by default from
                torch's random state; ``prefix_ids`` (B, n, Q), ids that the pictures start with; and ``window``, see
                :meth:`draw`.

        Raises:
            ContextError: a prompt is longer than the language model's context, or leaves no room for a picture.
            ValueError: places and pictures differ in number, there is an ``assistant_model``, logits are NaN or
                infinite, or the model draws and has no image head or gets a prompt without the begin token.
        """
        if generation_mode not in ("text", "image"):
            raise ValueError(f"got generation_mode {generation_mode!r}; wanted 'text' or 'image'")
        if generation_mode == "image":
            given = {"image_ids": image_ids, "image_tokens": image_tokens, "image_features": image_features}
            return self._generate_pictures(inputs, generation_config, {**given, **kwargs})
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "got an assistant_model, which does not see the pictures; prompt_lookup_num_tokens=3 drafts tokens "
                "without one"
            )
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if prompt is not None:
            self._refuse_long(prompt)
            if image_ids is not None and image_features is None:
                image_features = self._features(image_ids, image_tokens)
            unread = prompt[:, self._read_before(prompt, image_features, kwargs) :]
            self._refuse_other_number(unread, image_features)
            if image_features is not None:
                mask = kwargs.get("attention_mask")
                whole = prompt.shape[1] if mask is None else mask.shape[1]
                kwargs["image_embeds"] = self._lay_out(unread, image_features, whole - unread.shape[1])
        elif image_ids is not None or image_features is not None:
            raise ValueError("got pictures without input_ids, which say where they go")
        kwargs["logits_processor"] = LogitsProcessorList([FiniteLogits(), *(kwargs.get("logits_processor") or ())])
        return super().generate(inputs, generation_config, **_cache_by_its_name(kwargs))

    def _read_before(self, prompt: Tensor, features: Tensor | None, kwargs: Mapping[str, Any]) -> int:
        """Return the number of first tokens of a prompt whose pictures only the cache has; 0 if all are given."""
        cache = _cache_by_its_name(kwargs).get(_CACHE)
        seen = 0 if cache is None else int(cache.get_seq_length())
        places = int((prompt == self.config.image_token_id).sum())
        given = 0 if features is None else features.shape[0] * features.shape[1]
        return seen if seen < prompt.shape[1] and given < places else 0

    def _generate_pictures(
        self, inputs: Tensor | None, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Draw by the options of ``generate``."""
        options = (*_OF_DRAWING, "return_dict_in_generate")
        told: dict[str, Any] = {name: getattr(generation_config, name, None) for name in options}
        told |= {name: kwargs.pop(name) for name in told if kwargs.get(name) is not None}
        prompt = kwargs.pop("input_ids", inputs)
        if prompt is None:
            raise ValueError("got no input_ids; a picture is drawn after a prompt that ends in the begin token")
        kwargs = _cache_by_its_name(kwargs)
        cache = kwargs.pop(_CACHE, None)
        seeds = kwargs.pop("seeds", None)
        if seeds is None:
            seeds = torch.randint(2**31, (len(prompt),)).tolist()
        known = {"attention_mask", "image_ids", "image_tokens", "image_features", "prefix_ids", "window", "use_cache"}
        if unknown := sorted({name for name, value in kwargs.items() if value is not None} - known):
            raise ValueError(
                f"got {', '.join(unknown)}, which drawing does not take; it takes {', '.join(_OF_DRAWING)}, seeds, "
                "prefix_ids and window"
            )
        known.remove("use_cache")
        kwargs = {name: value for name, value in kwargs.items() if name in known}
        scale = told["guidance_scale"]
        if told["do_sample"] is False:
            told["temperature"] = 0.0
        drawing = Drawing(
            guidance=scale if scale is None or isinstance(scale, Guidance) else Guidance(float(scale)),
            top_k=told["top_k"],
            **{name: told[name] for name in ("temperature", "top_p") if told[name] is not None},
        )
        found = self.draw(prompt, seeds=seeds, drawing=drawing, cache=cache, **kwargs)
        return found if told["return_dict_in_generate"] else found.image_ids

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,  # noqa: ANN401
        image_embeds: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Return the language model's inputs for the next step, with the matching rows of ``image_embeds``."""
        kwargs = _cache_by_its_name(kwargs)
        wanted: dict[str, Any] = self.language_model.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        cache = kwargs.get(_CACHE)
        start = 0 if cache is None or image_embeds is None else int(cache.get_seq_length())
        if image_embeds is None or start >= image_embeds.shape[1]:
            return wanted
        tokens = wanted["input_ids"].shape[1]
        part = image_embeds[:, start : start + tokens]
        return wanted | {"image_embeds": F.pad(part, (0, 0, 0, tokens - part.shape[1]))}

    def get_image_features(
        self,
        image_ids: Tensor,
        image_tokens: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the features of pictures as a ``BaseModelOutputWithPooling``, as models of transformers do.

        ``pooler_output`` (P, N, D) is in the language model's embedding space, and ``last_hidden_state`` (P, N, F) is
        the connector's input. ``hidden_states`` are those of the semantic encoder, (P, N, width) each: the input of the
        first block and the output of every block; None if the encoder does not run.

        Args:
            image_ids: (P, h, w, Q), the ids of the pictures.
            image_tokens: (P, N, width of the encoder), the encoder's tokens of ``image_ids``, if a store has them.
            output_hidden_states: also return the hidden states; None: as the config says.
            return_dict: if False, return a tuple of all that is not None; None: as the config says.

        Raises:
            ValueError: the ids are of another grid or number of levels.
        """
        config = self.config
        if config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            with self.vision.record_hidden_states() as states:
                seen = self.vision(image_ids, image_tokens)
            hidden = tuple(states) or None
        else:
            seen, hidden = self.vision(image_ids, image_tokens), None
        found = BaseModelOutputWithPooling(
            last_hidden_state=seen,
            pooler_output=self.connect(seen),
            hidden_states=hidden,
        )
        return found if (config.return_dict if return_dict is None else return_dict) else found.to_tuple()

    def check_embedding(self) -> None:
        """Raise ValueError if the codebook does not match the checksum in the config, if there is one."""
        wanted, tables = self.config.embedding_checksum, self.vision.embedding.state_dict()
        if wanted is None or any(table.is_meta for table in tables.values()):
            return
        found = weights_checksum(tables)
        if found != wanted:
            raise ValueError(
                f"the codebook of {self.name_or_path or 'the model'} (sha256 {found[:16]}) is not the one it was made "
                f"with ({wanted[:16]}); fetch the model again"
            )

    @property
    def base_model(self) -> Backbone:
        """The model without the language model's head, for trainers that compute a loss without all logits."""
        return Backbone(self)

    def _encoder_weights(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the semantic encoder's weights from a state dict or from here; empty if they are not accessible."""
        state = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix(_ENCODER): weight for name, weight in state.items() if name.startswith(_ENCODER)}
        return {} if any(weight.is_meta or isinstance(weight, DTensor) for weight in weights.values()) else weights

    def _checksum_of_saved(self, state_dict: Mapping[str, Tensor] | None) -> str | None:
        """Return the checksum to save with the weights of a state dict, or with the model's own."""
        told = self.config.encoder_checksum
        weights = self._encoder_weights(state_dict)
        if told is None or not weights:
            return None
        # Rounded weights still count as those of the encoder that made the stored tokens.
        dtype = next(iter(weights.values())).dtype
        same = weights_checksum(weights) == (self._encoder_read or {}).get(dtype)
        return told if same else weights_checksum(round_to(weights, torch.float32))

    @property
    def context(self) -> int | None:
        """Context length of the language model, for prompt and answer together; None if its config has none."""
        return cast(int | None, getattr(self.config.get_text_config(), "max_position_embeddings", None))

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of the language model."""
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output layer of the language model."""
        found: nn.Module | None = self.language_model.get_output_embeddings()
        return found

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output layer of the language model."""
        self.language_model.set_output_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        """Clear the tables of codes. All other modules already have initial values."""
        if isinstance(module, CodeEmbedding):
            for table in module.buffers():
                initialization.zeros_(table)

    def _features(self, image_ids: Tensor, image_tokens: Tensor | None) -> Tensor:
        """Return pictures in the language model's embedding space, (P, N, D)."""
        found = self.get_image_features(image_ids, image_tokens, output_hidden_states=False, return_dict=True)
        return cast(Tensor, found.pooler_output)

    @property
    def _connector_dtype(self) -> torch.dtype:
        # From its parameters, because peft may have wrapped it, and quantized weights are integers.
        return next(weight.dtype for weight in self.connector.parameters() if weight.is_floating_point())

    def _text_inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        image_ids: Tensor | None,
        image_tokens: Tensor | None,
        image_features: Tensor | None,
        image_embeds: Tensor | None,
    ) -> dict[str, Tensor | None]:
        """Return the language model's inputs: ids for a text-only prompt, else embeddings."""
        if image_ids is not None and image_features is None:
            image_features = self._features(image_ids, image_tokens)
        if image_features is not None or image_embeds is not None:
            if input_ids is None:
                raise ValueError("got pictures without input_ids, which say where they go")
            inputs_embeds = self._with_pictures(input_ids, image_features, image_embeds)
        elif self.training:
            inputs_embeds = self._with_idle_connector(input_ids, inputs_embeds)
        return {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}

    def _with_pictures(self, input_ids: Tensor, features: Tensor | None, laid_out: Tensor | None) -> Tensor:
        """Return input embeddings (B, L, D) with pictures in the places of the image token."""
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        places = (input_ids == self.config.image_token_id)[..., None].to(embeds.device)
        if features is None:
            assert laid_out is not None
            return torch.where(places, laid_out.to(embeds), embeds)
        self._refuse_other_number(input_ids, features)
        return embeds.masked_scatter(places, features.to(embeds))

    def _with_idle_connector(self, input_ids: Tensor | None, embeds: Tensor | None) -> Tensor | None:
        """Also run the connector, without effect, for text-only batches, since DDP and FSDP wait for its gradients."""
        if not any(weight.requires_grad for weight in self.connector.parameters()):
            return embeds
        if embeds is None:
            embeds = cast(Tensor, self.get_input_embeddings()(input_ids))
        nothing = embeds.new_zeros(1, self.config.feature_width, dtype=self._connector_dtype)
        return embeds + 0 * cast(Tensor, self.connector(nothing)).sum().to(embeds)

    def _lay_out(self, prompt: Tensor, features: Tensor, before: int) -> Tensor:
        """Return features in their places (B, L, D), with zeros elsewhere, so that beams and samples can repeat rows.

        A prompt after a cache may be without the first tokens, ``before`` in number.
        """
        places = (prompt == self.config.image_token_id)[..., None].to(features.device)
        laid_out = features.new_zeros(*prompt.shape, features.shape[-1]).masked_scatter(places, features)
        return F.pad(laid_out, (0, 0, before, 0))

    def _refuse_other_number(self, input_ids: Tensor, features: Tensor | None) -> None:
        places = (input_ids == self.config.image_token_id).sum()
        number, each = (0, self.config.tokens_per_picture) if features is None else features.shape[:2]
        # Not `if`, because a graph of torch.compile or torch.export cannot depend on the number of places.
        torch_compilable_check(
            places == number * each,
            lambda: (
                f"got {number} pictures of {each} tokens, but {int(places)} places for them in input_ids; let the "
                "processor make both"
            ),
        )

    def _refuse_long(self, prompt: Tensor) -> None:
        context = self.context
        if context is not None and prompt.shape[1] >= context:
            places = int((prompt == self.config.image_token_id).sum(dim=1).max())
            raise ContextError(
                f"got a prompt of {prompt.shape[1]} tokens, {places} of them pictures; the language model's context is "
                f"{context}, the answer included: ask with fewer pictures or words"
            )


def _cache_by_its_name(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the cache, if any, under the name of the installed transformers."""
    found = {name: value for name, value in arguments.items() if name not in _CACHE_NAMES}
    given = [arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise ValueError("got cache and past_key_values, two names of one thing; give one")
    if given:
        found[_CACHE] = given[0]
    return found


class Backbone(nn.Module):
    """The model without its language model's head: it returns the last hidden states.

    It uses the weights of the model and registers none itself.
    """

    # Attributes that transformers expects of a base model.
    _tp_plan = None
    _pp_plan = None

    def __init__(self, model: TokLIPForConditionalGeneration) -> None:
        super().__init__()
        self._of = (model,)  # in a tuple, so that it is not a submodule

    def forward(
        self,
        input_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        output_image_logits: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> BaseModelOutputWithPast:
        """Return the output of the language model's base model, with ``last_hidden_state`` (B, L, D).

        Args:
            input_ids: see the model's forward, also for the next four.
            image_ids: see there.
            inputs_embeds: see there.
            image_tokens: see there.
            image_features: see there.
            output_image_logits: False if no loss of drawn pictures is wanted; otherwise training refuses them.
            kwargs: arguments of the language model's base model: attention_mask, position_ids, use_cache, ...

        Raises:
            ValueError: places and pictures differ in number, the ids are of another grid, or the model's
                ``refuse_unlearned`` raises it.
        """
        (model,) = self._of
        if output_image_logits is None:
            model.refuse_unlearned(input_ids)
        text = model._text_inputs(input_ids, inputs_embeds, image_ids, image_tokens, image_features, None)
        return cast(BaseModelOutputWithPast, model.language_model.base_model(**text, **kwargs))


def build_image_head(config: TokLIPLMConfig) -> ImageHead | None:
    """Return a new image head, or None if the config has none."""
    return None if config.image_head is None else ImageHead(config.head_config, config.get_text_config().hidden_size)


def build_connector(config: TokLIPLMConfig) -> nn.Sequential:
    """Return a connector of two layers, as in LLaVA-1.5, with PyTorch's initial values."""
    width = config.get_text_config().hidden_size
    return nn.Sequential(nn.Linear(config.feature_width, width), nn.GELU(), nn.Linear(width, width))


AutoModel.register(TokLIPLMConfig, TokLIPForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(TokLIPLMConfig, TokLIPForConditionalGeneration, exist_ok=True)
