__version__: str

from .chat import (
    Answer as Answer,
    Chat as Chat,
    ChatSettings as ChatSettings,
    DrawnPicture as DrawnPicture,
)
from .model.building import (
    add_image_head as add_image_head,
    build_language_model as build_language_model,
    load_language_model as load_language_model,
)
from .model.config import TokLIPLMConfig as TokLIPLMConfig
from .model.head_config import ImageHeadSettings as ImageHeadSettings
from .model.model import TokLIPForConditionalGeneration as TokLIPForConditionalGeneration
from .model.processing import TokLIPProcessor as TokLIPProcessor
from .training.conversations import (
    Conversation as Conversation,
    Example as Example,
    collate as collate,
    label_conversation as label_conversation,
    read_conversations as read_conversations,
)
