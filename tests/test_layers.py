"""The architecture, read from the source: who may import whom, and what is never written."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import pytest

import guidax

PACKAGE = Path(guidax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports from its own layer and from lower ones. The facades give public names to things of
# `_model`; `__init__` stands on top.
LAYERS = {
    "_caller": 0,
    "_types": 0,
    "_numerics": 0,
    "_version": 0,
    "_model": 1,
    "constraints": 1.5,
    "handlers": 1.5,
    "_flow": 2,
    "_family": 3,
    "_guide": 4,
    "_objective": 5,
    "_fit": 6,
    "_posterior": 7,
    "plot": 7.5,
    "__init__": 8,
}
FACADES = ["__init__.py", "constraints.py", "handlers.py", "plot.py"]
NUMPYRO_ADAPTER = PACKAGE / "_model" / "from_numpyro.py"

# Concrete classes that others may extend: the bases of the constructors that users call.
PUBLIC_BASES = {"AutoGuide", "AutoContinuous"}


def file_name(path):
    return path.relative_to(PACKAGE).as_posix()


every_file = pytest.mark.parametrize("path", FILES, ids=file_name)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(path):
    """Return (line, absolute dotted name) of each import anywhere in the file.

    `from . import a` and `from x import a` give `x.a`, whether `a` is a module or a name in one.
    """
    package = ["guidax", *path.relative_to(PACKAGE).parent.parts]
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def layer(parts):
    """Return the layer of a path inside the package, given as its parts."""
    name = parts[0].removesuffix(".py") if parts else "__init__"
    assert name in LAYERS, f"{name} is in no layer: add it to LAYERS or put it in one of them"
    return LAYERS[name]


def imports_of(name, path):
    """Return the lines that import a top-level package."""
    return [line for line, module in imported_modules(path) if module.split(".")[0] == name]


@every_file
def test_imports_point_down(path):
    own = layer(path.relative_to(PACKAGE).parts)
    for line, module in imported_modules(path):
        root, *inside = module.split(".")
        if root == "guidax":
            # `from guidax import X` reads the top, whatever X is.
            is_layer = bool(inside) and inside[0] in LAYERS
            other = layer(inside if is_layer else [])
            assert other <= own, f"{file_name(path)}:{line} imports {module}, from a higher layer"


@every_file
def test_numpyro_is_imported_by_its_adapter_alone(path):
    assert path.name != "numpyro.py", "such a file can hide the package of that name"
    if path != NUMPYRO_ADAPTER:
        assert not imports_of("numpyro", path)


def test_importing_guidax_imports_no_extra():
    names = ["numpyro", "arviz", "matplotlib", "sklearn", "pytest", "beartype"]
    program = f"import guidax, sys; print([n for n in {names} if n in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


@every_file
def test_tensorflow_probability_is_imported_in_the_model_layer_alone(path):
    # It comes as an unpinned nightly build, so whatever depends on it stays in one place.
    if path.relative_to(PACKAGE).parts[0] != "_model":
        assert not imports_of("tensorflow_probability", path)


@every_file
def test_distrax_conversions_are_never_called(path):
    # Each call registers a new pytree class for the life of the process and pins its parameters.
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Name):
            name = node.id
        elif isinstance(node, ast.alias):
            name = node.name
        else:
            continue
        assert name not in {"as_distribution", "as_bijector"}, f"{file_name(path)}:{node.lineno}"


@pytest.mark.parametrize("name", FACADES)
def test_facades_hold_nothing_but_public_names(name):
    docstring, *statements = parse(PACKAGE / name).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    for node in statements:
        assert isinstance(node, ast.ImportFrom), f"{name}:{node.lineno} is not an import"
        if node.module == "__future__":
            continue
        assert node.level > 0, f"{name}:{node.lineno} gives out a name that is not guidax's"
        for alias in node.names:
            assert alias.asname == alias.name, f"{name}:{node.lineno} lacks `as {alias.name}`"
            is_private = alias.name.startswith("_") and alias.name != "__version__"
            assert not is_private, f"{name}:{node.lineno} gives out a private name"


def every_module_class():
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        importlib.import_module(".".join(["guidax", *parts]).removesuffix(".__init__"))

    def below(cls):
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    return {cls for cls in below(eqx.Module) if cls.__module__.split(".")[0] == "guidax"}


def test_concrete_classes_are_final():
    classes = every_module_class()
    assert classes
    for cls in classes:
        for base in cls.__bases__:
            # Equinox makes a class of the same name while a module is being built.
            if base in classes and base.__qualname__ != cls.__qualname__:
                name = base.__name__
                assert name.startswith("Abstract") or name in PUBLIC_BASES, (
                    f"{cls.__name__} extends {name}, which is concrete: share code in an abstract "
                    "class or in a wrapper"
                )
