"""A folder of tests as a Bazel test: pytest, on those files."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, deps = [], data = [], **kwargs):
    """Runs pytest on `srcs`.

    Args:
      name: of the test: its folder, then /test.
      srcs: test files and their conftest.py.
      deps: libraries that they import.
      data: files that they read, beside gin files, and programs that they start.
      **kwargs: for py_test.
    """
    folder = name[:-len("/test")]
    main = folder + "/run_pytest.py"
    native.genrule(
        name = folder + "/main",
        outs = [main],
        cmd = "echo 'import sys, pytest; sys.exit(pytest.main([\"-p\", \"no:cacheprovider\", \"%s\"]))' > $@" % folder,
    )
    py_test(
        name = name,
        srcs = srcs + [main],
        main = main,
        data = data + ["//:gin_files", "//:pyproject.toml", "//:tests/conftest.py"],
        deps = deps,
        **kwargs
    )
