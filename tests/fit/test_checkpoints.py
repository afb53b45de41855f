"""Checkpoints and saved guides: the same to the last bit, or an error that says what differs."""

import ast
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import warnings
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tensorflow_probability.substrates.jax import distributions as tfd

import guidax as gx
from assertions import identical, refused_type
from guidax._fit.fingerprint import alike, differences, fingerprint, sketch
from guidax._model.static import Static
from registry import GUIDES
from test_readme import run_examples

STEPS = 60
X = jnp.asarray(np.random.default_rng(0).normal(size=8), float)
Y = 2.0 * X + 1.0
TRACES = []


def model(x, y):
    """Two latents, one of them positive."""
    TRACES.append(1)
    slope = gx.sample("slope", distrax.Normal(0.0, 10.0))
    noise = gx.sample("noise", tfd.HalfNormal(5.0))
    with gx.plate("data", x.shape[0]):
        gx.sample("y", distrax.Normal(slope * x, noise), obs=y)


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_after(step):
    """Return a progress function that ends the run once it has come that far."""

    def progress(done, loss):
        if done >= step:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def guide():
    return gx.AutoNormal(model, X, Y, key=jax.random.key(0))


def run(guide, *args, checkpoint=None, steps=STEPS, progress=False, key=0, **options):
    return gx.fit(
        jax.random.key(key),
        guide,
        *(args or (X, Y)),
        steps=steps,
        progress=progress,
        checkpoint=checkpoint,
        **options,
    )


def interrupted(guide, checkpoint, step, **options):
    with pytest.raises(Killed):
        run(guide, checkpoint=checkpoint, progress=killed_after(step), **options)


@pytest.fixture(scope="module")
def plain(guide):
    """What a run comes to that nothing interrupts."""
    return run(guide)


@pytest.fixture(scope="module")
def finished(guide, tmp_path_factory):
    """A folder of a run that is finished."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(guide, checkpoint=gx.Checkpoint(folder, every=20, keep=5))
    return folder


def same(result, other):
    return identical(
        (result.losses, result.state.moving, jax.random.key_data(result.state.run.key)),
        (other.losses, other.state.moving, jax.random.key_data(other.state.run.key)),
    )


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def step_file(folder, step):
    return Path(folder) / f"step-{step:012d}.guidax"


# --- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(guide, plain, tmp_path, every):
    checkpoint = gx.Checkpoint(tmp_path / "new" / "folder", every=every)
    for step in (1, 3, 32, 33, 59):
        interrupted(guide, checkpoint, step)
    seen = []
    result = run(guide, checkpoint=checkpoint, progress=lambda step, loss: seen.append(step))
    assert same(result, plain)
    assert seen[0] >= 56  # the step of the newest file


def test_a_finished_run_returns_its_result_without_a_step(guide, plain, finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a step is taken")

    for name in ("advance_in_place", "advance_unguarded"):
        monkeypatch.setattr(f"guidax._fit.source.{name}", refuse)
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    result = run(guide, checkpoint=gx.Checkpoint(finished, every=20, keep=5))
    assert same(result, plain)
    assert before == {path: path.stat().st_mtime_ns for path in finished.iterdir()}


def test_a_restart_compiles_nothing(guide, plain, tmp_path):
    checkpoint = gx.Checkpoint(tmp_path, every=10)
    interrupted(guide, checkpoint, 25)
    count = len(TRACES)
    assert same(run(guide, checkpoint=checkpoint), plain)
    assert len(TRACES) == count


def test_files_lie_at_multiples_and_at_the_end(guide, tmp_path):
    run(guide, steps=25, checkpoint=gx.Checkpoint(tmp_path / "all", every=10, keep=9))
    assert names(tmp_path / "all") == [f"step-{n:012d}.guidax" for n in (10, 20, 25)]
    run(guide, steps=25, checkpoint=gx.Checkpoint(tmp_path / "two", every=4))
    assert names(tmp_path / "two") == [f"step-{n:012d}.guidax" for n in (24, 25)]
    run(guide, steps=25, checkpoint=gx.Checkpoint(tmp_path / "one", every=4, keep=1))
    assert names(tmp_path / "one") == ["step-000000000025.guidax"]


def test_every_and_keep_may_change(guide, plain, tmp_path):
    interrupted(guide, gx.Checkpoint(tmp_path, every=4, keep=3), 30)
    assert same(run(guide, checkpoint=gx.Checkpoint(str(tmp_path), every=25, keep=1)), plain)
    assert names(tmp_path) == [f"step-{STEPS:012d}.guidax"]


def test_a_checkpoint_changes_nothing(guide, plain, tmp_path):
    assert same(run(guide, checkpoint=gx.Checkpoint(tmp_path, every=11)), plain)


def test_more_steps_where_nothing_decays(guide, tmp_path):
    checkpoint = gx.Checkpoint(tmp_path, every=16)
    long = run(guide, optimizer=optax.adam)
    run(guide, checkpoint=checkpoint, optimizer=optax.adam, steps=20)
    assert same(run(guide, checkpoint=checkpoint, optimizer=optax.adam), long)
    with pytest.raises(ValueError, match="40 steps beyond the 20 that are asked for"):
        run(guide, checkpoint=checkpoint, optimizer=optax.adam, steps=20)
    with pytest.raises(ValueError, match="learning_rate is 0.01.* in the file and 0.02.* here"):
        run(guide, checkpoint=checkpoint, optimizer=optax.adam, learning_rate=0.02)


def test_a_resume_has_checkpoints_of_its_own(guide, plain, tmp_path):
    first = gx.Checkpoint(tmp_path / "first", every=7)
    second = gx.Checkpoint(tmp_path / "second", every=7)

    def both(progress=False):
        result = run(guide, checkpoint=first)
        return result.resume(X, Y, steps=30, progress=progress, checkpoint=second)

    with pytest.raises(Killed):
        both(killed_after(STEPS + 15))
    assert same(both(), plain.resume(X, Y, steps=30, progress=False))
    assert names(tmp_path / "second") == [f"step-{n:012d}.guidax" for n in (84, 90)]
    with pytest.raises(ValueError, match="first step is 0 in the file and 60 here"):
        plain.resume(X, Y, steps=30, progress=False, checkpoint=first)


def streamed(x, y):
    """The same model on four of eight rows."""
    slope = gx.sample("slope", distrax.Normal(0.0, 10.0))
    with gx.plate("data", 8, subsample_size=x.shape[0]):
        gx.sample("y", distrax.Normal(slope * x, 1.0), obs=y)


def rows_at(step):
    rows = np.random.default_rng(step).choice(8, 4, replace=False)
    return gx.Batch(np.asarray(X)[rows], np.asarray(Y)[rows])


@pytest.fixture(scope="module")
def stream():
    """A guide, and a fit of it to batches."""
    guide = gx.AutoNormal(streamed, rows_at(0), key=jax.random.key(0))

    def fit(batches, **options):
        key = jax.random.key(0)
        return gx.fit(key, guide, batches=batches, steps=30, **{"progress": False} | options)

    return fit


def test_batches_go_on_at_their_step(stream, tmp_path):
    checkpoint = gx.Checkpoint(tmp_path, every=5)
    with pytest.raises(Killed):
        stream(rows_at, checkpoint=checkpoint, progress=killed_after(17))
    asked = []

    def counted(step):
        asked.append(step)
        return rows_at(step)

    result = stream(counted, checkpoint=checkpoint)
    assert same(result, stream(rows_at))
    assert asked == list(range(asked[0], 30)) and asked[0] in (15, 20, 25)
    with pytest.raises(ValueError, match="batches is a function of the step"):
        stream([rows_at(step) for step in range(30)], checkpoint=checkpoint)


@pytest.mark.parametrize("x64", [False, True])
def test_row_sparse_steps_go_on_to_the_same_bits(x64, tmp_path):
    """In both precisions: the losses of a file have the precision of the run."""
    with jax.enable_x64(x64):
        check_row_sparse_steps(np.asarray(Y, float if x64 else np.float32), tmp_path)


def check_row_sparse_steps(y, tmp_path):
    def model(y):
        centre = gx.sample("centre", distrax.Normal(0.0, 10.0))
        with gx.plate("row", 8, subsample_size=3) as rows:
            z = gx.sample("z", distrax.Normal(centre, 1.0))
            gx.sample("y", distrax.Normal(z, 1.0), obs=y[rows])

    guide = gx.AutoNormal(model, y, key=jax.random.key(0))
    fit = functools.partial(run, guide, y, row_sparse=True, optimizer=optax.adam)
    checkpoint = gx.Checkpoint(tmp_path, every=20)
    with pytest.raises(Killed):
        fit(checkpoint=checkpoint, progress=killed_after(30))
    assert names(tmp_path) and STEPS not in {int(name[5:17]) for name in names(tmp_path)}
    assert same(fit(checkpoint=checkpoint), fit())


def test_a_run_that_is_not_finite_keeps_its_last_good_file(stream, tmp_path):
    checkpoint = gx.Checkpoint(tmp_path, every=5)

    def broken(step):
        batch = rows_at(step)
        return batch if step != 13 else gx.Batch(batch.arrays[0], batch.arrays[1] + np.nan)

    for _ in range(2):  # the same line meets the same step
        with pytest.raises(gx.NonFiniteError, match="not finite at step 13") as caught:
            stream(broken, checkpoint=checkpoint)
        assert names(tmp_path) == [f"step-{n:012d}.guidax" for n in (5, 10)]
        assert caught.value.result.losses.shape == (14,)
    # Values of batches are not compared: once the data are mended, it goes on.
    assert same(stream(rows_at, checkpoint=checkpoint), stream(rows_at))


# --- refusals ------------------------------------------------------------------------------------

OTHER = {
    "key": ({"key": 1}, r"key\.data\[1\] is 0 in the file and 1 here"),
    "steps": ({"steps": 61}, "steps is 60 in the file and 61 here"),
    "rate": ({"learning_rate": 0.1}, "learning_rate is 0.5.* in the file and 0.1.* here"),
    "particles": ({"objective": gx.ELBO(2)}, "objective.num_particles is 1 in the file and 2"),
    "objective": ({"objective": gx.MeanFieldELBO()}, "objective is 'ELBO' in the file"),
    "optimizer": ({"optimizer": optax.adam}, "recipe.optimizer is None in the file and .*adam"),
    "trained": ({"trainable": lambda g: g.family.loc}, r"recipe\.trained\[\d\] is True"),
    "forward": ({"forward_mode": True}, "recipe.forward_mode is False in the file"),
    "schedule": ({"learning_rate": lambda step: 0.1}, "recipe.schedule is None in the file"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_call_is_refused(guide, finished, name):
    options, message = OTHER[name]
    with pytest.raises(ValueError, match=message):
        run(guide, checkpoint=gx.Checkpoint(finished), **options)


def test_other_data_and_another_start_are_refused(guide, plain, finished):
    checkpoint = gx.Checkpoint(finished)
    with pytest.raises(ValueError, match=r"the arguments, \[1\], has other values"):
        run(guide, X, Y.at[3].add(0.1), checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"the arguments, \[0\], has other values"):
        run(guide, X[::-1], Y, checkpoint=checkpoint)
    message = r"the guide to start from, \.family\.loc\['noise'\], has other values"
    with pytest.raises(ValueError, match=message):
        run(plain.guide, checkpoint=checkpoint)
    # Rounding, as another processor's, is no other data.
    run(guide, X * (1 + 1e-7), Y, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="guide.family is 'MeanFieldNormal' in the file"):
        other = gx.AutoMultivariateNormal(model, X, Y, key=jax.random.key(0))
        run(other, checkpoint=checkpoint, learning_rate=0.5)


DTYPES = [np.float32, np.float64, jnp.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("size", [1, 1000, 200_000])
def test_one_entry_counts_and_rounding_does_not(dtype, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=size).astype(dtype)
    before = json.loads(json.dumps(sketch(x), allow_nan=False))
    last_place = float(jnp.finfo(dtype).eps) * rng.uniform(-1.0, 1.0, size)
    rounded = (x.astype(np.float64) * (1.0 + last_place)).astype(dtype)
    assert alike(before, sketch(x)) and alike(before, sketch(rounded))
    for i in {0, size // 3, size - 1}:
        for moved in (float(x[i]) + 1.5, np.nan):
            other = x.copy()
            other[i] = moved
            assert not alike(before, sketch(other)), (i, moved)
    if size > 1:
        assert not alike(before, sketch(np.concatenate([x[:100][::-1], x[100:]])))


def test_integers_and_flags_are_compared_bit_by_bit():
    labels = np.random.default_rng(0).integers(2, size=200_000, dtype=np.int32)
    for x in (labels, labels == 1, jnp.asarray(labels, jnp.uint8)):
        flipped = np.asarray(x).copy()
        flipped[123_456] ^= True
        assert alike(sketch(x), sketch(np.asarray(x))) and not alike(sketch(x), sketch(flipped))
    assert not alike(sketch(labels), sketch(labels[::-1]))
    assert not alike(sketch(labels), sketch(labels.astype(np.int64)))


def test_what_a_sketch_says():
    """The means of blocks whose sizes differ by one, one of them without its entry that is NaN."""
    x = np.random.default_rng(0).normal(size=2500)
    weighted = x * (1.0 + np.cos(np.arange(x.size)) / 2.0)
    x[7] = np.nan
    weighted[7] = 0.0
    found = sketch(x)
    cuts = [x.size * i // 1024 for i in range(1025)]
    means = [weighted[a:b].mean() for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(found["means"], means, rtol=1e-12)
    np.testing.assert_allclose(found["root mean square"], np.sqrt(np.nansum(x**2) / x.size))
    assert found["finite"] == 2499
    assert sketch(np.zeros((0, 3)))["means"] == []


def described(plain, **options):
    """Return what a checkpoint says of the options of a fit."""
    options = {name: Static(value) for name, value in options.items()}
    return fingerprint(dataclasses.replace(plain.state.run.recipe, **options))


def test_functions_count_by_what_they_hold(plain):
    def closed(rate):
        return lambda step: rate / (1.0 + step)

    def slow(step, rate=0.1):
        return rate

    def fast(step, rate=0.1):
        return rate

    def adam(b1):
        return functools.partial(optax.adam, b1=b1)

    cases = [
        ("schedule", closed, "schedule.rate is 0.1 in the file and 0.2 here"),
        ("schedule", optax.constant_schedule, "value is 0.1 in the file and 0.2 here"),
        ("optimizer", optax.sgd, "is -0.1 in the file and -0.2 here"),
        ("optimizer", adam, "keywords.b1 is 0.1 in the file and 0.2 here"),
    ]
    for option, make, message in cases:
        one, again, other = (described(plain, **{option: make(x)}) for x in (0.1, 0.1, 0.2))
        assert not list(differences(one, again))
        assert re.search(message, "; ".join(differences(one, other)))
        assert json.loads(json.dumps(one, allow_nan=False)) == one
    pairs = [
        (lambda step: 0.5, lambda step: 0.3, r"numbers\[0\] is 0.5 in the file and 0.3 here"),
        (lambda step: step < 500, lambda step: step < 5, r"numbers\[0\] is 500 .* and 5 here"),
        (lambda step: (1, 2, 3), lambda step: (1, 2, 4), r"numbers\[2\] is 3 .* and 4 here"),
        (lambda s: lambda t: 0.5, lambda s: lambda t: 0.3, r"numbers\[0\] is 0.5 .* and 0.3 here"),
        (lambda s: [0.1, 0.2], lambda s: [0.2, 0.1], r"numbers\[0\] is 0.1 .* and 0.2 here"),
        (slow, fast, "locals>.slow' in the file and .*locals>.fast' here"),
        (optax.adam, optax.sgd, "'adam' in the file and 'sgd' here"),
    ]
    for one, other, message in pairs:
        option = "optimizer" if one is optax.adam else "schedule"
        found = [described(plain, **{option: each}) for each in (one, other)]
        assert re.search(message, "; ".join(differences(*found)))


def test_static_arrays_count_by_content():
    def of_static(x):
        return fingerprint(Static(x))

    x = np.arange(3.0)
    assert fingerprint(x) == fingerprint(x + 1)  # of leaves, dtype and shape alone
    assert of_static(x) == of_static(x.copy())
    others = [x + 1, x[::-1], x.astype(np.float32), x[:, None], np.asarray([0, 1, 2])]
    assert all(of_static(x) != of_static(other) for other in others)
    names = np.array(["a", "b"], object)
    assert of_static(names) != of_static(names[::-1])
    keys = [of_static(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert of_static(np.float64(0.5)) == of_static(0.5) != of_static(0.25)


def test_arguments_of_checkpoint():
    with pytest.raises(ValueError, match="every is at least 1; got 0"):
        gx.Checkpoint("run", every=0)
    with pytest.raises(ValueError, match="keep is at least 1; got 0"):
        gx.Checkpoint("run", keep=0)
    with refused_type("every is a Python integer; got 1.5"):
        gx.Checkpoint("run", every=1.5)
    with refused_type("path is the name of a folder; got 3"):
        gx.Checkpoint(3)


def test_where_checkpoints_do_not_work(guide, tmp_path):
    with refused_type(r"checkpoint takes a gx\.Checkpoint"):
        run(guide, checkpoint=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="takes a folder, and .*file is a file"):
        run(guide, checkpoint=gx.Checkpoint(tmp_path / "file"))
    checkpoint = gx.Checkpoint(tmp_path / "traced")
    keys = jax.random.split(jax.random.key(0), 2)

    def fit(key):
        return gx.fit(key, guide, X, Y, steps=2, checkpoint=checkpoint)

    for transformed, key in ((jax.jit(fit), keys[0]), (jax.vmap(fit), keys)):
        with pytest.raises(ValueError, match="written by the host, which jit and vmap leave out"):
            transformed(key)
    with pytest.raises(ValueError, match="written by the host, which jit"):
        jax.jit(lambda g: gx.save(tmp_path / "traced", g))(guide)
    assert names(tmp_path) == ["file"]


# --- damage --------------------------------------------------------------------------------------


def damaged(data, kind, rng, others):
    """Return other bytes than these."""
    if kind == "empty":
        return b""
    if kind == "truncated":
        return data[: rng.integers(len(data))]
    if kind == "another file":
        return others[rng.integers(len(others))]
    array = np.frombuffer(data, np.uint8).copy()
    if kind == "bits flipped":
        for place in rng.choice(array.size, rng.integers(1, 4), replace=False):
            array[place] ^= 1 << rng.integers(8)
    elif kind == "blocks swapped":
        a, b = sorted(rng.choice(array.size // 8 - 1, 2, replace=False) * 8)
        array[a : a + 8], array[b : b + 8] = array[b : b + 8].copy(), array[a : a + 8].copy()
    elif kind == "zeroed":
        array[rng.integers(array.size) :] = 0
    elif kind == "longer":
        return data + rng.bytes(rng.integers(1, 50))
    return array.tobytes()


KINDS = ["empty", "truncated", "another file", "bits flipped", "blocks swapped", "zeroed", "longer"]


def test_200_damaged_files_fall_back_to_the_one_before(guide, plain, finished, tmp_path):
    rng, data = np.random.default_rng(0), step_file(finished, STEPS).read_bytes()
    others = [step_file(finished, step).read_bytes() for step in (20, 40)]
    checkpoint = gx.Checkpoint(tmp_path / "run", every=20, keep=3)
    done = 0
    while done < 200:
        bad = damaged(data, KINDS[done % len(KINDS)], rng, others)
        if bad == data:  # two equal blocks were swapped
            continue
        done += 1
        shutil.copytree(finished, checkpoint.path, dirs_exist_ok=True)
        step_file(checkpoint.path, STEPS).write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged.* goes on from step 40") as caught:
            assert same(run(guide, checkpoint=checkpoint), plain)
        assert [each.filename for each in caught] == [__file__]
        # The damaged file has been written anew.
        assert step_file(checkpoint.path, STEPS).read_bytes() == data


def test_one_whole_file_is_enough_and_none_is_an_error(guide, plain, finished, tmp_path):
    checkpoint = gx.Checkpoint(tmp_path / "run", every=20, keep=1)
    shutil.copytree(finished, checkpoint.path)
    for step in (40, 60):
        step_file(checkpoint.path, step).write_bytes(b"")
    with pytest.warns(UserWarning, match="0000060.*0000040.*goes on from step 20"):
        interrupted(guide, checkpoint, 40)
    # keep=1 does not count a damaged file: the one of step 40 is whole by now.
    with pytest.warns(UserWarning, match="0000060.*goes on from step 40"):
        assert same(run(guide, checkpoint=checkpoint), plain)
    for path in checkpoint.path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no checkpoint in .* can be used: .* is damaged"):
        run(guide, checkpoint=checkpoint)


def test_a_write_that_fails_leaves_the_old_files(guide, plain, tmp_path, monkeypatch):
    checkpoint = gx.Checkpoint(tmp_path, every=20)
    for where in ("numpy.lib.format.write_array", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:

            def full(*args, **kwargs):
                raise OSError("no space left on device")

            interrupted(guide, checkpoint, 20)
            whole = step_file(tmp_path, 20).read_bytes()
            patch.setattr(where, full)
            with pytest.raises((OSError, RuntimeError), match="no space left|Error at leaf"):
                run(guide, checkpoint=checkpoint)
            with pytest.raises((OSError, RuntimeError), match="no space left|Error at leaf"):
                gx.save(step_file(tmp_path, 20), guide)
        assert names(tmp_path) == ["step-000000000020.guidax"], where
        assert step_file(tmp_path, 20).read_bytes() == whole
    # What a process left behind that was killed in the middle of a write.
    (tmp_path / ".step-000000000040.guidax.x.part").write_bytes(whole[:100])
    assert same(run(guide, checkpoint=checkpoint), plain)
    assert names(tmp_path) == [f"step-{n:012d}.guidax" for n in (40, 60)]


@pytest.mark.skipif(os.name == "nt", reason="needs the modes of POSIX")
def test_files_have_the_mode_that_the_umask_leaves_and_keep_theirs(tmp_path):
    path = tmp_path / "x"
    before = os.umask(0o022)
    try:
        gx.save(path, jnp.zeros(1))
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        for mode in (0o664, 0o600):
            path.chmod(mode)
            gx.save(path, jnp.ones(1))
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert names(tmp_path) == ["x"] and identical(gx.load(path, like=jnp.zeros(1)), jnp.ones(1))


# --- save and load -------------------------------------------------------------------------------


def without_compiling(entry):
    """Return a guide of zeros, traced and not run."""
    shapes = jax.eval_shape(lambda: entry.make(model, X, Y, key=jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), shapes)


def test_every_guide_comes_back(tmp_path):
    guides = {name: without_compiling(entry) for name, entry in GUIDES.items()}
    rng = np.random.default_rng(0)
    for name, guide in guides.items():
        noisy = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape).astype(x.dtype)), guide)
        gx.save(tmp_path / name, noisy)
        loaded = gx.load(tmp_path / name, like=guide)
        assert jax.tree.structure(loaded) == jax.tree.structure(guide), name
        assert identical(loaded, noisy) and not identical(loaded, guide), name
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded)), name
    # Each is another structure.
    for name in guides:
        for other, guide in guides.items():
            if other != name:
                with pytest.raises(ValueError, match="does not fit"):
                    gx.load(tmp_path / name, like=guide)


def test_200_damaged_guides_are_refused(guide, tmp_path):
    rng, path = np.random.default_rng(1), tmp_path / "guide"
    gx.save(path, {"other": guide})
    others = [path.read_bytes()]
    gx.save(path, guide)
    data = path.read_bytes()
    done = 0
    while done < 200:
        bad = damaged(data, KINDS[done % len(KINDS)], rng, others)
        if bad == data:
            continue
        done += 1
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is damaged|does not fit"):
            gx.load(path, like=guide)


def wide(x, y):
    """Another model with a site of the same name."""
    slope = gx.sample("slope", distrax.Normal(jnp.zeros(2), 1.0))
    gx.sample("y", distrax.Normal(slope.sum() * x, 1.0), obs=y)


def test_a_guide_of_another_structure_is_refused(guide, tmp_path):
    gx.save(tmp_path / "guide", guide)
    other = gx.AutoNormal(wide, X, Y, key=jax.random.key(0))
    with pytest.raises(ValueError) as caught:
        gx.load(tmp_path / "guide", like=other)
    message = str(caught.value)
    assert "of guidax " in message and "made the same way" in message
    assert "family.sites.noise is in the file alone" in message
    assert "family.sites.slope.shape is [] in the file and [2] here" in message
    half = jax.tree.map(lambda x: x.astype(jnp.float16), guide)
    with pytest.raises(ValueError, match=r"slope is 'float\d\d\[\]' in the file and 'float16"):
        gx.load(tmp_path / "guide", like=half)
    options = [gx.AutoDAIS(model, X, Y, key=jax.random.key(0), K=k) for k in (2, 3)]
    gx.save(tmp_path / "dais", options[0])
    with pytest.raises(ValueError, match="is .*2.* in the file and .*3.* here"):
        gx.load(tmp_path / "dais", like=options[1])


def renamed(x, y):
    """The same sites, by another function."""
    return model(x, y)


def test_static_parts_come_from_like(guide, plain, tmp_path):
    gx.save(tmp_path / "guide", plain.guide)
    like = gx.AutoNormal(renamed, X, Y, key=jax.random.key(5))
    loaded = gx.load(tmp_path / "guide", like=like)
    assert identical(jax.tree.leaves(loaded), jax.tree.leaves(plain.guide))
    assert jax.tree.structure(loaded) == jax.tree.structure(like)
    shapes = jax.eval_shape(lambda: guide)
    assert identical(gx.load(tmp_path / "guide", like=shapes), plain.guide)


def test_a_result_is_saved_and_resumed(guide, plain, tmp_path):
    gx.save(tmp_path / "result", plain)
    result = gx.load(tmp_path / "result", like=run(guide, steps=1))
    assert same(result, plain)
    one, other = (r.resume(X, Y, steps=5, progress=False) for r in (result, plain))
    assert same(one, other)
    with pytest.raises(ValueError, match="recipe.optimizer is None in the file"):
        gx.load(tmp_path / "result", like=run(guide, steps=1, optimizer=optax.adam))
    gx.save(tmp_path / "pair", (guide, X))
    with pytest.raises(ValueError, match="pair .* does not fit: "):
        gx.load(tmp_path / "pair", like=plain)


def test_a_checkpoint_is_no_file_of_save(guide, finished):
    with pytest.raises(ValueError, match=r"a checkpoint of gx\.fit, not a file of gx\.save"):
        gx.load(step_file(finished, STEPS), like=guide)


def test_where_files_are_saved(guide, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere for guide.guidax"):
        gx.save(tmp_path / "nowhere" / "guide.guidax", guide)
    with refused_type("save takes the name of a file first; got AutoNormal"):
        gx.save(guide, str(tmp_path / "guide.guidax"))
    with refused_type("load takes the name of a file first; got AutoNormal"):
        gx.load(guide, str(tmp_path / "guide.guidax"))


def test_arrays_of_every_kind(tmp_path):
    tree = {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), (2, 3)),
        "half": jnp.asarray([1.5, jnp.nan], jnp.bfloat16),
        "tiny": jnp.asarray([1.5, 2.0], jnp.float8_e4m3fn),
        "flag": jnp.asarray([True, False]),
        "count": jnp.asarray(3, jnp.int32),
        "none": jnp.zeros((0, 4)),
        "complex": jnp.asarray([1 + 2j], jnp.complex64),
        "numpy": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    gx.save(tmp_path / "tree", tree)
    loaded = gx.load(tmp_path / "tree", like=tree)
    for name, x in tree.items():
        y = loaded[name]
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape, name
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        bits = [np.asarray(jax.random.key_data(z) if is_key else z) for z in (x, y)]
        assert bits[0].tobytes() == bits[1].tobytes(), name
    with pytest.raises(ValueError, match=r"key is 'key<fry>\[\]' in the file and 'key<rbg>\[\]'"):
        gx.load(tmp_path / "tree", like=tree | {"key": jax.random.key(3, impl="rbg")})
    for bad in ({"f": jnp.tanh}, {"f": 1.0}, {"f": np.asarray([object()])}):
        with pytest.raises(TypeError, match=r"files hold arrays of numbers, and \['f'\] is"):
            gx.save(tmp_path / "bad", bad)
    assert names(tmp_path) == ["tree"]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_arrays_are_placed_as_those_of_like(guide, plain, tmp_path):
    mesh = jax.make_mesh((8,), ("d",))
    spread, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    x = jnp.arange(16.0)
    gx.save(tmp_path / "x", jax.device_put(x, spread))
    for sharding in (spread, everywhere):
        loaded = gx.load(tmp_path / "x", like=jax.device_put(jnp.zeros(16), sharding))
        assert loaded.sharding == sharding and identical(loaded, x)
    assert not gx.load(tmp_path / "x", like=jnp.zeros(16)).committed


def rowwise(x, y):
    """A latent for each row."""
    slope = gx.sample("slope", distrax.Normal(0.0, 10.0))
    with gx.plate("data", 8):
        z = gx.sample("z", distrax.Normal(slope * x, 1.0))
        gx.sample("y", distrax.Normal(z, 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_a_fit_over_devices_goes_on_where_it_lies(tmp_path):
    mesh = jax.make_mesh((8,), ("d",))
    guide = gx.AutoNormal(rowwise, X, Y, key=jax.random.key(0))
    guide, x, y = jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("d") if leaf.ndim else P())),
        (guide, X, Y),
    )
    checkpoint = gx.Checkpoint(tmp_path, every=10)
    with pytest.raises(Killed):
        run(guide, x, y, checkpoint=checkpoint, progress=killed_after(12))
    result = run(guide, x, y, checkpoint=checkpoint)
    assert same(result, run(guide, x, y))
    assert result.guide.family.loc["z"].sharding.spec == P("d")


# --- nothing is executed -------------------------------------------------------------------------


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def forged(path, leaf, header):
    """Write a file with a right checksum, whatever is in it."""
    body = b"guidax file, format 1\n" + json.dumps(header).encode() + b"\n" + leaf
    path.write_bytes(body + hashlib.sha256(body).digest())


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def test_a_forged_file_executes_nothing(tmp_path):
    x, path, sign = jnp.zeros(1), tmp_path / "x", tmp_path / "executed"
    gx.save(path, x)
    header = json.loads(path.read_bytes().split(b"\n")[1])
    payload = np.asarray([Payload(sign)], dtype=object)
    pickled = npy(payload)
    archive = io.BytesIO()
    np.savez(archive, payload)
    for leaf, message in (
        (pickled, "Object arrays cannot be loaded"),
        (pickled[pickled.index(b"\n") + 1 :], "magic string"),  # the pickle itself
        (archive.getvalue(), "magic string"),
        (npy(np.zeros(2, x.dtype)), r"it holds float\d\d\[2\]"),
        (npy(np.zeros(1, np.int8)), r"it holds int8\[1\]"),
        (npy(np.zeros(1, x.dtype)) + b"more", "more than it says"),
        (npy(np.zeros(1, x.dtype))[:-1], "damaged"),
        (b"", "damaged"),
    ):
        forged(path, leaf, header)
        with pytest.raises(ValueError, match=message):
            gx.load(path, like=x)
    for header in ([], 3, {}, {"tree": []}, {"tree": {"losses": "float64[9999999999999]"}}):
        forged(path, npy(np.zeros(1, x.dtype)), header)
        with pytest.raises(ValueError, match="damaged|does not fit"):
            gx.load(path, like=x)
    assert not sign.exists()
    # The payload does what it says where pickles are read.
    np.lib.format.read_array(io.BytesIO(pickled), allow_pickle=True)
    assert sign.exists()


def test_another_format_is_refused(guide, tmp_path):
    path = tmp_path / "guide"
    gx.save(path, guide)
    body = path.read_bytes()[:-32].replace(b"format 1\n", b"format 2\n", 1)
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(ValueError, match="has format 2, and this version of guidax reads format 1"):
        gx.load(path, like=guide)
    os.rename(path, step_file(tmp_path, 20))
    with pytest.raises(ValueError, match="has format 2"), warnings.catch_warnings():
        run(guide, checkpoint=gx.Checkpoint(tmp_path))  # another version's is not damage


@pytest.mark.parametrize(
    "path", sorted(Path(gx.__file__).parent.rglob("*.py")), ids=lambda p: p.name
)
def test_nothing_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            roots = {module.split(".")[0] for module in modules}
            assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in {"np.load", "jnp.load", "np.save", "jnp.save"}


def test_what_a_file_says(guide, tmp_path):
    gx.save(tmp_path / "guide", guide)
    first, header, _ = (tmp_path / "guide").read_bytes().split(b"\n", 2)
    said = json.loads(header)
    assert first == b"guidax file, format 1" and said["guidax"] and said["jax"] == jax.__version__
    site = said["tree"]["family"]["sites"]["slope"]
    assert site["shape"] == [] and site["dtype"] == str(jnp.result_type(float))


def test_the_page_on_checkpoints_says_what_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    assert run_examples(page) is None
    assert names(tmp_path) == ["guide.guidax", "result.guidax", "run"]


def test_a_file_of_another_class_of_guide_is_told_in_one_verb(guide, tmp_path):
    gx.save(tmp_path / "guide", guide)
    other = gx.AutoDiagonalNormal(model, X, Y, key=jax.random.key(0))
    kind = type(guide).__name__
    message = f"it is '{kind}' in the file and 'AutoDiagonalNormal' here; family is '"
    with pytest.raises(ValueError, match=message):
        gx.load(tmp_path / "guide", other)
