"""`python -m lsrjax.doctor`: see `lsrjax.cli.doctor`."""

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.doctor").start()
