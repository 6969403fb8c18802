"""An encoder alone goes out as a dense retriever: its embeddings need no parameters."""

import pathlib

import jax
import numpy as np
import onnxruntime

from lsrjax.checkpoint.saved_model import load_model
from lsrjax.cli import convert
from lsrjax.convert import targets
from lsrjax.convert.read.huggingface import load_checkpoint

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "xlmr"


def test_an_encoder_alone_comes_back_from_our_folder(tmp_path):
    expected = load_checkpoint(str(GOLDEN)).params
    assert set(expected) == {"encoder"}
    targets.export(str(GOLDEN), "lsrjax", tmp_path / "out")
    found = load_model(tmp_path / "out")
    assert (found.spec.head, found.spec.options.pooling) == ("dense", "cls")
    leaves = jax.tree.leaves(found.params["encoder"])
    for leaf, wanted in zip(leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def test_its_embeddings_in_onnxruntime_have_length_one(tmp_path):
    convert.main(
        ["--from", str(GOLDEN), "--to", "onnx", "--out", str(tmp_path / "out")]
    )
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    ids = np.array([[0, 5, 7, 2], [0, 2, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
    (dense,) = session.run(["dense"], inputs)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 1.0, rtol=1e-6)
    assert np.abs(dense[0] - dense[1]).max() > 0.01
