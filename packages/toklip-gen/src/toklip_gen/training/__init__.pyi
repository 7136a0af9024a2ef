from .samples import (
    GeneratorSamples as GeneratorSamples,
    collate as collate,
)
from .settings import (
    RECIPES as RECIPES,
    Architecture as Architecture,
    ClassFolders as ClassFolders,
    GeneratorTrainConfig as GeneratorTrainConfig,
    HeldOutStore as HeldOutStore,
    Sampling as Sampling,
    StoredIds as StoredIds,
    TextSetting as TextSetting,
)
from .task import (
    GeneratorTask as GeneratorTask,
    generator_losses as generator_losses,
    held_out_prompts as held_out_prompts,
    load_networks as load_networks,
    read_batch as read_batch,
    start_from as start_from,
    train_generator as train_generator,
    with_sampled_ids as with_sampled_ids,
)
