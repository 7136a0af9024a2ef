from .checkpoints import LastEvaluation as LastEvaluation, TrainState as TrainState
from .cpu_attention import CPUAttention as CPUAttention, attention_by_products as attention_by_products
from .loop import (
    FitReport as FitReport,
    fit as fit,
    learning_rate_factor as learning_rate_factor,
)
from .losses import (
    mean_over_processes as mean_over_processes,
    pooled_distillation as pooled_distillation,
    sigmoid_contrast as sigmoid_contrast,
    softmax_contrast as softmax_contrast,
    token_distillation as token_distillation,
)
from .next_id import (
    NextIdLoss as NextIdLoss,
    next_id_loss as next_id_loss,
    with_sampled_levels as with_sampled_levels,
    z_loss as z_loss,
)
from .optimizers import (
    ParameterGroup as ParameterGroup,
    build_optimizers as build_optimizers,
    parameter_groups as parameter_groups,
)
from .order import (
    derived_seed as derived_seed,
    shuffled as shuffled,
    window_order as window_order,
)
from .run_folder import RunFolder as RunFolder
from .signals import (
    held_back as held_back,
    leave_signals_to_the_parent as leave_signals_to_the_parent,
    stop_on_signals as stop_on_signals,
)
from .sources import (
    Concatenation as Concatenation,
    Samples as Samples,
    UnusableSampleError as UnusableSampleError,
    first_usable as first_usable,
)
from .task import (
    Evaluation as Evaluation,
    Losses as Losses,
    Task as Task,
)
from .worker_errors import (
    USER_ERRORS as USER_ERRORS,
    as_it_is as as_it_is,
    portable as portable,
)
