"""The README, run: every block of code, and what it is said to print.

`python tests/test_readme.py` writes what the blocks really print into the README.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_flops.units import size
from tests.runs import load_torch

load_torch()

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The rule for comparing: these lines of pytest's are left out; times and the version of torch may differ.
HEADER = re.compile(r"^(platform|rootdir|configfile|plugins|cachedir|hypothesis profile)\b.*\n", re.MULTILINE)
TIME = re.compile(r"^(=*) ?(.* in )\d+\.\d\ds(?: \(\d+:\d\d:\d\d\))?(?: =+)?$", re.MULTILINE)

TORCH = re.compile(r'"torch": "[^"]+"')


@dataclass(frozen=True)
class Block:
    """A fenced block of the README, and where it stands."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]


def blocks(readme: str) -> list[Block]:
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in BLOCK.finditer(readme)]


def normalised(output: str) -> str:
    text = TIME.sub(lambda m: f"{'=' * 8 if m[1] else ''}{m[2]}0.00s", HEADER.sub("", output))
    text = TORCH.sub('"torch": "..."', text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this checkout and the tools of this environment only."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=kept | {"PATH": path, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def commands(console: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that follows it."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run(readme: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run all blocks in order in a folder, and yield each that shows output with what it really prints."""
    found = blocks(readme)
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.kind == "console":
            shown = [(f"$ {command}\n", bash(command, folder).stdout) for command, _ in commands(block.text)]
            yield block, "".join(command + _without_header(output) for command, output in shown)
        elif block.kind == "python" and block.first_line.startswith("# from "):
            continue
        elif block.kind == "python" and re.fullmatch(r"# \w+\.py", block.first_line):
            (folder / block.first_line[2:]).write_text(block.text)
        elif block.kind == "python":
            (folder / "snippet.py").write_text(block.text)
            done = bash("python snippet.py", folder)
            assert done.returncode == 0, done.stdout
            if following is not None and following.kind == "text":
                yield following, done.stdout
            else:
                assert done.stdout == ""


def _without_header(output: str) -> str:
    return HEADER.sub("", output)


def wrong(readme: str, folder: Path) -> list[tuple[str, str]]:
    """Return (shown, real) for every block whose output is not the real one."""
    pairs = [(normalised(block.text), normalised(real)) for block, real in run(readme, folder)]
    return [(shown, real) for shown, real in pairs if shown != real]


def test_every_block_prints_what_it_shows(tmp_path):
    assert wrong(README.read_text(), tmp_path) == []


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
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        wrong("```python\n1 / 0\n```\n", tmp_path)


def test_only_times_and_header_lines_are_not_compared():
    real = "collected 1 item\nplatform linux\nrootdir: /x\n===== 1 passed in 61.07s (0:01:01) ====="
    assert normalised(real) == normalised("collected 1 item\n== 1 passed in 0.31s ==")
    assert normalised(real) != normalised("collected 1 item\n== 2 passed in 0.31s ==")
    assert normalised("1 passed in 0.01s") == "1 passed in 0.00s"


def test_every_block_is_of_a_kind_that_is_checked():
    assert {block.kind for block in blocks(README.read_text())} == {"python", "text", "console", "sh"}


def test_quoted_examples_are_the_examples():
    quoted = [block for block in blocks(README.read_text()) if block.first_line.startswith("# from ")]
    assert quoted
    for block in quoted:
        name, _, body = block.text.removeprefix("# from ").partition("\n")
        assert body in (ROOT / name).read_text()


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table of the README whose header row starts so."""
    lines = README.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {header}"))
    body = lines[start + 2 :]
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
            totals = [f"{model['totals'][metric]:,}" for metric in ("flops", "macs", "params")]
            found.append([label, f"`{inputs}`", *totals, size(model["totals"]["peak_memory"])])
    return found


def test_the_example_table_shows_the_committed_baselines():
    assert rows("model | inputs") == example_rows()


def test_published_numbers_are_those_of_the_baselines():
    counts = {row[0]: row[2] for row in example_rows()}
    text = README.read_text()
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
    shown = bash("pytest --help", ROOT).stdout
    options = re.findall(r"^\s+(--flops-[a-z]+)", shown, re.MULTILINE)
    assert [re.findall(r"--flops-[a-z]+", row[0])[0] for row in rows("option |")] == options
    settings = re.findall(r"^\s+(flops_\w+) \(", shown, re.MULTILINE)
    assert [re.findall(r"flops_\w+", row[1])[0] for row in rows("option |")] == settings


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
    git("checkout --theirs flops_baselines")
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


def refreshed(readme: str, folder: Path) -> str:
    """Return the README with the real outputs and the real table of examples."""
    for block, real in reversed(list(run(readme, folder))):
        readme = readme[: block.start] + real.rstrip() + "\n" + readme[block.end :]
    table = "".join(f"| {' | '.join(row)} |\n" for row in example_rows())
    return re.sub(r"(?<=\|---\|---\|--:\|--:\|--:\|--:\|\n)(\|.*\n)*", lambda _: table, readme)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        README.write_text(refreshed(README.read_text(), Path(scratch)))
