from .adm_npz import (
    SampleWriter as SampleWriter,
    read_samples as read_samples,
)
from .frechet import (
    Activations as Activations,
    Extractor as Extractor,
    frechet_distance as frechet_distance,
    inception_score as inception_score,
    load_extractor as load_extractor,
    moments as moments,
    precision_recall as precision_recall,
)
from .generators import (
    SamplingSettings as SamplingSettings,
    evaluate_on_classes as evaluate_on_classes,
    evaluate_on_scenes as evaluate_on_scenes,
)
from .pictures import (
    Measures as Measures,
    PictureWithCaption as PictureWithCaption,
    evaluate_pictures as evaluate_pictures,
    measure_pictures as measure_pictures,
    write_reference_of as write_reference_of,
)
from .references import (
    NamedReference as NamedReference,
    Reference as Reference,
    ReferenceInfo as ReferenceInfo,
    load_reference as load_reference,
    write_reference as write_reference,
)
from .scene_match import (
    Match as Match,
    caption_of as caption_of,
    match_by_model as match_by_model,
    match_by_pixels as match_by_pixels,
    measure_match as measure_match,
    scene_prompts as scene_prompts,
    shares_table as shares_table,
)
