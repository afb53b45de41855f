"""Every public name has documentation, an example, and words for each of its arguments."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import guidax as gx

ROOT = Path(__file__).parents[2]
MODULES = {"": gx, "constraints.": gx.constraints, "handlers.": gx.handlers, "plot.": gx.plot}
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|data):: (\w+)$", re.MULTILINE)
MODULE = re.compile(r"^\.\. currentmodule:: guidax\.?(\w*)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STARS = ("args", "kwargs", "rows")  # the model's own, which `*args` stands for


def public_names():
    """Return name to object, for everything that `import guidax` makes public."""
    return {
        prefix + name: value
        for prefix, module in MODULES.items()
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }


def pages_of_names():
    """Return name to the texts of the pages of the reference that have an entry for it."""
    pages = {}
    for path in sorted(ROOT.glob("docs/api/*.md")):
        text = path.read_text(encoding="utf-8")
        _, *parts = MODULE.split(text)
        for module, part in zip(parts[::2], parts[1::2], strict=True):
            for name in DIRECTIVE.findall(part):
                pages.setdefault(f"{module}." * bool(module) + name, []).append(text)
    return pages


def examples():
    """Return the sources of the examples and of the Python blocks of all pages."""
    paths = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    blocks = [b for path in paths for b in PYTHON.findall(path.read_text(encoding="utf-8"))]
    scripts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("examples/*.py"))]
    return blocks + scripts


def attributes_used(source):
    """Return what a program reads from `gx`: `fit`, `handlers.mask`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if re.fullmatch(r"gx(\.\w+)+", dotted):
                found.add(dotted.removeprefix("gx."))
    return found


def parameters_of(value):
    """Return the names of the arguments that a caller may pass."""
    if isinstance(value, gx.constraints.Constraint):
        return []  # a set without arguments
    names = [n for n in inspect.signature(value).parameters if n != "self"]
    return [n for n in names if n not in STARS]


NAMES = public_names()
PAGES = pages_of_names()
USED = set().union(*(attributes_used(source) for source in examples()))


def test_public_names_are_found():
    assert {"fit", "AutoNormal", "constraints.simplex", "handlers.mask", "plot.loss"} <= set(NAMES)


def test_the_reference_has_one_entry_for_each_public_name():
    assert sorted(PAGES) == sorted(NAMES)
    assert [name for name, texts in PAGES.items() if len(texts) > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_a_docstring_of_its_own(name):
    documentation = inspect.getdoc(NAMES[name])
    assert documentation and len(documentation) > 15
    if inspect.isclass(NAMES[name]):
        assert NAMES[name].__dict__.get("__doc__"), "inherited from its base"


@pytest.mark.parametrize("name", NAMES)
def test_an_example_uses_it(name):
    assert name in USED


@pytest.mark.parametrize("name", NAMES)
def test_each_argument_is_named(name):
    """In the docstring, or in a call of the name that the reference's page writes out."""
    words = inspect.getdoc(NAMES[name]) or ""
    for text in PAGES[name]:
        words += " ".join(re.findall(rf"`{name.split('.')[-1]}\(([^`]*)\)`", text))
    missing = [p for p in parameters_of(NAMES[name]) if not re.search(rf"\b{p}\b", words)]
    assert missing == []


@pytest.mark.parametrize(
    "name", [n for n, v in NAMES.items() if inspect.isclass(v) and v.__module__ != "enum"]
)
def test_each_public_method_has_a_docstring(name):
    methods = {
        key: member
        for owner in NAMES[name].__mro__
        if owner.__module__.startswith("guidax")
        for key, member in vars(owner).items()
        if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }
    assert [key for key in methods if not inspect.getdoc(getattr(NAMES[name], key))] == []


def test_attributes_are_read_from_programs():
    source = "x = gx.handlers.scale(model, 2.0)\ny = gx.fit(key).guide\n# gx.load"
    assert {"handlers.scale", "fit"} <= attributes_used(source)
    assert "load" not in attributes_used(source)


def test_entries_are_read_from_pages():
    assert "autoclass:: AutoNormal" in PAGES["AutoNormal"][0]
    assert "autoclass:: mask" in PAGES["handlers.mask"][0]
    assert "mask" not in PAGES
