"""Search engines over vectors of documents; `table.py` lists them."""
