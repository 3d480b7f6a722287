"""The pages: they build without a warning, load nothing from elsewhere, and have every name."""

import html
import pkgutil
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

import opdprobe
from opdprobe.cli.parser import _parser
from opdprobe.store.schema import VARIABLES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Some constants and type aliases are named beside their module: they have no docstring.
MODULES = [
    name
    for path in sorted(DOCS.glob("api/*.md"))
    for name in re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE)
    if name.split(".")[-1].islower()
]


class Page(HTMLParser):
    """Collects ids, and what a browser would load by itself."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.ids, self.loaded = set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.ids.add(found["id"])
        if "src" in found:
            self.loaded.append(found["src"])
        if tag == "link":
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: a warning that is not shown does not count as one.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")}


def public(module):
    """Names a module offers: its ``__all__``, or else what it defines and documents."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, type | FunctionType)
        and value.__module__ == module.__name__
        and value.__doc__
    ]


def test_every_public_name_is_in_the_reference(site):
    written = set().union(*(page.ids for name, page in site.items() if name.startswith("api/")))
    modules = [import_module(name) for name in MODULES]
    for module in [opdprobe, *modules]:
        for name in public(module):
            value = getattr(module, name)
            # Where a name is offered twice, one of the two has its description.
            assert any(
                getattr(other, name, None) is value and f"{other.__name__}.{name}" in written
                for other in modules
            ), f"{module.__name__}.{name}"


def test_a_setting_has_its_own_default(site):
    # Where several share a description, griffe would give all the first one's.
    text = site["api/train.html"].path.read_text()
    text = text[text.index('id="opdprobe.train.config.OPDConfig"') :]
    table = text[text.index("<tbody>") : text.index("</tbody>")]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("</tr>")[:-1]]
    shown = {row[0]: html.unescape(row[-1]) for row in rows}
    assert len(shown) > 20
    assert shown.items() <= {f.name: repr(f.default) for f in fields(opdprobe.OPDConfig)}.items()


def test_the_list_of_public_names_is_whole():
    index = (DOCS / "api/index.md").read_text()
    for name in opdprobe.__all__:
        assert f"[`{name}`][opdprobe." in index, name


def test_every_module_with_public_names_is_in_the_reference():
    missing = set()
    for path in ROOT.glob("opdprobe/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        if "\n__all__ = " in path.read_text() and module not in MODULES:
            missing.add(module)
    # What the first offers is tested above; the second's names are rollout.prompt_files', too.
    assert missing == {"opdprobe", "opdprobe.rollout.prompts"}


def test_nothing_is_loaded_from_elsewhere(site):
    assert len(site) > 20
    for name, page in site.items():
        assert page.loaded, name
        assert not [url for url in page.loaded if re.match(r"(https?:)?//", url)], name


def commands():
    for path in sorted([*DOCS.glob("guide/*.md"), *DOCS.glob("*.md")]):
        for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("opdprobe "):
                    words = shlex.split(line.split(" > ")[0], comments=True)
                    yield pytest.param(words[1:], id=f"{path.stem}: {line[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_the_commands_of_the_guide_exist(words):
    assert callable(_parser().parse_args(words).run)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_between_files_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def architecture_rows():
    """Cells of the tables of the architecture page, by the first."""
    text = (DOCS / "architecture.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_architecture_page_has_every_room():
    rooms = {row.strip("`") for row in architecture_rows() if re.fullmatch(r"`[a-z]+`", row)}
    folders = {p.name for p in ROOT.glob("opdprobe/[a-z]*") if p.is_dir()}
    assert rooms == {*folders, "errors", "analyses", "figures"}


def test_what_the_architecture_page_names_exists():
    steps = [row for number, row in architecture_rows().items() if number.isdecimal()]
    assert len(steps) == 22
    for what, where, *_ in steps:
        names = re.findall(r"`(\w+\.[\w.]+)`", what + where)
        assert names
        for name in names:
            package = "" if name.startswith(("analyses", "figures")) else "opdprobe."
            assert pkgutil.resolve_name(package + name), name


def test_the_gallery_has_every_figure():
    shown = re.findall(r"\(figures/(\w+)\.png\)", (DOCS / "gallery.md").read_text())
    assert sorted(shown) == sorted(path.stem for path in DOCS.glob("figures/*.png"))


def test_the_store_page_has_every_variable():
    rows = {}
    for line in (DOCS / "guide/store.md").read_text().splitlines():
        if line.startswith("| `"):
            names, dims, unit, _ = line.strip("|").split("|")
            for name in re.findall(r"`(\w+)`", names):
                rows[name] = dims.strip(), unit.strip() or "1"
    expected = {
        name: (", ".join(variable.dims), variable.units)
        for name, variable in VARIABLES.items()
        if variable.dims != (name,)
    }
    assert rows == expected
