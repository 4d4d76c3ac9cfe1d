# SPDX-License-Identifier: MIT
"""The tree keeps its own rules: floors, sizes, headers, names, links. See CONTRIBUTING.md."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_FOLDERS = ("csrc", "pycomm", "tests", "benchmarks", "examples")
CXX = (".h", ".cc", ".cu")
LINES_MAX = 400

# Folder to the folders whose headers it may include.
FLOORS = {
    "base": {"base"},
    "plan": {"plan", "base"},
    "transport": {"transport", "base"},
    "kernels": {"kernels", "base"},
    "device": {"device", "base"},
    "engine": {"engine", "plan", "transport", "kernels", "device", "base"},
    "bucket": {"bucket", "engine", "kernels", "device", "base"},
    "torch": {"torch", "bucket", "engine", "plan", "transport", "kernels", "device", "base"},
}
TORCH_HEADER = re.compile(r"(torch|c10|ATen|pybind11)/|Python\.h")
CUDA_HEADER = re.compile(r"cuda|cub/|thrust/|nv_|cooperative_groups")
FORBIDDEN_NAME = re.compile(r"(^|_)(utils?|common|managers?|helpers?|misc|impl)(_|$)")
THREAD_FILES = {
    f"csrc/engine/{name}.cc" for name in ("callback_pool", "engine", "progress", "tuner")
} | {"csrc/device/fake_stream.cc"}  # the streams of the tests' GPU
UNFINISHED = r"\b(T[O]DO|F[I]XME|X[X]X)\b"
# Folders of one machine, and its package index.
MACHINE_PATH = r"(?<![\w.])/([w]ork|[h]ome|[r]oot|[U]sers|[t]mp/w)/\w|[p]ypi|index-[u]rl"


def listed():
    """Files that belong to the tree: tracked, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        paths = [Path(name) for name in names.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # a source archive
        ignored = {".venv", "build", "demo_out", "dist", "__pycache__"}
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        paths = [
            path for path in paths if not ignored & set(path.parts) and path.parts[0] != ".git"
        ]
    return sorted(path for path in paths if (ROOT / path).is_file())


FILES = listed()
SOURCES = [
    path
    for path in FILES
    if path.parts[0] in SOURCE_FOLDERS and path.suffix in (*CXX, ".py", ".pyi", ".cmake")
]
CORE = [path for path in SOURCES if path.parts[0] == "csrc" and path.suffix in CXX]
MARKDOWN = [path for path in FILES if path.suffix == ".md"]


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def found(pattern, paths):
    """Every place where pattern matches, as "file:line: text"."""
    pattern = re.compile(pattern)
    return [
        f"{path}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def without_comments(text):
    """C++ with comments and strings blanked; lines stay where they are."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def includes(path):
    """(quoted?, name) of every #include."""
    found = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text_of(path), re.MULTILINE)
    return [(mark == '"', name) for mark, name in found]


def test_every_folder_of_csrc_is_a_floor():
    assert {path.parts[1] for path in CORE} <= set(FLOORS)


def test_floors_include_only_what_stands_below_them():
    wrong = [
        f"{path} includes {name}"
        for path in CORE
        for quoted, name in includes(path)
        if quoted and name.split("/")[0] not in FLOORS[path.parts[1]]
    ]
    assert not wrong, wrong


def test_included_headers_exist():
    wrong = [
        f"{path} includes {name}"
        for path in CORE
        for quoted, name in includes(path)
        if quoted and not (ROOT / "csrc" / name).exists()
    ]
    assert not wrong, wrong


def test_only_the_torch_floor_sees_torch_and_pybind11():
    ours = tuple(f"{floor}/" for floor in FLOORS)
    wrong = [
        f"{path} includes {name}"
        for path in CORE
        for quoted, name in includes(path)
        if path.parts[1] != "torch"
        and TORCH_HEADER.match(name)
        and not (quoted and name.startswith(ours) and not name.startswith("torch/"))
    ]
    assert not wrong, wrong


def test_cuda_headers_stay_in_cuda_files():
    wrong = [
        f"{path} includes {name}"
        for path in SOURCES
        if path.suffix in CXX
        for quoted, name in includes(path)
        if not quoted and CUDA_HEADER.match(name)
        if path.suffix != ".cu"
        and not str(path).startswith(("csrc/kernels/cuda", "csrc/device/cuda"))
    ]
    assert not wrong, wrong


def test_threads_start_in_the_engine_only():
    starts = re.compile(
        r"\bstd::(?:j?thread\s*[({]|j?thread\s+\w+\s*[({]|async\s*\()|make_unique<std::j?thread>|pthread_create"
    )
    wrong = [
        f"{path}:{number}"
        for path in CORE
        if str(path) not in THREAD_FILES
        for number, line in enumerate(without_comments(text_of(path)).splitlines(), 1)
        if starts.search(line)
    ]
    assert not wrong, wrong


def test_no_file_is_too_long():
    lengths = {str(path): len(text_of(path).splitlines()) for path in SOURCES}
    assert not {path: n for path, n in lengths.items() if n > LINES_MAX}


def test_every_source_begins_with_its_licence():
    marks = ("// SPDX-License-Identifier: MIT", "# SPDX-License-Identifier: MIT")
    begin = {path: text_of(path).splitlines()[:2] for path in SOURCES}
    wrong = [
        str(path)
        for path, lines in begin.items()
        if lines
        and not any(line in marks for line in (lines[1:] if "#!" in lines[0] else lines[:1]))
    ]
    assert not wrong, wrong


def test_every_header_says_what_it_is():
    wrong = []
    for path in SOURCES:
        if path.suffix != ".h":
            continue
        lines = text_of(path).splitlines()
        if "#pragma once" not in lines:
            wrong.append(f"{path}: no #pragma once")
            continue
        at = lines.index("#pragma once")
        before = [line for line in lines[1:at] if line.startswith("//")]
        after = [line for line in lines[at + 1 : at + 6] if line.startswith("//")]
        if len(" ".join(before or after)) < 40:
            wrong.append(f"{path}: no prose around #pragma once")
    assert not wrong, wrong


def test_python_modules_say_what_they_are():
    modules = [path for path in SOURCES if path.suffix == ".py"]
    wrong = [str(path) for path in modules if not ast.get_docstring(ast.parse(text_of(path)))]
    assert not wrong, wrong


def test_names_of_files_say_something():
    wrong = [str(path) for path in FILES if FORBIDDEN_NAME.search(path.stem.lower())]
    assert not wrong, wrong


def test_nothing_is_left_unfinished():
    assert not found(UNFINISHED, SOURCES + MARKDOWN)


def test_no_path_of_a_machine():
    texts = [path for path in FILES if path.suffix not in (".png", ".json", ".so")]
    assert not found(MACHINE_PATH, texts)


def test_public_face_is_small():
    init = text_of("pycomm/__init__.py")
    assert len(init.splitlines()) <= 40
    tree = ast.parse(init)
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert len(names) <= 12
    assert names == sorted(names)


def test_every_setting_is_in_the_readme():
    table = text_of("README.md")
    variables = set(re.findall(r'"(PYCOMM_[A-Z_]+)":', text_of("pycomm/options.py")))
    assert variables
    assert not {name for name in variables if f"| `{name}` |" not in table}


def test_settings_named_in_markdown_exist():
    known = set(re.findall(r'"(PYCOMM_[A-Z_]+)":', text_of("pycomm/options.py")))
    known |= set(re.findall(r"\bPYCOMM_[A-Z]+\b", text_of("CMakeLists.txt") + text_of("setup.py")))
    named = {
        (str(path), name)
        for path in MARKDOWN
        for name in re.findall(r"\bPYCOMM_[A-Z_]+[A-Z]\b", text_of(path))
        if not name.startswith(("PYCOMM_TEST_", "PYCOMM_BENCH_"))
    }
    assert not {one for one in named if one[1] not in known}


def anchors(path):
    """What GitHub makes of a file's headings."""
    heads = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_links_between_documents_resolve(path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (ROOT / path.parent / name).resolve() if name else ROOT / path
        if not place.exists() or (anchor and anchor not in anchors(place.relative_to(ROOT))):
            wrong.append(target)
    assert not wrong, wrong


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_sources_named_in_documents_exist(path):
    names = re.findall(
        r"`((?:csrc|pycomm|tests|benchmarks|examples|docs)/[\w./]+\.\w+)`", text_of(path)
    )
    wrong = [name for name in names if not (ROOT / name).exists()]
    assert not wrong, wrong


def test_reading_order_exists():
    order = re.findall(r"^\d+\. `([^`]+)`", text_of("README.md"), re.MULTILINE)
    assert len(order) == 8
    assert all((ROOT / name).exists() for name in order)


def test_readme_begins_with_commands_and_example():
    first_screen = "\n".join(text_of("README.md").splitlines()[:40])
    for wanted in ("make demo", "make test", 'init_process_group("pycomm")', "all_reduce"):
        assert wanted in first_screen
