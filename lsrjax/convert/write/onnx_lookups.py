"""Tables of translations and character n-grams as ONNX nodes.

They compute what `lsrjax.models.lookups` does. Characters and hashes are int64, which
holds the products of 32-bit hashes and their factors.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lsrjax.convert.write.onnx_graph import Graph
from lsrjax.models.lookups import (
    BASE,
    CLASS,
    LETTERS,
    MARK,
    MIXER,
    SIZES,
    UNSPACED,
)

# Zeros behind a text's characters: as many as the longest run of them that is read.
_BEHIND = max(*SIZES, LETTERS)


class Lookups:
    """Adds the tables of one head to a graph."""

    def __init__(self, graph: Graph, mask_BL: str):
        """Adds nothing yet; `mask_BL` is the mask in float32."""
        self._graph, self._mask_BL = graph, mask_BL

    def dictionary(self, params: Mapping, size: int) -> str:
        """Logits [B, size] as of `Dictionary`."""
        ids_BL1 = self._op("Unsqueeze", "input_ids", self._int([-1]))
        mask_BL1 = self._op("Unsqueeze", self._mask_BL, self._int([-1]))
        return self._terms("dictionary", params, ids_BL1, mask_BL1, size)

    def stems(self, params: Mapping, size: int) -> str:
        """Logits [B, size] as of `Stems`."""
        text_BW = self._side_by_side("stems.characters", params["characters"])
        letters_BW = self._op("Mod", text_BW, self._int(CLASS))
        classes_BW = self._op("Div", text_BW, self._int(CLASS))
        class_BT, before_BT = self._at(classes_BW, 0), self._at(classes_BW, -1)
        unspaced_BT = self._is(class_BT, UNSPACED)
        spaced_BT = self._op("Not", unspaced_BT)
        same_BT = self._op("Equal", class_BT, before_BT)
        goes_on_BT = self._op("Or", same_BT, self._is(before_BT, MARK))
        begins_BT = self._op("Or", unspaced_BT, self._op("Not", goes_on_BT))
        letter_BT = self._op("Greater", class_BT, self._int(0))
        letter_BT = self._and(letter_BT, self._op("Not", self._is(class_BT, MARK)))
        first_BT = self._and(letter_BT, begins_BT)
        hash_BT, inside_BT = self._op("Mul", class_BT, self._int(0)), first_BT
        for n in range(LETTERS):
            following_BT = self._at(classes_BW, n)
            same_BT = self._op("Equal", following_BT, class_BT)
            more_BT = self._op("Or", same_BT, self._is(following_BT, MARK))
            inside_BT = self._and(inside_BT, more_BT)
            if n >= 2:
                inside_BT = self._and(inside_BT, spaced_BT)
            longer_BT = self._longer(hash_BT, self._at(letters_BW, n))
            hash_BT = self._op("Where", inside_BT, longer_BT, hash_BT)
            if n == 1:
                begins_BT = self._op("Not", self._is(before_BT, UNSPACED))
                kept_BT = self._op("Or", spaced_BT, inside_BT)
                kept_BT = self._op("Or", kept_BT, begins_BT)
                first_BT = self._and(first_BT, kept_BT)
        bucket_BT = self._mixed(hash_BT, len(params["weights"]))
        last = self._int([-1])
        keep_BT1 = self._op("Unsqueeze", self._graph.cast(first_BT, "FLOAT"), last)
        bucket_BT1 = self._op("Unsqueeze", bucket_BT, last)
        return self._terms("stems", params, bucket_BT1, keep_BT1, size)

    def ngrams(self, params: Mapping) -> str:
        """The view [B, columns] as of `Ngrams`."""
        columns = len(params["weights"])
        text_BW = self._side_by_side("ngrams.characters", params["characters"])
        weights_V = self._op("Relu", self._graph.weight("ngrams", params["weights"]))
        hash_BT = self._op("Mul", self._at(text_BW, 0), self._int(0))
        places, weights = [], []
        for n in range(max(SIZES)):
            next_BT = self._at(text_BW, n)
            hash_BT = self._longer(hash_BT, next_BT)
            if n + 1 in SIZES:
                column_BT = self._mixed(hash_BT, columns)
                there_BT = self._op("Greater", next_BT, self._int(0))
                weight_BT = self._op("Gather", weights_V, column_BT, axis=0)
                there_BT = self._graph.cast(there_BT, "FLOAT")
                weights.append(self._op("Mul", weight_BT, there_BT))
                places.append(column_BT)
        columns_BN = self._op("Concat", *places, axis=1)
        return self._largest(columns_BN, self._op("Concat", *weights, axis=1), columns)

    def _terms(self, name: str, params: Mapping, keys: str, keep: str, size: int):
        """The largest weight of each term; `keys` and `keep` are [B, N, 1]."""
        keys_BN = self._op("Squeeze", keys, self._int([-1]))
        terms_VK = self._graph.weight(f"{name}.terms", params["terms"])
        weights_VK = self._graph.weight(f"{name}.weights", params["weights"])
        terms_BNK = self._op("Gather", terms_VK, keys_BN, axis=0)
        weights_BNK = self._op("Gather", weights_VK, keys_BN, axis=0)
        weights_BNK = self._op("Mul", self._op("Relu", weights_BNK), keep)
        terms_BNK = self._graph.cast(terms_BNK, "INT64")
        return self._largest(self._flat(terms_BNK), self._flat(weights_BNK), size)

    def _largest(self, places_BN: str, values_BN: str, size: int) -> str:
        """The largest of the values of each place, [B, size]; 0 without one."""
        shape = self._op("Concat", self._texts(), self._int([size]), axis=0)
        zeros_BV = self._op("ConstantOfShape", shape)
        return self._op(
            "ScatterElements", zeros_BV, places_BN, values_BN, axis=1, reduction="max"
        )

    def _side_by_side(self, name: str, characters_VC: np.ndarray) -> str:
        """The characters of each text between a zero and `_BEHIND` zeros."""
        table_VC = self._graph.weight(name, characters_VC)
        chars_BLC = self._op("Gather", table_VC, "input_ids", axis=0)
        mask_BL1 = self._op("Unsqueeze", self._mask_BL, self._int([-1]))
        chars_BT = self._flat(self._op("Mul", chars_BLC, mask_BL1))
        chars_BT = self._graph.cast(chars_BT, "INT64")
        there_BT = self._op("Greater", chars_BT, self._int(0))
        count_BT = self._graph.cast(there_BT, "INT64")
        place_BT = self._op("CumSum", count_BT, self._int(1))
        # What is no character is a zero, which place 0 has anyway.
        place_BT = self._op("Mul", place_BT, count_BT)
        none_BT = self._op("Mul", chars_BT, self._int(0))
        pads = self._int([0, 1, 0, _BEHIND])
        none_BW = self._op("Pad", none_BT, pads, self._int(0))
        return self._op("ScatterElements", none_BW, place_BT, chars_BT, axis=1)

    def _at(self, x_BW: str, n: int) -> str:
        """What stands n characters behind each, [B, T]."""
        start, end = self._int([1 + n]), self._int([n - _BEHIND])
        return self._op("Slice", x_BW, start, end, self._int([1]))

    def _longer(self, hash_BT: str, next_BT: str) -> str:
        grown_BT = self._op("Mul", hash_BT, self._int(BASE))
        return self._modulo(self._op("Add", grown_BT, next_BT), 2**32)

    def _mixed(self, hash_BT: str, columns: int) -> str:
        mixed_BT = self._modulo(
            self._op("Mul", self._folded(hash_BT, 15), self._int(MIXER)), 2**32
        )
        return self._modulo(self._folded(mixed_BT, 12), columns)

    def _folded(self, hash_BT: str, bits: int) -> str:
        shifted_BT = self._op("Div", hash_BT, self._int(2**bits))
        return self._op("BitwiseXor", hash_BT, shifted_BT)

    def _modulo(self, x: str, size: int) -> str:
        return self._op("Mod", x, self._int(size))

    def _flat(self, x: str) -> str:
        """All but the texts' axis as one."""
        return self._op("Flatten", x, axis=1)

    def _texts(self) -> str:
        return self._op("Shape", "input_ids", start=0, end=1)

    def _is(self, x: str, value: int) -> str:
        return self._op("Equal", x, self._int(value))

    def _and(self, *parts: str) -> str:
        return self._op("And", *parts)

    def _int(self, value) -> str:
        return self._graph.constant(value, np.int64)

    @property
    def _op(self) -> Callable[..., str]:
        return self._graph.add
