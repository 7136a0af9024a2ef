from .answers import (
    exact_match as exact_match,
    find_choice as find_choice,
    format_id as format_id,
    is_missing as is_missing,
    is_yes as is_yes,
    normalize_answer as normalize_answer,
    vqa_accuracy as vqa_accuracy,
    yes_no as yes_no,
)
from .lmms_eval import TokLIPLM as TokLIPLM
from .questions import (
    Columns as Columns,
    VQAQuestion as VQAQuestion,
    make_prompt as make_prompt,
    read_questions as read_questions,
    scene_questions as scene_questions,
)
from .report import (
    VQAAnswer as VQAAnswer,
    report_answers as report_answers,
)
from .settings import HeldOutQuestions as HeldOutQuestions
from .vqa import (
    answer_questions as answer_questions,
    evaluate_answers as evaluate_answers,
    evaluate_vqa as evaluate_vqa,
    held_out_questions as held_out_questions,
    refuse_long_questions as refuse_long_questions,
)
