"""`python -m lsrjax.convert`, see `lsrjax.export`."""

from lsrjax.export import main

if __name__ == "__main__":
    main()
