"""NorBERT3 (LTG-BERT) for Hugging Face transformers, from 4.57 on.

    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    logits = model(**tokenizer(["en tekst"], return_tensors="pt")).logits

Computes what `ltg/norbert3-base` does (Samuel et al., 2023, arXiv:2305.03880), under
the same names of parameters. Most norms have no parameters; attention adds to each
product of a query and a key those with the bucket of their distance (arXiv:2006.03654).

Axes: B texts, T tokens, H hidden, A heads of d = H / A, P buckets, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_norbert import NorbertConfig

_SILENT = -1e9  # a logit that no maximum is


def _norm(config: NorbertConfig, size: int | None = None, *, affine: bool = False):
    return nn.LayerNorm(
        size or config.hidden_size,
        eps=config.layer_norm_eps,
        elementwise_affine=affine,
    )


class NorbertEmbedding(nn.Module):
    """Normalized word embeddings, and the table of the buckets of distances."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        buckets = 2 * config.position_bucket_size - 1
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.word_norm = _norm(config)
        self.relative_embedding = nn.Parameter(torch.zeros(buckets, config.hidden_size))
        self.relative_layer_norm = _norm(config, affine=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids):
        """Word embeddings [B, T, H] and those of the buckets [P, H]."""
        words = self.dropout(self.word_norm(self.word_embedding(input_ids)))
        return words, self.relative_layer_norm(self.relative_embedding)


class NorbertAttention(nn.Module):
    """Attention to keys and to distances, and a norm after it."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.rate = config.attention_probs_dropout_prob
        self.norm = _norm(config)
        self.in_proj_qk = nn.Linear(size, 2 * size)
        self.in_proj_v = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.post_layer_norm = _norm(config, affine=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, relative, buckets, seen):
        """Mixes states [B, T, H].

        Args:
          relative: embeddings of the buckets [P, H].
          buckets: the bucket of each query and key [T, T].
          seen: [B, 1, 1, T], true at keys that count.
        """
        states = self.norm(hidden)
        query, key = self.in_proj_qk(states).chunk(2, dim=-1)
        query, key, value = map(self._split, (query, key, self.in_proj_v(states)))
        # Those of the buckets are read head by head, each with its query and its key.
        width = query.shape[-1]
        both = self.in_proj_qk(relative).view(len(relative), self.heads, 2, width)
        bucket_query, bucket_key = both.permute(2, 1, 3, 0)  # [A, d, P]
        scores = query @ key.transpose(2, 3)
        index = buckets.expand_as(scores)
        scores = scores + (query @ bucket_key).gather(3, index)
        back = (key @ bucket_query).gather(3, index.transpose(2, 3))
        scores = (scores + back.transpose(2, 3)) / math.sqrt(3 * width)
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~seen, lowest).softmax(dim=-1)
        # A query without any key gets zeros.
        weights = functional.dropout(
            weights.masked_fill(~seen, 0), self.rate, self.training
        )
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return self.dropout(self.post_layer_norm(self.out_proj(mixed)))

    def _split(self, x):
        """[B, T, H] to [B, A, T, d]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GatedGelu(nn.Module):
    """The first half times the GELU (by tanh) of the second."""

    def forward(self, x):
        """[..., 2 I] to [..., I]."""
        value, gate = x.chunk(2, dim=-1)
        return value * functional.gelu(gate, approximate="tanh")


class NorbertFeedForward(nn.Module):
    """A gated block between norms."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.mlp = nn.Sequential(
            _norm(config),
            nn.Linear(size, 2 * inner, bias=False),
            GatedGelu(),
            _norm(config, inner),
            nn.Linear(inner, size, bias=False),
            nn.Dropout(config.hidden_dropout_prob),
        )

    def forward(self, hidden):
        """[B, T, H] to [B, T, H]."""
        return self.mlp(hidden)


class NorbertLayer(nn.Module):
    """Attention and a gated block, each added to its input."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        self.attention = NorbertAttention(config)
        self.mlp = NorbertFeedForward(config)

    def forward(self, hidden, relative, buckets, seen):
        """[B, T, H] to [B, T, H]."""
        hidden = hidden + self.attention(hidden, relative, buckets, seen)
        return hidden + self.mlp(hidden)


class NorbertLayers(nn.Module):
    """Holds the layers under the name that checkpoints give them."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            NorbertLayer(config) for _ in range(config.num_hidden_layers)
        )


class NorbertModel(PreTrainedModel):
    """The encoder; its last states are not normalized."""

    config_class = NorbertConfig
    base_model_prefix = ""
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"\.position_indices$"]

    def __init__(self, config: NorbertConfig):
        """Builds the model from its config."""
        super().__init__(config)
        self.embedding = NorbertEmbedding(config)
        self.transformer = NorbertLayers(config)
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: NorbertConfig) -> None:
        """Adds what a subclass has more."""

    def _init_weights(self, module):
        spread = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, NorbertEmbedding):
            nn.init.normal_(module.relative_embedding, std=spread)

    def get_input_embeddings(self):
        """The word table."""
        return self.embedding.word_embedding

    def set_input_embeddings(self, value):
        """Replaces the word table."""
        self.embedding.word_embedding = value

    def states(self, input_ids, attention_mask=None):
        """The last layer's states, [B, T, H]; `attention_mask` is 1 at tokens."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        seen = attention_mask.bool()[:, None, None]
        hidden, relative = self.embedding(input_ids)
        buckets = self.buckets(input_ids.shape[1]).to(input_ids.device)
        for layer in self.transformer.layers:
            hidden = layer(hidden, relative, buckets, seen)
        return hidden

    def buckets(self, length: int) -> torch.Tensor:
        """The bucket of each query and key, [T, T], from 0 on.

        Distances up to half of the size have buckets of their own, longer ones those of
        their logarithm.
        """
        size, far = (
            self.config.position_bucket_size,
            self.config.max_position_embeddings,
        )
        near = size // 2
        place = torch.arange(length)
        delta = place[:, None] - place
        distance = delta.abs().clamp(max=far - 1)
        distance = torch.where(delta.abs() < near, near - 1, distance).double()
        logarithm = (distance / near).log() / math.log((far - 1) / near) * (near - 1)
        beyond = delta.sign() * (logarithm.ceil() + near)
        return torch.where(distance <= near, delta, beyond.nan_to_num()).long() + (
            size - 1
        )

    def forward(self, input_ids, attention_mask=None, return_dict=None, **kwargs):
        """Encodes token ids [B, T]."""
        return BaseModelOutput(self.states(input_ids, attention_mask))


class NorbertHead(nn.Module):
    """The masked LM's layers up to the logits."""

    def __init__(self, config: NorbertConfig):
        super().__init__()
        size = config.hidden_size
        self.nonlinearity = nn.Sequential(
            _norm(config),
            nn.Linear(size, size),
            nn.GELU(),
            _norm(config),
            nn.Dropout(config.hidden_dropout_prob),
            nn.Linear(size, config.vocab_size),
        )

    def forward(self, hidden):
        """[B, T, H] to logits [B, T, V]."""
        return self.nonlinearity(hidden)


class NorbertForMaskedLM(NorbertModel):
    """The encoder and its masked-LM head."""

    _keys_to_ignore_on_load_unexpected = [r"\.position_indices$"]

    def _add_head(self, config: NorbertConfig) -> None:
        self.classifier = NorbertHead(config)

    def forward(self, input_ids, attention_mask=None, return_dict=None, **kwargs):
        """Logits of token ids [B, T]; those of the silent terms are -1e9."""
        logits = self.classifier(self.states(input_ids, attention_mask))
        silent = torch.arange(logits.shape[2], device=logits.device)
        silent = silent < self.config.silent_terms
        return MaskedLMOutput(logits=logits.masked_fill(silent, _SILENT))
