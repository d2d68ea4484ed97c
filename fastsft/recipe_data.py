"""The recipe's sections on data: where rows come from and what of them is trained."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Action = Literal["off", "report", "drop", "error"]
"""What follows from a finding: nothing is looked for, it is told, the rows go, the run does."""


class Place(Section):
    """Where rows are, and what their columns mean."""

    path: NonEmpty = Field(description="File, folder, or Hugging Face dataset id.")
    config: NonEmpty | None = Field(
        None, description="Configuration of a Hugging Face dataset, where it has several."
    )
    split: NonEmpty | None = Field(
        None, description="Split of a Hugging Face dataset; must be named for one."
    )
    revision: NonEmpty | None = Field(
        None, description="Branch, tag or commit of a Hugging Face dataset."
    )
    columns: dict[NonEmpty, NonEmpty] = Field(
        {}, description="Our key: the source's, where names differ, as `{prompt: question_text}`."
    )


class Source(Place):
    """One source of rows, where there are several."""

    weight: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Times that each row is used in an epoch; 0.5 uses half of the rows; null is "
        "once.",
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Instead of a weight: the source's share of the training rows, repeated only "
        "once it is used up.",
    )


class Replay(Place):
    """General rows mixed in, so that what the base could do is not forgotten."""

    share: float = Field(
        0.1, gt=0, lt=1, description="Their share of the training rows; 0.05 to 0.1 is usual."
    )


class Checks(Section):
    """What is looked for in the rows, and what follows: `off`, `report`, `drop` or `error`."""

    duplicates: Action = Field(
        "report", description="The same conversation again (after Unicode NFKC)."
    )
    near_duplicates: Action = Field(
        "report", description="Nearly the same text (MinHash over character n-grams)."
    )
    leakage: Action = Field(
        "drop", description="A training row that (nearly) repeats an evaluation row."
    )
    nothing_trained: Literal["drop", "error"] = Field(
        "drop", description="No token of the row is trained (every answer has weight 0)."
    )
    short_answers: Action = Field("report", description="An answer of a single character.")
    boilerplate: Action = Field(
        "report", description="The same first or last sentence in many answers."
    )
    mojibake: Action = Field(
        "report", description="Text that was decoded with the wrong encoding, as in `cafÃ©`."
    )
    control_characters: Action = Field(
        "report", description="Control characters other than tab and newline."
    )
    personal_data: Action = Field(
        "report", description="Hints of e-mail addresses, phone numbers and identity numbers."
    )


class Data(Section):
    """Where the rows come from, and what of them is trained."""

    path: NonEmpty | None = Field(
        None,
        description="File (.jsonl, .json, .csv, .tsv, .parquet, .txt, .md, each also .gz), folder, "
        "or Hugging Face dataset id; `--data` sets it too.",
    )
    sources: tuple[Source, ...] = Field(
        (), description="Several sources instead of `path`, mixed by weight or share."
    )
    replay: Replay | None = Field(None, description="General rows mixed in against forgetting.")
    bad_rows: Literal["error", "skip"] = Field(
        "error", description="A row that cannot be read refuses the run, or is counted and left."
    )
    template: NonEmpty | None = Field(
        None,
        description="Chat template: null for the tokenizer's own; or chatml, llama3, llama2, "
        "mistral-v1, mistral-v3, mistral-tekken, alpaca, human-assistant, or a .jinja file.",
    )
    max_tokens: int = Field(2048, ge=8, le=1_048_576, description="Longest row, in tokens.")
    overlength: Literal["drop", "truncate_prompt", "split_turns", "error"] = Field(
        "drop",
        description="A longer row is dropped and counted; loses the beginning of its first "
        "question (never of an answer); is split between turns; or is refused.",
    )
    train_on: Literal["assistant", "last_turn", "all"] = Field(
        "assistant",
        description="Trained tokens: every assistant turn, the last one, or the whole text.",
    )
    system: str | None = Field(None, description="System message for rows that have none.")
    date: str | None = Field(
        None,
        description="Date that the chat template writes, where it writes one (Llama 3.1 and 3.2).",
    )
    checks: Checks = Checks()
