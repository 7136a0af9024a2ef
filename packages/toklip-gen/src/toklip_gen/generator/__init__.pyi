from .blocks import prefix_mask as prefix_mask
from .conditions import (
    Classes as Classes,
    Texts as Texts,
    TowerWords as TowerWords,
    build_conditions as build_conditions,
    pad_left as pad_left,
)
from .config import (
    MOST_NEIGHBOURS as MOST_NEIGHBOURS,
    OF_TOKLIP as OF_TOKLIP,
    SIZES as SIZES,
    ClassCondition as ClassCondition,
    ConditionKeys as ConditionKeys,
    Features as Features,
    GeneratorConfig as GeneratorConfig,
    Size as Size,
    TextCondition as TextCondition,
    refuse_heads as refuse_heads,
)
from .inputs import (
    Inputs as Inputs,
    toklip_checksum as toklip_checksum,
)
from .llamagen import (
    llamagen_config as llamagen_config,
    load_official as load_official,
    official_name as official_name,
)
from .model import (
    Condition as Condition,
    Generator as Generator,
)
from .packed_linear import (
    PackedLinear as PackedLinear,
    pack_linears as pack_linears,
)
from .pipeline import (
    PictureGenerator as PictureGenerator,
    load_generator as load_generator,
    load_transformer as load_transformer,
)
from .predictor import IdPredictor as IdPredictor
from .settings import ModelSettings as ModelSettings
from .t5 import (
    T5Words as T5Words,
    clean_text as clean_text,
    load_t5 as load_t5,
)
