# SPDX-License-Identifier: MIT
"""The stub pycomm/_C.pyi and the built module say the same: names, parameters, defaults, types."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from pycomm.native import load

STUB = Path(__file__).parents[2] / "pycomm" / "_C.pyi"
# What pybind11 gives every class and we do not bind.
OWN = {"__doc__", "__module__", "_pybind11_conduit_v1_", "__init__"}


def plain(annotation):
    """A type as both sides spell it: pybind11 names modules and, from 3.0 on, what converts."""
    annotation = annotation.replace("typing.SupportsInt", "int")
    annotation = annotation.replace("typing.SupportsFloat", "float")
    annotation = annotation.replace(" | typing.SupportsIndex", "")
    annotation = annotation.replace("Sequence[", "list[")
    annotation = re.sub(r"\bdict\[.*\]", "dict", annotation)
    return re.sub(r"\b(\w+\.)+", "", annotation).strip()


def of_docstring(text, name):
    """(parameters, returned type) from pybind11's "name(self: A, b: int = 0) -> str"."""
    match = re.match(rf"{name}\((.*)\) -> (.*)", text.strip())
    assert match, f"no signature in {text!r}"
    tree = ast.parse(f"def f({match[1]}) -> {match[2]}: ...").body[0]
    return of_definition(tree)


def of_definition(tree):
    """The same from a function of the stub; self has no type worth comparing."""
    arguments = tree.args.args
    defaults = [None] * (len(arguments) - len(tree.args.defaults)) + tree.args.defaults
    parameters = [
        (
            one.arg,
            plain(ast.unparse(one.annotation)) if one.annotation and one.arg != "self" else "",
            ast.unparse(default) if default else None,
        )
        for one, default in zip(arguments, defaults, strict=True)
    ]
    return parameters, plain(ast.unparse(tree.returns))


@pytest.fixture(scope="module")
def module():
    return load()


@pytest.fixture(scope="module")
def stub():
    return ast.parse(STUB.read_text())


def members(tree, kind):
    return {node.name: node for node in tree.body if isinstance(node, kind)}


def test_stub_and_module_have_the_same_functions(module, stub):
    functions = members(stub, ast.FunctionDef)
    built = {name for name in dir(module) if not name.startswith("__")}
    classes = {name for name in built if isinstance(getattr(module, name), type)}
    assert set(functions) == built - classes
    for name, tree in functions.items():
        assert of_docstring(getattr(module, name).__doc__, name) == of_definition(tree), name


def test_stub_and_module_have_the_same_classes(module, stub):
    classes = members(stub, ast.ClassDef)
    built = {name for name in dir(module) if isinstance(getattr(module, name), type)}
    assert set(classes) == built
    for name, tree in classes.items():
        built = getattr(module, name)
        of_pybind11 = hasattr(built, "_pybind11_conduit_v1_")
        (compare_class if of_pybind11 else compare_plain_class)(built, tree)


def compare_plain_class(built, tree):
    """One bound with the C API: its docstrings give names and defaults, and no types."""
    stubbed = members(tree, ast.FunctionDef)
    names = {name for name in vars(built) if not name.startswith("__")}
    assert names == set(stubbed) - {"__init__"}
    for name in names:
        if inspect.isgetsetdescriptor(vars(built)[name]):
            assert any(ast.unparse(one) == "property" for one in stubbed[name].decorator_list), name
            continue
        parameters = inspect.signature(getattr(built, name)).parameters.values()
        bound = [
            (one.name, None if one.default is one.empty else repr(one.default))
            for one in parameters
        ]
        stub = [(one, default) for one, _, default in of_definition(stubbed[name])[0]]
        assert bound == stub, name


def compare_class(built, tree):
    methods = members(tree, ast.FunctionDef)
    getters = {
        name: plain(ast.unparse(node.returns))
        for name, node in methods.items()
        if any(ast.unparse(one) == "property" for one in node.decorator_list)
    }
    settable = {
        node.target.id: plain(ast.unparse(node.annotation))
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
    }
    names = set(vars(built)) - OWN
    properties = {name for name in names if isinstance(vars(built)[name], property)}
    assert properties == set(getters) | set(settable)
    assert names - properties == set(methods) - set(getters) - {"__init__"}
    for name in properties:
        prop = vars(built)[name]
        returned = plain(prop.fget.__doc__.strip().rsplit(" -> ", 1)[1])
        assert returned == {**getters, **settable}[name], name
        assert (prop.fset is not None) == (name in settable), name
    for name in set(methods) - set(getters):
        text = getattr(built, name).__doc__
        assert of_docstring(text, name) == of_definition(methods[name]), name


def test_build_info_names_what_it_was_built_for(module):
    import torch

    info = module.build_info()
    assert info["torch_version"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["cpu_level"] in ("scalar", "avx2", "avx512")
    assert isinstance(info["cuda"], bool)
