
import pytest

from tests.support.processes import printed, run_on_xla

pytest.importorskip("torch_xla")
KINDS = ["adamw", "int8", "stochastic", "bfloat16"]


@pytest.fixture(scope="module")
def results():
    return printed(run_on_xla("tests.optim.xla_step", flags=None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_xla_is_one_program_that_nothing_falls_out_of(results, kind):
    assert results[kind]["aten"] == [] and results[kind]["reads"] == 0
    first, *later = results[kind]["compiled"]
    assert later == [first] * 5  # neither the step, the rate nor keep is part of the program


@pytest.mark.parametrize("kind", KINDS)
def test_steps_on_xla_equal_those_on_torch(results, kind):
    # a stochastic rounding that falls the other way moves a weight by a level of its momentum, 1/127 of the largest
    tolerance = 1e-3 if kind == "stochastic" else 1e-4
    for name, gap in results[kind]["differences"].items():
        if gap["int8"]:
            assert gap["levels"] <= 1 and gap["moved"] <= 1e-3, name
        elif kind == "bfloat16" and name.startswith("m/"):
            assert gap["relative"] <= 2**-7, name
        else:
            assert gap["relative"] <= tolerance, name
