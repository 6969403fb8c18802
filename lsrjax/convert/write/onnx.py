"""Writes retrievers to ONNX: token ids and mask in, pooled vectors out.

The graph is written node by node with the `onnx` package, without torch. It computes
the same as `lsrjax.models`, in float32, for any batch and length. In array names, P is
a term or output column, and K an entry of a list of token ids.

The vocabulary's logits are computed one text at a time: [L, V], never [B, L, V].
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.write.onnx_encoders import encoder, gelu, linear, norm
from lsrjax.convert.write.onnx_graph import Graph
from lsrjax.convert.write.onnx_lookups import Lookups
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer.writing import write_tokenizer

# Supported heads. If queries are bags of words, MODEL encodes documents and QUERIES
# queries.
HEADS = ("splade", "milco", "token_weights", "dense", "csr")
MODEL, QUERIES = "model.onnx", "query_model.onnx"
# Larger weights go to a separate file, because a protobuf cannot hold 2 GiB.
EXTERNAL_BYTES = 10**9


def write_onnx(
    model: SavedModel, folder: pathlib.Path, *, external_bytes: int = EXTERNAL_BYTES
) -> None:
    """Writes `model.onnx`, its tokenizers and its config.

    Inputs are `input_ids` and `attention_mask`, [batch, length] int64; there is one
    output per view, [batch, terms of the view] float32, under the view's name. More
    than `external_bytes` of weights go to `model.onnx.data`.
    """
    graph = Graph(folder, external=external_bytes < _nbytes(model.params))
    graph.save(_views(graph, model.spec, model.params), folder / MODEL)
    if not model.spec.encodes_queries:
        graph = Graph(folder, external=False)
        graph.save(_words(graph, model.spec, model.params["head"]), folder / QUERIES)
    _write_beside(model, folder)


def _write_beside(model: SavedModel, folder: pathlib.Path) -> None:
    spec, limit = model.spec, model.spec.encoder.max_length
    write_tokenizer(folder, model.tokenizer, max_length=limit)
    if model.pivot_tokenizer is not None:
        pivot = folder / "pivot_tokenizer"
        write_tokenizer(pivot, model.pivot_tokenizer, max_length=limit)
    described = {
        "views": spec.views,
        "query_length": model.query_length,
        "document_length": model.document_length,
        "query_prompt": spec.query_prompt,
        "document_prompt": spec.document_prompt,
        # What precedes a token in the name of its term.
        "marks": spec.marks if spec.sparse else {},
    }
    write_json(folder / "config.json", spec.encoder.to_hf() | {"lsrjax": described})


def _nbytes(tree: Any) -> int:
    if isinstance(tree, Mapping):
        return sum(map(_nbytes, tree.values()))
    return np.asarray(tree).nbytes


def _views(graph: Graph, spec: RetrieverSpec, params) -> dict[str, tuple[str, int]]:
    """Adds the model; returns the value and the size of each view."""
    mask_BL = graph.cast("attention_mask", "FLOAT")
    hidden_BLD, words_VD = encoder(graph, spec.encoder, params["encoder"], mask_BL)
    head = params.get("head") or {}
    if spec.head == "splade":
        terms = _mlm(graph, spec, head["mlm"], hidden_BLD, mask_BL, words_VD)
        return {"terms": (terms, spec.encoder.vocab_size)}
    if spec.head == "token_weights":
        terms = _echo(graph, spec, head["weigh"], hidden_BLD, mask_BL, True, "max")
        return {"terms": (terms, spec.encoder.vocab_size)}
    if spec.head == "milco":
        h_BLE = gelu(graph, linear(graph, "connector", head["connector"], hidden_BLD))
        pivot = _mlm(graph, spec, head["mlm"], h_BLE, mask_BL, None)
        size, lookups = spec.options.pivot_vocab_size, Lookups(graph, mask_BL)
        for name, table in (
            ("dictionary", lookups.dictionary),
            ("stems", lookups.stems),
        ):
            if name in head:
                # The larger weight is that of the larger logit.
                brought = _log1p(graph, table(head[name], size))
                pivot = graph.add("Max", pivot, brought)
        views = {"pivot": (pivot, size)}
        if "source" in spec.views:
            reduce = "max" if spec.options.repeats == "max" else "add"
            excluded = spec.options.exclude_special_tokens
            source = _echo(
                graph, spec, head["echo"], hidden_BLD, mask_BL, excluded, reduce
            )
            views["source"] = (source, spec.encoder.vocab_size)
        if "ngrams" in head:
            views["surface"] = lookups.ngrams(head["ngrams"]), spec.options.ngrams
        return views
    dense = head.get("dense", {}) if spec.head == "csr" else head
    dense_BD = _dense(graph, spec, dense, hidden_BLD, mask_BL)
    if spec.head == "dense":
        return {"dense": (dense_BD, spec.views["dense"])}
    return {
        "latents": (
            _code(graph, spec, head["autoencoder"], dense_BD),
            spec.views["latents"],
        )
    }


def _mlm(graph: Graph, spec, params, hidden_BLD, mask_BL, words_VD) -> str:
    """The pooled masked-LM head [B, V], as in `lsrjax.models.term_weights.MLMHead`."""
    eps = (
        spec.options.pivot_layer_norm_eps
        if words_VD is None
        else spec.encoder.layer_norm_eps
    )
    transform = params["transform"]
    x_BLD = gelu(
        graph, linear(graph, "transform.dense", transform["dense"], hidden_BLD)
    )
    x_BLD = norm(graph, "transform.norm", transform["norm"], x_BLD, eps)
    if "decoder" in params:
        words_VD = graph.weight("decoder", params["decoder"])
    bias_V = graph.weight("mlm.bias", params["bias"])
    first = graph.constant([0], np.int64)
    last = graph.constant([-1], np.int64)
    summed = twice = False
    if spec.head == "splade":
        summed = spec.options.pooling == "sum"
        twice = spec.options.activation == "log1p_relu"
        if spec.options.pooling == "cls":
            x_BLD = graph.add("Gather", x_BLD, first, axis=1)
            mask_BL = graph.add("Gather", mask_BL, first, axis=1)

    def of_text(x_LD: str, mask_L: str) -> str:
        logits_LV = graph.add("Gemm", x_LD, words_VD, bias_V, transB=1)
        weights_LV = graph.add("Relu", logits_LV)
        mask_L1 = graph.add("Unsqueeze", mask_L, last)
        # Weights are not negative, so a padding weight of 0 has no effect.
        if summed:
            weights_LV = _saturated(graph, weights_LV, twice)
            weights_LV = graph.add("Mul", weights_LV, mask_L1)
            return graph.add("ReduceSum", weights_LV, first, keepdims=0)
        weights_LV = graph.add("Mul", weights_LV, mask_L1)
        return graph.add("ReduceMax", weights_LV, first, keepdims=0)

    pooled_BV = graph.scan(of_text, x_BLD, mask_BL)
    if summed:
        return pooled_BV
    return _saturated(graph, pooled_BV, twice)


def _saturated(graph: Graph, x: str, twice: bool) -> str:
    """log1p, applied once or twice, by the activation."""
    once = _log1p(graph, x)
    return _log1p(graph, once) if twice else once


def _log1p(graph: Graph, x: str) -> str:
    """log1p of x >= 0, exact for small x too: log(u) x / (u - 1) with u = 1 + x.

    Goldberg (1991), theorem 4.
    """
    one = graph.constant(1.0)
    u = graph.add("Add", x, one)
    rest = graph.add("Sub", u, one)
    none = graph.add("Equal", rest, graph.constant(0.0))
    safe = graph.add("Where", none, one, rest)
    scaled = graph.add("Mul", graph.add("Log", u), graph.add("Div", x, safe))
    return graph.add("Where", none, x, scaled)


def _echo(
    graph: Graph, spec, params, hidden_BLD, mask_BL, excluded: bool, reduce: str
) -> str:
    """Weights of own tokens, [B, V], as in `lsrjax.models.term_weights.LexEcho`."""
    kernel_D1 = graph.weight("echo.kernel", np.asarray(params["kernel"])[:, None])
    x_BL1 = graph.add("MatMul", hidden_BLD, kernel_D1)
    x_BL = graph.add("Squeeze", x_BL1, graph.constant([-1], np.int64))
    x_BL = graph.add("Add", x_BL, graph.constant(params["bias"]))
    x_BL = graph.add("Mul", graph.add("Relu", x_BL), mask_BL)
    if excluded and spec.special_ids:
        x_BL = graph.add("Mul", x_BL, _ordinary(graph, spec.special_ids))
    x_BL = graph.add("Mul", x_BL, graph.constant(params["scale"]))
    return _scattered(graph, spec.encoder.vocab_size, x_BL, reduce)


def _words(graph: Graph, spec, head) -> dict[str, tuple[str, int]]:
    """Queries as bags of words, as of `lsrjax.models.word_queries`."""
    mask_BL = graph.cast("attention_mask", "FLOAT")
    if spec.special_ids:
        mask_BL = graph.add("Mul", mask_BL, _ordinary(graph, spec.special_ids))
    words_BV = _scattered(graph, spec.encoder.vocab_size, mask_BL, "max")
    if spec.options.queries == "static":
        words_BV = graph.add("Mul", words_BV, graph.weight("static", head["static"]))
    return {"terms": (words_BV, spec.encoder.vocab_size)}


def _scattered(graph: Graph, size: int, x_BL: str, reduce: str) -> str:
    """Values of tokens in the columns of the tokens' ids, [B, size]."""
    texts = graph.add("Shape", "input_ids", start=0, end=1)
    shape = graph.add("Concat", texts, graph.constant([size], np.int64), axis=0)
    zeros = graph.add("ConstantOfShape", shape)
    return graph.add(
        "ScatterElements", zeros, "input_ids", x_BL, axis=1, reduction=reduce
    )


def _ordinary(graph: Graph, special_ids) -> str:
    """1 for ordinary tokens, 0 for special ones, [B, L]."""
    ids_BL1 = graph.add("Unsqueeze", "input_ids", graph.constant([-1], np.int64))
    same_BLK = graph.add("Equal", ids_BL1, graph.constant(special_ids, np.int64))
    same_BLK = graph.cast(same_BLK, "FLOAT")
    special_BL = graph.add(
        "ReduceMax", same_BLK, graph.constant([-1], np.int64), keepdims=0
    )
    return graph.add("Sub", graph.constant(1.0), special_BL)


def _dense(graph: Graph, spec, params, hidden_BLD, mask_BL) -> str:
    """The embedding [B, D], as in `lsrjax.models.dense_heads.DenseHead`."""
    if spec.options.pooling == "cls":
        x_BD = graph.add("Gather", hidden_BLD, graph.constant(0, np.int64), axis=1)
    elif spec.options.pooling == "last":
        raise InputError(
            "--to onnx has no pooling 'last' (model.head.pooling). Possible are dense,"
            " lsrjax."
        )
    else:
        along, last = graph.constant([1], np.int64), graph.constant([-1], np.int64)
        mask_BL1 = graph.add("Unsqueeze", mask_BL, last)
        kept_BLD = graph.add("Mul", hidden_BLD, mask_BL1)
        sums_BD = graph.add("ReduceSum", kept_BLD, along, keepdims=0)
        count_B1 = graph.add("ReduceSum", mask_BL1, along, keepdims=0)
        count_B1 = graph.add("Max", count_B1, graph.constant(1.0))
        x_BD = graph.add("Div", sums_BD, count_B1)
    if "projection" in params:
        x_BD = linear(graph, "projection", params["projection"], x_BD)
    if not spec.options.normalize:
        return x_BD
    squares = graph.add("Mul", x_BD, x_BD)
    last = graph.constant([-1], np.int64)
    squares = graph.add("ReduceSum", squares, last, keepdims=1)
    squares = graph.add("Max", squares, graph.constant(1e-24))
    return graph.add("Div", x_BD, graph.add("Sqrt", squares))


def _code(graph: Graph, spec, params, x_BD) -> str:
    """The active latents [B, P], as in `lsrjax.models.dense_heads.Autoencoder`."""
    center_D = graph.weight("center", params["center"])
    x_BD = graph.add("Sub", x_BD, center_D)
    raw_BP = linear(graph, "autoencoder", params, x_BD)
    count = graph.constant([spec.options.k], np.int64)
    top_BK = graph.top_k(raw_BP, count)
    last = graph.constant([-1], np.int64)
    least_B1 = graph.add("ReduceMin", top_BK, last, keepdims=1)
    below_BP = graph.add("Less", raw_BP, least_B1)
    zero = graph.constant(0.0)
    return graph.add("Where", below_BP, zero, graph.add("Relu", raw_BP))
