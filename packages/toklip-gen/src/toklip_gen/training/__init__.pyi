from .samples import (
    GeneratorSamples as GeneratorSamples,
    collate as collate,
)
from .settings import (
    RECIPES as RECIPES,
    Architecture as Architecture,
    ClassFolders as ClassFolders,
    GeneratorTrainConfig as GeneratorTrainConfig,
    Sketches as Sketches,
    StoredIds as StoredIds,
    TextSetting as TextSetting,
)
from .task import (
    Frozen as Frozen,
    held_out_batch as held_out_batch,
    load_parts as load_parts,
    next_id_loss as next_id_loss,
    parameter_groups as parameter_groups,
    train_generator as train_generator,
)
