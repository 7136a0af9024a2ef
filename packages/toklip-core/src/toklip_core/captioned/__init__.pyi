from .readers import (
    CaptionReader as CaptionReader,
    PictureAndCaptions as PictureAndCaptions,
    PictureDataset as PictureDataset,
    PictureFiles as PictureFiles,
    PictureTable as PictureTable,
)
from .samples import (
    Batch as Batch,
    CaptionedSamples as CaptionedSamples,
    collate as collate,
)
from .settings import (
    BackgroundKind as BackgroundKind,
    CaptionedDataset as CaptionedDataset,
    CaptionedPictures as CaptionedPictures,
    CaptionedScenes as CaptionedScenes,
    CaptionedStore as CaptionedStore,
    CaptionedTable as CaptionedTable,
    CaptionSource as CaptionSource,
)
