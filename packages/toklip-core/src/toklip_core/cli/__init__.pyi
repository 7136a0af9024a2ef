from .group import plugin_commands as plugin_commands
from .main import cli as cli
from .options import (
    COUNT as COUNT,
    NUMBER as NUMBER,
    SEED as SEED,
    SIDE as SIDE,
    compute_of as compute_of,
    max_pixels as max_pixels,
    names_of_kind as names_of_kind,
    names_or_files as names_or_files,
    toklip_names as toklip_names,
)
from .task import (
    TrainTask as TrainTask,
    train_command as train_command,
)
