"""How a gate says what it found.  Pure."""

from fastsft.bench.row import Gate, Result, Row


def gate(name: str, is_met: bool, *, measured: str, wanted: str, why: str) -> Gate:
    """A gate that was asked."""
    result: Result = "passed" if is_met else "failed"
    return Gate(name=name, result=result, measured=measured, wanted=wanted, why=why)


def not_run(name: str, wanted: str, why: str) -> Gate:
    """A gate that there is nothing to ask of."""
    return Gate(name=name, result="not run", measured="", wanted=wanted, why=why)


def name_of(row: Row) -> str:
    """A row's arm and repeat."""
    return f"{row.identity.arm} {row.identity.repeat}"


def words(name: str) -> str:
    """A field's name as words."""
    return name.replace("_", " ")
