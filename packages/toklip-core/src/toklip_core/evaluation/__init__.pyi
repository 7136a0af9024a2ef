from .classes import (
    class_folders as class_folders,
    class_name as class_name,
    described_templates as described_templates,
    folders_above as folders_above,
    folders_of_keys as folders_of_keys,
    known_templates as known_templates,
    read_labels as read_labels,
    refuse_duplicates as refuse_duplicates,
    sort_classes as sort_classes,
)
from .codebook import (
    CodebookUse as CodebookUse,
    IdCounts as IdCounts,
    codebook_use as codebook_use,
)
from .comparison import (
    TokenizerComparison as TokenizerComparison,
    compare_tokenizers as compare_tokenizers,
    draw_comparison as draw_comparison,
    ids_in_words as ids_in_words,
)
from .explain import (
    Explanation as Explanation,
    draw_explanation as draw_explanation,
    draw_map as draw_map,
    explain_image as explain_image,
    explain_picture as explain_picture,
)
from .matcher import (
    TIES as TIES,
    IdMatcher as IdMatcher,
    Matcher as Matcher,
    cut_protocol as cut_protocol,
    hit_chances as hit_chances,
    load_matcher as load_matcher,
    picture_features as picture_features,
    refuse_cut_texts as refuse_cut_texts,
    refuse_unreadable as refuse_unreadable,
    text_features as text_features,
    warn_of_other_pictures as warn_of_other_pictures,
    warn_of_unknown_words as warn_of_unknown_words,
    warn_of_unreadable as warn_of_unreadable,
)
from .perceptual import (
    described_inception as described_inception,
    load_fid as load_fid,
    load_inception as load_inception,
    load_lpips as load_lpips,
)
from .reconstruction import (
    Reconstruction as Reconstruction,
    evaluate_reconstruction as evaluate_reconstruction,
    evaluate_tokenizer as evaluate_tokenizer,
    reconstruct_image as reconstruct_image,
)
from .report import (
    report_text as report_text,
    software as software,
)
from .retrieval import (
    evaluate_retrieval as evaluate_retrieval,
    is_karpathy as is_karpathy,
    karpathy_pairs as karpathy_pairs,
    measure_retrieval as measure_retrieval,
    recall as recall,
    table_pairs as table_pairs,
)
from .search import (
    PictureIndex as PictureIndex,
    Search as Search,
    draw_search as draw_search,
    pictures_to_search as pictures_to_search,
    search_pictures as search_pictures,
)
from .zero_shot import (
    class_features as class_features,
    classify_pictures as classify_pictures,
    evaluate_zero_shot as evaluate_zero_shot,
    measure_zero_shot as measure_zero_shot,
)
