"""The README's Python blocks run in order, in one namespace, and print what it says they print.

A `text` block that comes next after a `python` block is that block's output; a `python` block
without one may print anything. This file needs the standard library alone, so that it also runs as
a script where nothing but the package is installed: `python tests/test_readme.py [FILE]`.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^(`{3,})[ ]*(\w*)[^\n]*\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\w)")
RELATIVE_TOLERANCE = 0.02  # rounding differs between processors, and optimisation carries it along
LAST_DIGIT_TOLERANCE = 2


def read_examples(text):
    """Return (line number, source, expected output or None) for each Python block."""
    blocks = [
        (text.count("\n", 0, m.start(3)) + 1, m.group(2), m.group(3)) for m in FENCE.finditer(text)
    ]
    followers = [*blocks[1:], (0, "", "")]
    return [
        (line, source, output if next_language == "text" else None)
        for (line, language, source), (_, next_language, output) in zip(
            blocks, followers, strict=True
        )
        if language == "python"
    ]


def numbers_agree(expected, actual):
    """Say whether a number is within 2 % or two units of its last digit; integers are exact."""
    if re.fullmatch(r"[-+]?\d+", expected):
        return expected == actual
    mantissa, _, exponent = expected.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals)
    x, y = float(expected), float(actual)
    return abs(x - y) <= max(RELATIVE_TOLERANCE * abs(x), LAST_DIGIT_TOLERANCE * unit) * (1 + 1e-9)


def outputs_agree(expected, actual):
    """Compare words and signs exactly, numbers with tolerance, and blanks not at all."""

    def words(text):
        return " ".join(NUMBER.sub(" # ", text).split())

    pairs = zip(NUMBER.findall(expected), NUMBER.findall(actual), strict=False)
    return words(expected) == words(actual) and all(numbers_agree(x, y) for x, y in pairs)


def run_examples(path):
    """Run a file's Python blocks and return what went wrong, or None."""
    namespace = {"__name__": "__main__"}
    for line, source, expected in read_examples(path.read_text(encoding="utf-8")):
        printed = io.StringIO()
        # Blank lines in front, so that a traceback shows line numbers of the Markdown file.
        program = compile("\n" * (line - 1) + source, str(path), "exec")
        with contextlib.redirect_stdout(printed):
            exec(program, namespace)
        actual = printed.getvalue()
        if expected is not None and not outputs_agree(expected, actual):
            return f"{path.name}:{line} should print\n\n{expected}\nand prints\n\n{actual}"
    return None


def test_readme_prints_what_it_says():
    # In a process of its own: as a reader runs it, in JAX's default precision.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXTYPING_"))}
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_has_an_example_with_its_output():
    examples = read_examples(README.read_text(encoding="utf-8"))
    assert any(expected for _, _, expected in examples)


def test_comparison_of_outputs():
    assert outputs_agree("tau  0.51 (0.10)\n", "tau 0.52  (0.09)")
    assert outputs_agree("[1.0e-3 -2.5]", "[1.1e-03 -2.51]")
    assert not outputs_agree("tau 0.51", "tau 0.54")
    assert not outputs_agree("tau 0.51", "mu 0.51")
    assert not outputs_agree("shape (1000, 3)", "shape (1001, 3)")
    assert not outputs_agree("0.5", "-0.5")
    assert not outputs_agree("0.5", "nan")


def test_reading_of_blocks():
    text = (
        "```python\nx = 1\n```\n\nIt prints\n\n```text\n1\n```\n```sh\nls\n```\n```python\ny\n```\n"
    )
    assert read_examples(text) == [(2, "x = 1\n", "1\n"), (14, "y\n", None)]


if __name__ == "__main__":
    sys.exit(run_examples(Path(sys.argv[1]) if len(sys.argv) > 1 else README))
