"""A decoder LM of transformers becomes a SPLADE, is trained, goes on and goes out."""

import io
import shutil

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from sentence_transformers import SparseEncoder

from lsrjax.config import get_default
from lsrjax.convert import open_model, targets
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.training import run

SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 17,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def decoder(folder, *, tied):
    """A Qwen3 of random weights with a tokenizer."""
    torch.manual_seed(0)
    size = TextTokenizer(embedded.ENGLISH_TOKENIZER).vocab_size
    config = transformers.Qwen3Config(
        vocab_size=size, **SIZES, tie_word_embeddings=tied, initializer_range=0.3
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    shutil.copytree(embedded.ENGLISH_TOKENIZER, folder, dirs_exist_ok=True)
    return str(folder)


def config_of(encoder, **model):
    c = get_default()
    c.model.head = "splade"
    c.init.encoder = encoder
    c.data.source = "debian"
    c.data.source.split = "dev"
    c.data.query_languages = c.data.document_languages = {"en": 1, "*": 0}
    c.data.query_length, c.data.document_length = 10, 16
    c.loss = {"infonce": {}}
    c.batch_size, c.steps, c.optim.lr = 8, 2, 1e-3
    for field, value in model.items():
        c.model[field] = value
    return c


def trained(config, workdir):
    run.run(config, workdir, Console(file=io.StringIO(), width=200))
    return workdir / "train"


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_is_trained_and_goes_out(tied, tmp_path):
    start = decoder(tmp_path / "hf", tied=tied)
    first = trained(config_of(start, attention="both"), tmp_path / "first")
    # Another run starts from the stage, as from any masked language model.
    again = trained(config_of(str(first)), tmp_path / "again")
    targets.export(str(again), "splade", tmp_path / "out")
    model = open_model.open_portable(str(again))
    assert not model.spec.encoder.causal and model.spec.options.tied is tied
    texts = ["a library for files", "the kernel, and its drivers", "fonts!", ""]
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=4)
    wanted = encoder.encode(model.params, texts, 16, "document")["terms"].toarray()
    program = SparseEncoder(str(tmp_path / "out"), device="cpu")
    found = program.encode_document(texts).to_dense().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.max())
    assert (wanted > 0).any(axis=1).all() and len(np.unique(wanted, axis=0)) == 4


def test_a_lexical_start_needs_the_biases_of_a_head(tmp_path):
    config = config_of("")
    config.tokenizer, config.model.family = "embedded:english", "qwen3"
    config.init = {"lexical": {}}
    with pytest.raises(InputError, match="that of a qwen3 has none"):
        trained(config, tmp_path)


def test_attention_is_no_option_of_an_encoder_with_one_way(tmp_path):
    config = config_of("")
    config.tokenizer, config.model.family = "embedded:english", "bert"
    config.model.attention = "both"
    with pytest.raises(InputError, match="model.attention is 'both', but bert encod"):
        trained(config, tmp_path)
