"""A plugin for the TokLIP toolkit with a minimal tokenizer."""
