"""`python -m lsrjax.encode`: see `lsrjax.cli.encode`."""

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.encode").start()
