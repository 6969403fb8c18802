"""`python -m lsrjax.convert`, see `lsrjax.export`."""

from lsrjax import preemption, terminal
from lsrjax.export import main

if __name__ == "__main__":
    terminal.harden()
    # Asked to leave, it says that the same command does it again.
    preemption.Guard().start()
    main()
