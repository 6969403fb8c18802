"""Prompt vectors in other programs: their vectors are ours, out and back."""

import dataclasses

import numpy as np
import pytest
from milco_models import assert_same as same
from milco_models import made, own_modules
from milco_models import ours as milco_ours
from programs import prompted
from retrievers import CASES, TEXTS, assert_same, model_of, ours
from scipy import sparse
from sentence_transformers import (
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from test_sentence_transformers_folders import theirs

from lsrjax.convert import open_model, targets
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval.maxsim import TokenMatrix

QUICK = ("splade", "multi-vector")
MORE = (
    "splade untied sum",
    "splade towers",
    "splade qwen3",
    "splade norbert4 capped",
    "static xlm-roberta",
    "csr",
    "dense towers",
    "multi-vector plain",
)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=SLOW) for case in MORE)]
)
def test_vectors_are_the_same_in_sentence_transformers(case, tmp_path):
    before = model_of(case)
    config = prompted.config_of(before, 2 * before.spec.encodes_queries)
    model = prompted.student(config, before, seed=3)
    targets.write(model, CASES[case][0], tmp_path / "out")
    kinds = {"dense": SentenceTransformer, "multi-vector": MultiVectorEncoder}
    kind = kinds.get(CASES[case][0], SparseEncoder)
    program = kind(
        str(tmp_path / "out"), device="cpu", trust_remote_code="norbert4" in case
    )
    again = open_model.open_portable(str(tmp_path / "out"))
    vectors = {role: ours(model, TEXTS, role) for role in ("query", "document")}
    for role, wanted in vectors.items():
        assert_same(theirs(program, TEXTS, role), wanted)
        assert_same(ours(again, TEXTS, role), wanted)
        if not isinstance(wanted, TokenMatrix) and (
            role == "document" or before.spec.encodes_queries
        ):
            # The vectors in front change what is found, and are found themselves never.
            plain = ours(before, TEXTS, role)
            assert np.abs(wanted[:, : plain.shape[1]] - plain).max() > 1e-3
        if before.spec.sparse and case != "csr":
            assert not wanted[:, list(model.spec.prompt_ids)].any()
    # What starts from the folder has them in front as well.
    config = prompted.config_of(again)
    config.adapt = {}
    config.model.query_prompt, config.model.document_prompt = (
        before.spec.query_prompt,
        before.spec.document_prompt,
    )
    later = prompted.student(config, again)
    for role, wanted in vectors.items():
        assert_same(ours(later, TEXTS, role), wanted)


@SLOW
@pytest.mark.parametrize("excluded", [False, True])
def test_vectors_of_milco_are_the_same_in_its_code(excluded, tmp_path):
    before = made("lookups" if excluded else "echo")
    options = dataclasses.replace(before.spec.options, exclude_special_tokens=excluded)
    before = dataclasses.replace(
        before, spec=dataclasses.replace(before.spec, options=options)
    )
    model = prompted.student(prompted.config_of(before), before, seed=3)
    targets.write(model, "milco-sparse-encoder", tmp_path / "out")
    again = open_model.open_portable(str(tmp_path / "out"))
    # The view of the text's own tokens is the second one.
    columns = [8192 + i for i in model.spec.prompt_ids]
    with own_modules(tmp_path / "modules"):
        program = SparseEncoder(
            str(tmp_path / "out"), device="cpu", trust_remote_code=True
        )
        for role in ("query", "document"):
            wanted = milco_ours(model, TEXTS, role)
            assert wanted.nnz and not wanted[:, columns].nnz
            same(sparse.csr_matrix(theirs(program, TEXTS, role)), wanted)
            same(milco_ours(again, TEXTS, role), wanted, 0)


def test_factors_beside_prompt_vectors_are_no_folder_of_peft(tmp_path):
    config = {
        "init": {"encoder": {"model": "base"}},
        "adapt": {"lora": {"rank": 2}, "prompt": {}},
    }
    model = dataclasses.replace(model_of("splade"), config=config, factors={"a": 1})
    with pytest.raises(InputError, match="prompt of config.adapt was also trained"):
        targets.write(model, "peft", tmp_path / "out")


def test_ends_of_texts_and_a_pooling_without_prompts_go_out(tmp_path):
    before = model_of("dense qwen3 alone")
    config = prompted.config_of(before)
    config.adapt = {}
    config.model.update(add_bos="no", add_eos="yes", include_prompt=False)
    model = prompted.student(config, before)
    tokens = [TextTokenizer(one.tokenizer) for one in (before, model)]
    (whole,), (ended,) = (one.ids(["free software"], 9) for one in tokens)
    assert ended == whole[1:] and model.spec.marker_place == 0
    # "find the :" and a marker, behind nothing.
    assert (model.spec.query_unpooled, model.spec.document_unpooled) == (4, 1)
    targets.write(model, "dense", tmp_path / "out")
    program = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    again = open_model.open_portable(str(tmp_path / "out"))
    for role in ("query", "document"):
        wanted = ours(model, TEXTS, role)
        assert_same(theirs(program, TEXTS, role), wanted)
        assert_same(ours(again, TEXTS, role), wanted)
        assert np.abs(ours(before, TEXTS, role) - wanted).max() > 1e-3


def test_a_pooling_without_prompts_is_refused_where_it_would_be_another(tmp_path):
    before = model_of("splade")
    config = prompted.config_of(before)
    config.adapt, config.model.query_prompt = {}, "find the: "
    config.model.include_prompt = False
    model = prompted.student(config, before)
    with pytest.raises(InputError, match="prompt's tokens out. Possible are lsrjax"):
        targets.write(model, "splade", tmp_path / "out")
    # Its space, a token of its own in SentencePiece, would take a word with it.
    before = model_of("csr alone")
    config = prompted.config_of(before)
    config.adapt, config.model.include_prompt = {}, False
    with pytest.raises(InputError, match="merges with the text's first"):
        prompted.student(config, before)
