"""`python -m lsrjax.convert`: see `lsrjax.cli.convert`."""

from lsrjax.cli import convert

if __name__ == "__main__":
    convert.start()
