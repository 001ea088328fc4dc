"""The gin names of the components, and the reading of gin files. Only this package and `launch` know gin.

`config.py` loads gin files and bindings, with the help of the other files named `config_*`. Files without this prefix
are tables of names, `gin.register(X, module="tokenizer")`, and compute nothing.
"""
try:
    import gin
except ImportError as error:
    raise ImportError("vqim needs gin-config to read its configuration: pip install gin-config") from error

# Without gin-config, this repository's own folder `gin/` is imported in its place, as an empty namespace package.
if not hasattr(gin, "register"):
    raise ImportError(
        f"`import gin` found {list(gin.__path__)} and not the package gin-config: pip install gin-config "
        "(and keep the folder gin/ of this repository free of Python files, or it shadows the package)"
    )
