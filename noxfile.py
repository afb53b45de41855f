"""Every check and every script of the repository, as one command each: `nox -l` lists them."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests", "build"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # `newest` is for machines that have it

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
NEWEST = "3.13"
MINIMUM_COMPLETENESS = 0.95


def find_python(version: str) -> str:
    """Return pyenv's interpreter of that version, if it has one, else the version.

    pyenv puts a `python3.13` on the path that fails unless that version is switched on, and nox
    does not look behind it. Given a bare version, nox looks for itself; it skips the session if
    there is none.
    """
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}*/bin/python{version}"))
    return str(found[-1]) if found else version


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def run_tests(
    session: nox.Session, *options: str, env: dict[str, str] | None = None, pins: tuple = ()
) -> None:
    """Install the package with what the tests need, and run them."""
    session.install("-e", ".", *group("test"), *pins)
    # A process for each core. Compilation is what costs, so a file's tests stay together.
    session.run("pytest", "-n=auto", "--dist=loadfile", *options, *session.posargs, env=env)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: eight schools, beside reference figures, with a picture."""
    session.install(".[plot]")
    session.run("python", "examples/eight_schools.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example, each in a process of its own, or those that are named."""
    session.install(".[examples]")
    names = session.posargs or sorted(path.name for path in ROOT.glob("examples/*.py"))
    for name in names:
        session.run("python", f"examples/{name}", env={"MPLBACKEND": "Agg"})


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, in double precision, with shapes and types checked at run time."""
    run_tests(session)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that the default run leaves out for their time."""
    run_tests(session, "-m", "slow")


@nox.session
def float32(session: nox.Session) -> None:
    """The tests in single precision, JAX's default."""
    run_tests(session, env={"JAX_ENABLE_X64": "0"})


@nox.session
def untyped(session: nox.Session) -> None:
    """The tests on what users run: programs that XLA optimises, no run-time checks of types."""
    run_tests(session, "--jaxtyping-packages=", env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"})


@nox.session
def oldest(session: nox.Session) -> None:
    """The tests on the lower bounds of the dependencies."""
    requirements = PYPROJECT["project"]["dependencies"]
    run_tests(session, pins=tuple(each.replace(">=", "==") for each in requirements))


@nox.session(python=find_python(NEWEST))
def newest(session: nox.Session) -> None:
    """The tests on the newest Python, which has a newer JAX, where that interpreter exists."""
    run_tests(session)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in docs/_build: warnings are errors, the examples run, then the pages' blocks."""
    session.install("-e", ".", *group("docs"))
    # -E reads every page anew: one that did not change would keep its warnings to itself.
    session.run("sphinx-build", "-W", "--keep-going", "-E", "-T", "docs", "docs/_build")
    session.run("pytest", "-n=auto", "tests/docs", "-m", "slow or not slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and format, and one pin of ruff everywhere."""
    pins = group("lint")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    differing = [pin for pin in re.findall(r"ruff==[\w.]+", hooks) if pin not in pins]
    if differing:
        session.error(f".pre-commit-config.yaml pins {differing}, pyproject.toml {pins}")
    session.install(*pins)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Pyright on the source, and how much of the public interface has types."""
    session.install("-e", ".[numpyro,arviz,plot]", *group("types"))
    session.run("pyright")
    report = session.run(
        "pyright",
        "--verifytypes=guidax",
        "--ignoreexternal",
        "--outputjson",
        silent=True,
        success_codes=[0, 1],  # 1: some symbol has no type; the score below decides
    )
    score = json.loads(report[report.index("{") : report.rindex("}") + 1])
    score = score["typeCompleteness"]["completenessScore"]
    session.log(f"completeness of the public types: {score:.1%}")
    if score < MINIMUM_COMPLETENESS:
        session.error(
            f"below {MINIMUM_COMPLETENESS:.0%}: `pyright --verifytypes guidax --ignoreexternal` "
            "lists the symbols that lack a type"
        )


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """The wheel, in an environment with nothing else: it imports and runs the README."""
    with tempfile.TemporaryDirectory() as folder:
        session.run("pip", "wheel", "--no-deps", "--wheel-dir", folder, ".", silent=True)
        (wheel,) = Path(folder).glob("guidax-*.whl")
        session.install(str(wheel))
        with session.chdir(folder):  # away from the source
            session.run("python", "-c", "import guidax; print(guidax.__file__)")
            session.run("python", str(ROOT / "tests" / "test_readme.py"))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The timings that the documentation quotes; options go to the script."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/first_fit.py", *session.posargs)


@nox.session
def posteriordb(session: nox.Session) -> None:
    """Guides on nine posteriors of posteriordb: `nox -s posteriordb -- FOLDER`."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/posteriordb.py", *session.posargs)


@nox.session
def targets(session: nox.Session) -> None:
    """Guides on three posteriors of known evidence: `nox -s targets -- FOLDER`."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/targets.py", *session.posargs)


@nox.session
def dais_speed(session: nox.Session) -> None:
    """What `AutoDAIS` costs, beside the same arithmetic by hand and beside NumPyro."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/dais_speed.py", *session.posargs)


@nox.session
def guide_costs(session: nox.Session) -> None:
    """What each guide costs on one posterior."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/guide_costs.py", *session.posargs)


@nox.session
def checkpoints(session: nox.Session) -> None:
    """What checkpoints cost."""
    session.install(".")
    session.run("python", "benchmarks/checkpoints.py", *session.posargs)


@nox.session
def flows(session: nox.Session) -> None:
    """What guides with flows reach, and what they cost: `nox -s flows -- bend`."""
    session.install(".[examples]", *group("benchmarks"))
    session.run("python", "benchmarks/flows.py", *session.posargs)


@nox.session
def rows(session: nox.Session) -> None:
    """How a step's time and a fit's memory grow with the rows of the data."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/rows.py", *session.posargs)


@nox.session
def ensembles(session: nox.Session) -> None:
    """What a fit costs as one of an ensemble, beside NumPyro's."""
    session.install(".", *group("benchmarks"))
    session.run("python", "benchmarks/ensembles.py", *session.posargs)


@nox.session
def row_sparse(session: nox.Session) -> None:
    """What a step costs that leaves alone the rows it does not hold."""
    session.install(".")
    session.run("python", "benchmarks/row_sparse.py", *session.posargs)
