"""The files: names good everywhere, bytes that only move when a number does, and no trust in a bad one."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_flops.budgets import entries, paths
from pytest_flops.budgets.baseline import Function, Module, snapshot
from pytest_flops.budgets.paths import baseline_path, portable
from pytest_flops.budgets.store import Place, load, owner, parse, save
from pytest_flops.errors import BaselineError
from pytest_flops.results.measured import Latency
from tests.fakes import leaf_report, make_report, node, with_costs

TEST = "test_net.py::test_net"
RESTORE = "Restore it from version control, or delete it and run the test with --flops-update."


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "flops_baselines" / "test_net" / "test_net.json", "net.json", TEST)


@pytest.fixture
def saved(place: Place) -> dict[str, Any]:
    """A good file, as data to spoil."""
    save(place, {"Net": snapshot(make_report())})
    return json.loads(place.path.read_text())


@pytest.fixture
def older() -> dict[str, Any]:
    """A good file of an older format, likewise."""
    return json.loads(FORMAT_2)


def test_file_is_written_for_people_and_diffs(place):
    save(place, {"Net": snapshot(make_report(peak_owners={"body.down": 1024, "body.up": 1024}))})
    assert (
        place.path.read_bytes().decode()
        == """\
{
  "format": 3,
  "models": {
    "Net": {
      "digest": "45c7ef3436f5",
      "formulas": 1,
      "torch": "2.15.0",
      "mode": "eval",
      "inputs": [
        "x: float32[2, 3]"
      ],
      "modules": {
        "": {"type": "Net", "flops": 106, "macs": 50, "params": 50, "parameter_memory": 200, \
"memory_traffic": 1096, "ops": 3},
        "body": {"type": "Body", "flops": 106, "macs": 50, "memory_traffic": 1096, "ops": 3},
        "body.up": {"type": "Linear", "flops": 40, "macs": 20, "memory_traffic": 400, "ops": 1},
        "body.down": {"type": "Linear", "flops": 60, "macs": 30, "memory_traffic": 600, "ops": 1}
      },
      "functions": {
        "body": {"add": {"flops": 6, "memory_traffic": 96, "ops": 1}}
      },
      "peak_memory": {
        "bytes": 2048,
        "node": "body_down",
        "owners": {"body.up": 1024, "body.down": 1024}
      }
    }
  },
  "test": "test_net.py::test_net"
}
"""
    )


def test_load_returns_what_was_saved(place):
    models = {"Net": snapshot(make_report()), "Größe 'x'": snapshot(make_report(params=51))}
    save(place, models)
    assert load(place) == models


def test_absent_file_holds_no_models(place):
    assert load(place) == {}


def test_function_of_the_model_itself_and_of_a_module_with_a_space_survive(place):
    nodes = (
        node("mul_1", "call_function", "mul", "", "Net", 5, 0),
        node("add", "call_method", "add", "my layer", "Odd", 7, 0),
    )
    now = snapshot(make_report(nodes=nodes, module_types={"": "Net", "my layer": "Odd"}))
    assert now.functions == {Function("", "mul"): {"flops": 5}, Function("my layer", "add"): {"flops": 7}}
    save(place, {"Net": now})
    assert load(place) == {"Net": now}


def flops(baseline):
    return {path: module.costs.get("flops", 0) for path, module in baseline.modules.items()}


def test_modules_inside_a_leaf_are_kept_and_what_costs_nothing_is_not(place):
    now = snapshot(leaf_report(up=20, down=30, drop=0))
    assert flops(now) == {"": 67, "encoder": 67, "encoder.layer": 7, "encoder.up": 20, "encoder.down": 30}
    assert now.functions == {}
    save(place, {"Net": now})
    assert load(place) == {"Net": now}


def test_layers_that_are_equal_share_their_lines_and_idle_ones_keep_their_places(place):
    kinds = ["Linear", "Linear", "Identity", "Linear", "Linear"]
    nodes = [
        node(f"seq_{i}", "call_module", f"seq.{i}", f"seq.{i}", kind, 5)
        for i, kind in enumerate(kinds)
        if kind == "Linear"
    ]
    types = {"": "Net", "seq": "Sequential"} | {f"seq.{i}": kind for i, kind in enumerate(kinds)}
    now = snapshot(make_report(nodes=tuple(nodes), module_types=types))
    assert now.modules["seq.2"] == Module("Identity", {})
    save(place, {"Net": now})
    lines = [line.strip() for line in place.path.read_text().splitlines()]
    assert '"seq.[0-1]": {"type": "Linear", "flops": 5},' in lines
    assert '"seq.2": {"type": "Identity"},' in lines
    assert '"seq.[3-4]": {"type": "Linear", "flops": 5}' in lines
    assert load(place) == {"Net": now}


def test_another_build_of_torch_is_the_same_torch():
    assert snapshot(make_report(torch="2.15.0+cu128")) == snapshot(make_report(torch="2.15.0+cpu"))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"torch": "2.16.0"}, True),
        ({"formulas": 2}, False),
        ({"mode": "train"}, False),
        ({"inputs": ("x: float32[2, 4]",)}, False),
        ({"params": 51}, False),
    ],
)
def test_only_the_version_of_torch_does_not_matter(changes, same):
    assert snapshot(make_report()).same_cost(snapshot(make_report(**changes))) is same


def test_cost_in_another_place_matters():
    moved = with_costs(make_report(), {"body_up": 41, "body_down": 59})
    assert not snapshot(make_report()).same_cost(snapshot(moved))


# Measured ---------------------------------------------------------------------------------------------------

EPYC = {"latency": Latency(2.314, 41.23, 0.021, 120, 1)}
H100 = {"latency": Latency(0.5, 1.25, 0.0, 300, 1), "cuda_memory": 12_845_056}


def test_what_was_measured_is_kept_by_machine_in_few_digits(place):
    models = {"Net": replace(snapshot(make_report()), measured={"NVIDIA H100": H100, "AMD EPYC": EPYC})}
    save(place, models)
    assert load(place) == models
    assert """\
      "measured": {
        "AMD EPYC": {
          "latency": {"ratio": 2.314, "median_ms": 41.23, "spread": 0.021, "samples": 120, "reference": 1}
        },
        "NVIDIA H100": {
          "latency": {"ratio": 0.5, "median_ms": 1.25, "spread": 0.0, "samples": 300, "reference": 1},
          "cuda_memory": 12845056
        }
""" in place.path.read_text()


def test_what_was_measured_is_no_count():
    counted = snapshot(make_report())
    assert counted.same_cost(replace(counted, measured={"AMD EPYC": EPYC}))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("M/latency/ratio", -1.0, "has -1.0 at {m}.latency.ratio, where a number above 0 belongs."),
        ("M/latency/ratio", 0, "has 0 at {m}.latency.ratio, where a number above 0 belongs."),
        ("M/latency/ratio", True, "has true at {m}.latency.ratio, where a number above 0 belongs."),
        ("M/latency/ratio", "2", 'has "2" at {m}.latency.ratio, where a number above 0 belongs.'),
        ("M/latency/median_ms", 0.0, "has 0.0 at {m}.latency.median_ms, where a number above 0 belongs."),
        ("M/latency/spread", -0.1, "has -0.1 at {m}.latency.spread, where a number of at least 0 belongs."),
        ("M/latency/samples", 1.5, "has 1.5 at {m}.latency.samples, where an integer of at least 0 belongs."),
        (
            "M/latency/reference",
            "1",
            'has "1" at {m}.latency.reference, where an integer of at least 0 belongs.',
        ),
        ("M/latency/watts", 1, 'has the unknown key "models.Net.measured["M"].latency.watts".'),
        ("M/latency", {}, 'lacks "models.Net.measured["M"].latency.ratio".'),
        ("M/latency", None, "has null at {m}.latency, where an object belongs."),
        ("M/cuda_memory", 1.5, "has 1.5 at {m}.cuda_memory, where an integer of at least 0 belongs."),
        ("M/watts", 1, 'has the unknown key "models.Net.measured["M"].watts".'),
        ("M", {}, "has {{}} at {m}, where a latency or cuda_memory belongs."),
        ("M", 3, "has 3 at {m}, where an object belongs."),
    ],
)
def test_wrong_measured_entry_is_refused(place, keys, value, message):
    save(place, {"Net": replace(snapshot(make_report()), measured={"M": EPYC})})
    data = json.loads(place.path.read_text())
    spoil(data, f"models/Net/measured/{keys}", value)
    place.path.write_text(json.dumps(data))
    where = 'models.Net.measured["M"]'
    assert refusal(place) == f"net.json {message.format(m=where)} {RESTORE}"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("NaN", "holds NaN where a number belongs."),
        ("-Infinity", "holds -Infinity where a number belongs."),
        ("1e999", 'has Infinity at models.Net.measured["M"].latency.ratio, where a number above 0 belongs.'),
    ],
)
def test_ratio_that_is_no_number_is_refused(place, number, message):
    save(place, {"Net": replace(snapshot(make_report()), measured={"M": EPYC})})
    place.path.write_text(place.path.read_text().replace("2.314", number))
    assert refusal(place) == f"net.json {message} {RESTORE}"


# Older formats ----------------------------------------------------------------------------------------------

FORMAT_1 = """{
  "format": 1,
  "models": {
    "Net": {
      "formulas": 1,
      "functions": {
        "body add": 6
      },
      "inputs": [
        "x: float32[2, 3]"
      ],
      "mode": "eval",
      "modules": {
        "": 106,
        "body": 106,
        "body.down": 60,
        "body.up": 40
      },
      "torch": "2.15.0",
      "totals": {
        "flops": 106,
        "macs": 50,
        "params": 50
      }
    }
  },
  "test": "test_net.py::test_net"
}
"""
"""As the first release candidate wrote it."""


FORMAT_2 = FORMAT_1.replace('"format": 1', '"format": 2').replace(
    '"params": 50', '"params": 50,\n        "peak_memory": 2048'
)


@pytest.mark.parametrize(("text", "peak"), [(FORMAT_1, {}), (FORMAT_2, {"peak_memory": 2048})])
def test_older_formats_are_read_with_what_they_have(place, text, peak):
    place.path.parent.mkdir(parents=True)
    place.path.write_text(text)
    was = load(place)["Net"]
    assert was.totals == {"flops": 106, "macs": 50, "params": 50} | peak
    assert flops(was) == {"": 106, "body": 106, "body.down": 60, "body.up": 40}
    assert was.functions == {Function("body", "add"): {"flops": 6}}
    assert (was.metrics, was.has_types, was.peak.owners) == ({"flops"}, False, {})
    save(place, {"Net": was})
    assert json.loads(place.path.read_text())["format"] == 3
    again = load(place)["Net"]
    assert again == was


def test_what_format_2_called_the_work_of_a_leaf_is_no_function(place):
    place.path.parent.mkdir(parents=True)
    text = FORMAT_2.replace('"body add": 6', '"body forward": 6')
    place.path.write_text(text)
    assert load(place)["Net"].functions == {}


def test_baselines_are_parsed_from_text_alone():
    assert parse(FORMAT_1, TEST)["Net"].totals["flops"] == 106
    with pytest.raises(BaselineError, match=r"^net.json at HEAD~1 is empty\."):
        parse("", TEST, "net.json at HEAD~1")


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_net", "test_net[resnet50]", "test_net[a-1.5]", "test-x.y"])
def test_portable_names_stay_as_they_are(name):
    assert portable(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_net[a/b]", "test_net[a-b]-"),
        ("test_net[a b]", "test_net[a-b]-"),
        ("test_net[größe]", "test_net[gr-e]-"),
        ("TestNet::test_a", "TestNet.test_a-"),
        ("x" * 300, "x" * 80 + "-"),
        ("con", "_con-"),
        ("NUL.x", "_NUL.x-"),
        ("lpt1", "_lpt1-"),
        ("ends.", "ends-"),
        (".hidden", "hidden-"),
        ("test_a-0123abcd", "test_a-0123abcd-"),
        ("日本", "--"),
    ],
)
def test_lossy_names_end_in_a_hash(name, expected):
    found = portable(name)
    assert found.startswith(expected)
    assert paths._LOOKS_HASHED.fullmatch(found)
    assert found.isascii()
    assert len(found) <= 90


def test_names_differ_where_ids_do_also_without_regard_to_case():
    ids = [
        "test[a/b]",
        "test[a-b]",
        "test[a b]",
        "test[A-b]",
        "test[a_b]",
        "test[a::b]",
        "test[a.b]",
        "test[é]",
    ]
    ids += [
        "test[è]",
        "x" * 300,
        "x" * 299,
        "x" * 300 + "y",
        "test",
        "Test",
        "TEST",
        "aux",
        "AUX",
        "test[a-b].",
        "",
    ]
    assert len({portable(test).lower() for test in ids}) == len(ids)
    assert len({portable(portable(test)) for test in ids if portable(test) != test}) == len(
        [test for test in ids if portable(test) != test]
    )


def test_a_hashed_name_is_nobody_elses_plain_name():
    lossy = portable("test[a/b]")
    assert portable(lossy) != lossy


def test_path_is_beside_the_test_file():
    path = baseline_path(Path("/repo/tests/test_net.py"), "test_net.py::test_a[x::y]")
    assert path.parent == Path("/repo/tests/flops_baselines/test_net")
    assert path.name.startswith("test_a[x.y]-")


# Loading ----------------------------------------------------------------------------------------------------


def refusal(place: Place) -> str:
    with pytest.raises(BaselineError) as caught:
        load(place)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"is empty. {RESTORE}"),
        (b" \n", f"is empty. {RESTORE}"),
        (b"\xff\xfe{", f"is not UTF-8 text (byte 0). {RESTORE}"),
        (
            b"{]",
            "is not valid JSON (line 1, column 2: Expecting property name enclosed in double quotes). "
            + RESTORE,
        ),
        (b'{\n "format": 2,', f"ends too early, in line 2. {RESTORE}"),
        (b'{"format": 2, "te', f"ends too early, in line 1. {RESTORE}"),
        (b"[" * 100_000, f"is not valid JSON. {RESTORE}"),
        (b'{"format": ' + b"1" * 5000 + b"}", f"is not valid JSON. {RESTORE}"),
        (b"[]", f"is not a baseline: a JSON object belongs there. {RESTORE}"),
        (b"{}", f"does not say that it has format 3. {RESTORE}"),
        (b'{"format": true}', f"does not say that it has format 3. {RESTORE}"),
        (b'{"format": 1}', f'lacks "test". {RESTORE}'),
        (b'{"format": 4}', "has format 4; this version of pytest-flops reads 3. Upgrade pytest-flops."),
        (
            b'{"format": 2, "test": "test_net.py::test_net", "models": {"Net": {"formulas": 1, "torch": "2", '
            b'"mode": "eval", "inputs": [], "functions": {}, "modules": {"": 1}, '
            b'"totals": {"flops": 1, "macs": 0, "params": 0, "watts": 3}}}}',
            'has the unknown total "models.Net.totals.watts": it was written by a newer pytest-flops. '
            "Upgrade pytest-flops.",
        ),
        (b'{"format": 0}', f"does not say that it has format 3. {RESTORE}"),
        (b'{"format": 2, "format": 2}', f'has the key "format" twice. {RESTORE}'),
        (b'{"format": NaN}', f"holds NaN where a number belongs. {RESTORE}"),
        (
            b'{\n<<<<<<< HEAD\n "format": 2\n=======\n "format": 2\n>>>>>>> other\n}',
            "has a merge conflict in line 2. "
            "Keep either side of the whole file (git checkout --ours or --theirs), "
            "then run the test with --flops-update.",
        ),
    ],
)
def test_unreadable_file_is_refused(place, content, message):
    place.path.parent.mkdir(parents=True)
    place.path.write_bytes(content)
    assert refusal(place) == f"net.json {message}"


def spoil(data: dict[str, Any], keys: str, value: Any) -> None:
    *path, last = keys.split("/")
    for key in path:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (
            "models/Net/totals/flops",
            -1,
            'has -1 at models.Net.totals["flops"], where an integer of at least 0 belongs.',
        ),
        (
            "models/Net/totals/macs",
            True,
            'has true at models.Net.totals["macs"], where an integer of at least 0 belongs.',
        ),
        (
            "models/Net/totals/params",
            5.0,
            'has 5.0 at models.Net.totals["params"], where an integer of at least 0 belongs.',
        ),
        (
            "models/Net/modules/body",
            "106",
            'has "106" at models.Net.modules["body"], where an integer of at least 0 belongs.',
        ),
        (
            "models/Net/formulas",
            None,
            "has null at models.Net.formulas, where an integer of at least 0 belongs.",
        ),
        ("models/Net/inputs", "x", 'has "x" at models.Net.inputs, where a list belongs.'),
        ("models/Net/inputs", [1], "has 1 at models.Net.inputs[0], where text belongs."),
        ("models/Net/mode", 1, "has 1 at models.Net.mode, where text belongs."),
        ("models", [], "has [] at models, where an object belongs."),
        ("notes", "hi", 'has the unknown key "notes".'),
        ("models/Net/totals", {"flops": 106, "macs": 50}, 'lacks "models.Net.totals.params".'),
        (
            "models/Net/totals/flops",
            107,
            "does not add up: models.Net.totals.flops is 107, the model's entry in modules is 106.",
        ),
        (
            "models/Net/modules/body.up",
            41,
            'does not add up: models.Net.modules["body"] is 106, its parts sum to 107.',
        ),
        (
            "models/Net/functions/body add",
            5,
            'does not add up: models.Net.modules["body"] is 106, its parts sum to 105.',
        ),
        (
            "models/Net/functions/lost add",
            5,
            'does not add up: models.Net.modules["lost"] is 0, its parts sum to 5.',
        ),
        (
            "models/Net/modules/lost.x",
            5,
            'does not add up: models.Net.modules[""] is 106, its parts sum to 111.',
        ),
    ],
)
def test_older_file_with_a_wrong_entry_is_refused(place, older, keys, value, message):
    spoil(older, keys, value)
    place.path.parent.mkdir(parents=True)
    place.path.write_text(json.dumps(older))
    assert refusal(place) == f"net.json {message} {RESTORE}"


HAND = (
    f'was changed by hand, or by a merge, in "models.Net": its digest says that no run wrote this. {RESTORE}'
)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("models/Net/modules/body.up/flops", 41, HAND),
        ("models/Net/modules/body.up/type", "Conv2d", HAND),
        ("models/Net/functions/body/add/ops", 2, HAND),
        ("models/Net/peak_memory/bytes", 2047, HAND),
        ("models/Net/peak_memory/node", "add", HAND),
        ("models/Net/mode", "train", HAND),
        ("models/Net/inputs", [], HAND),
        ("models/Net/formulas", 2, HAND),
        ("models/Net/digest", "0123456789ab", HAND),
        ("models/Net/notes", "hi", f'has the unknown key "models.Net.notes". {RESTORE}'),
        ("models", [], f"has [] at models, where an object belongs. {RESTORE}"),
        ("notes", "hi", f'has the unknown key "notes". {RESTORE}'),
    ],
)
def test_file_with_a_wrong_entry_is_refused(place, saved, keys, value, message):
    spoil(saved, keys, value)
    place.path.write_text(json.dumps(saved))
    assert refusal(place) == f"net.json {message}"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("modules/body.up/flops", -1, 'has -1 at models.Net.modules["body.up"]["flops"], '
         f"where an integer of at least 0 belongs. {RESTORE}"),
        ("modules/body.up/type", None, 'has null at models.Net.modules["body.up"].type, '
         f"where text belongs. {RESTORE}"),
        ("modules/body.up/watts", 3, 'has the unknown metric "models.Net.modules["body.up"].watts": it was '
         "written by a newer pytest-flops. Upgrade pytest-flops."),
        ("modules/[0-999999999]", {}, 'has "[0-999999999]" in models.Net.modules, which no run writes. '
         f"{RESTORE}"),
        ("functions/body/add", 5, f'has 5 at models.Net.functions["body"].add, where an object belongs. {RESTORE}'),  # noqa: E501
        ("peak_memory/bytes", 1.5, "has 1.5 at models.Net.peak_memory.bytes, "
         f"where an integer of at least 0 belongs. {RESTORE}"),
        ("modules", {}, f'lacks the model itself, "", in models.Net.modules. {RESTORE}'),
    ],
)  # fmt: skip
def test_a_digest_that_fits_makes_nothing_right(place, saved, keys, value, message):
    model = saved["models"]["Net"]
    spoil(model, keys, value)
    model["digest"] = entries.digest_of(model)
    place.path.write_text(json.dumps(saved))
    assert refusal(place) == f"net.json {message}"


def numbers(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all whole numbers in data."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from numbers(value, (*path, key))
    elif isinstance(data, int):
        yield path


def test_every_lone_edit_of_a_number_is_an_error(place):
    nodes = [
        node(f"n{i}", "call_module", f"n{i}", f"n{i}", "Linear", 10 + i, 5 + i, 99, 40 + i, 1)
        for i in range(12)
    ]
    adds = [node(f"add_{i}", "call_function", "add", "", "Net", 7, 0, 50, 30, 1) for i in range(2)]
    types = {"": "Net"} | {f"n{i}": "Linear" for i in range(12)}
    report = make_report(nodes=(*nodes, *adds), module_types=types, peak_owners={"n1": 60, "n2": 39})
    save(place, {"Net": snapshot(report)})
    data = json.loads(place.path.read_text())
    found, draw = list(numbers(data["models"]["Net"])), random.Random(12)
    assert len(found) > 60
    for _ in range(300):
        path, step = draw.choice(found), draw.choice([-3, -1, 1, 2, 1000])
        edited = json.loads(json.dumps(data))
        place_of = edited["models"]["Net"]
        for key in path[:-1]:
            place_of = place_of[key]
        place_of[path[-1]] += step
        place.path.write_text(json.dumps(edited))
        with pytest.raises(BaselineError):
            load(place)


def test_file_of_another_test_is_refused(place, saved):
    assert refusal(replace(place, test="test_net.py::test_renamed")) == (
        'net.json is the baseline of "test_net.py::test_net", not of "test_net.py::test_renamed". '
        "If the test was renamed, delete the file and run the test with --flops-update."
    )


def test_folder_where_the_file_should_be(place):
    place.path.mkdir(parents=True)
    assert refusal(place) == "net.json is a folder where the baseline file should be. Move it away."
    with pytest.raises(BaselineError, match=r"^net\.json cannot be written: Is a directory\.$"):
        save(place, {"Net": snapshot(make_report())})
    assert [path.name for path in place.path.parent.iterdir()] == ["test_net.json"]


def test_unreadable_for_want_of_permission(place, saved, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # root reads everything, so the mode would not do
    assert refusal(place) == "net.json cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("content", "test"),
    [
        (b'{"models": {}, "test": "a.py::b"}', "a.py::b"),
        (b'{"test": "a"}', None),
        (b"[", None),
        (b"\xff", None),
    ],
)
def test_owner_is_named_only_by_a_baseline(tmp_path, content, test):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert owner(path) == test
    assert owner(tmp_path / "absent.json") is None


# Saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_failed_save_leaves_the_old_file_and_no_draft(place, saved, monkeypatch, failing, code):
    before = place.path.read_bytes()

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(BaselineError) as caught:
        save(place, {"Net": snapshot(make_report(params=51))})
    assert str(caught.value) == f"net.json cannot be written: {os.strerror(code)}."
    assert place.path.read_bytes() == before
    assert [path.name for path in place.path.parent.iterdir()] == ["test_net.json"]


def test_save_without_models_removes_file_and_empty_folders(place, saved, tmp_path):
    save(place, {})
    assert list(tmp_path.iterdir()) == []


def test_save_without_models_leaves_what_is_not_ours(place, saved):
    other = place.path.with_name("other.json")
    other.write_text("{}")
    save(place, {})
    assert list(place.path.parent.iterdir()) == [other]


def test_file_follows_the_umask(place):
    old = os.umask(0o022)
    try:
        save(place, {"Net": snapshot(make_report())})
    finally:
        os.umask(old)
    assert place.path.stat().st_mode & 0o777 == 0o644
