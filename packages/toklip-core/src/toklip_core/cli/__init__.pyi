from .group import plugin_commands as plugin_commands
from .main import cli as cli
from .options import (
    COUNT as COUNT,
    NUMBER as NUMBER,
    SEED as SEED,
    SIDE as SIDE,
    PathName as PathName,
    as_json as as_json,
    batch_size as batch_size,
    compute_of as compute_of,
    device as device,
    dtype as dtype,
    max_pixels as max_pixels,
    named_model as named_model,
    names_or_files as names_or_files,
    refuse_unused as refuse_unused,
    temperature as temperature,
    toklip_names as toklip_names,
    top_p as top_p,
)
from .process import run as run
from .quotes import (
    note_single_words as note_single_words,
    refuse_loose_words as refuse_loose_words,
)
from .task import (
    TrainTask as TrainTask,
    train_command as train_command,
)
