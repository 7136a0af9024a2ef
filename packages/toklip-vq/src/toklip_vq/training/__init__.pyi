from .losses import (
    LeCam as LeCam,
    PatchDiscriminator as PatchDiscriminator,
    generator_loss as generator_loss,
    hinge_loss as hinge_loss,
)
from .quantization import (
    CodeRestart as CodeRestart,
    affinity as affinity,
    bit_entropy_loss as bit_entropy_loss,
    count_ids as count_ids,
    entropy_loss as entropy_loss,
    quantize_bits as quantize_bits,
    quantize_by_index as quantize_by_index,
    quantize_residual as quantize_residual,
    quantize_scalars as quantize_scalars,
    quantize_straight_through as quantize_straight_through,
)
from .samples import (
    held_out_pictures as held_out_pictures,
    open_sources as open_sources,
)
from .settings import (
    RECIPES as RECIPES,
    FolderSource as FolderSource,
    HeldOutFolder as HeldOutFolder,
    LossConfig as LossConfig,
    PhotographsSource as PhotographsSource,
    ScenesSource as ScenesSource,
    VQTrainConfig as VQTrainConfig,
)
from .task import (
    VQTask as VQTask,
    VQTraining as VQTraining,
    evaluate_vqgan as evaluate_vqgan,
    start_codebook as start_codebook,
    train_vq as train_vq,
)
