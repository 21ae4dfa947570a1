"""Layouts: what is found, what is reported, and what is refused. Files are only listed, so empty ones will do."""

from __future__ import annotations

from pathlib import Path

import pytest

from amsa import AmsaError
from amsa.training.layouts import Layout, read_layout


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(layout: Layout) -> dict[str, list[str]]:
    return {case.name: [case.hr.name, *(p.name for p in case.refs)] for case in layout.cases}


def both(path: Path, kind: str) -> Layout:
    """The layout, which must be recognised as what it is."""
    layout = read_layout(path, kind)
    assert read_layout(path) == layout
    assert layout.kind == kind
    return layout


# ------------------------------------------------------------------------------------------------ as downloaded


def test_cufed5(tmp_path: Path) -> None:
    names = [f"{case}_{level}.png" for case in ("000", "125") for level in range(6)]
    layout = both(make(tmp_path, *names, "._000_0.png", "readme.txt"), "cufed5")
    assert found(layout) == {case: [f"{case}_{level}.png" for level in range(6)] for case in ("000", "125")}
    assert layout.problems == []
    assert len(layout.files()) == 12


def test_levels_are_numbers(tmp_path: Path) -> None:
    layout = both(make(tmp_path, *(f"a_b_{level}.png" for level in range(12))), "cufed5")
    assert found(layout)["a_b"][10:] == ["a_b_10.png", "a_b_11.png"]


def test_cufed_and_wrsr(tmp_path: Path) -> None:
    cufed = both(make(tmp_path / "a", "input/1.png", "input/2.jpg", "ref/1.png", "ref/2.png"), "cufed")
    assert found(cufed) == {"1": ["1.png", "1.png"], "2": ["2.jpg", "2.png"]}
    wrsr = both(make(tmp_path / "b", "input/001.png", "input/002.png", "ref/001_ref.png", "ref/002_ref.jpg"), "wrsr")
    assert found(wrsr) == {"001": ["001.png", "001_ref.png"], "002": ["002.png", "002_ref.jpg"]}
    assert cufed.problems == wrsr.problems == []


def test_sun80(tmp_path: Path) -> None:
    truth, matches = "Sun_Hays_SR_groundtruth", "Sun_Hays_SR_scenematches"
    folder = make(
        tmp_path, f"{truth}/a.jpg", f"{truth}/b.jpg", f"{matches}/a.jpg/2.jpg", f"{matches}/a.jpg/1.jpg", f"{matches}/b/3.jpg"
    )
    layout = both(folder, "sun80")
    assert found(layout) == {"a": ["a.jpg", "1.jpg", "2.jpg"], "b": ["b.jpg", "3.jpg"]}
    assert layout.problems == []


@pytest.mark.parametrize(
    ("folder", "kind", "names", "cases"),
    [
        ("Urban100/HR", "urban100", ["img001.png", "img002.png"], ["img001", "img002"]),
        ("Urban100/image_SRF_4", "urban100", ["img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png"], ["img_001_SRF_4_HR"]),
        ("manga109", "manga109", ["ARMS.png", "Akuhamu.png"], ["ARMS", "Akuhamu"]),
        ("holidays", "photos", ["a.jpg", "IMG_1.webp"], ["IMG_1", "a"]),
    ],
)
def test_folders_of_pictures(tmp_path: Path, folder: str, kind: str, names: list[str], cases: list[str]) -> None:
    layout = both(make(tmp_path / folder, *names), kind)
    assert list(found(layout)) == cases
    assert all(case.refs == () for case in layout.cases)


def test_pairs(tmp_path: Path) -> None:
    make(tmp_path, "x/hr.png", "y/hr.png", "r1.png", "r2.png")
    text = "\ufeffHR, ref,ref2\nx/hr.png,r1.png,r2.png\n\ny/hr.png,r1.png\nx/hr.png,r2.png,\n"
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    layout = both(tmp_path / "pairs.csv", "pairs")
    assert found(layout) == {
        "x-hr": ["hr.png", "r1.png", "r2.png"],
        "y-hr": ["hr.png", "r1.png"],
        "x-hr-2": ["hr.png", "r2.png"],
    }
    assert layout.problems == []


# ------------------------------------------------------------------------------------------------ what is left out


def test_incomplete_cufed5(tmp_path: Path) -> None:
    names = [
        "a_0.png",
        "a_1.png",
        "a_2.png",
        "a_3.png",
        "b_0.png",
        "b_1.png",
        "b_3.png",
        "c_0.png",
        "d_1.png",
        "e_0.png",
        "e_1.png",
        "x.png",
    ]
    layout = read_layout(make(tmp_path, *names), "cufed5")
    assert {name: len(files) - 1 for name, files in found(layout).items()} == {"a": 3, "b": 1, "e": 1}
    assert sorted(layout.problems) == [
        "b: has no reference b_2; those after it are left out",
        "c: has no reference c_1",
        "d: has references but no picture d_0",
        "e: has 1 references, others have 3",
        "x.png: no NNN_0 nor a reference NNN_1, NNN_2, ..; left out",
    ]


def test_unpaired_files(tmp_path: Path) -> None:
    layout = read_layout(make(tmp_path / "a", "input/1.png", "input/2.png", "ref/1.png", "ref/3.png"))
    assert list(found(layout)) == ["1"]
    assert layout.problems == ["input/2.png: has no reference ref/2.png", "ref/3.png: has no picture in input"]
    sun = make(tmp_path / "b", "groundtruth/a.jpg", "groundtruth/b.jpg", "scenematches/a.jpg/1.jpg", "scenematches/c.jpg/1.jpg")
    (sun / "scenematches/b.jpg").mkdir()
    layout = read_layout(sun)
    assert list(found(layout)) == ["a"]
    assert layout.problems == [
        "groundtruth/b.jpg: has no references in scenematches/b.jpg",
        "scenematches/c.jpg: has no picture in groundtruth",
    ]


def test_broken_rows(tmp_path: Path) -> None:
    make(tmp_path, "hr.png", "ref.png")
    rows = ["hr.png,ref.png", "hr.png", ",ref.png", "hr.png,gone.png", "hr.png,ref.png,ref.png"]
    (tmp_path / "pairs.csv").write_text("hr,ref\n" + "\n".join(rows), encoding="utf-8")
    layout = read_layout(tmp_path / "pairs.csv")
    assert list(found(layout)) == ["hr"]
    assert [p.split(":")[0] for p in layout.problems] == ["line 3", "line 4", "line 5", "line 6"]
    assert layout.problems[2].endswith("gone.png: no such file")


# ------------------------------------------------------------------------------------------------ what is refused


def refused(path: Path, kind: str = "auto") -> str:
    with pytest.raises(AmsaError) as caught:
        read_layout(path, kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refused(tmp_path: Path) -> None:
    make(tmp_path / "CUFED/train", "input/1.png", "ref/1.png")
    make(tmp_path / "CUFED/test/CUFED5", "000_0.png", "000_1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("a;b\n1;2\n")
    (tmp_path / "none.csv").write_text("hr,ref\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "no such file or folder" in refused(tmp_path / "gone")
    assert "no usable picture" in refused(tmp_path / "empty")
    assert "--kind cufed6 does not exist; choose auto, cufed, cufed5" in refused(tmp_path / "empty", "cufed6")
    assert refused(tmp_path / "CUFED", "cufed").endswith(f"did you mean {tmp_path}/CUFED/train?")
    assert refused(tmp_path / "CUFED", "cufed5").endswith(f"did you mean {tmp_path}/CUFED/test/CUFED5?")
    assert "no folder input nor ref" in refused(tmp_path / "CUFED/test/CUFED5", "wrsr")
    assert "no folders *groundtruth and *scenematches" in refused(tmp_path / "CUFED/train", "sun80")
    assert "is not a folder" in refused(tmp_path / "text.csv", "photos")
    assert "is no CSV file" in refused(tmp_path / "empty", "pairs")
    assert "the first line must be hr,ref or hr,ref,ref2,.. and is a;b" in refused(tmp_path / "text.csv")
    assert "no usable picture" in refused(tmp_path / "none.csv")
    assert "cannot be read as CSV" in refused(tmp_path / "binary.csv")
