"""How many parameters a module has, to be compared with what papers and formulas say."""
from vqim.nn.module import spec


def count_parameters(module):
    """The number of all elements of all parameters."""
    return sum(leaf.size for leaf in spec(module).values())
