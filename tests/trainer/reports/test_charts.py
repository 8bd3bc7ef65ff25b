"""Charts label what strangers named, and nothing of it reaches a terminal or the page's markup."""

from __future__ import annotations

import warnings

from matplotlib.axes import Axes

from trainer.reports import charts


def test_a_label_of_control_characters_warns_nobody_and_stands_in_escapes() -> None:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], label="$\\frac{1}{<b>\x1b[2J\u202e漢")
        axes.set_title("\x9b31m")
        axes.legend()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = charts.svg("odd", "Odd", "names", draw)
    assert "\\x1b[2J\\u202e漢" in drawn
    assert "$\\frac{1}{&lt;b&gt;" in drawn
    assert not {"\x1b", "\u202e", "\x9b"} & set(drawn)
