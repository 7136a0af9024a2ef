"""TokLIP's tokens in a causal language model of transformers.

    ids (P, h, w, Q) --embedding--> codes --encoder--> tokens      [codes ; tokens] (P, N, F)
    [codes ; tokens] --connector F -> D -> D--> in the places of the image token among input embeddings (B, L, D)

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
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from toklip_core.embeddings import CodeEmbedding
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

from toklip_mllm.model.config import TokLIPLMConfig
from toklip_mllm.model.logits import FiniteLogits
from toklip_mllm.model.vision import PictureEncoder, round_to
from toklip_mllm.training import keep_out

#: transformers' name of the cache: the first from 5.24 on, the second before.
_CACHE_NAMES = ("cache", "past_key_values")
#: Name of the cache in the installed release.
_CACHE = next(
    name
    for name in _CACHE_NAMES
    if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)

#: Prefix of the semantic encoder's weights in a state dict.
_ENCODER = "vision.encoder."
#: Dtypes in which models are saved.
_SAVED = (torch.float32, torch.bfloat16, torch.float16)


class ContextError(ValueError):
    """A prompt is longer than the language model's context."""


class TokLIPForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Causal language model that reads pictures as TokLIP's tokens, with all of transformers' ``generate``.

    Its parts are ``vision`` (embedding of ids and semantic encoder), ``connector`` and ``language_model``; ``vision``
    is frozen (``requires_grad`` off) unless you turn its training on. Use :func:`toklip_mllm.model.build` to make a
    model from a TokLIP and a language model, and :func:`toklip_mllm.model.load` to load a saved one.

    >>> from toklip_mllm.model import load
    >>> model, processor = load("toklip-mllm-tiny")
    >>> ids = torch.zeros(1, 8, 8, 1, dtype=torch.int64)
    >>> prompt = torch.full((1, model.config.tokens_per_picture), model.config.image_token_id)
    >>> model(input_ids=prompt, image_ids=ids).logits.shape
    torch.Size([1, 64, 109])
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
        self.connector = connector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self._no_split_modules = ["PictureEncoder", *(self.language_model._no_split_modules or ())]
        self._can_compile_fullgraph = self.language_model._can_compile_fullgraph
        self._is_stateful = self.language_model._is_stateful
        self._takes = frozenset(inspect.signature(type(self.language_model).forward).parameters)
        self.post_init()
        self.vision.requires_grad_(False)
        #: Checksums of the semantic encoder's weights when they were loaded, by dtype; empty if the weights were not
        #: accessible, None if none were loaded.
        self._encoder_read: dict[torch.dtype, str] | None = None

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute. Once peft has added adapters it sets ``peft_config``, which removes them from vision.

        See :func:`toklip_mllm.training.keep_out`.
        """
        super().__setattr__(name, value)
        if name == "peft_config":
            self._keep_adapters_out()

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Yield names and modules, as PyTorch does.

        Before peft adds a second adapter it calls this with the adapter's settings in ``peft_config``; they are changed
        here to exclude vision.
        """
        self._keep_adapters_out()
        return super().named_modules(*args, **kwargs)

    def _keep_adapters_out(self) -> None:
        """Exclude vision and connector from adapters that are new in ``peft_config``."""
        settings, known = self.__dict__.get("peft_config") or {}, self.__dict__.get("_kept_out", {})
        new = {adapter: config for adapter, config in settings.items() if known.get(adapter) is not config}
        if new or len(known) > len(settings):
            self._kept_out = {**settings}  # first, because the next calls ask for the modules
        if new:
            keep_out(self, new, parts=("vision", "connector"))

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
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for what in ("missing", "unexpected"):
            if names := sorted(map(str, info[f"{what}_keys"])):
                raise ValueError(
                    f"in {model.name_or_path!r} {len(names)} weights are {what}, such as {', '.join(names[:3])}; save "
                    "the whole model again, with its own config"
                )
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
        **kwargs: Any,  # noqa: ANN401
    ) -> CausalLMOutputWithPast:
        """Run the language model: return logits (B, L, V), the cache, and the loss if there are labels.

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
            kwargs: further arguments of the language model's forward.

        Raises:
            ValueError: places and pictures differ in number, the ids are of another grid, or there are two caches.
        """
        text = self._text_inputs(input_ids, inputs_embeds, image_ids, image_tokens, image_features, image_embeds)
        known: dict[str, Any] = {"position_ids": position_ids, "use_cache": use_cache}
        known |= _cache_by_its_name({"cache": cache, "past_key_values": past_key_values})
        if "logits_to_keep" in self._takes:
            known["logits_to_keep"] = logits_to_keep
        found = self.language_model(
            **text,
            attention_mask=attention_mask,
            labels=labels,
            **{name: value for name, value in known.items() if value is not None},
            **kwargs,
        )
        return cast(CausalLMOutputWithPast, found)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        image_ids: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Generate as transformers does; the pictures are encoded once, whatever the search.

        Args:
            inputs: (B, L), the prompts; may also be given as ``input_ids``.
            generation_config: generation config of transformers.
            image_ids: (P, h, w, Q), the ids of the pictures, in reading order.
            image_tokens: (P, N, width of the encoder), the encoder's tokens of ``image_ids``, if a store has them.
            image_features: (P, N, D), instead of ``image_ids``: the pooler_output of :meth:`get_image_features`.
            kwargs: all that transformers' ``generate`` takes: attention_mask, max_new_tokens, num_beams, streamer, ...;
                a cache as ``cache`` or, as before transformers 5.24, ``past_key_values``.

        Raises:
            ContextError: a prompt is longer than the language model's context.
            ValueError: places and pictures differ in number, there is an ``assistant_model``, or logits are NaN or
                infinite.
        """
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
            self._refuse_other_number(prompt, image_features)
            if image_features is not None:
                kwargs["image_embeds"] = self._lay_out(prompt, image_features, kwargs.get("attention_mask"))
        elif image_ids is not None or image_features is not None:
            raise ValueError("got pictures without input_ids, which say where they go")
        kwargs["logits_processor"] = LogitsProcessorList([FiniteLogits(), *(kwargs.get("logits_processor") or ())])
        return super().generate(inputs, generation_config, **_cache_by_its_name(kwargs))

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
            pooler_output=self.connector(seen.to(self._connector_dtype)),
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
        if told is None or self._encoder_read is None:
            return told
        weights = self._encoder_weights(state_dict)
        if not weights:
            return None
        # Rounded weights still count as those of the encoder that made the stored tokens.
        dtype = next(iter(weights.values())).dtype
        same = weights_checksum(weights) == self._encoder_read.get(dtype)
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
        """Return the embeddings of the language model."""
        found: nn.Module | None = self.language_model.get_output_embeddings()
        return found

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
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

    def _lay_out(self, prompt: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return features in their places (B, L, D), with zeros elsewhere, so that beams and samples can repeat rows.

        A prompt after a cache may be shorter than its mask; it is the end of the mask.
        """
        places = (prompt == self.config.image_token_id)[..., None].to(features.device)
        laid_out = features.new_zeros(*prompt.shape, features.shape[-1]).masked_scatter(places, features)
        before = 0 if mask is None else mask.shape[1] - prompt.shape[1]
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
        self._of = (model,)  # in a tuple, so that it is no submodule

    def forward(
        self,
        input_ids: Tensor | None = None,
        image_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_tokens: Tensor | None = None,
        image_features: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> BaseModelOutputWithPast:
        """Return the output of the language model's base model, with ``last_hidden_state`` (B, L, D).

        Args:
            input_ids: see the model's forward, also for the next four.
            image_ids: see there.
            inputs_embeds: see there.
            image_tokens: see there.
            image_features: see there.
            kwargs: arguments of the language model's base model: attention_mask, position_ids, use_cache, ...

        Raises:
            ValueError: places and pictures differ in number, or the ids are of another grid.
        """
        (model,) = self._of
        text = model._text_inputs(input_ids, inputs_embeds, image_ids, image_tokens, image_features, None)
        return cast(BaseModelOutputWithPast, model.language_model.base_model(**text, **kwargs))


def connector(config: TokLIPLMConfig) -> nn.Sequential:
    """Return a connector of two layers, as in LLaVA-1.5, with PyTorch's initial values."""
    width = config.get_text_config().hidden_size
    return nn.Sequential(nn.Linear(config.feature_width, width), nn.GELU(), nn.Linear(width, width))


AutoModel.register(TokLIPLMConfig, TokLIPForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(TokLIPLMConfig, TokLIPForConditionalGeneration, exist_ok=True)
