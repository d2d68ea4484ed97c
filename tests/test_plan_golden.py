"""Every shipped recipe on every card: what the planner says, in a table that is kept.

`python tests/test_plan_golden.py` writes the table anew, after a change that is meant.
"""

from pathlib import Path

import planning_cases as cases

from fastsft import plan
from fastsft.cards import CARDS
from fastsft.hardware import gib
from fastsft.plan import Plan
from fastsft.plan_search import Candidate

TABLE = Path(__file__).with_name("plan_golden.txt")
HEAD = "recipe             card               as it is             best setting, and what is left\n"


def table() -> str:
    """The whole table; every figure is an estimate."""
    asked = [(name, *cases.shipped(name)) for name in cases.SHIPPED]
    asked.append(("llama-3.3-70b", *cases.llama_70b()))
    rows = [
        f"{name:<18} {card.key:<18} {line(plan.plan(recipe, shape, card))}"
        for name, recipe, shape in asked
        for card in CARDS.values()
    ]
    return HEAD + "\n".join(rows) + "\n"


def line(found: Plan) -> str:
    own = found.as_is
    state = "fits" if own.fits else "does not fit"
    spare = f"{state} {own.spare_bytes / 2**30:+.1f}"
    if found.chosen is None:
        return f"{spare:<20} none: {'; '.join(found.cures)}"
    gain = "" if found.gain is None else f", {found.gain:.2f} x"
    return f"{spare:<20} {setting(found.chosen)}, {gib(found.chosen.spare_bytes)} left{gain}"


def setting(chosen: Candidate) -> str:
    what = chosen.setting
    bits = "4-bit" if what.quantization == "nf4" else "16-bit"
    kept = f"-{what.skip_layers}" if what.skip_layers else ""
    return f"{bits} {what.checkpointing}{kept} {what.rows} x {chosen.accumulation_steps}"


def test_the_table_is_as_it_was():
    assert table() == TABLE.read_text("utf-8"), f"if it is meant: python {Path(__file__).name}"


def test_the_table_has_every_recipe_on_every_card():
    lines = TABLE.read_text("utf-8").splitlines()[1:]

    assert len(lines) == (len(cases.SHIPPED) + 1) * len(CARDS)


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
