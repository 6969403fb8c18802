"""The same encoder and training step in PyTorch, as users of transformers write them.

Hugging Face's model with SDPA, autocast to bfloat16 and fused AdamW; eager and under
`torch.compile`.
"""

import statistics
import time
from collections.abc import Callable

from lsrjax.bench.workload import StepSizes, student_of
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig


def _device():
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(f"PyTorch and transformers are needed: {error}.") from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _median(call: Callable[[], object], device, rounds: int) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once(), once()
    return statistics.median(once() for _ in range(rounds))


def _model(config: EncoderConfig, kind: str):
    """A model of transformers by its class `Auto…`, without dropout."""
    import transformers

    values = config.with_dropout(0.0).to_hf()
    if "model_type" not in values:
        raise InputError(f"transformers has no model of the family {config.family}.")
    found = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return getattr(transformers, kind).from_config(found, attn_implementation="sdpa")


def encoder(config: EncoderConfig, texts: int, length: int, rounds: int) -> dict:
    """Milliseconds of forward and backward pass over full texts."""
    import torch

    device = _device()
    model = _model(config, "AutoModel").to(device)
    ids = torch.randint(5, config.vocab_size, (texts, length), device=device)
    mask = torch.ones_like(ids)
    g = torch.randn(texts, length, config.hidden_size, device=device)
    found: dict[str, float | str] = {}
    for name in ("eager", "compiled"):
        run = torch.compile(model) if name == "compiled" else model

        def call(run=run):
            with torch.autocast(device.type, torch.bfloat16):
                states = run(ids, attention_mask=mask).last_hidden_state
                total = (states.float() * g).sum()
            total.backward()
            model.zero_grad()

        start = time.perf_counter()
        try:
            found[f"{name}: forward + backward ms"] = 1e3 * _median(
                call, device, rounds
            )
        except Exception as error:  # torch.compile needs a compiler
            found[name] = f"{type(error).__name__}: {str(error)[:100]}"
        found[f"{name}: s in all"] = time.perf_counter() - start
    return found


def step(sizes: StepSizes, rounds: int, compiled: bool = False) -> dict:
    """Milliseconds of a step of SPLADE: KL over the documents of queries, and L1."""
    import torch

    device = _device()
    model = _model(student_of(sizes).encoder, "AutoModelForMaskedLM").to(device)
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
    run = torch.compile(model) if compiled else model

    def texts(count, length):
        ids = torch.randint(5, sizes.vocab, (count, length), device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    query = texts(sizes.batch, sizes.query_length)
    document = texts(sizes.batch * sizes.group, sizes.length)
    scores = torch.randn(sizes.batch, sizes.group, device=device).softmax(dim=1)

    def weights(batch):
        logits = run(**batch).logits
        logits = logits.masked_fill(~batch["attention_mask"].bool()[..., None], -1e4)
        return torch.log1p(torch.relu(logits.amax(dim=1)))

    def call():
        with torch.autocast(device.type, torch.bfloat16):
            q, d = weights(query).float(), weights(document).float()
        found = torch.einsum("bv,bgv->bg", q, d.view(sizes.batch, sizes.group, -1))
        loss = torch.nn.functional.kl_div(
            found.log_softmax(dim=1), scores, reduction="batchmean"
        )
        loss = loss + 1e-3 * q.sum(dim=1).mean() + 1e-5 * d.sum(dim=1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    found = {"step ms": 1e3 * _median(call, device, rounds)}
    found["s in all"] = time.perf_counter() - start
    if device.type == "cuda":
        found["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found
