"""What the host shows of a run, and how often it looks."""

import jax
import jax.numpy as jnp
import pytest
from tqdm.auto import tqdm

import guidax as gx
from guidax._fit import progress as progress_module
from guidax._fit.progress import Pace
from models import ConjugateNormal

DATA = jnp.asarray(ConjugateNormal.y, float)


@pytest.fixture(scope="module")
def guide():
    return gx.AutoDelta(ConjugateNormal.model, DATA, key=jax.random.key(0))


def run(guide, progress, steps=3000):
    return gx.fit(jax.random.key(0), guide, DATA, steps=steps, progress=progress)


# --- the function ------------------------------------------------------------------------------


def test_a_function_is_told_the_steps_taken_and_the_last_loss(guide):
    seen = []
    result = run(guide, lambda step, loss: seen.append((step, loss)))
    steps = [step for step, _ in seen]
    assert steps == sorted(set(steps)) and steps[-1] == 3000
    assert 1 < len(steps) < 3000  # more than once, and not at each step
    assert all(type(step) is int and type(loss) is float for step, loss in seen)
    assert [loss for _, loss in seen] == [float(result.losses[step - 1]) for step in steps]


def test_a_function_counts_on_through_a_resume(guide):
    seen = []
    first = run(guide, False, steps=20)
    first.resume(DATA, steps=10, progress=lambda step, loss: seen.append(step))
    assert seen == sorted(set(seen)) and seen[0] > 20 and seen[-1] == 30


def test_an_error_of_the_function_reaches_the_caller(guide):
    """So one can stop a run."""

    class Enough(Exception):
        pass

    def stop(step, loss):
        raise Enough(step)

    with pytest.raises(Enough):
        run(guide, stop)
    assert int(run(guide, False, steps=2).first_bad_step) == -1  # nothing is left broken


# --- the bar -----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, None])
def test_a_bar_goes_to_stderr(guide, capsys, progress):
    result = run(guide, progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fit: 100%" in err and "3000/3000" in err and "loss=" in err
    shown = float(err.rsplit("loss=", 1)[1].split("]")[0])
    assert shown == pytest.approx(float(result.losses[-1]), rel=1e-3)  # it has settled


@pytest.mark.parametrize("progress", [False, lambda step, loss: None], ids=["no", "function"])
def test_no_bar_where_none_is_asked_for(guide, capsys, progress):
    run(guide, progress)
    assert capsys.readouterr() == ("", "")


def test_no_bar_inside_transformations(guide, capsys, key):
    jax.jit(lambda k: gx.fit(k, guide, DATA, steps=3).losses)(key)
    jax.vmap(lambda k: gx.fit(k, guide, DATA, steps=3).losses)(jax.random.split(key, 2))
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_batches_ends_where_they_end(guide, capsys):
    batches = [gx.Batch(DATA)] * 5
    with pytest.warns(UserWarning):
        gx.fit(jax.random.key(0), guide, batches=batches, steps=50, progress=True)
    assert "5/50" in capsys.readouterr().err


def test_a_bar_is_closed_after_an_error(guide, capsys):
    with pytest.raises(gx.NonFiniteError):
        gx.fit(jax.random.key(0), guide, DATA * jnp.nan, steps=50, progress=True)
    assert "0/50" in capsys.readouterr().err

    def unreadable(step):
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file") as caught:
        gx.fit(jax.random.key(0), guide, batches=unreadable, steps=50, progress=True)
    assert not list(tqdm._instances)  # though the traceback still holds it
    assert caught.tb is not None


# --- the pace ----------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def walk(clock, pace, seconds_per_step, looks):
    """Take the steps that the pace asks for, and return how many they were."""
    taken = []
    for _ in range(looks):
        taken.append(pace.steps)
        clock.now += pace.steps * seconds_per_step
        pace.note(pace.steps)
    return taken


def test_the_pace_looks_once_a_second(clock):
    taken = walk(clock, Pace(10**6), 1e-3, 6)
    assert taken[0] == 1
    assert all(999 <= n <= 1001 for n in taken[3:])  # 1 s at 1 ms


def test_the_pace_grows_thirtyfold_at_most(clock):
    taken = walk(clock, Pace(10**6), 1e-9, 5)
    assert taken == [1, 30, 900, 27_000, 810_000]
    assert walk(clock, Pace(1000), 1e-9, 4) == [1, 30, 900, 1000]


def test_a_slow_first_step_does_not_fix_the_pace(clock):
    pace = Pace(10**6)
    clock.now += 20.0  # compilation
    pace.note(pace.steps)
    assert pace.steps == 1
    assert walk(clock, pace, 1e-2, 5)[-1] in (99, 100, 101)


def test_the_pace_slows_down_too(clock):
    pace = Pace(10**6)
    walk(clock, pace, 1e-3, 6)
    assert walk(clock, pace, 1e-1, 3)[-1] in (9, 10, 11)
    assert walk(clock, pace, 5.0, 3)[-1] == 1  # never less than one


def test_a_clock_that_stands_still_does_no_harm(clock):
    pace = Pace(10**6)
    for looks in range(1, 5):
        pace.note(pace.steps)
        assert pace.steps == 30**looks


def test_the_clock_cuts_the_run(guide, clock):
    """Only the function takes time here, a second: one look in as many steps as fit."""
    seen = []

    def look(step, loss):
        seen.append(step)
        clock.now += 1.0

    run(guide, look, steps=100)
    assert seen == [1, 31, 61, 91, 100]
