"""Ollama's Modelfile, and its chat template in Go's language.

Ollama does not render the Jinja template that lies in a GGUF file. Without TEMPLATE it takes, of the two dozen
templates that it knows, the one whose Jinja original is less than 100 edits away (ollama/template/template.go,
`Named`), which need not write what the checkpoint's writes, and else `{{ .Prompt }}`, which writes no turns at all. So
a template is made here out of what the checkpoint's own one writes around messages, and kept only if it writes the very
same prompts for all the conversations that the corpus stage recorded. Where it cannot, the Modelfile says so and has
none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pipeline.records import Vocabulary

Turns = Sequence[Mapping[str, str]]
Render = Callable[[Turns, bool], str]
"""Messages, and whether the assistant's turn is opened, to the prompt's text."""

MARKS, SYSTEM = ("Zq1Zq", "Za1Za", "Zq2Zq", "Za2Za", "Zq3Zq"), "Zs1Zs"
"""Texts that no template holds, to find out what it writes around messages."""


class UnlikeGoError(Exception):
    """The checkpoint's template does what the Go template here cannot."""


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """What a template writes between the messages of a conversation in which user and assistant take turns."""

    first: str
    """In front of the first question, where there is no system message."""
    system: tuple[str, str] | None
    """In front of a system message, and between it and the first question; None where it is refused."""
    answer: str
    """Between a question and its answer."""
    question: str
    """Between an answer and the next question."""
    opening: str
    """After the last question: the beginning of the answer."""

    @classmethod
    def derive(cls, render: Render) -> Self:
        """Read the parts off a rendered conversation; UnlikeGoError when it is not made of such parts."""
        roles = ("user", "assistant") * 2 + ("user",)
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=True)]
        first, answer, question, *again, opening = _split(render(turns, True), *MARKS)
        if again != [answer, question]:
            raise UnlikeGoError("it does not write every turn alike")
        return cls(first, _system(render, turns[0]), answer, question, opening)

    def render(self, messages: Turns) -> str:
        """Write a prompt as Ollama does with the Go text."""
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        text, lead = "", self.first
        if system and self.system is not None:
            text, lead = self.system[0] + system + self.system[1], ""
        for index, message in enumerate(messages):
            if message["role"] == "user":
                text += lead + message["content"] + (self.opening if index == len(messages) - 1 else "")
                lead = self.question
            elif message["role"] == "assistant":
                text += self.answer + message["content"]
        return text

    def __str__(self) -> str:
        system = ""
        if self.system is not None:
            before, after = map(_show, self.system)
            system = f'{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ $lead = "" }}}}{{{{ end }}}}'
        last = "{{ if eq (len (slice $.Messages $i)) 1 }}"
        user = f"{{{{ $lead }}}}{{{{ .Content }}}}{last}{_show(self.opening)}{{{{ end }}}}"
        user += f"{{{{ $lead = {_quote(self.question)} }}}}"
        assistant = f"{_show(self.answer)}{{{{ .Content }}}}"
        return (
            f"{{{{ $lead := {_quote(self.first)} }}}}{system}{{{{ range $i, $message := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}'
            "{{ end }}"
        )


@dataclass(frozen=True, slots=True)
class Prompting:
    """How Ollama shall write prompts, and what it must know of that is left out."""

    template: str | None
    stop: str | None
    remarks: tuple[str, ...] = ()

    @classmethod
    def plain(cls, vocabulary: Vocabulary) -> Self:
        """Prompts of a checkpoint without a chat template: the text itself."""
        eos = vocabulary.special_ids.get("eos")
        return cls(
            "{{ .Prompt }}", _text(vocabulary, eos), ("The checkpoint has no chat template: it goes on with texts.",)
        )

    @classmethod
    def of(cls, vocabulary: Vocabulary, render: Render) -> Self:
        """Make a template of the checkpoint's own, `render`, and try it on the recorded conversations."""
        try:
            if vocabulary.reads_clock:
                raise UnlikeGoError("it writes the date")
            without_bos = _without_bos(vocabulary, render)
            template = GoTemplate.derive(without_bos)
            remarks = _compare(template, vocabulary, without_bos)
        except UnlikeGoError as reason:
            return cls(None, None, (
                f"No TEMPLATE: the checkpoint's own cannot be written in Ollama's language ({reason}).",
                "Ollama takes the most similar one it knows, or none: see `ollama show --template`.",
                "LM Studio, LocalAI and llama-server render the checkpoint's own, which lies in the GGUF file.",
            ))  # fmt: skip
        after = template.question.lstrip()
        stop = max((token for token in vocabulary.added_tokens if after.startswith(token)), key=len, default=None)
        return cls(str(template), stop, remarks)


def modelfile(weights: str, prompting: Prompting, context_tokens: int) -> str:
    """Write the instructions (ollama/docs/modelfile.mdx); `weights` is relative to the Modelfile.

    Sampling is left to Ollama and its users: it is no property of an artifact.
    """
    lines = [f"# {remark}" for remark in prompting.remarks]
    lines.append(f"FROM ./{weights}")
    if prompting.template is not None:
        lines.append(f'TEMPLATE """{prompting.template}"""')
    if prompting.stop is not None:
        lines.append(f'PARAMETER stop "{prompting.stop}"')
    lines.append(f"PARAMETER num_ctx {context_tokens}")
    return "\n".join(lines) + "\n"


def _without_bos(vocabulary: Vocabulary, render: Render) -> Render:
    """Leave out the BOS token where Ollama, by the GGUF's add_bos_token, puts it in front of every prompt itself."""
    bos = _text(vocabulary, vocabulary.special_ids.get("bos"))
    if not vocabulary.adds_bos or bos is None:
        return render

    def stripped(messages: Turns, opened: bool) -> str:
        text = render(messages, opened)
        if not text.startswith(bos):
            raise UnlikeGoError(f"it does not begin with {bos}, which Ollama puts in front")
        return text.removeprefix(bos)

    return stripped


def _compare(template: GoTemplate, vocabulary: Vocabulary, render: Render) -> tuple[str, ...]:
    """Hold the Go template against the recorded conversations; return where it differs and why that may be."""
    remarks: set[str] = set()
    if template.system is None:
        remarks.add("The checkpoint's template refuses system messages; here they are left out.")
    if '"""' in str(template):
        raise UnlikeGoError("it has three double quotes in a row, which end a Modelfile's text")
    for chat in vocabulary.chats:
        if not chat.add_generation_prompt:
            continue  # Ollama always asks for an answer
        messages = [message.model_dump() for message in chat.messages]
        trimmed = [message | {"content": message["content"].strip()} for message in messages]
        wanted = render(messages, True)
        if template.render(messages) == wanted:
            continue
        if template.render(trimmed) != wanted:
            raise UnlikeGoError(f"it differs on {chat.name!r}")
        remarks.add("The checkpoint's template drops white space around messages; Ollama keeps it.")
    return tuple(sorted(remarks))


def _system(render: Render, question: Mapping[str, str]) -> tuple[str, str] | None:
    from jinja2 import TemplateError

    try:
        rendered = render([{"role": "system", "content": SYSTEM}, question], True)
    except TemplateError:
        return None
    before, after, _ = _split(rendered, SYSTEM, question["content"])
    return before, after


def _split(text: str, *marks: str) -> list[str]:
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found or mark in text:
            raise UnlikeGoError("it writes a message not at all, or twice, or in another place")
        parts.append(part)
    return [*parts, text]


def _quote(text: str) -> str:
    """Write a string of Go's; what JSON escapes, Go reads alike."""
    return json.dumps(text, ensure_ascii=False)


def _show(text: str) -> str:
    return f"{{{{ {_quote(text)} }}}}" if text else ""


def _text(vocabulary: Vocabulary, token: int | None) -> str | None:
    return next((text for text, number in vocabulary.added_tokens.items() if number == token), None)
