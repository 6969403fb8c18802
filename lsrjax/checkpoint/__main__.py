"""`python -m lsrjax.checkpoint`: see `lsrjax.cli.checkpoint`."""

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.checkpoint").start()
