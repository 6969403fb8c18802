"""Trains and evaluates what a config describes; see `lsrjax.cli.train`.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

import signal

if __name__ == "__main__":
    # Until a guard takes it, Ctrl-C ends the program without a traceback; the imports
    # below take seconds.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.train").start()
