"""The config of a language model that reads TokLIP's tokens, for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from toklip_core.config import validated
from toklip_core.embeddings import EmbeddingConfig
from toklip_core.model import EncoderConfig, FeatureKind
from toklip_core.pictures import Resize
from toklip_core.tokenizer import TokenizerRecord
from toklip_core.weights import MODEL_FORMAT, refuse_other_format
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from toklip_mllm.model.head_config import ImageHeadConfig

MODEL_TYPE = "toklip_lm"

#: Error of a model that is asked to draw and cannot.
NO_HEAD = (
    "the model has no image head, so it reads pictures and draws none; train one (toklip train mllm, image_head), or "
    "name a model that draws"
)


class TokLIPLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """Configuration of a language model that reads TokLIP's tokens: sizes, and what the ids mean.

    Args:
        text_config: config of any causal language model of transformers, as an object or as a dict with its
            ``model_type``.
        encoder: fields of :class:`toklip_core.model.EncoderConfig`.
        features: input of the connector: codes and tokens (concat, the paper's choice), or one of them.
        encoder_checksum: sha256 of the encoder's weights in float32, which a token store of its tokens also records;
            None if the weights are not known, and once the encoder was trained.
        encoder_model: name of the TokLIP in a package that the encoder is loaded from, if the weights file has none;
            None: the file has all weights, and ``save_pretrained`` always writes all.
        tokenizer: fields of :class:`toklip_core.TokenizerRecord`: the VQ tokenizer whose ids are read.
        embedding: fields of :class:`toklip_core.embeddings.EmbeddingConfig`: how ids become codes.
        embedding_checksum: sha256 of the embedding's tables, which are saved with the model; bits have none.
        grid: height h and width w of a picture's ids.
        image_size: side in pixels of the square that a picture becomes.
        resize: way to make a picture square.
        image_token_id: token of the language model that is replaced by a picture's tokens.
        image_head: fields of :class:`toklip_mllm.model.ImageHeadConfig`; None: the model reads pictures and draws none.
        format: number of the format of model folders; a saved config of another format is refused.

    >>> from toklip_mllm.model.building import load_language_model
    >>> config = load_language_model("toklip-mllm-tiny")[0].config
    >>> config.features, config.tokenizer_record.name, config.tokens_per_picture
    ('concat', 'vqgan-tiny', 64)
    """

    model_type = MODEL_TYPE
    #: What ``Trainer`` leaves out of predictions; only some batches have pictures that are drawn.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_loss", "image_logits"]  # noqa: RUF012 - as transformers names it
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(  # noqa: PLR0913 - transformers sets each key of config.json by its name
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        encoder: dict[str, Any] | None = None,
        features: FeatureKind = "concat",
        encoder_checksum: str | None = None,
        encoder_model: str | None = None,
        tokenizer: dict[str, Any] | None = None,
        embedding: dict[str, Any] | None = None,
        embedding_checksum: str | None = None,
        grid: Sequence[int] = (0, 0),
        image_size: int = 0,
        resize: Resize = "crop",
        image_token_id: int = 0,
        image_head: dict[str, Any] | None = None,
        format: int = MODEL_FORMAT,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if features not in get_args(FeatureKind):
            raise ValueError(f"got features {features!r}; known are {', '.join(get_args(FeatureKind))}")
        if not isinstance(text_config, dict | PreTrainedConfig | None):
            raise ValueError(f"got text_config {text_config!r}; wanted the config of a language model")
        if not isinstance(text_config, PreTrainedConfig):
            text_config = AutoConfig.for_model(**{"model_type": "llama", **(text_config or {})})
        self.text_config = text_config
        self.encoder = encoder
        self.features = features
        self.encoder_checksum = encoder_checksum
        self.encoder_model = encoder_model
        self.tokenizer = tokenizer
        self.embedding = embedding
        self.embedding_checksum = embedding_checksum
        self.grid = grid
        self.image_size = image_size
        self.resize = resize
        self.image_token_id = image_token_id
        self.image_head = image_head
        self.format = format
        super().__init__(**kwargs)

    @classmethod
    def get_config_dict(cls, name: str | Path, **kwargs: Any) -> Any:  # noqa: ANN401
        """Read a saved config, as in transformers; ValueError if it is of another format."""
        values, rest = super().get_config_dict(name, **kwargs)
        refuse_other_format(values, f"{name}/config.json")
        return values, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401
        """Build a config, as in transformers; ValueError if it is of another format."""
        # The Auto classes read the file themselves.
        refuse_other_format(config_dict, Path(kwargs.get("name_or_path", ""), "config.json"))
        return super().from_dict(config_dict, **kwargs)

    @property
    def tokenizer_record(self) -> TokenizerRecord:
        """Record of the VQ tokenizer, checked; ValueError if it is missing or wrong."""
        return validated(TokenizerRecord, self.tokenizer or {}, "tokenizer of config.json")

    @property
    def embedding_config(self) -> EmbeddingConfig:
        """How ids become codes, checked; ValueError if it is missing or wrong."""
        return validated(EmbeddingConfig, self.embedding or {}, "embedding of config.json")

    @property
    def head_config(self) -> ImageHeadConfig:
        """The image head, checked; ValueError if the model has none, or it is wrong."""
        if self.image_head is None:
            raise ValueError(NO_HEAD)
        return validated(ImageHeadConfig, self.image_head, "image_head of config.json")

    @property
    def encoder_config(self) -> EncoderConfig:
        """Sizes of the encoder, checked; ValueError if they are missing or do not fit."""
        return validated(EncoderConfig, self.encoder or {}, "encoder of config.json")

    @property
    def tokens_per_picture(self) -> int:
        """Number N of tokens that one picture takes in the prompt."""
        rows, columns = self.encoder_config.grid
        return rows * columns

    @property
    def feature_width(self) -> int:
        """Width of the connector's input."""
        config = self.encoder_config
        widths = {"codes": config.codebook_dim, "tokens": config.trunk.width}
        return widths.get(self.features, sum(widths.values()))


AutoConfig.register(MODEL_TYPE, TokLIPLMConfig, exist_ok=True)
