"""Every Python block of the README and of the help pages runs, and prints what the page says it prints."""

import ast
import json
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

import lens_ablation as la
from lens_ablation import errors

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins on."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(block: Block, page: Path, namespace: dict) -> str:
    """What a block prints; its lines are numbered as in the page, for tracebacks."""
    printed = StringIO()
    tree = ast.increment_lineno(ast.parse(block.text, name_of(page)), block.line)
    with redirect_stdout(printed):
        exec(compile(tree, name_of(page), "exec"), namespace)
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            printed = run(block, page, namespace)
        elif block.language == "output":
            assert printed.strip() == block.text.strip(), f"{name_of(page)}, line {block.line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text(encoding="utf-8"))}
    assert not [name_of(page) for page in PAGES[1:] if page != index and page not in linked]


def test_every_method_has_a_page():
    methods = [
        name for name in la.__all__ if isinstance(found := getattr(la, name), type) and issubclass(found, la.Method)
    ]
    pages = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages == {name.lower() for name in methods if name != "Method"}


def test_every_exception_has_a_section():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    exceptions = [
        name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)
    ]
    assert not [name for name in exceptions if f"## {name}\n" not in text]


def test_tables_are_those_that_the_cards_give(docs_script):
    tables = docs_script("make_tables.py")
    assert not [name_of(page) for page in tables["PAGES"] if tables["filled"](page) != page.read_text()]


@pytest.mark.parametrize("subject", ["attribution", "modularity", "neurons", "optimal", "performance", "probes"])
def test_tables_are_those_of_what_was_measured(docs_script, subject: str):
    script, pages = docs_script(f"make_{subject}.py"), docs_script("pages.py")
    measured = json.loads(script["MEASURED"].read_text(encoding="utf-8"))
    assert {part for needed, _ in script["TABLES"].values() for part in needed} <= set(measured)
    texts = {page: page.read_text(encoding="utf-8") for page in script["PAGES"]}
    stale = [name_of(page) for page, text in texts.items() if pages["filled"](text, measured, script["TABLES"]) != text]
    assert not stale, f"run: python docs/make_{subject}.py"
    assert all(f"<!-- table: {name} -->" in "".join(texts.values()) for name in script["TABLES"])


def test_tables_of_others_and_of_what_was_not_measured_are_left_alone(docs_script):
    page = "<!-- table: one -->\nold\n<!-- end -->\n<!-- table: other -->\nold\n<!-- end -->\n"
    tables = {"one": (["here", "there"], lambda measured: f"{measured['here']}\n")}
    filled = docs_script("pages.py")["filled"]
    assert filled(page, {"here": "new"}, tables) == page
    assert filled(page, {"here": "new", "there": 0}, tables) == page.replace("old", "new", 1)


def test_every_script_that_makes_pages_is_tried(docs_script):
    made = {path.stem.removeprefix("make_") for path in (ROOT / "docs").glob("make_*.py")}
    assert made - {"tables", "images", "equality_table"} == {
        "attribution",
        "modularity",
        "neurons",
        "optimal",
        "performance",
        "probes",
    }


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=name_of)
def test_outputs_kept_in_notebooks_are_of_the_shipped_weights(path: Path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    kept = [cell["outputs"] for cell in cells if cell["outputs"]]
    shipped = {la.zoo.card(name)["sha256"][:12] for name in la.zoo.names()}
    shown = set(re.findall(r"weights ([0-9a-f]{12})", json.dumps(kept)))
    assert not kept or (shown and shown <= shipped), "run: python notebooks/run.py --write"
