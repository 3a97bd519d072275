"""The types of the columns of text tables: numbers with missing cells, true and false, and text as written."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest

from xact.tables.column_types import MISSING, describe_column, find_comma, type_column


@pytest.mark.parametrize(
    ("cells", "expected", "reason"),
    [
        (["1", "-2", "0"], [1, -2, 0], "integers"),
        (["123456789012345678"], [123456789012345678], "eighteen digits fit in 64 bits"),
        (["1234567890123456789"], ["1234567890123456789"], "nineteen may not, and no float holds them"),
        (["001", "2"], ["001", "2"], "a code stays as written"),
        (["007"], ["007"], "also where it is alone"),
        (["007", "NA"], ["007", "NA"], "and beside a missing cell"),
        (["1", "NA"], [1.0, math.nan], "NA is R's missing number"),
        (["nan", "1"], [math.nan, 1.0], "nan is that of Python"),
        (["1.5", "n/a", "2"], [1.5, math.nan, 2.0], "n/a is that of BIDS"),
        (["1", " ", "NULL", "None"], [1.0, math.nan, math.nan, math.nan], "blanks and the words of data bases"),
        (["inf", "1e999"], ["inf", "1e999"], "what no float holds"),
        (["1.50", "2", "-.5", "1e-3"], [1.5, 2.0, -0.5, 0.001], "floats"),
        (["1", "1.0"], [1.0, 1.0], "an integer among floats that equals one of them"),
        (["1", "", "3"], [1.0, math.nan, 3.0], "a missing number is NaN, so the column is float"),
        (["9007199254740993", ""], ["9007199254740993", ""], "a float would change the number"),
        (["01.5", "2"], ["01.5", "2"], "a leading zero is a code"),
        (["", ""], ["", ""], "nothing says that these are numbers"),
        (["NA", "n/a"], ["NA", "n/a"], "nor that these are"),
        (["NA", "cat"], ["NA", "cat"], "among words NA is a word"),
        (["True", "false"], [True, False], "booleans"),
        (["TRUE", "FALSE", " true"], [True, False, True], "booleans of R, and of spreadsheets"),
        (["true", ""], ["true", ""], "a missing boolean has no value"),
        (["TRUE", "NA"], ["TRUE", "NA"], "nor has this one"),
        (["True", "1"], ["True", "1"], "a number is no boolean"),
        (["1", "True"], ["1", "True"], "in either order"),
        (["yes", "no"], ["yes", "no"], "words"),
        ([" 1", "2 "], [1, 2], "blanks around numbers do not count"),
        (["a", " b"], ["a", " b"], "blanks of text do"),
        (["1_000", "٣"], ["1_000", "٣"], "what Python reads as a number and a table does not"),
        (["+1", "2"], [1, 2], "a sign"),
        (["+1.5", "-2"], [1.5, -2.0], "a sign of a float"),
        (["+01", "2"], ["+01", "2"], "a code with a sign"),
        (["1,5", "2"], ["1,5", "2"], "a decimal comma is never a number"),
        (["1,234", "2"], ["1,234", "2"], "nor is a comma between thousands"),
        ([], [], "no rows"),
    ],
)
def test_columns_are_typed_only_where_nothing_is_lost(cells, expected, reason):
    typed = type_column(cells)
    assert [type(cell) for cell in typed] == [type(cell) for cell in expected], reason
    np.testing.assert_array_equal(typed, expected, err_msg=reason)


def test_missing_cells_are_those_of_pandas():
    for word in MISSING - {""}:  # pandas skips an empty line
        frame = pd.read_csv(io.StringIO(f"a\n1\n{word}\n"))
        assert frame["a"].isna().tolist() == [False, True], word
    frame = pd.read_csv(io.StringIO("a,b\n1,x\n,y\n"))
    assert frame["a"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("kind", "cells", "text"),
    [
        ("float64", [1.5, math.nan, 2.0], "x float64 (1 of 3 missing)"),
        ("int64", [1, 2], "x int64"),
        ("bool", [True, False], "x bool"),
        ("string", ["cat", "dog"], "x string"),
        ("string", ["cat", ""], "x string (1 of 2 missing)"),
        ("string", ["001", "2"], "x string (1 of 2 are numbers, '001' is not)"),
        ("string", ["1.5", "n/a"], "x string (numbers, kept as text)"),
        ("string", ["TRUE", "NA"], "x string (1 of 2 are true or false, 'NA' is not)"),
        ("string", ["1,5", "2"], "x string ('1,5' has a comma)"),
    ],
)
def test_how_a_column_was_read_is_said(kind, cells, text):
    assert describe_column("x", kind, cells).make_text() == text


def test_a_comma_in_a_number_is_found_only_among_numbers():
    assert find_comma(["2", "NA", "-1,5"]) == "-1,5"
    assert find_comma(["1.234,5", "1,234.5"]) == "1.234,5"
    assert find_comma(["1,234,567"]) == "1,234,567"
    assert find_comma(["2", "1,5", "1,5,2"]) is None
    assert find_comma(["2", "3.5"]) is None
    assert find_comma([1.5, 2.0]) is None
