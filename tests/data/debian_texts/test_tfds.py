import os
import subprocess
import sys

import pytest

from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.data import sources
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY
from lsrjax.errors import InputError

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The dev split of the embedded data, as TFDS keeps it."""
    from lsrjax.data.debian_texts.tfds import LsrjaxDebian

    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SPLITS", ("dev",))
        for name in ("pairs", "groups"):
            builder = LsrjaxDebian(
                config=name, data_dir=folder, file_format="array_record"
            )
            builder.download_and_prepare()
    return folder


def opened(kind, dataset, split="dev"):
    config = get_default().data
    config.source = entry("tfds", dataset=str(dataset), split=split)
    return sources.open_source(config, kind)


def test_pairs(folder):
    source = opened("pair", folder / "lsrjax_debian" / "pairs" / "1.0.0")
    assert source.format.name == "alignment"
    embedded_pairs = embedded.examples("pair", "dev", ("title",))
    found = {
        (pair.english, pair.translation, pair.language)
        for pair in (source[i] for i in range(len(source)))
    }
    assert len(source) == len(embedded_pairs)
    assert found == {
        (pair.english, pair.translation, pair.language)
        for pair in (embedded_pairs[i] for i in range(len(embedded_pairs)))
    }


def test_groups_and_errors(folder):
    path = folder / "lsrjax_debian" / "groups" / "1.0.0"
    source = opened("group", path)
    assert source.format.name == "milco"
    texts = {
        (query, group.positives[0].get(language))
        for group in map(embedded.examples("group", "dev").__getitem__, range(600))
        for language, query in group.query.items()
    }
    for i in range(0, len(source), 97):
        group = source[i]
        assert (group.query[ANY], group.positives[0][ANY]) in texts
        assert group.negatives == [] and f"row {i}" in group.id
    with pytest.raises(InputError, match="'nothing'.*could not be read"):
        opened("group", path, "nothing")
    with pytest.raises(InputError, match="no_such_data.*could not be read"):
        opened("group", "no_such_data")


def test_by_name_without_tensorflow(folder):
    code = """
import sys
from lsrjax.config import get_default
from lsrjax.data import sources
c = get_default().data
c.source = "tfds"
c.source.dataset, c.source.split = "lsrjax_debian/groups", "dev"
source = sources.open_source(c, "group")
source[0]
print(source.format.name, len(source) > 600, "tensorflow" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TFDS_DATA_DIR": str(folder)},
    )
    assert result.stdout.strip() == "milco True False", result.stderr


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install\s'lsrjax\[tfds\]'"):
        opened("group", "x")
