"""`lsrjax encode --ray ADDRESS`: the parts of a folder, made by a Ray cluster.

Ray Data hands the numbers of missing parts to actors with one device each, restarts
those that die and gives their parts to others. The parts are the same as without Ray.
"""

import dataclasses
import os
from typing import Any

from lsrjax.cli.encode_job import Job, Request
from lsrjax.cli.own_entries import Own
from lsrjax.errors import InputError


class _Encoder:
    """An actor: opens the model and the texts once, and makes parts."""

    def __init__(self, request: dict[str, Any], own: dict[str, str], folder: str):
        os.chdir(folder)  # that paths of the command begin in
        Own(**own).load()
        self._job = Job(Request(**request))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        numbers = [int(number) for number in batch["part"]]
        # Those that an actor made before it died, too.
        self._job.make(self._job.folder.check(numbers))
        return batch


def encode(request: Request, address: str, own: Own) -> None:
    """Encodes texts into a folder of parts on a Ray cluster.

    Args:
      address: as of `ray.init`; "local" starts Ray on this machine.
      own: the user's own code, for each worker to import.

    Raises:
      InputError: as of `encode_job.encode`; Ray is missing, there is no such cluster,
        or an actor failed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "--ray needs the package ray: pip install 'lsrjax[ray]'."
        ) from error
    if request.path.suffix:
        raise InputError(
            f"--out {request.out} is one file. Name a folder (without an ending) for"
            " --ray."
        )
    job = Job(request)
    missing = job.missing(range(job.folder.count))
    if missing:
        try:
            ray.init(address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray {address}: {error}") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        each, actors = _devices(ray)
        items = [{"part": number} for number in missing]
        pool = ray.data.ActorPoolStrategy(
            min_size=1, max_size=min(actors, len(missing))
        )
        try:
            ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _Encoder,
                fn_constructor_args=(
                    dataclasses.asdict(request),
                    dataclasses.asdict(own),
                    os.getcwd(),
                ),
                batch_size=1,
                compute=pool,
                **each,
            ).materialize()
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise InputError(
                f"A worker of the Ray cluster failed: {cause}. Parts that are there are"
                " kept; start again to make the others."
            ) from error
    job.complete(len(missing))


def _devices(ray) -> tuple[dict[str, Any], int]:
    """What an actor asks for to have one device, and how many actors can have that."""
    found = ray.cluster_resources()
    if found.get("GPU"):
        return {"num_gpus": 1}, int(found["GPU"])
    if found.get("TPU"):
        return {"resources": {"TPU": 1}}, int(found["TPU"])
    # On processors, a node is a device.
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    nodes = [cores for cores in nodes if cores]
    return {"num_cpus": min(nodes)}, len(nodes)
