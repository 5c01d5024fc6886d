"""Bodies of requests, as OpenAI's API has them. Unknown keys are left alone: clients send more than any server knows.

What would change the answer and cannot be done here is refused by name, never passed over in silence.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from containers.engines.contract import Sampling
from containers.gateway.errors import unsupported

DEFAULT_TOKENS = 16
"""The default of /v1/completions, which is OpenAI's; a chat may go on to the end of the context."""
MOST_CANDIDATES = 20

Ids = list[Annotated[int, Field(ge=0)]]
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None), "logit_bias": ({}, None), "suffix": ("", None),
    "tools": ([], None), "functions": ([], None), "modalities": (["text"], None), "audio": (None,),
}  # fmt: skip
"""Parameters that no engine here has, with the values that ask for nothing."""


class StreamOptions(BaseModel):
    """What a stream tells beside its text."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | None = None
    temperature: float = Field(default=1, ge=0, le=2)
    top_p: float = Field(default=1, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: list[str] = Field(default_factory=list, max_length=16)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False
    return_token_ids: bool = False
    """As vLLM has it, for those who compare tokens and not texts."""
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Take null for "not given", as the API does, one stop string for a list of one, and refuse what is not had."""
        if not isinstance(value, dict):
            return value
        for name, neutral in NEUTRAL.items():
            if value.get(name) not in neutral:
                raise unsupported(name, "no engine of this server has it")
        plain = {name: one for name, one in value.items() if one is not None}
        if isinstance(plain.get("stop"), str):
            plain["stop"] = [plain["stop"]]
        return plain

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends by a chunk of token counts."""
        return self.stream_options.include_usage

    def sampling(self, max_tokens: int, choice: int, candidates: int | None, schema: Any = None) -> Sampling:
        """Say how the choice of this number is sampled: a seed gives each choice one of its own."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=None if self.seed is None else self.seed + choice,
            candidates=candidates,
            ignore_eos=self.ignore_eos,
            schema=schema,
        )


class CompletionRequest(Asked):
    """POST /v1/completions."""

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: int = Field(default=DEFAULT_TOKENS, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_CANDIDATES)
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise unsupported("best_of", "answers are not ranked here; ask for n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which makes sense with echo only")
        if not all(self.prompts or [[]]):
            raise ValueError("prompt is empty")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids: list[int] = []
        several: list[str | list[int]] = []
        for one in self.prompt:
            if isinstance(one, int):
                ids.append(one)
            else:
                several.append(one)
        return [ids] if ids else several


class TextPart(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: str
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content, its parts one after the other."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(BaseModel):
    """A named schema."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema to hold the answer to; any object will do for json_object."""
        if self.type == "json_object":
            return {"type": "object"}
        return self.json_schema.schema_ if self.type == "json_schema" and self.json_schema else None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("response_format.json_schema is missing")
        return self


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_CANDIDATES)
    response_format: ResponseFormat = ResponseFormat()

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, by either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or a conversation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tokens: Ids
