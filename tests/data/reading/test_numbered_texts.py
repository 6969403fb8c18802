"""Texts by number: what names no texts is refused."""

import pytest

from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.errors import InputError


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "names no file of texts"),
        ("[]", "names no file of texts"),
        ("{'en': []}", "names no file of texts"),
        ("{'en': 3}", "give a path"),
        ("{1: 'a.jsonl'}", "give a path"),
        ("{'dataset': 3}", "give a path"),
        ("{[]: 'a.jsonl'}", "no Python literal"),
        ("['a", "no Python literal"),
        ("[" * 300, "no Python literal"),
    ],
)
def test_places_that_are_none_are_refused(named, message):
    with pytest.raises(InputError, match=f"--texts.*{message}"):
        NumberedTexts(named, "--texts")
