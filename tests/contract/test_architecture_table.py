"""The tables of architectures say what the installed tools say, and each line of the findings is needed."""

import json

from pipeline import architectures
from tests.support.architectures import BEGIN, PAGE, page, tools


def test_the_table_is_the_tools_own() -> None:
    """But for Optimum's, which tests/contract/test_onnx_optimum.py asks in its own environment."""
    written = json.loads(architectures.TOOLS.read_text(encoding="utf-8"))
    assert written == tools(written["optimum"]), "run `python -m tests.support.architectures`"


def test_the_page_is_written_from_the_table() -> None:
    _, _, rows = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rows == page(architectures.tools()), "run `python -m tests.support.architectures`"


def test_what_was_found_is_about_what_the_tools_take() -> None:
    """A finding about an architecture that the tool does not take would be a typing error, or out of date."""
    found, known = architectures.findings(), architectures.tools()
    assert found.gptq.refused.keys() <= known.gptqmodel
    assert found.awq.folds <= known.gptqmodel
    assert found.onnx.refused.keys() <= known.genai.keys()
    assert found.onnx.rope.keys() - {"default"} <= known.genai.keys()
    named = {name for listed in found.tensorrt_llm.values() for name in listed}
    assert named <= set(known.transformers.values())
