"""The public list is what it says."""

import inspect
import pkgutil

import podflare


def test_the_public_list_is_sorted() -> None:
    assert podflare.__all__ == sorted(podflare.__all__)


def test_every_public_name_exists_and_no_other_is_exported() -> None:
    exported = {name for name, value in vars(podflare).items() if not inspect.ismodule(value)}
    assert {name for name in exported if not name.startswith("_")} | {"__version__"} == set(podflare.__all__)


def test_every_module_is_private() -> None:
    assert all(module.name.startswith("_") for module in pkgutil.iter_modules(podflare.__path__))


def test_every_public_class_and_function_is_documented() -> None:
    for name in podflare.__all__:
        value = getattr(podflare, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
