"""VQ tokenizers of the TokLIP toolkit: LlamaGen, IBQ and their relatives, as plugins."""
