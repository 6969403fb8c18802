"""Flips bits in checkpoints and cuts their files; counts what is found.

python flip_bits.py COUNT [SEED [RESTORE_EVERY]]

Each time one file of the newest of three checkpoints (of its arrays and metadata, of
the stage's model and tokenizers, of the digests) loses a bit or its end, and the stage
is looked at as a run does that starts. Every RESTORE_EVERY-th time the state is
restored, too, and compared with what was saved. Prints counts as JSON.
"""

import collections
import json
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np

from lsrjax import json_files
from lsrjax.checkpoint import digests, saved_model, set_damaged_aside, train_states
from lsrjax.models import retriever
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.retriever import RetrieverSpec

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPEC = RetrieverSpec.of(
    head="splade",
    encoder=BertConfig(
        family="bert",
        vocab_size=307,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=11,
        max_positions=13,
        type_vocab_size=1,
        pad_token_id=0,
    ),
    tied=True,
    special_ids=(0, 2, 3),
)
STEPS = (10, 20, 30)


def state(step: int) -> dict:
    """Numbers in the shapes of the spec's parameters, others for each step."""
    _, abstract = retriever.split(SPEC)
    rng = np.random.default_rng(step)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract
    )
    return {"step": np.int32(step), "params": params}


def make(folder: pathlib.Path, steps=STEPS, dev=None) -> pathlib.Path:
    """A finished stage with a checkpoint of each step; returns its folder."""
    saved_model.write_model_files(folder, SPEC, GOLDEN / "bert", GOLDEN / "xlmr")
    checkpoints = train_states.Checkpoints(folder, keep=len(steps), metric="R@5")
    for step in steps:
        value = (dev or {}).get(step)
        checkpoints.save(state(step), value and {"R@5": value}, last=True)
    checkpoints.close()
    json_files.write_json(folder / "done.json", {"steps": steps[-1]})
    return folder


def files_of(folder: pathlib.Path, step: int) -> list[str]:
    """Files of a step that hold anything, that with its digests included."""
    names = [*digests.read(folder, step).files, f"digests/{step}.json"]
    return sorted(name for name in names if (folder / name).stat().st_size)


def strike(path: pathlib.Path, rng: np.random.Generator) -> str:
    """Flips a random bit of a file or cuts it at a random place; says which."""
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    if rng.random() < 0.5:
        path.write_bytes(data[:place])
        return "cut"
    data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return "flipped"


def look(folder: pathlib.Path, name: str, restore: bool) -> str:
    """What comes of a stage whose file `name` was struck."""
    notes = []
    newest = set_damaged_aside.take_stock(folder, notes.append)
    said = "\n".join(notes)
    if f"    {name}: " not in said:
        return "silent"
    if (folder / "done.json").exists():
        return "still called finished"
    own = name.startswith(("checkpoints/", "digests/"))
    if newest != (STEPS[-2] if own else STEPS[-1]):
        return f"step {newest} used"
    if not restore:
        return "found"
    saved_model.write_model_files(folder, SPEC, GOLDEN / "bert", GOLDEN / "xlmr")
    checkpoints = train_states.Checkpoints(folder, keep=3, metric="R@5")
    wanted = state(newest)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted
    )
    found = checkpoints.restore(abstract, newest)
    checkpoints.close()
    same = jax.tree.map(np.array_equal, found, wanted)
    return "found and restored" if all(jax.tree.leaves(same)) else "restored wrong"


def count(times: int, seed: int = 0, restore_every: int = 10) -> dict:
    """Strikes so many times; returns how often what came of it."""
    rng = np.random.default_rng(seed)
    outcomes, kinds, struck = (collections.Counter() for _ in range(3))
    with tempfile.TemporaryDirectory() as temporary:
        whole = make(pathlib.Path(temporary) / "whole")
        names = files_of(whole, STEPS[-1])
        for number in range(times):
            folder = pathlib.Path(temporary) / f"{number}"
            shutil.copytree(whole, folder)
            name = names[int(rng.integers(len(names)))]
            kinds[strike(folder / name, rng)] += 1
            struck[name] += 1
            outcomes[look(folder, name, number % restore_every == 0)] += 1
            shutil.rmtree(folder)
    return {"files": len(names), "files struck": len(struck), **kinds, **outcomes}


if __name__ == "__main__":
    print(json.dumps(count(*map(int, sys.argv[1:]))))
