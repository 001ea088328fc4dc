"""A file of launch/ as a Bazel binary."""

load("@rules_python//python:defs.bzl", "py_binary")

def launcher(name, deps, **kwargs):
    """Runs `python -m launch.<name>`, as far as Bazel can: by a main that imports the module and calls its run().

    A py_binary runs its main as a script, in which the relative imports of launch/ would not work; and were
    the folder launch/ the first place to look for modules, launch/tokenize.py would hide Python's own.

    Args:
      name: launch/<module>.
      deps: the library that holds the module.
      **kwargs: for py_binary.
    """
    main = name.replace("/", "_") + "_main.py"
    native.genrule(
        name = name + "/main",
        outs = [main],
        cmd = "echo 'from %s import run; run()' > $@" % name.replace("/", "."),
    )
    py_binary(
        name = name,
        srcs = [main],
        main = main,
        deps = deps,
        **kwargs
    )
