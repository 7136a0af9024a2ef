"""``toklip train mllm``: trains the connector between pictures and a language model, and the language model.

    pictures -VQ tokenizer-> ids -embedding, encoder-> codes, tokens -connector-> language model -> next text token
                                                                                 image head ----> next ids of a drawing

As in LLaVA, there are two stages: first the connector alone, then the connector and the language model, fully or by
LoRA. VQ tokenizer and semantic encoder stay frozen, unless the settings say otherwise.

Source: Lin et al., TokLIP, https://arxiv.org/abs/2505.05422, section 3.3; Liu et al., LLaVA-1.5,
https://arxiv.org/abs/2310.03744.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from toklip_core.model import TokLIP
from toklip_core.pictures import normalized
from toklip_core.training import (
    Evaluation,
    FitReport,
    Losses,
    ParameterGroup,
    Task,
    fit,
    mean_over_processes,
    next_id_loss,
    parameter_groups,
    with_sampled_levels,
    z_loss,
)
from toklip_core.weights import load_strict, weights_checksum, without_values
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from toklip_mllm.evaluation import evaluate_answers, held_out_questions, refuse_long_questions
from toklip_mllm.model import (
    IGNORED,
    TokLIPForConditionalGeneration,
    TokLIPLMConfig,
    TokLIPProcessor,
    add_image_head,
    build_language_model,
    cast_weights,
    give_rows,
    load_language_model,
    other_layers,
    valid_generation_config,
)
from toklip_mllm.training.conversations import branch_inputs
from toklip_mllm.training.lora import add_adapters, merge_adapters
from toklip_mllm.training.samples import ConversationSamples
from toklip_mllm.training.settings import OF_DRAWING, LoRA, MLLMTrainConfig, needs_image_head
from toklip_mllm.training.small_language import add_words, small_language_model, word_tokenizer
from toklip_mllm.training.sources import (
    ConversationReader,
    PictureFormat,
    iterate_texts,
    open_sources,
    repeat_readers,
    store_checksums,
    use_stored_tokens,
)

#: Modules of the semantic encoder that its tokens do not depend on.
_POOLING = {"attn_pool", "class_token", "head"}
#: Number of conversations for the comparison of the written model with the trained one.
_COMPARED = 2
#: Number of conversations whose words a small model learns that begins from an earlier one.
_CONVERSATIONS = 4000
#: Largest root mean square difference of their logits, as a share of their spread, in float32 and in bfloat16 (8 bits).
_EXACT, _ROUNDED = 1e-3, 2**-4
#: Prefix of the names of the language model's weights.
_TEXT = "language_model."


def train_mllm(config: MLLMTrainConfig, out: Path) -> FitReport:
    """Train a model into the folder ``out``, or resume the run there; see :func:`toklip_core.training.fit`.

    The trained model and its processor are ``out/model``, which :func:`toklip_mllm.model.load_language_model` and the
    Auto classes of transformers load.

    Args:
        config: settings of the run.
        out: folder of the run.

    Raises:
        FileNotFoundError: data or a model is missing.
        ValueError: data and models do not fit one another, or ``fit`` raises it.
        LookupError, OSError: raised by ``fit``.
    """
    return fit(MLLMTask(config), config.run, out)


class MLLMTask(Task):
    """Task of answering about pictures: trains connector, language model (fully or by adapters) and encoder.

    Modules that the settings do not train are frozen inside the model, which transformers saves as a whole. The VQ
    tokenizer is outside of it, and reads pictures in :meth:`prepare`.

    Args:
        config: settings of the run.

    Raises:
        FileNotFoundError: data or a model are missing.
        ValueError: data and models do not fit one another.
    """

    model: MLLMTraining
    samples: ConversationSamples
    product = "model"

    def __init__(self, config: MLLMTrainConfig) -> None:
        torch.manual_seed(config.run.seed)
        model, processor, sources, picturing = _beginning(config)
        _prepare_to_draw(config, model, processor)
        model.generation_config = valid_generation_config(model.generation_config)  # before hours of training
        _refuse_past_context(config.max_length, model.context)
        if any(getattr(source, "independent", False) for source in config.data):
            refuse_other_attention(model.language_model.config, config.max_length)
        _refuse_other_store(sources, model)
        if model.vision.encoder is not None and "encoder" not in config.train and not config.scheduled_sampling:
            use_stored_tokens(sources, model.config.encoder_checksum)
        sources = repeat_readers(sources, config.data)
        freeze(model, config)
        pictures = PictureLearning(config.image_weight, config.image_z_loss, config.scheduled_sampling)
        self.config, self.processor, self.model = config, processor, MLLMTraining(model, pictures)
        self.samples = ConversationSamples(
            sources,
            processor if config.template == "chat" else with_plain_template(processor),
            max_length=config.max_length,
            batch_size=config.run.batch_size if config.group_by_length else None,
            prompt_dropout=config.prompt_dropout,
            seed=config.run.seed,
        )
        self.samples.try_templates()
        self.order, self.collate = self.samples.order, self.samples.collate
        self.settings = {
            **config.model_dump(mode="json", exclude={"run"}),
            "checksums": {
                **_checksums(model, config.train), "tokenizer": model.config.tokenizer_record.checksum,
                "stores": store_checksums(config.data),
            },
        }
        self._held_out = held_out_questions(config.held_out, image_size=picturing.image_size)
        refuse_long_questions(model, processor, self._held_out, config.held_out.prompt)
        self.evaluate = self._evaluate if self._held_out else None

    def prepare(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch with image_ids (P, h, w, Q) instead of rgb (P, 3, S, S), uint8."""
        if "rgb" not in batch:
            return batch
        pixels = normalized(batch["rgb"])
        tokenizer = self.processor.vq_tokenizer.to(pixels.device)
        rest = {name: tensor for name, tensor in batch.items() if name != "rgb"}
        return {**rest, "image_ids": tokenizer.encode(pixels)}

    def objective(self, model: nn.Module, prepared: dict[str, Tensor], step: int) -> Losses:
        """Return the cross entropy of the assistant's tokens, and of the ids of the pictures that it draws."""
        return cast(Losses, model(prepared))

    def loss_counts(self, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers of labelled tokens and of drawn pictures, of which each has as many ids."""
        counts = {"text": (prepared["labels"][:, 1:] != IGNORED).sum()}
        config, tokens = self.model.model.config, prepared["input_ids"]
        if self.model.model.image_head is not None:
            begun = (tokens[:, :-1] == config.head_config.begin_token_id) & (tokens[:, 1:] == config.image_token_id)
            counts |= dict.fromkeys(("image", "image_z"), begun.sum())
        return counts

    def export(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write model and processor, with adapters merged."""
        dtype = getattr(torch, self.config.saved_dtype)
        save(self.model.model, self.processor, tensors, folder, lora=self.config.lora, dtype=dtype)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups of trained parameters; the connector has its own learning rate."""
        return parameter_groups(self.model, {"connector": self.config.connector_learning_rate_factor})

    def comparison(self, product: nn.Module) -> Callable[[Path], None]:
        """Return a function that refuses a folder whose model gives other logits on a few conversations."""
        device = next(product.parameters()).device
        samples = [self.samples[0, index] for index in range(min(_COMPARED, len(self.samples)))]
        batch = self.prepare({name: tensor.to(device) for name, tensor in self.samples.collate(samples).items()})
        with self._autocast(device):
            logits = compute_answers(cast(TokLIPForConditionalGeneration, product), batch).all_logits().cpu()
        batch = {name: tensor.cpu() for name, tensor in batch.items()}
        rounded = "bfloat16" in (self.config.frozen_dtype, self.config.saved_dtype)

        @torch.no_grad()
        def refuse_other(folder: Path) -> None:
            theirs = compute_answers(load_language_model(folder, dtype=torch.float32)[0], batch).all_logits()
            error, spread = (theirs - logits).square().mean().sqrt().item(), logits.std().item()
            if not error <= (_ROUNDED if rounded else _EXACT) * spread:
                raise ValueError(
                    f"what was written is not the trained model: its logits are off by {error:.2g} (root mean square), "
                    f"and those of the run have a spread of {spread:.2g}; the checkpoints of the run are whole"
                )

        return refuse_other

    def _evaluate(self, product: nn.Module) -> Evaluation:
        model = cast(TokLIPForConditionalGeneration, product)
        with self._autocast(next(product.parameters()).device):
            return evaluate_answers(model, self.processor, self._held_out, self.config.held_out.prompt)

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Return autocast to bfloat16 if some weights are frozen in bfloat16."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.frozen_dtype == "bfloat16")


class PictureLearning(NamedTuple):
    """Weights of the losses of drawn pictures, and the share of sampled ids."""

    #: Weights of the losses; the loss of the text has 1.
    next_id: float = 1.0
    z: float = 0.0
    #: Largest share of the positions at which a sampled id is read.
    sampled: float = 0.0


class MLLMTraining(nn.Module):
    """The model, with a forward pass that returns the losses of a batch from :meth:`MLLMTask.prepare`."""

    def __init__(
        self, model: TokLIPForConditionalGeneration, pictures: PictureLearning = PictureLearning()
    ) -> None:
        super().__init__()
        self.model = model
        self._pictures = pictures

    def forward(self, batch: Mapping[str, Tensor]) -> Losses:
        """Return the cross entropy of the assistant's tokens, and with an image head of the ids of what it draws.

        Both are means over all processes: over the tokens, and over the ids.

        Args:
            batch: input_ids and labels (B, L), padded on the right, and image_ids (P, h, w, Q) if there are pictures;
                with image_tokens (P, N, D), float16, the encoder does not run.
        """
        self._checkpoint_frozen_layers()
        read = None
        if self._pictures.sampled:
            read = self._with_sampled_ids(batch)
            torch.clear_autocast_cache()  # see with_sampled_levels
        learned = compute_answers(self.model, batch, read)
        logits, labels = learned.logits, learned.labels
        loss = F.cross_entropy(logits, labels, reduction="sum") / _mean_over_processes(labels.new_tensor(len(labels)))
        if "image_ids" not in batch and any(weight.requires_grad for weight in self.model.vision.parameters()):
            # If weights are sharded or gradients averaged, every process must use all trained weights.
            ids = labels.new_zeros(1, *self.model.vision.ids_shape)
            nothing = self.model.get_image_features(ids, return_dict=True)
            loss = loss + 0 * nothing.pooler_output.sum()
        accuracy = (logits.detach().argmax(-1) == labels).float()
        losses, metrics = {"text": loss}, {"token_accuracy": accuracy.mean()}  # NaN, which no mean counts, of no token
        if self.model.image_head is not None:
            losses |= self._of_pictures(learned, metrics)
        return Losses(losses, metrics)

    @torch.no_grad()
    def _with_sampled_ids(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return image_ids whose drawn pictures have, at random positions, ids that the model sampled there.

        None: nothing is drawn in any process. If one draws, all run the model, which may be sharded.
        """
        tokens = batch["input_ids"]
        begun = (tokens == self.model.config.head_config.begin_token_id).sum().float()
        if not mean_over_processes(begun):
            return None
        states, drawn = self.model.drawn_states(compute_answers(self.model, batch).states, tokens)
        if not len(states):
            return None
        ids, split = batch["image_ids"], self.model.id_levels
        levels = split.split(ids[drawn].flatten(1, 2))
        sampled = torch.stack(self.model.required_head()(states, None), dim=-1)
        mixed = split.join(with_sampled_levels(levels, sampled, largest_share=self._pictures.sampled))
        read = ids.clone()
        read[drawn] = mixed.view_as(ids[drawn])
        return read

    def _of_pictures(self, learned: AnswerLogits, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of the pictures that are drawn, and add their accuracy to the metrics."""
        logits, levels = learned.image_logits, learned.image_levels
        count = levels.new_tensor(len(levels))
        if not len(levels):
            _mean_over_processes(count)  # the other processes wait for it
            idle = self.model.idle_head(learned.states)
            # Every process logs the same names, because their values are averaged in order; NaN counts in no mean.
            metrics["id_accuracy"] = torch.full_like(idle.detach(), torch.nan)
            return {"image": idle} | ({"image_z": idle * 0} if self._pictures.z else {})
        share = count / _mean_over_processes(count)
        loss, metrics["id_accuracy"] = next_id_loss(logits, levels)
        losses = {"image": self._pictures.next_id * share * loss}
        if self._pictures.z:
            losses["image_z"] = self._pictures.z * share * z_loss(logits)
        return losses

    def _checkpoint_frozen_layers(self) -> None:
        """Turn checkpointing on in a frozen language model, whose layers would keep all activations in eval mode."""
        for layer in self.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = self.training


class AnswerLogits(NamedTuple):
    """What a model learns from a batch: T tokens of the assistant, and P pictures that it draws."""

    #: (T, V), float32.
    logits: Tensor
    #: (T,).
    labels: Tensor
    #: (P, N, K_q), float32, of each level; empty without an image head.
    image_logits: tuple[Tensor, ...]
    #: (P, N, L).
    image_levels: Tensor
    #: (B, L, D), the last hidden states of the language model; without an image head there are none, (0,).
    states: Tensor

    def all_logits(self) -> Tensor:
        """Return the logits of tokens and ids, flat."""
        return torch.cat([part.flatten() for part in (self.logits, *self.image_logits)])


def compute_answers(
    model: TokLIPForConditionalGeneration, batch: Mapping[str, Tensor], read: Tensor | None = None
) -> AnswerLogits:
    """Return the logits of the assistant's tokens in a batch and of the ids that it draws, with what is right.

    Args:
        model: model on the device of the batch.
        batch: batch as for :meth:`MLLMTraining.forward`.
        read: ids (P, h, w, Q) of the pictures that the model reads; None: those that it learns, of the batch.
    """
    labels = batch["labels"][:, 1:]
    wanted = labels != IGNORED
    # Logits are the largest tensor, so they are computed only where a row has a label, which no picture has.
    places = wanted.any(dim=0).nonzero()[:, 0]
    wanted, labels = wanted[:, places], labels[:, places]
    # Tokens are computed in float32, like the codes.
    tokens = batch["image_tokens"].float() if "image_tokens" in batch and read is None else None
    draws = model.image_head is not None
    # Padding is on the right, where no labelled token attends to it; attention is faster without a mask.
    seen = branch_inputs(batch["branches"], model.dtype) if "branches" in batch else {}
    output = model(
        input_ids=batch["input_ids"],
        image_ids=batch.get("image_ids") if read is None else read,
        image_tokens=tokens,
        use_cache=False,
        logits_to_keep=places,
        output_image_logits=False,  # they are computed below
        **seen,
        **({"output_hidden_states": True} if draws else {}),
    )
    # A language model without logits_to_keep computes all logits.
    logits = output.logits if output.logits.shape[1] == len(places) else output.logits[:, places]
    logits, labels = logits[wanted].float(), labels[wanted]
    if not draws:
        return AnswerLogits(logits, labels, (), labels.new_zeros(0), logits.new_zeros(0))
    states = output.hidden_states[-1]
    drawn = model.image_logits(states, batch["input_ids"], batch.get("image_ids"))
    return AnswerLogits(logits, labels, *drawn, states)


def freeze(model: TokLIPForConditionalGeneration, config: MLLMTrainConfig) -> None:
    """Freeze untrained modules in their dtype, add adapters, and turn on gradient checkpointing."""
    model.requires_grad_(False)
    if config.lora is not None:
        add_adapters(model.language_model, config.lora)
    for part in config.train:
        if part == "encoder" and model.vision.encoder is None:
            raise ValueError("got encoder in train, but features 'codes' leave it out; train something else")
        if part == "image_head":
            model.required_head()
        if part == "language_model" and config.lora is not None:
            continue
        if part == "encoder":
            model.config.encoder_checksum = None
        for name, weight in getattr(model, "vision" if part == "encoder" else part).named_parameters():
            if part != "encoder" or not _POOLING & {*name.split(".")}:
                weight.requires_grad_(True)
    frozen = getattr(torch, config.frozen_dtype)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float32 if weight.requires_grad else frozen)
    if config.grad_checkpointing:
        language_model = model.language_model
        # Older releases of transformers have only the second name, and later ones warn about it.
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})


def save(
    model: TokLIPForConditionalGeneration,
    processor: TokLIPProcessor,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    lora: LoRA | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write model and processor into a folder.

    Args:
        model: model whose configs are saved.
        processor: processor whose tokenizer and template are saved.
        tensors: state dict of the model, with adapters if ``lora`` is given.
        folder: folder to write; created if missing.
        lora: settings of the adapters.
        dtype: dtype of the weights; the tables of codes stay in float32.
    """
    config = copy.deepcopy(model.config)
    if lora is not None:
        tensors = _merged(tensors, config, lora)
    with without_values():
        whole = TokLIPForConditionalGeneration(config)
    # A language model is built in its config's dtype, and tensors take that of the module that they are loaded into.
    cast_weights(whole, torch.float32)
    load_strict(whole, tensors, source=folder, mapped=True)
    whole.remember_encoder()  # rounded below, its tokens still are those of the checksum
    whole.tie_weights()
    cast_weights(whole, dtype)
    whole.config.dtype = dtype
    whole.generation_config = copy.deepcopy(model.generation_config)
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)


def _merged(tensors: Mapping[str, Tensor], config: TokLIPLMConfig, lora: LoRA) -> dict[str, Tensor]:
    """Return the state dict of the whole model with adapters merged; the config records whether weights are tied."""
    with without_values():
        language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.float32)
    adapted = {name.removeprefix(_TEXT): tensor for name, tensor in tensors.items() if name.startswith(_TEXT)}
    found = merge_adapters(adapted, language_model, lora)
    cast(Any, config.text_config).tie_word_embeddings = language_model.config.tie_word_embeddings
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TEXT)}
    return {**rest, **{f"{_TEXT}{name}": tensor for name, tensor in found.items()}}


def with_plain_template(processor: TokLIPProcessor) -> TokLIPProcessor:
    """Return the processor with a template that renders only pictures and the assistant's text, with a new line.

    If the tokenizer begins texts with a token, as Llama 3's does, the template does, too.

    Source: LLaVA, llava/train/train.py, preprocess_plain.
    """
    token, tokenizer = processor.image_token, processor.tokenizer
    # Every text of such a tokenizer begins so; Llama's and Gemma's models were trained on no others.
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    template = ("{{ bos_token }}" if begins else "") + (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '\\n' }}{% endgeneration %}"
        "{% else %}{{ 'TOKEN' * (message['content'].split('TOKEN') | length - 1) }}{% endif %}{% endfor %}"
    )
    other = copy.copy(processor)
    other.chat_template = template.replace("TOKEN", token)
    return other


def _beginning(
    config: MLLMTrainConfig,
) -> tuple[TokLIPForConditionalGeneration, TokLIPProcessor, list[ConversationReader], PictureFormat]:
    """Return model and processor before the first step, in float32, with the opened data."""
    half = config.frozen_dtype == "bfloat16"
    if config.start is not None:
        # The stored dtype loses nothing, and `freeze` converts each weight to its dtype.
        model, processor = load_language_model(config.start, dtype=None if half else torch.float32)
        picturing = _picturing(model)
        sources = open_sources(config.data, picturing, seed=config.run.seed)
        rows_are_trained = "language_model" in config.train and config.lora is None
        if rows_are_trained and add_words(processor.tokenizer, iterate_texts(sources, _CONVERSATIONS)):
            give_rows(model.language_model, len(processor.tokenizer))
            model.config.text_config = model.language_model.config
        return model, processor, sources, picturing
    assert config.toklip is not None
    toklip = TokLIP.from_pretrained(config.toklip, text=False, dtype=torch.float32)
    picturing = PictureFormat(toklip.config.image_size, config.resize or toklip.config.resize)
    how: dict[str, Any] = {"features": config.features, "resize": config.resize}
    sources = open_sources(config.data, picturing, seed=config.run.seed)
    if config.small is None:
        # A language model of 7B takes 28 GB in float32, but an encoder that is trained must be loaded in it.
        rests = config.lora is not None or "language_model" not in config.train
        stored = torch.bfloat16 if rests else None
        dtype = stored if half and "encoder" not in config.train else torch.float32
        model, processor = build_language_model(config.language_model, toklip, dtype=dtype, **how)
        return model, processor, sources, picturing
    words = iterate_texts(sources, config.small.conversations)
    tokenizer = word_tokenizer(words, context_length=config.small.context_length)
    language_model = small_language_model(config.small, tokenizer)
    model, processor = build_language_model(language_model, toklip, tokenizer=tokenizer, **how)
    return model, processor, sources, picturing


def _prepare_to_draw(
    config: MLLMTrainConfig, model: TokLIPForConditionalGeneration, processor: TokLIPProcessor
) -> None:
    """Add the image head of the settings; ValueError if data are to be drawn and there is none."""
    if config.image_head is not None:
        add_image_head(model, processor, config.image_head)
    if model.image_head is not None:
        return
    if needs_image_head(config.data):
        raise ValueError(
            "the data have pictures to draw, but the model has no image head: add one (image_head, and image_head in "
            "train), or leave these data out"
        )
    if given := [name for name in OF_DRAWING if name in config.model_fields_set]:
        raise ValueError(f"got {', '.join(given)} for a model without image head, where it has no effect; leave it out")


def _picturing(model: TokLIPForConditionalGeneration) -> PictureFormat:
    config = model.config
    return PictureFormat(config.image_size, cast(Any, config.resize))


def _checksums(model: TokLIPForConditionalGeneration, trained: Sequence[str]) -> dict[str, str]:
    """Return checksums that a resumed run must match; of the language model only the embeddings, to save a minute."""
    parts = {"vision": model.vision, "embeddings": model.get_input_embeddings()}
    frozen = {"connector": model.connector, "image_head": model.image_head}
    parts |= {name: part for name, part in frozen.items() if part is not None and name not in trained}
    return {name: weights_checksum(part) for name, part in parts.items()}


def _refuse_other_store(sources: Sequence[ConversationReader], model: TokLIPForConditionalGeneration) -> None:
    for info in (source.stored for source in sources if source.stored is not None):
        model.config.tokenizer_record.refuse_other_ids(info.tokenizer, "the token store")


def refuse_other_attention(config: PreTrainedConfig, max_length: int) -> None:
    """Raise ValueError if a language model cannot read joined conversations, which need a mask of their own.

    Args:
        config: config of the language model.
        max_length: maximum number of tokens of joined conversations.
    """
    window, kind = getattr(config, "sliding_window", None), config._attn_implementation
    found = other_layers(config)  # such as convolutions, which read across the mask
    if not found and kind not in ("sdpa", "eager"):
        found = f"the attention {kind!r}"
    if window is None and "local" in str(getattr(config, "attention_types", "")):  # as GPT-Neo names it
        window = config.window_size
    if not found and window is not None and window < max_length:
        found = f"attention in windows of {window} tokens"
    if not found and (config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False)):
        found = "ALiBi"  # whose distances would be those in the joined row
    if found:
        raise ValueError(
            f"got independent questions and a language model with {found}, which cannot mask them from one another; "
            "set independent = false, or take another language model"
        )


def _refuse_past_context(max_length: int, context: int | None) -> None:
    if context is not None and max_length > context:
        raise ValueError(
            f"got max_length {max_length}, but the language model's context is {context}; set max_length to that, or "
            "less"
        )


def _mean_over_processes(count: Tensor) -> Tensor:
    """Return the mean number of tokens per process, because gradients are averaged over processes.

    It is less than 1 if there are fewer tokens than processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return count.clamp(min=1)
    total = count.clone().float()
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
