"""The docs: commands that exist, pages that are found, links that lead somewhere."""

import pathlib
import re
import shlex
import sys

import pytest

from lsrjax import __main__ as program
from lsrjax.config.fields import fields, get_default, recipes
from lsrjax.distributed import preemption

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
MODULES = {"main": "train"}
STARTED = re.compile(r"\s*(?:lsrjax |python -m lsrjax[. ])(\w+)(?!\.)\b(.*)")
# Of entries, whose options each command checks by itself, and of a config.
DOTTED = ("config", "task", "engine", "fusion", "feedback", "baseline")


def commands():
    """(page, words) of the commands that stand in code, without what starts them."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^ {4}.*|^```\n.*?^```", text, re.M | re.S))
        code = [
            *blocks.replace("\\\n", " ").splitlines(),
            *re.findall(r"`([^`]+)`", text),
        ]
        for line in code:
            start = STARTED.match(line)
            if start and start[1] != "COMMAND":
                name = MODULES.get(start[1], start[1])
                try:
                    words = shlex.split(start[2], comments=True)
                except ValueError:  # a sentence
                    continue
                found.append((page.name, name, words))
    return found


COMMANDS = commands()


def names_of(words):
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


@pytest.mark.parametrize("name", sorted({name for _, name, _ in COMMANDS}))
def test_commands_and_their_flags_exist(name, monkeypatch, capsys):
    assert name in program.COMMANDS
    # It would go on listening to the signals of the tests after this one.
    monkeypatch.setattr(preemption.Guard, "start", lambda self: self)
    own = [(page, words) for page, one, words in COMMANDS if one == name]
    helps = {}
    for page, words in own:
        kind = words[0] if name == "bench" and words else ""
        if kind not in helps:
            monkeypatch.setattr(
                sys, "argv", ["lsrjax", name, *[kind] * bool(kind), "--help"]
            )
            with pytest.raises(SystemExit):
                program.main()
            helps[kind] = capsys.readouterr().out
        for flag in names_of(words):
            plain = flag.removeprefix("--").partition(".")[0]
            known = f"--{plain}" if plain in DOTTED else flag
            assert re.search(rf"{re.escape(known)}\b", helps[kind]), (page, name, flag)


def test_fields_on_command_lines_exist():
    known = set(fields(get_default()))
    entries = tuple(f"{one}." for one in known)
    for page, _, words in COMMANDS:
        for flag in names_of(words):
            if not flag.startswith("--config."):
                continue
            field = re.sub(r"^--config\.(stages\.\w+\.)?", "", flag)
            assert field in known or field.startswith(entries), (page, flag)


def test_configs_on_command_lines_exist():
    for page, _, words in COMMANDS:
        line = " ".join(words)
        shipped = re.findall(r"configs/(\w+)\.py", line)
        shipped += re.findall(r"--config[ =]([a-z_]+)(?=[ :]|$)", line)
        assert {*shipped} <= recipes().keys(), (page, words)


def test_every_page_is_in_the_table_of_contents():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert set(re.findall(r"(\w+\.md)", nav)) == {
        page.name for page in PAGES if page.parent.name == "docs"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            slugs = [
                re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles
            ]
            assert heading in slugs, target


def test_the_readme_is_short_and_shows_what_the_docs_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    path = (ROOT / "docs" / "your_texts.md").read_text(encoding="utf-8")
    assert len(readme.split()) < 900
    block = readme.partition("## Your own\n\n")[2].partition("\n\n")[0]
    assert block and all(line in path for line in block.splitlines())
