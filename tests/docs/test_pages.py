"""The pages run and print what they say; their figures and error messages are the repository's."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("docs/**/*.md")
    if "```python" in path.read_text(encoding="utf-8")
)
RESULTS = ROOT / "benchmarks" / "results"


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table_after(page, heading):
    """Return the rows of the first table under a heading, without its own."""
    lines = read(page).split(f"## {heading}\n")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows[0], rows[2:]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page, tmp_path):
    # In a process of its own: as a reader runs it, in JAX's default precision.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXTYPING_"))}
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "test_readme.py"), str(ROOT / page)],
        env=environment | {"MPLBACKEND": "Agg"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_table_of_accuracy_has_the_figures_of_the_benchmark():
    figures = json.loads((RESULTS / "posteriordb-defaults-2026-11-28.json").read_text())["defaults"]
    by_cell = {(row["posterior"], row["guide"]): row["guidax"] for row in figures}
    (_, *guides), rows = table_after("docs/choosing.md", "Accuracy, measured")
    assert {row[0].strip("`") for row in rows} == {posterior for posterior, _ in by_cell}
    for posterior, *entries in rows:
        for guide, entry in zip(guides, entries, strict=True):
            found = by_cell[posterior.strip("`"), guide.strip("`")]
            if found["failures"]:
                assert entry == "fails"
                continue
            fields = ("mean", "smallest_sd_ratio", "largest_sd_ratio")
            mean, smallest, largest = (found[field][0] for field in fields)
            assert entry == f"{mean:.2f}; {smallest:.2f} to {largest:.2f}"


def test_the_table_of_costs_has_the_figures_of_the_benchmark():
    figures = json.loads((RESULTS / "guide-costs-2026-11-27.json").read_text())["guides"]
    _, rows = table_after("docs/choosing.md", "Cost, measured")
    assert len(rows) == len(figures)
    for (_, *entries), row in zip(rows, figures.values(), strict=True):
        expected = [f"{row['first_fit']:.0f}", f"{row['second_fit']:.2f}", f"{row['draws']:.3f}"]
        assert entries == [*expected, f"{row['elbo']:.1f}" if "elbo" in row else ""]


def name_in_benchmark(cell):
    """Return what `benchmarks/targets.py` calls a guide with these options."""
    name, *options = re.findall(r"`([^`]+)`", cell)
    words = {
        'base_dist="cholesky"': "cholesky",
        "base_dist=gx.AutoIAFNormal": "IAF",
        "whiten=True": "whitened",
        "eta_max=1.0": "eta_max=1",
        "max_kick=5.0": "max_kick=5",
        "base_dist=normal": "fitted",
        "base_dist=full": "fitted cholesky",
        "base_dist=flow": "fitted IAF",
    }
    count, *others = ", ".join(options).split(", ")
    return " ".join([name.removeprefix("gx."), *map(words.get, others), count]).strip()


def test_the_tables_of_bounds_have_the_figures_of_the_benchmark():
    figures = json.loads((RESULTS / "targets-2026-11-27.json").read_text())
    found = {(row["target"], row["guide"]): row["guidax"] for row in figures["rows"]}
    (_, *targets), rows = table_after("docs/annealing.md", "How far the bounds get")
    same, fitted = table_after("docs/annealing.md", "From a fitted base")
    assert same[1:] == targets
    shown = 0
    for guide, *entries in rows + fitted:
        for target, entry in zip(targets, entries, strict=True):
            place = target.lower().replace(" ", "_"), name_in_benchmark(guide)
            if not entry:
                assert place not in found
                continue
            fits = found[place]
            assert len(fits["gaps"]) + fits["failures"] == 5
            failed = f", {fits['failures']} of 5 failed" if fits["failures"] else ""
            assert entry == f"{fits['gap']:.2f}{failed}"
            shown += 1
    assert shown == len(found)


def literals():
    """Return the text of every string of the source, with dots for what is put in."""
    found = []
    for path in sorted(ROOT.glob("src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
    return "\n".join(found)


def test_the_messages_of_the_page_on_troubleshooting_are_the_library_s():
    source, messages = literals(), []
    for line in read("docs/troubleshooting.md").splitlines():
        if line.startswith("| `"):
            messages += re.findall(r"`([^`]+)`", cells(line)[0])
    assert len(messages) > 15
    for message in messages:
        fragments = re.split(r"\[\.\.\.\]|\(\.\.\.\)|\.\.\.|\b100\b", message)
        for fragment in (f.strip(" ,:") for f in fragments):
            assert fragment in source, message


def test_a_page_has_no_path_of_a_machine():
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/*.py")]
    for page in pages:
        assert not re.search(r"(?<![\w.])/(?:home|work|tmp|root)/", page.read_text("utf-8")), page


def test_the_table_of_sessions_has_each_of_them():
    functions = (n for n in ast.parse(read("noxfile.py")).body if isinstance(n, ast.FunctionDef))
    sessions = {
        function.name
        for function in functions
        if any("nox.session" in ast.unparse(each) for each in function.decorator_list)
    }
    _, rows = table_after("CONTRIBUTING.md", "Running things")
    assert sorted(name.strip("`") for name, _ in rows) == sorted(sessions)
