from .batch_encoder import BatchEncoder as BatchEncoder
from .columns import row_maker as row_maker
from .decode import (
    decode_store as decode_store,
    picture_path as picture_path,
)
from .encode import (
    EncodeReport as EncodeReport,
    Engine as Engine,
    encode_pictures as encode_pictures,
)
from .format import (
    CROPS as CROPS,
    UNREADABLE as UNREADABLE,
    FeatureInfo as FeatureInfo,
    StoreInfo as StoreInfo,
    UnreadablePicture as UnreadablePicture,
    part_paths as part_paths,
    read_report as read_report,
    refuse_mixed as refuse_mixed,
    refuse_other_squares as refuse_other_squares,
    report_paths as report_paths,
)
from .locks import writing as writing
from .reader import TokenStore as TokenStore
from .row_cache import RowCache as RowCache
from .settings import EncodeSettings as EncodeSettings
from .writer import (
    PartWriter as PartWriter,
    UnreadableLog as UnreadableLog,
    fullness_explained as fullness_explained,
)
