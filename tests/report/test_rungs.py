"""The ladder in a report."""

from __future__ import annotations

from ptq.report.rungs import COLUMNS, Rung, rung_rows


def test_gains_are_over_the_last_rung_that_was_kept() -> None:
    rungs = (
        Rung("rounding", 0.2, 10.0, True, 3.0),
        Rung("worse", 0.3, 9.0, False, 1.0),
        Rung("better", 0.1, 11.5, True, 60.04),
    )
    rows = rung_rows(rungs)
    assert rows[0] == ("rounding", "10.00", "", "0.2000", "3.0", "")
    assert rows[1] == ("worse", "9.00", "-1.00", "0.3000", "1.0", "no gain: left out")
    assert rows[2] == ("better", "11.50", "+1.50", "0.1000", "60.0", "")
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_outputs_that_are_no_scores_have_no_divergence() -> None:
    assert rung_rows([Rung("rounding", None, None, True, 0.0)])[0][1:4] == ("", "", "")
