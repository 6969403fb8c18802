"""Peak speeds of chips."""

import re

# Dense peaks in TFLOP/s: products of bfloat16, and of float32 at JAX's default
# precision, which is TF32 on GPUs that have it, and bfloat16 on a TPU. None: the chip
# has no units for it. From the vendors' data sheets, which for GPUs since A100 also
# list twice as much, for 2:4 sparse weights. More specific names come first.
PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    ("A100", 312, 156),
    ("H100 PCIe", 756, 378),
    ("H100 NVL", 835, 418),
    ("H100", 989, 495),
    ("H200", 989, 495),
    ("GH200", 989, 495),
    ("L40S", 362, 183),
    ("L40", 181, 90.5),
    ("L4", 121, 60.5),
    ("T4", None, 8.1),
    ("V100-PCIE", None, 14.0),
    ("V100", None, 15.7),
    ("TPU v4 lite", 138, 138),
    ("TPU v4", 275, 275),
    ("TPU v5 lite", 197, 197),
    ("TPU v5e", 197, 197),
    ("TPU v5p", 459, 459),
    ("TPU v5", 459, 459),
    ("TPU v6 lite", 918, 918),
    ("TPU v6e", 918, 918),
)


def peak(device_kind: str, dtype: str) -> float | None:
    """Dense peak in FLOP/s for "bfloat16" or "float32"; None if unknown."""
    for name, bfloat16, float32 in PEAKS:
        # As a word: an L4 is not an L40, nor a T4 a T400.
        if re.search(rf"\b{name}\b", device_kind, re.IGNORECASE):
            tera = {"bfloat16": bfloat16, "float32": float32}[dtype]
            return None if tera is None else tera * 1e12
    return None
