__version__: str

from .model.encoder import SemanticEncoder as SemanticEncoder
from .model.toklip import (
    Encoding as Encoding,
    TokLIP as TokLIP,
    load_model as load_model,
)
from .plugins import (
    TokenizerSpec as TokenizerSpec,
    VQTokenizer as VQTokenizer,
    hookimpl as hookimpl,
)
from .tokenizer import (
    Tokenizer as Tokenizer,
    TokenizerRecord as TokenizerRecord,
    load_tokenizer as load_tokenizer,
)
