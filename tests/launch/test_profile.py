"""launch.train --profile_steps on the torch runtime."""
import json
import re

import pytest

from tests.launch.verbs import train_flags

TOKENIZER = "gin/debug/tokenizer_tiny.gin"


def test_the_trace_lies_in_the_run_directory_and_has_a_steps_operations(verbs):
    # A directory in which a traced run was killed before its first checkpoint may be used again.
    (verbs.directory / "run").mkdir()
    (verbs.directory / "run/host_12.1764.pt.trace.json").write_text("{}")
    done = verbs("train", *train_flags(TOKENIZER, "run", "train.num_steps = 5", "train.evaluators = []"),
                 "--profile_steps=1:3")
    assert done.code == 0, done.err
    assert re.search(r"Tracing steps 2 to 3 into run\.\n", done.err)
    (path,) = (path for path in (verbs.directory / "run").glob("*.pt.trace.json") if path.stat().st_size > 2)
    events = json.loads(path.read_text())["traceEvents"]
    assert {"aten::addmm", "aten::mm", "aten::bmm"} & {event["name"] for event in events}


@pytest.mark.parametrize("steps", ["10", "3:3", "5:2", "a:b", "-1:2"])
def test_steps_that_are_no_range_are_refused(verbs, steps):
    done = verbs("train", *train_flags(TOKENIZER, "run"), f"--profile_steps={steps}")
    assert (done.code, (verbs.directory / "run").exists()) == (2, False)
    assert f"--profile_steps must be A:B with A < B, such as 100:110 for the ten steps after step 100; got {steps}" in (
        done.err)
