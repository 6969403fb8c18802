"""`python -m lsrjax.doctor`: see `lsrjax.cli.doctor`."""

from lsrjax.cli import doctor

if __name__ == "__main__":
    doctor.start()
