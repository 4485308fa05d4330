"""The pages, run: every block of code in them, and what it is said to print.

`python -m tests.test_docs` writes what the blocks really print into the pages, or those that it is given.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pytest_flops
from pytest_flops.formulas import register_flop_formula
from pytest_flops.metrics import METRICS
from pytest_flops.units import size
from tests.runs import QUICK, load_torch
from tests.test_house import ARROWS, PACKAGE

load_torch()

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = ROOT / "docs"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## .*", re.MULTILINE)

# The rule for comparing: these lines of pytest's are left out; times and the version of torch may differ.
HEADER = re.compile(r"^(platform|rootdir|configfile|plugins|cachedir|hypothesis profile)\b.*\n", re.MULTILINE)
TIME = re.compile(r"^(=*) ?(.* in )\d+\.\d\ds(?: \(\d+:\d\d:\d\d\))?(?: =+)?$", re.MULTILINE)
TORCH = re.compile(r'"torch": "[^"]+"|\btorch \d[\w.+]*')
HASHES = re.compile(r"^index [0-9a-f]+\.\.[0-9a-f]+", re.MULTILINE)  # of files that hold the version of torch


# Pages, their sections and the blocks in these -------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a section, and where it stands."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def is_quoted(self) -> bool:
        return self.first_line.startswith("# from ")

    @property
    def file(self) -> str | None:
        """The name of the file that it is, where it says so."""
        named = re.fullmatch(r"# (\w+\.py)", self.first_line)
        return named[1] if named else None

    @property
    def is_snippet(self) -> bool:
        return self.kind == "python" and not self.is_quoted and self.file is None


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in BLOCK.finditer(text)]


@dataclass(frozen=True)
class Section:
    """What stands under one heading of a page: a story of its own, run in a folder of its own."""

    page: Path
    title: str
    start: int
    text: str

    @property
    def runs(self) -> bool:
        return any(block.is_snippet or block.kind == "console" for block in blocks(self.text))

    def __str__(self) -> str:
        return f"{self.page.name}: {self.title}"


def sections(page: Path) -> list[Section]:
    text = page.read_text()
    # Of the same length, without what looks like a heading and is a comment in code.
    bare = BLOCK.sub(lambda match: " " * len(match[0]), text)
    starts = [0, *(match.start() for match in HEADING.finditer(bare)), len(text)]
    return [
        Section(page, text[start:end].partition("\n")[0].lstrip("#- ") or "top", start, text[start:end])
        for start, end in pairwise(starts)
    ]


def section(page: Path, title: str) -> str:
    """Return the text of the section of this title."""
    return next(found.text for found in sections(page) if found.title == title)


STORIES = [found for page in PAGES for found in sections(page) if found.runs]


# Running ----------------------------------------------------------------------------------------------------


def normalised(output: str) -> str:
    text = TIME.sub(lambda m: f"{'=' * 8 if m[1] else ''}{m[2]}0.00s", HEADER.sub("", output))
    text = HASHES.sub("index", TORCH.sub("torch ...", text))
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this checkout and the tools of this environment only."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    me = {f"GIT_{who}_{what}": "me" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=kept
        | me
        | {"PATH": path, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull}
        | {"PYTEST_ADDOPTS": " ".join(QUICK)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def printed(snippet: str) -> str:
    """Return what a snippet prints. It runs in this process, which has spent the seconds that torch takes."""
    output = io.StringIO()
    with redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests
        exec(compile(snippet, "snippet.py", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def commands(console: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that follows it."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run(text: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run all blocks in order in a folder, and yield each that shows output with what it really prints."""
    found = blocks(text)
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.kind == "console":
            shown = [(f"$ {command}\n", bash(command, folder).stdout) for command, _ in commands(block.text)]
            yield block, "".join(command + HEADER.sub("", output) for command, output in shown)
        elif block.file is not None:
            (folder / block.file).write_text(block.text)
        elif block.is_snippet:
            output = printed(block.text)
            if following is not None and following.kind == "text":
                yield following, output
            else:
                assert output == ""


def wrong(text: str, folder: Path) -> list[tuple[str, str]]:
    """Return (shown, real) for every block whose output is not the real one."""
    pairs = [(normalised(block.text), normalised(real)) for block, real in run(text, folder)]
    return [(shown, real) for shown, real in pairs if shown != real]


@pytest.mark.parametrize("story", STORIES, ids=str)
def test_every_block_prints_what_it_shows(tmp_path, story):
    if "$ git " in story.text:
        if shutil.which("git") is None:
            pytest.skip("uses git")
        bash("git init -q", tmp_path)  # as the folder of a reader is
    assert wrong(story.text, tmp_path) == []


def test_every_page_has_stories():
    told = {story.page.name for story in STORIES}
    assert told == {"README.md", "usage.md", "counting.md", "api.md", "wrong-count.md"}
    assert len(STORIES) > 8


@pytest.mark.parametrize(
    ("shown", "mistake"),
    [
        (
            "```console\n$ echo 41; echo 1\n41\n2\n```",
            ("$ echo 41; echo 1\n41\n2", "$ echo 41; echo 1\n41\n1"),
        ),
        ("```python\nprint(6 * 7)\n```\nprints\n```text\n43\n```", ("43", "42")),
        (
            "```console\n$ false\n$ nosuch\n```",
            ("$ false\n$ nosuch", "$ false\n$ nosuch\nbash: line 1: nosuch: command not found"),
        ),
    ],
)
def test_a_wrong_output_is_noticed(tmp_path, shown, mistake):
    assert wrong(f"text\n\n{shown}\n", tmp_path) == [mistake]


def test_a_snippet_that_raises_is_noticed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        wrong("```python\n1 / 0\n```\n", tmp_path)


def test_only_times_and_header_lines_are_not_compared():
    real = "collected 1 item\nplatform linux\nrootdir: /x\n===== 1 passed in 61.07s (0:01:01) ====="
    assert normalised(real) == normalised("collected 1 item\n== 1 passed in 0.31s ==")
    assert normalised(real) != normalised("collected 1 item\n== 2 passed in 0.31s ==")
    assert normalised("1 passed in 0.01s") == "1 passed in 0.00s"


# Blocks that do not run -------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {block.kind for page in PAGES for block in blocks(page.read_text())}
    assert kinds == {"python", "text", "console", "sh", "yaml", "mermaid"}
    for page in PAGES:
        found = blocks(page.read_text())
        assert len(found) == page.read_text().count("```") / 2, f"{page.name} has a block without a kind"
        for before, block in zip([None, *found], found, strict=False):
            assert block.kind != "text" or (before is not None and before.is_snippet), block.text


def test_quoted_examples_are_the_examples():
    quoted = [block for page in PAGES for block in blocks(page.read_text()) if block.is_quoted]
    assert quoted
    for block in quoted:
        name, _, body = block.text.removeprefix("# from ").partition("\n")
        assert body in (ROOT / name).read_text()


def shell_commands(page: Path) -> list[str]:
    return [
        line for block in blocks(page.read_text()) if block.kind == "sh" for line in block.text.splitlines()
    ]


def test_commands_to_check_a_change_are_those_of_ci():
    """.ci/run also runs the README's command of the tests; tests/test_examples.py runs the examples."""
    ci = (ROOT / ".ci" / "run").read_text().replace('"$venv/bin/', "").replace('"', "")
    checks = [
        line.removeprefix(".venv/bin/")
        for line in shell_commands(CONTRIBUTING)
        if re.match(r"\.venv/bin/(ruff|mypy)", line)
    ]
    assert len(checks) == 3
    assert [check for check in checks if f"\n{check}" not in ci] == []
    tests = [line for line in shell_commands(README) if re.match(r"python3 -m venv .*\[test\]", line)]
    assert len(tests) == 1
    extras = re.search(r"optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert extras is not None
    for page in PAGES:
        for line in shell_commands(page):
            for extra in re.findall(r'-e "\.\[(\w+)\]"', line):
                assert f"\n{extra} = " in extras[1]
    assert ".venv/bin/python -m tests.test_docs" in shell_commands(CONTRIBUTING)


def test_the_workflow_for_ci_runs(run_inside, pytester):
    yaml = pytest.importorskip("yaml")
    (text,) = [block.text for block in blocks(README.read_text()) if block.kind == "yaml"]
    workflow = yaml.safe_load(text)
    assert workflow.keys() == {True, "jobs"}  # YAML 1.1 reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"
    assert all(step.keys() & {"uses", "run"} for step in job["steps"])
    *installs, command = [step["run"] for step in job["steps"] if "run" in step]
    assert all(install.startswith("pip install ") for install in installs)
    assert "path/to/pytest-flops" in installs[-1]
    tool, *options = command.split()
    assert tool == "pytest"
    body = "def test_net(flops):\n    flops(Net(), x())"
    run_inside(body, "--flops-update").assert_outcomes(passed=1)
    run_inside(None, *options).assert_outcomes(passed=1)
    run_inside(body.replace("Net()", "Net((4, 5))"), *options).assert_outcomes(failed=1)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = BLOCK.sub("", page.read_text())
    named = re.findall(r"`((?:pytest_flops|tests|examples|docs)/[\w./]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 260


# Tables -----------------------------------------------------------------------------------------------------


def rows(header: str, text: str | None = None) -> list[list[str]]:
    """Return the cells of the table whose header row starts so, in the README or another text."""
    lines = (text if text is not None else README.read_text()).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {header}"))
    body = [*lines[start + 2 :], ""]
    end = next(index for index, line in enumerate(body) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body[:end]]


def example_rows() -> list[list[str]]:
    """Return the rows of the table of example models, from the committed baselines."""
    found = []
    for path in sorted((ROOT / "examples" / "flops_baselines").rglob("*.json")):
        models = json.loads(path.read_text())["models"]
        test = re.sub(r".*\[(.*)\]", r"\1", path.stem.removeprefix("test_"))
        for name, model in models.items():
            label = f"{test}, {name}" if len(models) > 1 else test
            inputs = ", ".join(text for text in model["inputs"] if "[" in text)
            whole = model["modules"][""]
            totals = [f"{whole[metric]:,}" for metric in ("flops", "macs", "params")]
            moved, peak = size(whole["memory_traffic"]), size(model["peak_memory"]["bytes"])
            found.append([label, f"`{inputs}`", *totals, moved, peak])
    return found


def test_the_example_table_shows_the_committed_baselines():
    assert rows("model | inputs") == example_rows()


def test_published_numbers_are_those_of_the_baselines():
    counts = {row[0]: row[2] for row in example_rows()}
    text = (DOCS / "counting.md").read_text()
    for model, seeds, difference in (
        ("resnet50", 8_227_340_288, 1_204_224),
        ("vit_base_patch16_224, unfused attention", 35_164_979_282, -2),
    ):
        assert counts[model] == f"{seeds + difference:,}"
        sign = "+" if difference > 0 else "−"
        assert f"{counts[model]} is its {seeds:,} {sign} {abs(difference):,}" in text


def test_the_tables_list_every_keyword_and_option():
    keywords = [name for row in rows("keyword of") for name in re.findall(r"`(\w+)`", row[0])]
    shown = bash("pytest --markers", ROOT).stdout
    signature = re.search(r"@pytest.mark.flops_budget\((.*?)\):", shown)
    assert signature is not None
    assert keywords == re.findall(r"(\w+)=", signature[1])
    assert METRICS.keys() <= set(keywords)
    shown = bash("pytest --help", ROOT).stdout
    options = re.findall(r"^\s+(--flops-[a-z]+)", shown, re.MULTILINE)
    assert [re.findall(r"--flops-[a-z]+", row[0])[0] for row in rows("option |")] == options
    settings = re.findall(r"^\s+(flops_\w+) \(", shown, re.MULTILINE)
    assert [re.findall(r"flops_\w+", row[1])[0] for row in rows("option |")] == settings
    modes = [row[0].strip("`").partition("=")[2] for row in rows("option | writes", usage())]
    assert [f"--flops-update={mode}" for mode in modes if mode] == re.findall(
        r"--flops-update=(?:new|changed)", re.sub(r"\s+", " ", shown)
    )


def usage() -> str:
    return (DOCS / "usage.md").read_text()


def test_the_table_of_the_fixture_lists_every_call():
    shown = [re.match(r"`flops(?:\.(\w+))?\(", row[0]) for row in rows("call | does")]
    assert [match and match[1] for match in shown] == [None, "named", "count"]
    assert {name for name in vars(pytest_flops.Flops) if not name.startswith("_")} == {"named", "count"}


# What the pages say of the code -----------------------------------------------------------------------------


def arrows_of(picture: str) -> set[tuple[str, str]]:
    """Return the arrows of a Mermaid graph: `a --> b & c` is two."""
    lines = re.findall(r"^\s*(\w+) --> (.+)$", picture, re.MULTILINE)
    return {(start, end) for start, ends in lines for end in ends.split(" & ")}


def test_the_picture_shows_the_arrows_of_the_house():
    (picture,) = [b.text for b in blocks((DOCS / "architecture.md").read_text()) if b.kind == "mermaid"]
    expected = {(room, target) for room, targets in ARROWS.items() for target in targets}
    # All rooms import these, or may: two arrows show that they lie below.
    expected |= {("formulas", "metrics"), ("results", "metrics"), ("metrics", "units"), ("units", "errors")}
    assert arrows_of(picture) == expected
    assert set(re.findall(r"^\s*(\w+)\[", picture, re.MULTILINE)) == {
        end for arrow in expected for end in arrow
    }


def test_the_layout_names_every_room():
    text = " ".join(row[0] for row in rows("in `pytest_flops/`", CONTRIBUTING.read_text()))
    shown = {name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([\w./]+)`", text)}
    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert shown == found - {"__init__", "__pycache__"}


def test_the_glossary_has_ten_words_of_the_code():
    words = [row[0] for row in rows("word | means", (DOCS / "architecture.md").read_text())]
    code = "\n".join(path.read_text().lower() for path in PACKAGE.rglob("*.py"))
    assert len(words) == 10
    assert [word for word in words if not re.search(rf"\b{re.escape(word)}", code)] == []


def test_the_convention_is_the_docstring_of_the_formulas():
    def words(text: str) -> str:
        return " ".join(re.sub(r"^-+$|[*#]", "", text, flags=re.MULTILINE).split())

    docstring = ast.get_docstring(ast.parse((PACKAGE / "formulas" / "__init__.py").read_text()))
    assert docstring is not None
    _, _, convention = docstring.partition("-------------------\n")
    assert words(convention) in words((DOCS / "counting.md").read_text())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("FORMULAS_VERSION", "pytest_flops/formulas/__init__.py"),
        ("CASES", "tests/formulas/test_closed_forms.py"),
        ("nms", "pytest_flops/formulas/vision.py"),
        ("norm", "pytest_flops/formulas/normalization.py"),
        ("Cost", "pytest_flops/metrics.py"),
        ("METRICS", "pytest_flops/metrics.py"),
        ("_Costed", "pytest_flops/results/report.py"),
        ("ShapeMode._add", "pytest_flops/counting/shapes.py"),
    ],
)
def test_what_contributors_are_to_change_is_there(name, file):
    text = CONTRIBUTING.read_text()
    assert f"`{name}`" in text
    assert file in text or f"`{Path(file).name}`" in text
    for part in name.split("."):
        assert re.search(rf"^\s*(class |def )?{part}\b", (ROOT / file).read_text(), re.MULTILINE)


def plain_signature(function: Callable[..., Any]) -> str:
    """Return a signature as the pages show it: without types, and without `self` or `cls`."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def attributes(cls: type) -> Iterator[str]:
    """Yield the public attributes that a class of ours has, methods with their signatures."""
    for base in cls.__mro__:
        if base.__module__.startswith("pytest_flops"):
            for name, value in inspect.getmembers(base):
                is_own = name in vars(base) or name in getattr(base, "__dataclass_fields__", ())
                if is_own and not name.startswith("_"):
                    is_method = inspect.isfunction(value) or inspect.ismethod(value)
                    yield f"{name}{plain_signature(value)}" if is_method else name


def described(name: str) -> str:
    """Return what the API page says of a name: the text under its heading, or its row of the errors."""
    text = (DOCS / "api.md").read_text()
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is not None:
        return found[1]
    cells = [cell for row in rows("name | is raised for", text) for cell in row]
    return cells[cells.index(f"`{name}`") + 1] if f"`{name}`" in cells else ""


@pytest.mark.parametrize("name", sorted({*pytest_flops.__all__} - {"__version__"}))
def test_the_api_page_has_every_name(name):
    value = getattr(pytest_flops, name)
    text = described(name)
    assert text
    if inspect.isfunction(value):
        assert f"`{name}{plain_signature(value)}`" in text
    elif isinstance(value, type) and not issubclass(value, Exception):
        assert [attribute for attribute in attributes(value) if f"`{attribute}`" not in text] == []


def test_the_api_page_has_no_other_name():
    text = (DOCS / "api.md").read_text()
    names = re.findall(r"^### (.+)", text, re.MULTILINE)
    names += [row[0].strip("`") for row in rows("name | is raised for", text)]
    assert sorted([*names, "__version__"]) == sorted(pytest_flops.__all__)
    assert "`__version__`" in section(DOCS / "api.md", "Version")


def test_help_on_registering_a_formula_has_an_example_that_runs(tmp_path):
    docstring = inspect.getdoc(register_flop_formula)
    assert docstring is not None
    assert "`formula(*args, out=result, **kwargs)`" in docstring
    (example,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", f"{docstring}\n")
    assert "@register_flop_formula(" in example
    custom = next(
        b.text for b in blocks(section(DOCS / "counting.md", "Custom operators")) if b.file == "mylib.py"
    )
    (tmp_path / "mylib.py").write_text(custom)
    (tmp_path / "example.py").write_text(
        f"import torch\nimport mylib\nfrom pytest_flops import trace\n\n{inspect.cleandoc(example)}\n"
        "print(trace(mylib.distances, (torch.zeros(5, 3), torch.zeros(7, 3))).flops)\n"
    )
    assert bash("python example.py", tmp_path).stdout == f"{5 * 7 * 9}\n"


# What the text says about merges and limits -----------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def test_net(flops):
    model = nn.Sequential(nn.Linear(3, {first}), nn.Linear({first}, 4), nn.Linear(4, {last}))
    flops(model, torch.zeros(2, 3))
"""


@pytest.mark.skipif(shutil.which("git") is None, reason="merges with git")
def test_a_merge_of_two_changes(pytester):
    def commit(branch: str, **widths: int) -> None:
        (pytester.path / "test_net.py").write_text(MODEL.format(**widths))
        assert pytester.runpytest_inprocess("--flops-update").ret == 0
        git(f"checkout -q -B {branch} && git add test_net.py flops_baselines && git commit -qm {branch}")

    def git(arguments: str) -> subprocess.CompletedProcess[str]:
        return bash(f"git {arguments}", pytester.path)

    git("init -q && git config user.name me && git config user.email me@example.com")
    commit("main", first=5, last=6)
    commit("wider", first=7, last=6)
    git("checkout -q main")
    commit("main", first=5, last=8)
    merge = git("merge wider")
    assert "CONFLICT (content): Merge conflict in flops_baselines/test_net/test_net.json" in merge.stdout

    (pytester.path / "test_net.py").write_text(MODEL.format(first=7, last=8))
    for arguments in ([], ["--flops-update"]):
        result = pytester.runpytest_inprocess(*arguments)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*test_net.json has a merge conflict in line *"])
    checkout, update = shell_commands(DOCS / "usage.md")
    assert (checkout, update) == ("git checkout --theirs flops_baselines", "pytest --flops-update")
    bash(checkout, pytester.path)
    pytester.runpytest_inprocess().assert_outcomes(failed=1)
    pytester.runpytest_inprocess("--flops-update").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_limits():
    import torch
    from torch import nn

    from pytest_flops import trace

    class Caching(nn.Module):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = torch.arange(6.0).exp()
            return x * self.table

    x, layer = torch.zeros(2, 6), nn.Linear(6, 6)
    shared = nn.ModuleDict({"first": layer, "second": layer})

    def both(x):
        return shared.second(shared.first(x))

    shared.forward = both
    report = trace(shared, (x,))
    assert report.flops == 2 * trace(layer, (x,)).flops == report.modules["first"].flops
    assert "second" not in report.modules

    model = Caching()
    assert trace(model, (x,)).flops == trace(model, (x,)).flops == 6 + 12
    model(x)
    assert trace(model, (x,)).flops == 12

    class WithFunctools(Caching):
        @functools.cache  # noqa: B019
        def computed(self):
            return torch.arange(6.0).exp()

        def forward(self, x):
            return x * self.computed()

    model = WithFunctools()
    model(x)
    assert trace(model, (x,)).flops == 6 + 12

    nets, hidden = [layer], weakref.proxy(layer)
    assert trace(lambda x: nets[0](x), (x,)).params == 42
    assert trace(lambda x: hidden(x), (x,)).params == 0


def refreshed(page: Path, folder: Path) -> str:
    """Return a page with the real outputs, and the README with the real table of examples."""
    text = page.read_text()
    for story in reversed([found for found in sections(page) if found.runs]):
        own = folder / f"{page.stem}-{story.start}"
        own.mkdir()
        bash("git init -q", own)
        for block, real in reversed(list(run(story.text, own))):
            if normalised(block.text) == normalised(real):
                continue  # only the times differ
            start, end = story.start + block.start, story.start + block.end
            text = text[:start] + real.rstrip() + "\n" + text[end:]
    table = "".join(f"| {' | '.join(row)} |\n" for row in example_rows())
    return re.sub(r"(?<=\|---\|---\|--:\|--:\|--:\|--:\|--:\|\n)(\|.*\n)*", lambda _: table, text)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        for page in [Path(name).absolute() for name in sys.argv[1:]] or PAGES:
            page.write_text(refreshed(page, Path(scratch)))
