"""MILCO, a sparse retriever across languages, for Hugging Face transformers.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    queries = model.encode_query(["Wie lang ist die Donau?"])
    documents = model.encode_document(["The Danube is 2,850 km long."])
    scores = queries @ documents.to_dense().T

A text becomes a sparse vector: weights of English terms (the pivot view, columns
[0, E)) and, with LexEcho, of the text's own tokens (the source view, columns
[E, E + M)), then of its character n-grams, if the model has a view of them (G columns).
Weights are float32 whatever type the model computes in.

Axes: B texts, L tokens, D hidden, E English terms, M tokens of the own vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import ModelOutput

from .configuration_milco import MilcoConfig

# Logits in memory at once: the vocabulary is processed in blocks of this size.
_LOGITS = 2**26
# Of a token, of a word's beginning, and the lengths of n-grams, in characters.
_CHARACTERS, _LETTERS, _SIZES = 16, 5, (3, 4)
# Above a character's code point: its class, of which two are treated apart.
_CLASS, _UNSPACED, _MARK = 2**21, 3, 4


@dataclasses.dataclass
class MilcoOutput(ModelOutput):
    """Vectors of a batch of texts.

    Attributes:
      pivot_weights: [B, E], log1p(relu(pivot_logits)).
      pivot_logits: [B, E], the maximum over tokens.
      source_weights: [B, L], of each input token; None without LexEcho. Those of a
        token's repeats are still to be summed, or the largest of them to be taken.
      ngram_weights: [B, G]; None without the view.
    """

    pivot_weights: torch.Tensor | None = None
    pivot_logits: torch.Tensor | None = None
    source_weights: torch.Tensor | None = None
    ngram_weights: torch.Tensor | None = None


class MilcoTransform(nn.Module):
    """Dense layer, GELU and LayerNorm before the English decoder."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=eps)

    def forward(self, hidden):
        """[B, L, D] to [B, L, D]."""
        return self.LayerNorm(nn.functional.gelu(self.dense(hidden)))


class MilcoPredictions(nn.Module):
    """The English model's masked-LM head, read by a maximum over tokens."""

    def __init__(self, size: int, vocab_size: int, eps: float):
        super().__init__()
        self.transform = MilcoTransform(size, eps)
        self.decoder = nn.Linear(size, vocab_size)

    def forward(self, hidden, mask, pool_mask: str):
        """Maxima over the tokens of each text, [B, E] float32; no [B, L, E] is made."""
        hidden = self.transform(hidden)
        block = max(256, _LOGITS // max(1, mask.numel()))
        mask = mask[:, :, None].bool()
        lowest = 0.0 if pool_mask == "multiply" else float("-inf")
        maxima = []
        for start in range(0, self.decoder.out_features, block):
            weight = self.decoder.weight[start : start + block]
            bias = self.decoder.bias[start : start + block]
            logits = nn.functional.linear(hidden, weight, bias)
            maxima.append(logits.masked_fill(~mask, lowest).amax(dim=1))
        return torch.cat(maxima, dim=1).float()


class MilcoHead(nn.Module):
    """Holds the predictions under the name that checkpoints give them."""

    def __init__(self, size: int, vocab_size: int, eps: float):
        super().__init__()
        self.predictions = MilcoPredictions(size, vocab_size, eps)


def _side_by_side(characters, input_ids, mask):
    """The characters of each text, without the zeros behind those of each token."""
    rows = len(input_ids)
    text = (characters[input_ids].long() * mask[:, :, None]).reshape(rows, -1)
    order = torch.argsort((text == 0).to(torch.int8), dim=1, stable=True)
    return torch.gather(text, 1, order)


def _column(hashed, columns: int):
    mixed = ((hashed ^ (hashed >> 15)) * 0x2C1B_3C6D) & 0xFFFF_FFFF
    return (mixed ^ (mixed >> 12)) % columns


class MilcoDictionary(nn.Module):
    """English terms that each token brings along, whatever its context."""

    def __init__(self, keys: int, terms: int):
        super().__init__()
        self.register_buffer("terms", torch.zeros(keys, terms, dtype=torch.int32))
        self.weights = nn.Parameter(torch.zeros(keys, terms))

    def keys(self, input_ids, mask):
        """What has terms, [B, N], and which of it there is."""
        return input_ids, mask

    def forward(self, input_ids, mask, logits):
        """The larger of the logits [B, E] and the weights that the keys bring."""
        keys, kept = self.keys(input_ids, mask)
        rows = len(keys)
        weights = torch.relu(self.weights[keys].float()) * kept[:, :, None]
        terms = self.terms[keys].long()
        found = torch.zeros_like(logits).scatter_reduce(
            1, terms.reshape(rows, -1), weights.reshape(rows, -1), "amax"
        )
        return torch.where(found > 0, torch.maximum(found, logits), logits)


class MilcoStems(MilcoDictionary):
    """English terms that the first letters of each word bring along."""

    def __init__(self, tokens: int, buckets: int, terms: int):
        super().__init__(buckets, terms)
        characters = torch.zeros(tokens, _CHARACTERS, dtype=torch.int32)
        self.register_buffer("characters", characters)

    def keys(self, input_ids, mask):
        """Buckets, hashes of the letters, at each character; where words begin."""
        text = _side_by_side(self.characters, input_ids, mask)
        kind, text = text // _CLASS, text % _CLASS
        before = nn.functional.pad(kind[:, :-1], (1, 0))
        unspaced = kind == _UNSPACED
        goes_on = (kind == before) | (before == _MARK)
        first = (kind > 0) & (kind != _MARK) & (unspaced | ~goes_on)
        hashed, inside = torch.zeros_like(text), first
        for n in range(_LETTERS):
            following = nn.functional.pad(kind[:, n:], (0, n))
            inside = inside & ((following == kind) | (following == _MARK))
            if n >= 2:
                inside = inside & ~unspaced
            longer = hashed * 1_000_003 + nn.functional.pad(text[:, n:], (0, n))
            hashed = torch.where(inside, longer & 0xFFFF_FFFF, hashed)
            if n == 1:
                # The last character of a run is in a pair already.
                first = first & (~unspaced | inside | (before != _UNSPACED))
        return _column(hashed, len(self.weights)), first


class MilcoNgrams(nn.Module):
    """Weights of a text's character n-grams, whose hashes are their columns."""

    def __init__(self, tokens: int, columns: int):
        super().__init__()
        characters = torch.zeros(tokens, _CHARACTERS, dtype=torch.int32)
        self.register_buffer("characters", characters)
        self.weights = nn.Parameter(torch.zeros(columns))

    def forward(self, input_ids, mask):
        """Weights, [B, G] float32."""
        rows, columns = len(input_ids), len(self.weights)
        text = _side_by_side(self.characters, input_ids, mask)
        hashed, found = torch.zeros_like(text), []
        for n in range(max(_SIZES)):
            following = nn.functional.pad(text[:, n:], (0, n))
            hashed = (hashed * 1_000_003 + following) & 0xFFFF_FFFF
            if n + 1 in _SIZES:
                column = _column(hashed, columns)
                found.append(torch.where(following > 0, column, columns))
        present = torch.zeros(rows, columns + 1, device=text.device)
        present.scatter_(1, torch.cat(found, dim=1), 1.0)
        return present[:, :columns] * torch.relu(self.weights.float())


def _encoder(config: MilcoConfig) -> PreTrainedModel:
    """The encoder, of transformers or of model code in the folder."""
    values = dict(config.multilingual_config)
    if classes := values.pop("auto_map", None):
        made_of, encoder = (
            get_class_from_dynamic_module(
                classes[name],
                config._name_or_path,
                revision=getattr(config, "_commit_hash", None) or "main",
            )
            for name in ("AutoConfig", "AutoModel")
        )
        return encoder(made_of(**values))
    known = AutoConfig.for_model(values.pop("model_type"), **values)
    # Some families have a layer after the encoder, which is not used here.
    kind = MODEL_MAPPING[type(known)]
    taken = inspect.signature(kind.__init__).parameters
    pooler = {"add_pooling_layer": False} if "add_pooling_layer" in taken else {}
    attention = config._attn_implementation
    if attention == "sdpa" and not kind._supports_sdpa:
        attention = "eager"  # DeBERTa's
    return AutoModel.from_config(known, attn_implementation=attention, **pooler)


def _entries(weights, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places and values of weights [B, V] that are not 0, V's first in column first."""
    row, column = weights.nonzero(as_tuple=True)
    return torch.stack([row, column + first]), weights[row, column]


class MilcoModel(PreTrainedModel):
    """Encoder, connector, English head and LexEcho."""

    config_class = MilcoConfig
    base_model_prefix = "milco"
    _supports_sdpa = True
    _supports_flash_attn = True
    # In the file for the reference implementation: a second name of the decoder's
    # bias, and a layer that nothing uses.
    _keys_to_ignore_on_load_unexpected = [
        r"^mlm_head\.predictions\.bias$",
        r"^m_model\.pooler\.",
    ]

    def __init__(self, config: MilcoConfig):
        """Builds the model from its config alone; no other checkpoint is read."""
        super().__init__(config)
        english = config.english_config
        size = english["hidden_size"]
        self.m_model = _encoder(config)
        width = self.m_model.config.hidden_size
        self.projector = nn.Linear(width, size)
        self.mlm_head = MilcoHead(
            size, english["vocab_size"], english["layer_norm_eps"]
        )
        if config.echo:
            self.echo = nn.Linear(width, 1)
            self.scale = nn.Parameter(torch.ones(1))
        tokens = config.multilingual_config["vocab_size"]
        if config.translations:
            self.dictionary = MilcoDictionary(tokens, config.translations)
        if config.stems:
            self.stems = MilcoStems(tokens, config.stems, config.translations)
        if config.ngrams:
            self.ngrams = MilcoNgrams(tokens, config.ngrams)
        self._tokenizers: dict[str, PreTrainedTokenizerFast] = {}
        self.post_init()

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""
        rows = self.config.multilingual_config["max_position_embeddings"]
        embeddings = getattr(self.m_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        # XLM-R counts positions from the padding token's id.
        padding = getattr(table, "padding_idx", None)
        if padding is not None:
            rows -= padding + 1
        return rows

    @property
    def encoder_code(self) -> list[str]:
        """Files of the folder with the encoder's own model code, if it has some."""
        classes = self.config.multilingual_config.get("auto_map", {})
        return sorted({f"{name.partition('.')[0]}.py" for name in classes.values()})

    @property
    def columns(self) -> int:
        """Of a vector: E, with LexEcho M, and those of n-grams."""
        return self._first_ngram + self.config.ngrams

    @property
    def _first_ngram(self) -> int:
        own = self.config.multilingual_config["vocab_size"] if self.config.echo else 0
        return self.config.english_config["vocab_size"] + own

    @property
    def m_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the encoder and the source view."""
        return self._tokenizer("")

    @property
    def en_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the pivot view's terms."""
        return self._tokenizer(self.config.pivot_tokenizer)

    def _tokenizer(self, subfolder: str) -> PreTrainedTokenizerFast:
        if subfolder not in self._tokenizers:
            self._tokenizers[subfolder] = PreTrainedTokenizerFast.from_pretrained(
                self.config._name_or_path,
                subfolder=subfolder,
                revision=getattr(self.config, "_commit_hash", None) or "main",
            )
        return self._tokenizers[subfolder]

    def forward(
        self, input_ids, attention_mask=None, return_dict=None, **kwargs
    ) -> MilcoOutput:
        """Encodes token ids, [B, L]; `attention_mask` is 1 at tokens, 0 at padding."""
        config = self.config
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.m_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        logits = self.mlm_head.predictions(
            nn.functional.gelu(self.projector(hidden)), attention_mask, config.pool_mask
        )
        if config.translations:
            logits = self.dictionary(input_ids, attention_mask, logits)
        if config.stems:
            logits = self.stems(input_ids, attention_mask, logits)
        source = None
        if config.echo:
            keep = attention_mask.bool()
            if config.exclude_special_tokens:
                special = torch.tensor(config.special_ids, device=input_ids.device)
                keep = keep & ~torch.isin(input_ids, special)
            source = torch.relu(self.echo(hidden)[:, :, 0].float())
            source = source.masked_fill(~keep, 0.0) * self.scale.float()
        return MilcoOutput(
            pivot_weights=torch.log1p(torch.relu(logits)),
            pivot_logits=logits,
            source_weights=source,
            ngram_weights=(
                self.ngrams(input_ids, attention_mask) if config.ngrams else None
            ),
        )

    def encode_query(self, texts, batch_size=32, max_length=None, return_dict=False):
        """As `encode_text`, with the prompt and the length of queries."""
        config = self.config
        return self._encode(
            texts,
            batch_size,
            max_length or config.query_length,
            return_dict,
            config.query_prompt,
            config.query_marker,
        )

    def encode_document(self, texts, batch_size=32, max_length=None, return_dict=False):
        """As `encode_text`, with the prompt and the length of documents."""
        config = self.config
        return self._encode(
            texts,
            batch_size,
            max_length or config.document_length,
            return_dict,
            config.document_prompt,
            config.document_marker,
        )

    def encode_text(self, texts, batch_size=32, max_length=None, return_dict=False):
        """Encodes texts as they are, without a prompt.

        Args:
          texts: a text, or N of them.
          batch_size: texts that are encoded at once; they are sorted by length first.
          max_length: tokens a text is cut to; None: as many as the encoder takes.
          return_dict: give terms instead of a tensor.

        Returns:
          A sparse tensor [N, columns] on the CPU, float32; or for each text a dict,
          strongest first: `e_` and the English term, `m_` and the text's own token, or
          `n_` and the column of an n-gram, to its weight.
        """
        return self._encode(texts, batch_size, max_length, return_dict, "", -1)

    @torch.no_grad()
    def _encode(self, texts, batch_size, max_length, return_dict, prompt, marker):
        if self.training:
            raise RuntimeError("The model is in training mode; call model.eval().")
        texts = [texts] if isinstance(texts, str) else list(texts)
        max_length = max_length or self.max_length
        if max_length > self.max_length:
            raise ValueError(
                f"max_length is {max_length}, but the encoder takes {self.max_length}"
                " tokens at most."
            )
        rows = self.token_ids([prompt + text for text in texts], max_length, marker)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        # Of no texts, there are no terms.
        places, values = [torch.zeros(2, 0, dtype=torch.long)], [torch.zeros(0)]
        for start in range(0, len(order), batch_size):
            found = self._encode_batch(rows, order[start : start + batch_size])
            places.append(found[0])
            values.append(found[1])
        vectors = torch.sparse_coo_tensor(
            torch.cat(places, dim=1),
            torch.cat(values),
            (len(texts), self.columns),
            check_invariants=False,
        ).coalesce()
        return self._terms(vectors) if return_dict else vectors

    def token_ids(self, texts, max_length: int, marker: int = -1) -> list[list[int]]:
        """Ids of N texts, cut to `max_length`; a marker goes behind the first one."""
        if not texts:
            return []
        marked = int(marker >= 0)
        rows = self.m_tokenizer(
            texts,
            truncation=True,
            max_length=max_length - marked,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return [row[:1] + [marker] + row[1:] for row in rows] if marked else rows

    def padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of B texts and their mask, [B, L] each."""
        pad = self.config.multilingual_config["pad_token_id"]
        length = max(1, *(len(row) for row in rows))
        ids = [row + [pad] * (length - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        return torch.tensor(ids), torch.tensor(mask)

    def entries(self, input_ids, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Places [2, T] in [B, columns], and values [T], of the terms of B texts."""
        found = self(input_ids, attention_mask)
        parts = [_entries(found.pivot_weights, 0)]
        if found.source_weights is not None:
            parts.append(self._source_entries(input_ids, found.source_weights))
        if found.ngram_weights is not None:
            parts.append(_entries(found.ngram_weights, self._first_ngram))
        places, values = zip(*parts, strict=True)
        return torch.cat(places, dim=1), torch.cat(values)

    def _source_entries(self, input_ids, weights):
        """Those of the text's own tokens."""
        row, place = weights.nonzero(as_tuple=True)
        own, repeat = torch.unique(
            torch.stack([row, input_ids[row, place]]), dim=1, return_inverse=True
        )
        values = torch.zeros(own.shape[1], device=own.device).scatter_reduce(
            0,
            repeat,
            weights[row, place],
            {"sum": "sum", "max": "amax"}[self.config.repeats],
            include_self=False,
        )
        own[1] += self.config.english_config["vocab_size"]
        return own, values

    def _encode_batch(self, rows, chosen):
        """The same of chosen texts, on the CPU, with their places among all."""
        ids, mask = self.padded([rows[i] for i in chosen])
        places, values = self.entries(ids.to(self.device), mask.to(self.device))
        places = places.cpu()
        return torch.stack([torch.tensor(chosen)[places[0]], places[1]]), values.cpu()

    def get_vocab(self) -> dict[int, str]:
        """Column to term: `e_…` English, `m_…` the text's own, `n_…` of n-grams."""
        english = self.config.english_config["vocab_size"]
        terms = {i: f"e_{term}" for term, i in self.en_tokenizer.get_vocab().items()}
        if self.config.echo:
            for token, i in self.m_tokenizer.get_vocab().items():
                terms[english + i] = f"m_{token}"
        for i in range(self.config.ngrams):
            terms[self._first_ngram + i] = f"n_{i}"
        return terms

    def _terms(self, vectors) -> list[dict[str, float]]:
        names = self.get_vocab()
        terms: list[dict[str, float]] = [{} for _ in range(vectors.shape[0])]
        order = torch.argsort(vectors.values(), descending=True, stable=True)
        rows, columns = vectors.indices()[:, order].tolist()
        weights = vectors.values()[order].tolist()
        for row, column, weight in zip(rows, columns, weights, strict=True):
            terms[row][names.get(column, f"#{column}")] = weight
        return terms
