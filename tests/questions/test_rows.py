"""Rows of an answer in SQL as text."""

from __future__ import annotations

import csv

from registry.questions.rows import CELL_MAX, as_csv, cut, objects, table

COLUMNS = ("name", "count")
ROWS = [("web", 12), ('a\nb,"c"', None), ("x" * 99, 3)]


def test_a_table_is_aligned_a_line_a_row_and_shortens_what_is_long():
    lines = table(COLUMNS, ROWS, CELL_MAX)
    assert lines[0] == "name".ljust(CELL_MAX) + "  count"
    assert lines[1] == "web".ljust(CELL_MAX) + "     12"
    assert lines[2].startswith('a\\nb,"c" ')
    assert lines[2].endswith("  -")
    assert "x" * (CELL_MAX - 3) + "...  " in lines[3]
    assert len(lines) == 4


def test_a_table_that_is_not_for_a_terminal_has_all_of_it():
    assert "x" * 99 + "      3" in table(COLUMNS, ROWS)


def test_a_table_without_rows_has_its_columns():
    assert table(COLUMNS, []) == ["name  count"]


def test_csv_has_everything():
    text = "\n".join(as_csv(COLUMNS, ROWS))
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["name", "count"], ["web", "12"], ["a\nb,\"c\"", ""], ["x" * 99, "3"],
    ]  # fmt: skip


def test_an_object_is_a_row_by_its_columns():
    assert objects(COLUMNS, ROWS[:1]) == ['{"name":"web","count":12}']


def test_what_is_cut_says_what_to_ask_for():
    assert cut(5, "limit") == "there are more rows than these 5: --limit asks for more"
    assert cut(5, "size").endswith("these 5: an answer has no more than 8 MB; ask for less")
    assert cut(5, None) == cut(5, "limit"), "an earlier registry does not say"


def test_no_column_is_lost_where_another_has_its_name():
    columns, row = ("seq", "seq", "seq:1", "seq"), (1, 2, 3, 4)
    assert objects(columns, [row]) == ['{"seq":1,"seq:1":2,"seq:1:1":3,"seq:2":4}']
