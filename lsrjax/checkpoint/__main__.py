"""`python -m lsrjax.checkpoint`: see `lsrjax.cli.checkpoint`."""

from lsrjax.cli import checkpoint

if __name__ == "__main__":
    checkpoint.start()
