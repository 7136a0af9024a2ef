from .files import (
    CONFIG_FILE as CONFIG_FILE,
    MODEL_FORMAT as MODEL_FORMAT,
    WEIGHTS_FILE as WEIGHTS_FILE,
    hub_file as hub_file,
    hub_folder as hub_folder,
    load_strict as load_strict,
    plain_name as plain_name,
    read_config as read_config,
    read_model_folder as read_model_folder,
    read_tensors as read_tensors,
    read_weights as read_weights,
    refuse_other_format as refuse_other_format,
    save_model_folder as save_model_folder,
    source_name as source_name,
    state_dict_in as state_dict_in,
    weights_checksum as weights_checksum,
    why_not_fetched as why_not_fetched,
    write_weights as write_weights,
)
from .finite import (
    NotFiniteError as NotFiniteError,
    damaged as damaged,
    is_finite as is_finite,
    refuse_damaged as refuse_damaged,
    refuse_not_finite as refuse_not_finite,
    rows_named as rows_named,
)
from .shapes import without_values as without_values
