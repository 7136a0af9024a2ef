from .atomic import (
    delete as delete,
    filling as filling,
    flush_to_disk as flush_to_disk,
    hidden_path as hidden_path,
    replacing as replacing,
    write_text as write_text,
)
from .locks import (
    folder_lock as folder_lock,
    held_alone as held_alone,
    held_together as held_together,
)
from .machine import (
    is_machine_error as is_machine_error,
    named_error as named_error,
    why_unreadable as why_unreadable,
)
from .special import (
    is_file as is_file,
    refuse_special as refuse_special,
)
from .tables import (
    CAPTION_COLUMNS as CAPTION_COLUMNS,
    METADATA as METADATA,
    captions_by_picture as captions_by_picture,
    captions_in as captions_in,
    metadata_captions as metadata_captions,
    nulls_in as nulls_in,
    table_rows as table_rows,
    warn_of_nulls as warn_of_nulls,
    warn_of_several_captions as warn_of_several_captions,
)
from .text import (
    LONGEST as LONGEST,
    json_rows as json_rows,
    one_line as one_line,
    parse_json as parse_json,
    read_json as read_json,
    read_json_object as read_json_object,
    read_text as read_text,
    replace_lone_surrogates as replace_lone_surrogates,
)
