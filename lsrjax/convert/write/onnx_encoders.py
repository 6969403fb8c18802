"""Encoders as ONNX graphs: token ids and mask in, hidden states out.

In array names, C is the width of an attention head and M a second token axis, the
attended one.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lsrjax.convert.names import by_layer
from lsrjax.convert.write.onnx_graph import Graph
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.modern import ModernConfig

# Finite, so that a text without tokens does not give NaN.
_LOWEST = np.float32(-0.7 * np.finfo(np.float32).max)


def linear(graph: Graph, name: str, params, x: str) -> str:
    """A dense layer, with or without a bias."""
    x = graph.add("MatMul", x, graph.weight(f"{name}.kernel", params["kernel"]))
    if "bias" not in params:
        return x
    return graph.add("Add", x, graph.weight(f"{name}.bias", params["bias"]))


def norm(graph: Graph, name: str, params, x: str, eps: float) -> str:
    """A LayerNorm, with or without a bias."""
    factors = [graph.weight(f"{name}.scale", params["scale"])]
    if "bias" in params:
        factors.append(graph.weight(f"{name}.bias", params["bias"]))
    return graph.add("LayerNormalization", x, *factors, axis=-1, epsilon=eps)


def gelu(graph: Graph, x: str) -> str:
    """Gaussian error linear unit: x (1 + erf(x / sqrt 2)) / 2."""
    erf = graph.add("Erf", graph.add("Mul", x, graph.constant(0.5**0.5)))
    half = graph.add("Mul", x, graph.constant(0.5))
    return graph.add("Mul", half, graph.add("Add", erf, graph.constant(1.0)))


def encodes(config: EncoderConfig) -> bool:
    """Whether there is a graph of an encoder."""
    return type(config) in _GRAPHS


def encoder(
    graph: Graph, config: EncoderConfig, params: Mapping, mask_BL: str
) -> tuple[str, str]:
    """Adds an encoder; returns its hidden states [B, L, D] and the word table."""
    words_VD = graph.weight("words", params["embeddings"]["word"]["embedding"])
    one = graph.constant(1.0)
    away_BL = graph.add("Mul", graph.add("Sub", one, mask_BL), graph.constant(_LOWEST))
    away_B11M = graph.add("Unsqueeze", away_BL, graph.constant([1, 2], np.int64))
    x_BLD = graph.add("Gather", words_VD, "input_ids")
    return _GRAPHS[type(config)](graph, config, params, x_BLD, away_B11M), words_VD


def _bert(graph: Graph, config: BertConfig, params, x_BLD: str, away_B11M: str) -> str:
    tables = params["embeddings"]
    positions = graph.weight("positions", tables["position"]["embedding"])
    rows = _positions(graph, config)
    x_BLD = graph.add("Add", x_BLD, graph.add("Gather", positions, rows))
    if "token_type" in tables:
        type_D = graph.weight("type", tables["token_type"]["embedding"][0])
        x_BLD = graph.add("Add", x_BLD, type_D)
    eps = config.layer_norm_eps
    x_BLD = norm(graph, "embeddings", tables["norm"], x_BLD, eps)
    for i, layer in by_layer(params, config.family)["layers"].items():
        name = f"layers.{i}"
        own = layer["attention"]
        three = [
            linear(graph, f"{name}.{part}", own[part], x_BLD)
            for part in ("query", "key", "value")
        ]
        mixed = _attention(graph, name, config, own, three, away_B11M)
        x_BLD = graph.add("Add", x_BLD, mixed)
        own = layer["attention_norm"]
        x_BLD = norm(graph, f"{name}.attention_norm", own, x_BLD, eps)
        up = gelu(graph, linear(graph, f"{name}.up", layer["up"], x_BLD))
        down = linear(graph, f"{name}.down", layer["down"], up)
        x_BLD = graph.add("Add", x_BLD, down)
        own = layer["output_norm"]
        x_BLD = norm(graph, f"{name}.output_norm", own, x_BLD, eps)
    return x_BLD


def _positions(graph: Graph, config: BertConfig) -> str:
    """Rows of the position table, as in `Embeddings._positions`."""
    along = graph.constant(1, np.int64)
    if not config.counts_from_padding:
        one = graph.constant(1, np.int64)
        return graph.add("Sub", graph.add("CumSum", _ones(graph), along), one)
    pad = graph.constant(config.pad_token_id, np.int64)
    same = graph.add("Equal", "input_ids", pad)
    real_BL = graph.cast(graph.add("Not", same), "INT64")
    real_BL = graph.add("Mul", real_BL, "attention_mask")
    counted_BL = graph.add("Mul", graph.add("CumSum", real_BL, along), real_BL)
    return graph.add("Add", counted_BL, pad)


def _ones(graph: Graph) -> str:
    """1 for every id, [B, L]."""
    one, zero = graph.constant(1, np.int64), graph.constant(0, np.int64)
    return graph.add("Add", graph.add("Mul", "input_ids", zero), one)


def _attention(
    graph: Graph, name: str, config, params, three: list[str], away: str, turn=None
) -> str:
    """Attention of queries, keys and values [B, L, D]; `turn` applies RoPE to heads."""
    width = config.hidden_size // config.num_heads
    # 0: unchanged.
    split = graph.constant([0, 0, config.num_heads, width], np.int64)
    query_BHLC, key_BHMC, value_BHMC = (
        graph.add("Transpose", graph.add("Reshape", x, split), perm=[0, 2, 1, 3])
        for x in three
    )
    if turn is not None:
        query_BHLC, key_BHMC = turn(query_BHLC), turn(key_BHMC)
    key_BHCM = graph.add("Transpose", key_BHMC, perm=[0, 1, 3, 2])
    logits = graph.add("MatMul", query_BHLC, key_BHCM)
    logits = graph.add("Mul", logits, graph.constant(width**-0.5))
    weights = graph.add("Softmax", graph.add("Add", logits, away), axis=-1)
    mixed_BHLC = graph.add("MatMul", weights, value_BHMC)
    mixed_BLHC = graph.add("Transpose", mixed_BHLC, perm=[0, 2, 1, 3])
    whole = graph.constant([0, 0, config.hidden_size], np.int64)
    mixed_BLD = graph.add("Reshape", mixed_BLHC, whole)
    return linear(graph, f"{name}.out", params["out"], mixed_BLD)


def _modern(
    graph: Graph, config: ModernConfig, params, x_BLD: str, away_B11M: str
) -> str:
    eps, width = config.layer_norm_eps, config.hidden_size // config.num_heads
    x_BLD = norm(graph, "embeddings", params["embeddings"]["norm"], x_BLD, eps)
    place_L1 = _places(graph)
    turns = {
        full: _rotary(graph, place_L1, width, theta)
        for full, theta in ((True, config.theta), (False, config.local_theta))
    }
    # The lower of the two, whose sum would be infinite.
    far_LM = _far(graph, place_L1, config.local_attention // 2)
    away = {True: away_B11M, False: graph.add("Min", away_B11M, far_LM)}
    for i, layer in by_layer(params, config.family)["layers"].items():
        name, full = f"layers.{i}", config.pattern[i % len(config.pattern)]
        states = x_BLD
        if "attention_norm" in layer:
            own = layer["attention_norm"]
            states = norm(graph, f"{name}.attention_norm", own, states, eps)
        own = layer["attention"]
        three = _several(graph, f"{name}.qkv", own["qkv"], states)
        mixed = _attention(graph, name, config, own, three, away[full], turns[full])
        x_BLD = graph.add("Add", x_BLD, mixed)
        states = norm(graph, f"{name}.output_norm", layer["output_norm"], x_BLD, eps)
        value, gate = _several(graph, f"{name}.glu", layer["glu"], states)
        fed = graph.add("Mul", gelu(graph, value), gate)
        fed = linear(graph, f"{name}.down", layer["down"], fed)
        x_BLD = graph.add("Add", x_BLD, fed)
    return norm(graph, "final_norm", params["final_norm"], x_BLD, eps)


def _several(graph: Graph, name: str, params, x: str) -> list[str]:
    """Dense layers whose kernels are side by side, [in, n, out]."""
    return [
        linear(
            graph,
            f"{name}.{i}",
            {part: np.asarray(value)[..., i, :] for part, value in params.items()},
            x,
        )
        for i in range(np.shape(params["kernel"])[1])
    ]


def _places(graph: Graph) -> str:
    """The places of tokens, [L, 1] float32."""
    length = graph.add("Shape", "input_ids", start=1, end=2)
    ones_L = graph.add("Expand", graph.constant([1.0]), length)
    counted_L = graph.add("CumSum", ones_L, graph.constant(0, np.int64))
    place_L = graph.add("Sub", counted_L, graph.constant(1.0))
    return graph.add("Unsqueeze", place_L, graph.constant([1], np.int64))


def _far(graph: Graph, place_L1: str, window: int) -> str:
    """The lowest number where a key is farther away than a window, else 0, [L, M]."""
    place_1M = graph.add("Transpose", place_L1, perm=[1, 0])
    distance_LM = graph.add("Abs", graph.add("Sub", place_L1, place_1M))
    far_LM = graph.add("Greater", distance_LM, graph.constant(window))
    return graph.add("Mul", graph.cast(far_LM, "FLOAT"), graph.constant(_LOWEST))


def _rotary(
    graph: Graph, place_L1: str, width: int, theta: float
) -> Callable[[str], str]:
    """RoPE of heads [B, H, L, C], as in `attention.turned`."""
    places = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    speeds = np.float32(1) / np.power(np.float32(theta), places)
    angle_LC = graph.add("Mul", place_L1, graph.constant(np.tile(speeds, 2)[None]))
    cosine, sine = graph.add("Cos", angle_LC), graph.add("Sin", angle_LC)

    def half(x: str, first: int) -> str:
        ends = [graph.constant([n], np.int64) for n in (first, first + width // 2)]
        return graph.add("Slice", x, *ends, graph.constant([-1], np.int64))

    def turn(x: str) -> str:
        back = graph.add("Neg", half(x, width // 2))
        crossed = graph.add("Concat", back, half(x, 0), axis=-1)
        straight = graph.add("Mul", x, cosine)
        return graph.add("Add", straight, graph.add("Mul", crossed, sine))

    return turn


_GRAPHS: dict[type[EncoderConfig], Callable[..., str]] = {
    BertConfig: _bert,
    ModernConfig: _modern,
}
