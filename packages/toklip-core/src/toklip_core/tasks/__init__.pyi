from .encoder import (
    EncoderTask as EncoderTask,
    EncoderTraining as EncoderTraining,
    contrast as contrast,
    initial_encoder as initial_encoder,
    train_encoder as train_encoder,
)
from .held_out import (
    evaluate_matcher as evaluate_matcher,
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
    TeacherTask as TeacherTask,
    TeacherTraining as TeacherTraining,
    text_tokenizer as text_tokenizer,
    train_teacher as train_teacher,
)
