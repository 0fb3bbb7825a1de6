"""Training of the vision tokenizer under Lightning: the module, its losses and data of pictures."""

from emu_tokenizers.training.picture_data import PictureData
from emu_tokenizers.training.shapes_data import ShapesData
from emu_tokenizers.training.tokenizer_module import TokenizerModule

__all__ = ["PictureData", "ShapesData", "TokenizerModule"]
