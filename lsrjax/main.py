"""Trains and evaluates what a config describes; see `lsrjax.cli.train`.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

from lsrjax.cli.importing import command

if __name__ == "__main__":
    command("lsrjax.cli.train").start()
