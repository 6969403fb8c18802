"""Stands for the interpreter that runs `lsrjax.main`, in tests of the launch scripts.

It says what it was started with, as a JSON line, and then does what STUB_<number> says:
`exit CODE`, `hang`, or `signals`, which names the signals that come and leaves with 75
at the second one. It is started as PYTHON: `stub -m lsrjax.main FLAGS…`.
"""

import json
import os
import signal
import sys
import time


def value(flag, otherwise):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else otherwise


if sys.argv[1] == "-c":  # not the training
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
number = value("--process_id", os.environ.get("SLURM_PROCID", "0"))
visible = os.environ.get("CUDA_VISIBLE_DEVICES")
print(json.dumps({"argv": sys.argv[1:], "devices": visible}), flush=True)
task, *rest = os.environ.get(f"STUB_{number}", "exit 0").split()
if task == "exit":
    print(f"{number} leaves", file=sys.stderr, flush=True)
    sys.exit(int(rest[0]))
came = []


def note(signum, _):
    came.append(signum)
    print(f"{number} got {signal.Signals(signum).name}", flush=True)


if task == "signals":
    for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, note)
print(f"{number} waits", flush=True)
deadline = time.monotonic() + 60
while len(came) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(75)
