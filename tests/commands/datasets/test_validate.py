from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from psf.commands.datasets import validate as tool
from tests.conftest import RunPython
from tests.data.damaged_set import change, write_damaged
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set


def words(root: Path) -> list[str]:
    return [
        "--json",
        str(root / "panoptic.json"),
        "--png-root",
        str(root / "panoptic"),
        "--image-root",
        str(root / "images"),
    ]


def test_clean_set_by_paths_and_by_name(tmp_path, capsys):
    root = tmp_path / "set"
    write_mini_set(root)
    assert tool.main(words(root)) == 0
    captured = capsys.readouterr()
    assert "no faults" in captured.out and captured.err == ""  # no bar where nobody sees it
    assert tool.main(["--register", f"mine={root}/panoptic.json,{root}/panoptic,{root}/images"]) == 0
    name = register_mini_set(root)
    try:
        assert tool.main(["--dataset", name, "--workers", "1"]) == 0
    finally:
        unregister_mini_set(name)


def test_faults_are_shown_fixed_and_drawn(tmp_path, capsys):
    root = tmp_path / "set"
    write_damaged(root, "wrong area")
    report, fixed = tmp_path / "report.html", tmp_path / "fixed.json"
    assert tool.main([*words(root), "--fix", str(fixed), "--html", str(report), "--samples", "2", "--show", "1"]) == 1
    out = capsys.readouterr().out
    assert "wrong area: 1 (1 can be corrected)\n  2.png: segment" in out
    assert "corrected 1 x wrong area; not corrected: nothing" in out
    assert report.read_text().count("<figure>") == 2
    assert tool.main([*words(root)[:1], str(fixed), *words(root)[2:]]) == 0


def test_many_faults_show_the_first_few(tmp_path, capsys):
    root = tmp_path / "set"
    write_mini_set(root)
    for file in (root / "panoptic").iterdir():
        file.unlink()
    assert tool.main([*words(root), "--show", "2"]) == 1
    out = capsys.readouterr().out
    assert "missing PNG: 5\n" in out and "... and 3 more" in out and out.count("no such file") == 2


@pytest.mark.parametrize(
    "arguments",
    [[], ["--dataset", "x", "--json", "y"], ["--json", "y"], ["--json", "y", "--png-root", "z"]],
)
def test_half_of_an_order_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert caught.value.code == 2 and "or --dataset alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "psf_shape_val"], "no dataset is registered as 'psf_shape_val'"),
        (["--json", "none.json", "--png-root", "x", "--image-root", "x"], "none.json: this file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert tool.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_workers_and_fix_in_place_are_refused(tmp_path, capsys):
    root = tmp_path / "set"
    write_mini_set(root)
    before = (root / "panoptic.json").read_text()
    with pytest.raises(SystemExit, match="2"):
        tool.main([*words(root), "--workers", "0"])
    assert tool.main([*words(root), "--fix", str(root / "panoptic.json")]) == 2
    assert (
        "--workers: expected a number from 1, found '0'" in (err := capsys.readouterr().err)
        and "name another file" in err
    )
    assert (root / "panoptic.json").read_text() == before


def test_one_file_for_both_outputs_is_refused_before_the_work(tmp_path, capsys):
    write_damaged(tmp_path / "set", "wrong area")
    target = str(tmp_path / "out")
    assert tool.main([*words(tmp_path / "set"), "--html", target, "--fix", target]) == 2
    assert capsys.readouterr().err == f"error: --html and --fix are the same file, {target}; name two files\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--html", "--fix"])
@pytest.mark.parametrize(
    "name", ["panoptic.json", "images/0.png", "panoptic/0.png", "train.json", "notes.txt", "images"]
)
def test_no_file_of_the_users_is_overwritten(flag, name, tmp_path, capsys):
    """The source, its files, another set's JSON, any other file, a folder: one line, before the work."""
    root = tmp_path / "set"
    write_damaged(root, "wrong area")
    (root / "notes.txt").touch()
    (root / "train.json").write_bytes((root / "panoptic.json").read_bytes())
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert tool.main([*words(root), flag, str(root / name)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {flag} {root / name} ") and "name another file" in err and err.count("\n") == 1
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_earlier_outputs_are_replaced(tmp_path, capsys):
    """Also where the JSON is itself one that was corrected; but not what was made of another JSON."""
    root, report, fixed = tmp_path / "set", tmp_path / "report.html", tmp_path / "fixed.json"
    write_damaged(root, "wrong area")
    outputs = ["--html", str(report), "--fix", str(fixed)]
    assert tool.main([*words(root), *outputs]) == 1
    first = report.read_text(), fixed.read_text()
    write_other = [*outputs, "--samples", "1"]
    change(root, lambda x: x["images"][0].update(height=7))
    assert tool.main([*words(root), *write_other]) == 1
    assert report.read_text() != first[0] and fixed.read_text() == first[1]

    again = [words(root)[0], str(fixed), *words(root)[2:]]
    assert tool.main([*again, "--fix", str(tmp_path / "fixed_again.json")]) == 0
    assert json.loads((tmp_path / "fixed_again.json").read_text())["psf_corrected_from"] == "fixed.json"
    capsys.readouterr()
    assert tool.main([*again, "--fix", str(fixed)]) == 2
    assert "is the source JSON" in capsys.readouterr().err
    (root / "panoptic.json").rename(root / "val.json")
    assert tool.main([words(root)[0], str(root / "val.json"), *words(root)[2:], "--fix", str(fixed)]) == 2
    assert "is not an earlier correction of val.json, so it is not overwritten" in capsys.readouterr().err


@pytest.fixture
def two_sets(tmp_path: Path) -> Iterator[list[str]]:
    """--register of two sets, clean ones."""
    words = []
    for name in ("psf_test_one", "psf_test_two"):
        root = tmp_path / name
        write_mini_set(root)
        words += ["--register", f"{name}={root}/panoptic.json,{root}/panoptic,{root}/images"]
    yield words
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in {"psf_test_one", "psf_test_two"} & set(catalog):
            catalog.remove(name)


@pytest.mark.parametrize("faulty", [None, "psf_test_one", "psf_test_two"])
def test_several_sets(two_sets, faulty, tmp_path, capsys):
    if faulty:
        (tmp_path / faulty / "images" / "0.png").unlink()
    assert tool.main(two_sets) == bool(faulty)
    out = capsys.readouterr().out
    assert out.count("no faults") == (1 if faulty else 2) and out.count("missing image: 1") == bool(faulty)
    assert out.count("panoptic.json\n") == 2


def test_several_sets_of_other_categories(two_sets, tmp_path, capsys):
    change(tmp_path / "psf_test_two", lambda x: x["categories"].reverse())
    assert tool.main(two_sets) == 1
    out = capsys.readouterr().out
    assert out.count("no faults") == 2
    assert 'the things of "psf_test_two" are not those of "psf_test_one"' in out


@pytest.mark.parametrize("flag", ["--fix", "--html"])
def test_one_output_is_for_one_set(two_sets, flag, tmp_path, capsys):
    assert tool.main([*two_sets, flag, str(tmp_path / "out")]) == 2
    assert "--fix and --html need a single set, found 2 --register" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_runs_as_a_command(run_python: RunPython, repository: Path, tmp_path):
    root = tmp_path / "set"
    write_damaged(root, "unknown category")
    done = run_python("-m", "psf", "validate", *words(root), "--fix", str(tmp_path / "fixed.json"), path=[repository])
    assert done.returncode == 1, done.stderr
    assert "corrected nothing; not corrected: 1 x unknown category" in done.stdout
    written = json.loads((tmp_path / "fixed.json").read_text())
    assert written.pop("psf_corrected_from") == "panoptic.json"
    assert written == json.loads((root / "panoptic.json").read_text())


@pytest.mark.parametrize("flag", ["--samples", "--show", "--max-pixels"])
def test_numbers_below_zero_are_refused(tmp_path, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main([*words(tmp_path), flag, "-1"])
    assert stopped.value.code == 2 and f"{flag}: expected a number from" in capsys.readouterr().err
