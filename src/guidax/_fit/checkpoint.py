"""Checkpoints: a run that is killed goes on from the newest one, to the same last bit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from .._caller import warn_caller
from .._model.batch import Batch
from .._types import is_typed_key, positive
from .fingerprint import alike, fingerprint, sketch
from .storage import PART, Damaged, Stored, read, refuse, require_equal, unpack, write
from .update import Moving, Run

_ANOTHER = "another folder, or none, for what is another fit; or the same arguments as before"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit writes its state: `gx.fit(..., checkpoint=gx.Checkpoint("run"))`.

    Args:
        path: A folder of this fit's own. It is made where there is none.
        every: How many steps lie between two files. There is one at the end too.
        keep: How many files stay, the newest. With one there is none to fall back to.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `every` or `keep` is less than 1.
    """

    path: str | os.PathLike[str]
    every: int = 1_000
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise TypeError(f"path is the name of a folder; got {self.path!r}.")
        positive("every", self.every)
        positive("keep", self.keep)


class Log:
    """The checkpoints of one run.

    Args:
        checkpoint: Where and how often.
        moving: The state that the run starts from.
        run: What stays the same.
        batch: The arguments, where they are the same at every step.
        steps: How many steps the run takes.
    """

    def __init__(
        self, checkpoint: Checkpoint, moving: Moving, run: Run, batch: Batch | None, steps: int
    ):
        self._folder, self._every = Path(checkpoint.path), checkpoint.every
        self._keep = checkpoint.keep
        self._start, self._end = int(run.start), int(run.start) + steps
        self._line, self._tree = _line(run, batch), fingerprint(moving)
        self._sketches = _sketches(moving, batch)

    def newest(self, moving: Moving) -> tuple[Moving, np.ndarray] | None:
        """Return the state of the newest file that is whole, and the losses up to there.

        Args:
            moving: The state that the run starts from; the new one is placed as it is.

        Returns:
            None if there is no file.

        Raises:
            NotADirectoryError: If the path is that of a file.
            ValueError: If files are there, and all are damaged; or if the newest that is not is of
                another run or format.

        Warns:
            UserWarning: If a newer file is damaged.
        """
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"checkpoint takes a folder, and {self._folder} is a file.")
        found, damages = None, []
        for step, path in reversed(_files(self._folder)):
            try:
                found = self._read(step, path, moving)
                break
            except Damaged as damage:
                damages.append(str(damage))
        step = -1 if found is None else self._start + len(found[1])
        _agree(step, self._folder)
        if damages and found is None:
            raise ValueError(
                f"no checkpoint in {self._folder} can be used: {' '.join(damages)} To begin from "
                "the start, take another folder, or remove these files."
            )
        if damages:
            warn_caller(f"{' '.join(damages)} The run goes on from step {step}, the one before.")
        if not jax.process_index():
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(f".step-*{PART}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
        return found

    def ahead(self, done: int) -> int:
        """Return how many steps lie between the steps done in this call and the next file."""
        return self._every - (self._start + done) % self._every

    def write_if_due(self, moving: Moving, losses: list[np.ndarray]) -> None:
        """Write a file if one is due.

        Args:
            moving: The state.
            losses: Those of this call, in pieces.
        """
        step = self._start + sum(map(len, losses))
        if step % self._every and step != self._end:
            return
        header = {
            "tree": self._tree,
            "line": self._line,
            "sketches": self._sketches,
            "step": step,
        }
        joined = np.concatenate(losses)
        write(self._folder / f"step-{step:012d}.guidax", header, (moving, joined))
        if not jax.process_index():
            # Later files are damaged ones, and are written anew when their step comes.
            for _, path in [f for f in _files(self._folder) if f[0] <= step][: -self._keep]:
                path.unlink(missing_ok=True)

    def _read(self, step: int, path: Path, moving: Moving) -> tuple[Moving, np.ndarray]:
        stored = read(path)
        require_equal(stored, {"line": self._line, "tree": self._tree}, _ANOTHER)
        refuse(stored, _unlike(stored, self._sketches), _ANOTHER)
        count = step - self._start
        if stored.header.get("step") != step or count < 1:
            raise Damaged(f"{path} is damaged: it is the file of another step than its name says.")
        if step > self._end:
            raise ValueError(
                f"{path} is {step - self._end} steps beyond the {self._end - self._start} that "
                "are asked for: ask for more steps, or take another folder."
            )
        blank = np.zeros(count, jnp.result_type(float))
        return unpack(stored, (moving, blank))


def _line(run: Run, batch: Batch | None) -> dict[str, Any]:
    """Return what makes two runs the same, as JSON."""
    is_default = run.recipe.optimizer.value is None
    return {
        "key": {"kind": str(run.key.dtype), "data": _key_data(run.key)},
        "learning_rate": float(str(np.asarray(run.rate))),  # 0.01, not 0.00999999977
        "first step": int(run.start),
        # The default optimizer alone looks at it.
        "steps": int(run.horizon) if is_default else "any number",
        "objective": fingerprint(run.objective),
        "recipe": fingerprint(run.recipe),
        "arguments": "batches" if batch is None else fingerprint(batch.layout),
    }


def _key_data(key: Any) -> list[int]:
    return np.asarray(jax.random.key_data(key) if is_typed_key(key) else key).reshape(-1).tolist()


def _sketches(moving: Moving, batch: Batch | None) -> dict[str, Any]:
    """Return the sketch of each array that the run starts from."""
    arrays = {"the guide to start from": moving.guide}
    if batch is not None:
        arrays |= {"the arguments": batch.arrays, "the rows of the arguments": batch.rows}
    return {
        f"{name}, {jax.tree_util.keystr(path)}": sketch(leaf)
        for name, tree in arrays.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unlike(stored: Stored, sketches: dict[str, Any]) -> Iterator[str]:
    old = stored.header.get("sketches", {})
    for name in old | sketches:
        if name not in sketches:
            yield f"{name} is in the file alone"
        elif name not in old:
            yield f"{name} is not in the file"
        elif not alike(old[name], sketches[name]):
            yield f"{name}, has other values in the file"


def _files(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a folder with their steps, the newest last."""
    found = []
    for path in folder.glob("step-*.guidax"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def _agree(step: int, folder: Path) -> None:
    """Refuse that several processes go on from different steps.

    Raises:
        ValueError: If they do: the folder is not shared by all of them.
    """
    if jax.process_count() == 1:
        return
    steps = np.asarray(multihost_utils.process_allgather(np.asarray(step))).tolist()
    if len({*steps}) > 1:
        raise ValueError(
            f"the processes see different checkpoints in {folder}, at the steps {steps}: it must "
            "be one folder that all of them read."
        )
