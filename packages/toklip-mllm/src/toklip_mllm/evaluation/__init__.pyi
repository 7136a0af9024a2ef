from .answers import (
    chosen as chosen,
    exact_match as exact_match,
    id_of as id_of,
    is_yes as is_yes,
    missing as missing,
    normalized as normalized,
    vqa_accuracy as vqa_accuracy,
    yes_no as yes_no,
)
from .lmms_eval import TokLIPLM as TokLIPLM
from .questions import (
    Asked as Asked,
    Keys as Keys,
    prompt_of as prompt_of,
    read_questions as read_questions,
    scene_questions as scene_questions,
)
from .report import (
    Answered as Answered,
    reported as reported,
)
from .settings import HeldOutQuestions as HeldOutQuestions
from .vqa import (
    answer_questions as answer_questions,
    evaluate_vqa as evaluate_vqa,
    evaluated as evaluated,
    held_out_questions as held_out_questions,
)
