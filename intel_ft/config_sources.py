"""What every section of the configuration has in common, and the sources of training data."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from intel_ft.config_text import SOURCES, expand_path, kinds_of

PathOrId = Annotated[str, AfterValidator(expand_path)]

Auto = Literal["auto"]
DataFormat = Literal[
    "auto",
    "alpaca",
    "dolly",
    "prompt_completion",
    "question_answer",
    "messages",
    "text",
    "segments",
    "tokens",
]
OnLong = Literal["error", "drop", "truncate", "split"]
TemplateName = Literal["auto", "llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]


class Section(BaseModel):
    """A section of the configuration: immutable; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and bool not in kinds_of(field.annotation):
            raise ValueError("must not be true or false")
        return value


class Source(Section):
    """One of several sources in data.train, or its path. For a null key, that of data applies."""

    path: PathOrId = Field(min_length=1)
    """A file, folder, pattern, URL or Hub id, as data.train alone would be."""
    split: str | None = None
    """Split of this source, or a slice of it."""
    format: DataFormat | None = None
    """Meaning of the columns of this source."""
    columns: dict[str, str] | None = None
    """Maps the column names that format expects to those of this source."""
    template: TemplateName | None = None
    """Prompt template of this source."""
    on_long: OnLong | None = None
    """What happens to examples of this source that are longer than max_length."""
    weight: float | None = Field(None, gt=0)
    """Share of the examples that a run trains on, relative to the other weights. Without weights,
    each example of each source is trained on once per epoch."""
    max_examples: int | None = Field(None, ge=1)
    """Maximum number of examples, taken from the start of this source."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


def _kind(value: Any) -> str:
    return SOURCES if isinstance(value, list) else "path"


Train = Annotated[
    Annotated[PathOrId, Field(min_length=1), Tag("path")]
    | Annotated[list[Source], Field(min_length=1), Tag(SOURCES)],
    Discriminator(_kind),
]


class WithSources(Section):
    """A section whose `train` is one source or several."""

    train: Train

    @property
    def sources(self) -> list[Source]:
        """The sources of data.train; a path alone is one source."""
        return [Source(path=self.train)] if isinstance(self.train, str) else self.train

    @property
    def train_name(self) -> str:
        """The sources of data.train as text for messages."""
        first, *others = [source.path for source in self.sources]
        return f"{first} and {len(others)} more" if others else first

    def of(self, source: Source) -> Self:
        """This section for one source alone: its own settings apply."""
        own = {name: value for name, value in source if name in type(self).model_fields}
        own = {name: value for name, value in own.items() if value is not None}
        return self.model_copy(update={**own, "train": [source]})
