"""MILCO as the one module of a SparseEncoder of sentence-transformers, from 6.2 on.

    model = SparseEncoder(folder, trust_remote_code=True)
    queries = model.encode_query(["Wie lang ist die Donau?"])
    documents = model.encode_document(["The Danube is 2,850 km long."])
    scores = model.similarity(queries, documents)

The folder is that of `modeling_milco.MilcoModel`, which does the work.
"""

from __future__ import annotations

import functools
import pathlib
import shutil

import torch
from sentence_transformers.base.modules import InputModule

from .modeling_milco import MilcoModel


class MilcoVocabulary:
    """Stands where a tokenizer is asked for the names of a vector's columns."""

    def __init__(self, terms: dict[int, str]):
        """Takes the columns' names."""
        self._terms = terms

    def get_vocab(self) -> dict[str, int]:
        """Term to column."""
        return {term: column for column, term in self._terms.items()}

    def convert_ids_to_tokens(self, ids):
        """A column's term, or those of several: as `get_vocab` has them."""
        if isinstance(ids, int):
            return self._terms.get(ids, f"#{ids}")
        return [self.convert_ids_to_tokens(int(i)) for i in ids]


class MilcoSparseEncoder(InputModule):
    """Texts to weights of terms; columns as of `MilcoModel`."""

    def __init__(self, model: MilcoModel):
        """Takes the model over; `max_seq_length` is what every text is cut to."""
        super().__init__()
        self.model = model
        self.max_seq_length = model.max_length

    @functools.cached_property
    def tokenizer(self) -> MilcoVocabulary:
        """Names the columns, for `SparseEncoder.decode`."""
        return MilcoVocabulary(self.model.get_vocab())

    def get_embedding_dimension(self) -> int:
        """Columns of a vector."""
        return self.model.columns

    def preprocess(self, inputs, prompt=None, task=None, **kwargs):
        """Tokenizes texts; `task` "query" or "document" has its length and marker."""
        config, length, marker = self.model.config, self.max_seq_length, -1
        if task in ("query", "document"):
            length = min(getattr(config, f"{task}_length") or length, length)
            marker = getattr(config, f"{task}_marker")
        texts = [(prompt or "") + text for text in inputs]
        ids, mask = self.model.padded(self.model.token_ids(texts, length, marker))
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features):
        """Adds `sentence_embedding`, [B, columns] float32."""
        ids, mask = features["input_ids"], features["attention_mask"]
        (row, column), values = self.model.entries(ids, mask)
        vectors = torch.zeros(len(ids), self.model.columns, device=ids.device)
        features["sentence_embedding"] = vectors.index_put((row, column), values)
        return features

    @classmethod
    def load(
        cls,
        model_name_or_path,
        subfolder="",
        token=None,
        cache_folder=None,
        revision=None,
        local_files_only=False,
        model_kwargs=None,
        **kwargs,
    ):
        """Reads the folder; `model_kwargs` are those of `from_pretrained`."""
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        return cls(MilcoModel.from_pretrained(folder, **(model_kwargs or {})))

    def save(self, output_path, *args, safe_serialization=True, **kwargs):
        """Writes a folder that loads again: the weights and both tokenizers."""
        self.model.save_pretrained(output_path)
        output_path = pathlib.Path(output_path)
        source = pathlib.Path(self.model.config._name_or_path)
        for name in self.model.encoder_code:
            if output_path.resolve() != source.resolve():
                shutil.copyfile(source / name, output_path / name)
        for part in (".", self.model.config.pivot_tokenizer):
            (output_path / part).mkdir(exist_ok=True)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                target = output_path / part / name
                if target.resolve() != (source / part / name).resolve():
                    shutil.copyfile(source / part / name, target)
