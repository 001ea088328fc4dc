"""States of a tiny tokenizer and its adversary."""
from tests.support.steps import make_noisy_state


def make_state(task):
    """Initial values and some noise on the tokenizer: a new transformer block is the identity."""
    return make_noisy_state(task, "params/tokenizer/")
