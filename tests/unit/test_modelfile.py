"""Go templates made of Jinja templates, rendered by Go itself where it is installed."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, TemplateError

from pipeline.backends.common.hf_tokenizer import CONVERSATIONS
from pipeline.commands.modelfile import GoTemplate, Prompting, Turns, modelfile
from pipeline.records import Chat, Message, Vocabulary

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim"
    " + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + (s if loop.index0 == 1 and s else '')"
    " + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)
BRACES = CHATML.replace("'<|im_start|>", "'{' + '{")


def renderer(template: str) -> Callable[[Turns, bool], str]:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    compiled = Environment().from_string(template)
    return lambda messages, opened: compiled.render(
        messages=messages, add_generation_prompt=opened, bos_token="<s>", raise_exception=refuse
    )


def vocabulary(template: str | None, *, adds_bos: bool = False) -> Vocabulary:
    chats = []
    for name, turns, opened in CONVERSATIONS:
        messages = tuple(Message(role=role, content=content) for role, content in turns)
        try:
            renderer(template or "")([message.model_dump() for message in messages], opened)
        except TemplateError:
            continue
        chats.append(Chat(name=name, messages=messages, add_generation_prompt=opened, ids=()))
    return Vocabulary(
        size=9,
        special_ids={"bos": 1, "eos": 2},
        added_tokens={"<s>": 1, "</s>": 2, "<|im_end|>": 3, "<|eot|>": 4, "</turn>": 5},
        adds_bos=adds_bos,
        chat_template=template,
        samples=(),
        chats=tuple(chats),
    )


def prompting(template: str, *, adds_bos: bool = False) -> Prompting:
    return Prompting.of(vocabulary(template, adds_bos=adds_bos), renderer(template))


@pytest.mark.parametrize(
    ("template", "adds_bos", "stop"),
    [
        (CHATML, False, "<|im_end|>"),
        (DEFAULT_SYSTEM, False, "<|im_end|>"),
        (LLAMA3, True, "<|eot|>"),
        (LLAMA3, False, "<|eot|>"),
        (GEMMA, True, "</turn>"),
        (MISTRAL, True, "</s>"),
    ],
)
def test_prompts_are_the_checkpoints(template: str, adds_bos: bool, stop: str, tmp_path: Path) -> None:
    made = prompting(template, adds_bos=adds_bos)
    assert made.template is not None
    assert made.stop == stop
    render = renderer(template)
    for chat in vocabulary(template).chats:
        messages = [message.model_dump() for message in chat.messages]
        if chat.add_generation_prompt and not any("white space" in remark for remark in made.remarks):
            wanted = render(messages, True).removeprefix("<s>" if adds_bos else "")
            assert go(made.template, messages, tmp_path) in (wanted, None)


def test_white_space_that_a_template_drops_is_told() -> None:
    assert any("white space" in remark for remark in prompting(LLAMA3, adds_bos=True).remarks)
    assert prompting(CHATML).remarks == ()


def test_refused_system_messages_are_told() -> None:
    assert any("system" in remark for remark in prompting(GEMMA, adds_bos=True).remarks)


@pytest.mark.parametrize(
    ("template", "adds_bos", "why"),
    [
        (CHATML.replace("{% for", "{{ messages | length }}{% for"), False, "differs on"),
        (CHATML.replace("m['role'] +", "(m['role'] if loop.index < 3 else '') +"), False, "every turn alike"),
        (CHATML, True, "<s>"),
        (CHATML + "{{ strftime_now('%Y') if false else '' }}", False, "date"),
        (CHATML.replace("m['content']", "m['content'] | upper"), False, "not at all"),
        (CHATML.replace("m['content']", "m['content'] | replace('ï', 'i')"), False, "beyond ASCII"),
    ],
)
def test_what_go_cannot_write_is_left_out_with_the_reason(template: str, adds_bos: bool, why: str) -> None:
    made = prompting(template, adds_bos=adds_bos)
    assert made.template is None
    assert why in made.remarks[0]
    text = modelfile("w.gguf", made, 512)
    assert 'TEMPLATE "' not in text
    assert text.splitlines()[-2:] == ["FROM ./w.gguf", "PARAMETER num_ctx 512"]


def test_braces_are_written_as_text(tmp_path: Path) -> None:
    made = prompting(BRACES)
    assert made.template is not None
    messages = [{"role": "user", "content": "Hello"}]
    rendered = go(made.template, messages, tmp_path)
    if rendered is None:
        pytest.skip("go is not installed (apt-get install golang-go)")
    assert rendered == renderer(BRACES)(messages, True) == "{{user\nHello<|im_end|>\n{{assistant\n"


def test_a_checkpoint_without_a_template_goes_on_with_texts() -> None:
    text = modelfile("assay/m/model.gguf", Prompting.plain(vocabulary(None)), 256)
    assert text.splitlines()[1:] == [
        "FROM ./assay/m/model.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "</s>"',
        "PARAMETER num_ctx 256",
    ]


def test_the_rehearsal_renders_as_go_does(tmp_path: Path) -> None:
    """GoTemplate.render decides whether a template is kept, so it must be what Go makes of the text."""
    for template in (CHATML, DEFAULT_SYSTEM, GEMMA, MISTRAL):
        derived = GoTemplate.derive(renderer(template))
        for _, turns, _ in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            rendered = go(str(derived), messages, tmp_path)
            if rendered is None:
                pytest.skip("go is not installed (apt-get install golang-go)")
            assert derived.render(messages) == rendered


PROGRAM = """package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content string }

func main() {
	var input struct { Template string; Messages []Message }
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil { panic(err) }
	var system []string
	for _, m := range input.Messages { if m.Role == "system" { system = append(system, m.Content) } }
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(input.Template))
	values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": input.Messages, "Response": ""}
	if err := parsed.Execute(os.Stdout, values); err != nil { panic(err) }
}
"""
"""What ollama/template/template.go does with a template that has .Messages."""

BUILT: dict[str, Path] = {}


def go(template: str, messages: Any, folder: Path) -> str | None:
    """Render with Go's own text/template; None where there is no Go."""
    compiler = shutil.which("go")
    if compiler is None:
        return None
    if "program" not in BUILT:
        (folder / "render.go").write_text(PROGRAM)
        command: list[str | Path] = [compiler, "build", "-o", folder / "render", folder / "render.go"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        BUILT["program"] = folder / "render"
    value = json.dumps({"Template": template, "Messages": messages})
    return subprocess.run([BUILT["program"]], input=value, capture_output=True, text=True, check=True).stdout
