from .adapters import (
    ALL_LINEAR as ALL_LINEAR,
    LINEAR_LAYERS as LINEAR_LAYERS,
    keep_out as keep_out,
)
from .building import (
    add_image_head as add_image_head,
    build_language_model as build_language_model,
    give_rows as give_rows,
    load_language_model as load_language_model,
    other_layers as other_layers,
    valid_generation_config as valid_generation_config,
)
from .config import TokLIPLMConfig as TokLIPLMConfig
from .head_config import (
    ImageHeadConfig as ImageHeadConfig,
    ImageHeadSettings as ImageHeadSettings,
)
from .image_head import ImageHead as ImageHead
from .messages import flatten as flatten
from .model import (
    IGNORED as IGNORED,
    ContextError as ContextError,
    TokLIPForConditionalGeneration as TokLIPForConditionalGeneration,
)
from .outputs import (
    PictureOutput as PictureOutput,
    ReadAndDrawOutput as ReadAndDrawOutput,
)
from .pictures import (
    PictureInput as PictureInput,
    read_picture as read_picture,
    to_image as to_image,
)
from .predictor import (
    PicturePredictor as PicturePredictor,
    PicturePrompt as PicturePrompt,
)
from .processing import (
    MARKS_TURNS as MARKS_TURNS,
    TokLIPProcessor as TokLIPProcessor,
)
from .vision import (
    PictureEncoder as PictureEncoder,
    cast_weights as cast_weights,
    encoder_checksum as encoder_checksum,
)
