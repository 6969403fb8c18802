"""Tokenizer folders, read as transformers reads them."""
