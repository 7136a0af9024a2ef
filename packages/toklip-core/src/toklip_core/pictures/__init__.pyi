from .find import (
    ARCHIVE_SUFFIXES as ARCHIVE_SUFFIXES,
    PICTURE_SUFFIXES as PICTURE_SUFFIXES,
    Entry as Entry,
    InputFile as InputFile,
    ScenePlace as ScenePlace,
    count_of as count_of,
    entries as entries,
    find_pictures as find_pictures,
    key_of as key_of,
    read_metadata as read_metadata,
    share_of_rank as share_of_rank,
    share_of_worker as share_of_worker,
)
from .grids import (
    grid_by_factor as grid_by_factor,
    grid_of_size as grid_of_size,
    refuse_other_grid as refuse_other_grid,
)
from .lazy import (
    LabelledPictures as LabelledPictures,
    LazyPair as LazyPair,
    LazyPicture as LazyPicture,
    list_pictures as list_pictures,
)
from .limit import cropped as cropped
from .open import (
    READING_ERRORS as READING_ERRORS,
    PictureError as PictureError,
    open_picture as open_picture,
)
from .outputs import (
    WRITTEN_SUFFIXES as WRITTEN_SUFFIXES,
    refuse_folder as refuse_folder,
    refuse_output as refuse_output,
)
from .parquet_rows import (
    ParquetRow as ParquetRow,
    bytes_of_cell as bytes_of_cell,
    data_and_path as data_and_path,
    is_list as is_list,
    is_text as is_text,
)
from .pixels import (
    Resize as Resize,
    normalized as normalized,
    picture_to_rgb as picture_to_rgb,
    refuse_pixels as refuse_pixels,
    resample as resample,
    resized as resized,
    to_picture as to_picture,
    to_pixels as to_pixels,
    to_rgb as to_rgb,
)
from .random_crops import (
    random_crop as random_crop,
    random_square as random_square,
)
from .scenes import (
    labelled_scenes as labelled_scenes,
    scene_pairs as scene_pairs,
    scene_pictures as scene_pictures,
)
from .sheet import (
    PANEL_GAP as PANEL_GAP,
    PANEL_SIDE as PANEL_SIDE,
    line_height as line_height,
    picture_sheet as picture_sheet,
    save_picture as save_picture,
    sheet_width as sheet_width,
    wrapped_lines as wrapped_lines,
    write_lines as write_lines,
)
from .tars import (
    Span as Span,
    TarMember as TarMember,
    tar_pictures as tar_pictures,
)
from .ten_crop import (
    RANGES as RANGES,
    UPRIGHT as UPRIGHT,
    VIEWS as VIEWS,
    all_views as all_views,
    upright_crops as upright_crops,
)
from .upright import upright_rgb as upright_rgb
