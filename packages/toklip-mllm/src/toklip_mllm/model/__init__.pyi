from .building import (
    build as build,
    load as load,
)
from .config import TokLIPLMConfig as TokLIPLMConfig
from .messages import flatten as flatten
from .model import (
    ContextError as ContextError,
    TokLIPForConditionalGeneration as TokLIPForConditionalGeneration,
)
from .pictures import (
    PictureInput as PictureInput,
    read_picture as read_picture,
    to_image as to_image,
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
