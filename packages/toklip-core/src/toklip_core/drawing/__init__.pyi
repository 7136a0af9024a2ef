from .choice import choose_ids as choose_ids
from .guidance import Guidance as Guidance
from .levels import IdLevels as IdLevels
from .models import (
    CompilableModel as CompilableModel,
    NextIdCache as NextIdCache,
    NextIdModel as NextIdModel,
)
from .sampler import (
    DrawResult as DrawResult,
    Sampler as Sampler,
)
from .settings import (
    Drawing as Drawing,
    NoiseKind as NoiseKind,
)
from .window import (
    Window as Window,
    refuse_window as refuse_window,
)
