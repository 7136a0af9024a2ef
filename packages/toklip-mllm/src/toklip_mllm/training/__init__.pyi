from .conversations import (
    Conversation as Conversation,
    Example as Example,
    branch_inputs as branch_inputs,
    collate as collate,
    join_branches as join_branches,
    label_conversation as label_conversation,
    parse_conversation as parse_conversation,
    read_conversations as read_conversations,
)
from .lora import add_adapters as add_adapters
from .samples import ConversationSamples as ConversationSamples
from .settings import (
    RECIPES as RECIPES,
    Conversations as Conversations,
    Drawings as Drawings,
    LoRA as LoRA,
    MLLMTrainConfig as MLLMTrainConfig,
    SceneConversations as SceneConversations,
    SmallLanguage as SmallLanguage,
)
from .small_language import (
    add_words as add_words,
    small_language_model as small_language_model,
    word_tokenizer as word_tokenizer,
)
from .sources import (
    PictureFormat as PictureFormat,
    iterate_texts as iterate_texts,
    open_sources as open_sources,
    use_stored_tokens as use_stored_tokens,
)
from .task import (
    MLLMTask as MLLMTask,
    MLLMTraining as MLLMTraining,
    freeze as freeze,
    save as save,
    train_mllm as train_mllm,
    with_plain_template as with_plain_template,
)
