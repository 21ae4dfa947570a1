"""Which references serve which picture: the same for all, a CSV file, or a rule of names."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import AmsaError
from ..images import PICTURES
from ..pairs import read_pairs

RULE = "'LR:REFERENCES' with {} for what the two have in common, as '{}_0.*:{}_[1-9].*'"


@dataclass
class Pairing:
    """References of each picture to upscale, pairs of (path, reason) for what has none, and how many pictures are left out."""

    refs: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    left_out: int = 0
    why: str = ""


def same_file_key(path: Path) -> Path:
    """Equal for all ways to write the path of one directory entry."""
    return Path(os.path.realpath(path.parent), path.name)


def for_all(pictures: Sequence[Path], refs: Sequence[Path]) -> Pairing:
    """Every picture gets all references; those that lie among the pictures are not upscaled themselves."""
    keys = {same_file_key(ref) for ref in refs}
    chosen = {picture: tuple(refs) for picture in pictures if same_file_key(picture) not in keys}
    return Pairing(chosen, left_out=len(pictures) - len(chosen), why="they are references")


def by_csv(folder: Path, pictures: Sequence[Path], path: Path) -> Pairing:
    """A CSV file with a header lr,ref or lr,ref,ref2,..; paths are relative to it. Rows with the same LR add up.

    Raises:
        AmsaError: the file cannot be read, or has another header.
    """
    known = {same_file_key(picture): picture for picture in pictures}
    pairing = Pairing()
    used: set[Path] = set()
    for row in read_pairs(path, "lr"):
        if row.problem:
            pairing.problems.append((f"{path} line {row.line}", row.problem))
        elif (picture := known.get(same_file_key(row.picture))) is None:
            lr = row.picture
            reason = f"{lr} is {f'not among the pictures below {folder}' if lr.exists() else 'no file'}; mend the line"
            pairing.problems.append((f"{path} line {row.line}", reason))
        else:
            pairing.refs[picture] = (*pairing.refs.get(picture, ()), *row.refs)
            used.update(map(same_file_key, row.refs))
    pairing.left_out = sum(picture not in pairing.refs and key not in used for key, picture in known.items())
    pairing.why = f"{path} has no line for them"
    return pairing


def by_rule(folder: Path, pictures: Sequence[Path], rule: str) -> Pairing:
    """A rule `LR:REFERENCES` of two patterns of paths relative to the folder, with `*`, `?` and `[..]`.

    In the first, `{}` stands for any text; in the second, for the same text. Pictures that the first does not match are
    not upscaled. `{}_0.*:{}_[1-9].*`: 000_1.png, .. for 000_0.png. `{}.*:../refs/{}.*`: the same name in another folder.

    Raises:
        AmsaError: not such a rule.
    """
    lr_pattern, colon, ref_pattern = rule.partition(":")
    if not colon or lr_pattern.count("{}") != 1 or "{}" not in ref_pattern:
        raise AmsaError(f"--ref-rule {rule}: a rule is {RULE}")
    is_lr = re.compile(fnmatch.translate(lr_pattern).replace(r"\{\}", "(.+)"))
    pairing = Pairing()
    others = []
    for picture in pictures:
        common = is_lr.match(picture.relative_to(folder).as_posix())
        if common is None:
            others.append(picture)
            continue
        pattern = str(Path(glob.escape(str(folder)), ref_pattern.replace("{}", glob.escape(common[1]))))
        found = (Path(name) for name in sorted(glob.glob(pattern)))  # noqa: PTH207  (Path.glob takes no absolute patterns)
        if refs := tuple(ref for ref in found if ref != picture and ref.suffix.lower() in PICTURES):
            pairing.refs[picture] = refs
        else:
            pairing.problems.append((str(picture), f"has no reference {pattern}; add one, or mend the rule"))
    used = {same_file_key(ref) for refs in pairing.refs.values() for ref in refs}
    pairing.left_out = sum(same_file_key(picture) not in used for picture in others)
    pairing.why = f"the rule {rule} takes them neither as LR nor as reference"
    return pairing
