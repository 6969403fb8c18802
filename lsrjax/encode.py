"""`python -m lsrjax.encode`: see `lsrjax.cli.encode`."""

from lsrjax.cli import encode

if __name__ == "__main__":
    encode.start()
