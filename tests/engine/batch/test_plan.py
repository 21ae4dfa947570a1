"""What a run finds in a folder, which references it takes, and what it refuses. No picture is opened, so all are empty."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from amsa import AmsaError
from amsa.engine.batch.plan import Plan, make_plan

Touch = Callable[..., Path]


def plan(root: Path, *refs: str, **options: object) -> Plan:
    return make_plan(root / "in", root / "out", [root / ref for ref in refs], **options)  # type: ignore[arg-type]


def references(root: Path, made: Plan) -> dict[str, list[str]]:
    return {job.name: [os.path.relpath(ref, root) for ref in job.refs] for job in made.jobs}


# ------------------------------------------------------------------------------------------------ pictures and results


def test_every_picture_has_its_place(touch: Touch) -> None:
    root = touch("in/b.PNG", "in/a/ü [1].jpeg", "in/a/c.d.tif", "in/x.png/y.webp", "ref.png")
    made = plan(root, "ref.png")
    assert [job.name for job in made.jobs] == ["a/c.d.tif", "a/ü [1].jpeg", "b.PNG", "x.png/y.webp"]
    assert all(job.target == root / "out" / job.name and job.lr == root / "in" / job.name for job in made.jobs)
    assert not made.failures
    assert not made.notes


def test_what_is_passed_over_is_told(touch: Touch) -> None:
    root = touch("in/a.png", "in/._a.png", "in/.git/b.png", "in/notes.txt", "in/clip.mov", "in/more.txt", "in/LICENSE", "ref.png")
    (root / "in" / "loop").symlink_to(root / "in")
    made = plan(root, "ref.png")
    assert [job.name for job in made.jobs] == ["a.png"]
    assert made.notes == [
        "files passed over: 4, no pictures by their suffix (2 .txt, 1 no suffix, 1 .mov)",
        "hidden files and folders passed over: 2",
        "links to folders passed over: 1; give the folders themselves",
    ]


def test_results_of_an_earlier_run_are_no_pictures_to_upscale(touch: Touch) -> None:
    root = touch("in/a.png", "in/out/a.png", "in/b/out/c.png", "ref.png")
    for output in (root / "in" / "out", root / "in" / "b" / ".." / "out"):
        assert [job.name for job in make_plan(root / "in", output, [root / "ref.png"]).jobs] == ["a.png", "b/out/c.png"]


def test_one_format_for_all(touch: Touch) -> None:
    root = touch("in/a.jpg", "in/b.gif", "in/c.d.bmp", "ref.png")
    assert [job.name for job in plan(root, "ref.png", format="PNG").jobs] == ["a.png", "b.png", "c.d.png"]
    made = plan(root, "ref.png")
    assert [job.name for job in made.jobs] == ["a.jpg", "c.d.bmp"]
    assert [str(failure) for failure in made.failures] == [
        f"{root / 'in' / 'b.gif'}: .gif is read, but not written; add --format png"
    ]


def test_two_pictures_with_one_result(touch: Touch) -> None:
    made = plan(touch("in/a.jpg", "in/a.bmp", "in/b.jpg", "ref.png"), "ref.png", format="png")
    assert [job.name for job in made.jobs] == ["b.png"]
    assert [Path(failure.path).name for failure in made.failures] == ["a.bmp", "a.jpg"]
    assert "a.jpg; rename one" in made.failures[0].reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folders_that_cannot_be_read(touch: Touch) -> None:
    root = touch("in/a.png", "in/b/c.png", "ref.png")
    (root / "in" / "b").chmod(0)
    made = plan(root, "ref.png")
    (root / "in" / "b").chmod(0o700)
    assert [job.name for job in made.jobs] == ["a.png"]
    assert "b: cannot be read (Permission denied)" in str(made.failures[0])


@pytest.mark.parametrize(
    ("output", "word"),
    [("in", "choose another output folder"), ("ref.png", "is a file"), ("sr.png", "is a picture's name")],
)
def test_outputs_that_are_none(touch: Touch, output: str, word: str) -> None:
    root = touch("in/a.png", "ref.png")
    with pytest.raises(AmsaError, match=word):
        make_plan(root / "in", root / output, [root / "ref.png"])


def test_nothing_to_do_is_an_error(touch: Touch) -> None:
    root = touch("in/notes.txt", "ref.png")
    with pytest.raises(AmsaError, match=r"no picture to upscale \(files passed over: 1"):
        plan(root, "ref.png")
    with pytest.raises(AmsaError, match="is not a folder"):
        make_plan(root / "absent", root / "out", [root / "ref.png"])


def test_unknown_formats_and_several_kinds_of_references(touch: Touch) -> None:
    root = touch("in/a.png", "ref.png")
    with pytest.raises(AmsaError, match="format gif is not written; choose one of png, jpg"):
        plan(root, "ref.png", format="gif")
    for refs, options in ([], {}), (["ref.png"], {"ref_rule": "{}.*:{}_ref.*"}), ([], {"ref_rule": "{}:{}", "pairs": root}):
        with pytest.raises(AmsaError, match="references in one way"):
            plan(root, *refs, **options)


# ------------------------------------------------------------------------------------------------ references


def test_shared_references_among_the_pictures_are_not_upscaled(touch: Touch) -> None:
    root = touch("in/a.png", "in/ref.png", "in/b.png")
    made = plan(root, "in/../in/ref.png")
    assert [job.name for job in made.jobs] == ["a.png", "b.png"]
    assert made.notes == ["pictures passed over: 1; they are references"]


def test_pairs(touch: Touch) -> None:
    root = touch("in/a.png", "in/b/b.png", "in/b/r.png", "in/alone.png", "r1.png", "r2.png")
    lines = ["LR, Ref,ref2", "in/b/b.png,in/b/r.png", "", "in/a.png,r1.png,r2.png", "in/b/b.png,r1.png,"]
    (root / "pairs.csv").write_text("\n".join(lines), "utf-8-sig")
    made = plan(root, pairs=root / "pairs.csv")
    assert references(root, made) == {"b/b.png": ["in/b/r.png", "r1.png"], "a.png": ["r1.png", "r2.png"]}
    assert made.notes == [f"pictures passed over: 1; {root / 'pairs.csv'} has no line for them"]
    assert not made.failures


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("in/absent.png,r.png", "is no file"),
        ("r.png,r.png", "not among the pictures"),
        ("in/a.png", "needs a picture and 1 to 1 references"),
        (",r.png", "needs a picture"),
        ("in/a.png,r.png,r.png", "needs a picture and 1 to 1 references"),
    ],
)
def test_lines_that_do_not_fit_fail_alone(touch: Touch, line: str, word: str) -> None:
    root = touch("in/a.png", "in/b.png", "r.png")
    (root / "pairs.csv").write_text(f"lr,ref\nin/b.png,r.png\n{line}\n")
    made = plan(root, pairs=root / "pairs.csv")
    assert [job.name for job in made.jobs] == ["b.png"]
    assert [failure.path for failure in made.failures] == [f"{root / 'pairs.csv'} line 3"]
    assert word in made.failures[0].reason


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "is empty"), (b"hr,ref\n", "is hr,ref"), (b"lr,ref\n\xff", "cannot be read as CSV"), (None, "No such")],
)
def test_files_that_are_no_pairs(touch: Touch, content: bytes | None, word: str) -> None:
    root = touch("in/a.png")
    if content is not None:
        (root / "pairs.csv").write_bytes(content)
    with pytest.raises(AmsaError, match=word):
        plan(root, pairs=root / "pairs.csv")


def test_a_rule_for_cufed5(touch: Touch) -> None:
    root = touch(*(f"in/{a}/{n}_{i}.png" for a in ("[x]", "y") for n in ("000", "a_0") for i in range(4)), "in/y/stray.png")
    made = plan(root, ref_rule="{}_0.*:{}_[1-9].*")
    wanted = {f"{n}_0.png": [f"in/{n}_{i}.png" for i in (1, 2, 3)] for n in ("[x]/000", "[x]/a_0", "y/000", "y/a_0")}
    assert references(root, made) == wanted
    assert not made.failures
    assert made.notes == ["pictures passed over: 1; the rule {}_0.*:{}_[1-9].* takes them neither as LR nor as reference"]


def test_a_rule_for_the_same_name_elsewhere(touch: Touch) -> None:
    root = touch("in/a.png", "in/b/c.jpg", "in/alone.png", "refs/a.jpg", "refs/a.txt", "refs/b/c.png")
    for place in ("../refs", root / "refs"):
        made = plan(root, ref_rule=f"{{}}.*:{place}/{{}}.*")
        assert references(root, made) == {"a.png": ["refs/a.jpg"], "b/c.jpg": ["refs/b/c.png"]}
        assert [Path(failure.path).name for failure in made.failures] == ["alone.png"]
        assert "has no reference" in made.failures[0].reason


@pytest.mark.parametrize("rule", ["", "{}", "a:b", "{}:b", "a:{}", "{}{}:{}"])
def test_rules_that_are_none(touch: Touch, rule: str) -> None:
    with pytest.raises(AmsaError, match="references in one way" if rule == "" else "a rule is 'LR:REFERENCES'"):
        plan(touch("in/a.png"), ref_rule=rule)
