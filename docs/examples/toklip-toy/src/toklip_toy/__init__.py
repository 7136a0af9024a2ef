"""A plugin for the TokLIP toolkit: the smallest tokenizer that is one."""
