from .chameleon import load_chameleon as load_chameleon
from .emu3 import load_emu3 as load_emu3
from .emu3_5 import load_emu3_5 as load_emu3_5
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
from .open_magvit2 import (
    OPEN_MAGVIT2_CONFIGS as OPEN_MAGVIT2_CONFIGS,
    OpenMAGVIT2 as OpenMAGVIT2,
    OpenMAGVIT2Config as OpenMAGVIT2Config,
    load_open_magvit2 as load_open_magvit2,
    open_magvit2_name as open_magvit2_name,
)
from .qlip import (
    QLIP as QLIP,
    QLIPSizes as QLIPSizes,
    QLIPTowers as QLIPTowers,
    TrunkSizes as TrunkSizes,
    load_qlip as load_qlip,
    load_qlip_towers as load_qlip_towers,
    qlip_name as qlip_name,
)
from .siglip import SiglipSizes as SiglipSizes
from .tokenflow import (
    TOKENFLOW_CONFIGS as TOKENFLOW_CONFIGS,
    ClipSizes as ClipSizes,
    TokenFlowConfig as TokenFlowConfig,
    load_tokenflow as load_tokenflow,
    tokenflow_name as tokenflow_name,
)
from .unitok import (
    UniTok as UniTok,
    UniTokConfig as UniTokConfig,
    load_unitok as load_unitok,
    read_unitok as read_unitok,
    unitok_name as unitok_name,
)
from .unitok_clip import (
    UniTokCLIP as UniTokCLIP,
    UniTokCLIPConfig as UniTokCLIPConfig,
    load_unitok_clip as load_unitok_clip,
)
from .vila_u import (
    VILA_U_CONFIGS as VILA_U_CONFIGS,
    VilaUConfig as VilaUConfig,
    load_vila_u as load_vila_u,
    load_vila_u_siglip as load_vila_u_siglip,
    vila_u_name as vila_u_name,
)
