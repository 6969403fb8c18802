"""Tokenizers of folders, as transformers' AutoTokenizer reads them."""
