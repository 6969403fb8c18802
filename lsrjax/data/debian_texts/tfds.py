"""The embedded Debian descriptions as a TFDS data set, `lsrjax_debian`.

Written as array records, which TFDS reads and writes without TensorFlow.
"""

import tensorflow_datasets as tfds

from lsrjax.data.debian_texts import embedded


class LsrjaxDebian(tfds.core.GeneratorBasedBuilder):
    """Pairs of translations, or titles and their texts.

    Configs: `pairs` (english, non_english, language; of titles) and `groups` (query,
    pos; one row for each description and language). Splits: train, dev, test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="pairs"),
        tfds.core.BuilderConfig(name="groups"),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "pairs": {"english": text(), "non_english": text(), "language": text()},
            "groups": {"query": text(), "pos": tfds.features.Sequence(text())},
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in embedded.SPLITS}

    def _generate_examples(self, split: str):
        if self.builder_config.name == "pairs":
            pairs = embedded.examples("pair", split, ("title",))
            for pair in (pairs[i] for i in range(len(pairs))):
                yield (
                    pair.id,
                    {
                        "english": pair.english,
                        "non_english": pair.translation,
                        "language": pair.language,
                    },
                )
            return
        groups = embedded.examples("group", split)
        for group in (groups[i] for i in range(len(groups))):
            (document,) = group.positives
            for language, query in group.query.items():
                if language in document:
                    row = {"query": query, "pos": [document[language]]}
                    yield f"{group.id}/{language}", row
