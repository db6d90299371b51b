"""docs/seeds.md says of each public name which test proves it; the tests are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "seeds.md").read_text(encoding="utf-8")


def test_every_test_that_the_table_names_exists() -> None:
    """Each ``file::test`` is a function of that file, and each file alone is one of the tests."""
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 50
    for file, test in named:
        path = TESTS / file
        assert path.is_file(), file
        if test:
            functions = {
                node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
            }
            assert test in functions, f"{file}::{test}"


def test_every_line_has_a_name_what_does_the_job_and_a_proof() -> None:
    """No cell of a table is empty."""
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(rows) > 70
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert all(cells), row
