from .attention import (
    Attend as Attend,
    Cache as Cache,
    attend as attend,
    attend_at as attend_at,
    attend_causally as attend_causally,
    attend_with_cache as attend_with_cache,
)
from .clip import (
    CLIP as CLIP,
    CLIPConfig as CLIPConfig,
    clip_from_open_clip as clip_from_open_clip,
    load_clip as load_clip,
)
from .encoder import (
    MOST_NEIGHBOURS as MOST_NEIGHBOURS,
    EncoderConfig as EncoderConfig,
    SemanticEncoder as SemanticEncoder,
    encoder_from_tower as encoder_from_tower,
    resized_encoder as resized_encoder,
)
from .level_transformer import LevelTransformer as LevelTransformer, sample_ids as sample_ids
from .published import (
    ALIASES as ALIASES,
    CLIP_TINY as CLIP_TINY,
    IGNORED as IGNORED,
    OF_SCENES as OF_SCENES,
    TINY as TINY,
    ModelSpec as ModelSpec,
    TokLIPConfig as TokLIPConfig,
    config_of_official as config_of_official,
    model_spec as model_spec,
    models as models,
    official_name as official_name,
    published_text_tokenizer as published_text_tokenizer,
    read_official as read_official,
)
from .stream import (
    FeatureKind as FeatureKind,
    FeatureStream as FeatureStream,
    join_features as join_features,
)
from .text import (
    EOS_ID as EOS_ID,
    PAD_ID as PAD_ID,
    TOKENIZER_FILE as TOKENIZER_FILE,
    TextConfig as TextConfig,
    TextTokenizer as TextTokenizer,
    TextTower as TextTower,
    read_tokenizer as read_tokenizer,
    word_tokenizer as word_tokenizer,
)
from .toklip import (
    Encoding as Encoding,
    TokLIP as TokLIP,
    load_model as load_model,
)
from .trunk import (
    TrunkConfig as TrunkConfig,
    VisionConfig as VisionConfig,
    activation_of as activation_of,
    build_vision_tower as build_vision_tower,
    described_tower as described_tower,
)
