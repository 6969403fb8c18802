"""`python -m lsrjax.convert`: see `lsrjax.cli.convert`."""

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.convert").start()
