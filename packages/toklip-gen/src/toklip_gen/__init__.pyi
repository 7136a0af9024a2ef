from .generator.config import GeneratorConfig as GeneratorConfig
from .generator.inputs import Inputs as Inputs
from .generator.model import (
    Condition as Condition,
    Generator as Generator,
)
from .generator.pipeline import (
    PictureGenerator as PictureGenerator,
    load_generator as load_generator,
)
from .generator.predictor import IdPredictor as IdPredictor
from .generator.settings import ModelSettings as ModelSettings
