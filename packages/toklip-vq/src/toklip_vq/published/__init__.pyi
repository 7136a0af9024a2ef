from .chameleon import load_chameleon as load_chameleon
from .emu3 import load_emu3 as load_emu3
from .ibq import (
    ibq_config as ibq_config,
    load_ibq as load_ibq,
    taming_name as taming_name,
)
from .janus import load_janus as load_janus
from .llamagen import (
    CONFIGS as CONFIGS,
    llamagen_name as llamagen_name,
    load_llamagen as load_llamagen,
)
from .qlip import (
    QLIP as QLIP,
    QLIPSizes as QLIPSizes,
    TrunkSizes as TrunkSizes,
    load_qlip as load_qlip,
    qlip_name as qlip_name,
)
from .unitok import (
    UniTok as UniTok,
    UniTokConfig as UniTokConfig,
    load_unitok as load_unitok,
    unitok_name as unitok_name,
)
