from .encoder import (
    EncoderTraining as EncoderTraining,
    Frozen as Frozen,
    contrast as contrast,
    parameter_groups as parameter_groups,
    started as started,
    train_encoder as train_encoder,
)
from .held_out import (
    evaluated as evaluated,
    held_out_set as held_out_set,
)
from .settings import (
    ENCODER_RECIPES as ENCODER_RECIPES,
    TEACHER_RECIPES as TEACHER_RECIPES,
    EncoderLosses as EncoderLosses,
    EncoderTrainConfig as EncoderTrainConfig,
    HeldOutPictures as HeldOutPictures,
    TeacherText as TeacherText,
    TeacherTrainConfig as TeacherTrainConfig,
)
from .teacher import (
    TeacherTraining as TeacherTraining,
    text_tokenizer as text_tokenizer,
    train_teacher as train_teacher,
)
