"""Where answers end, and prompts that no model can answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from compression import replies, sample
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.bundle("llama")


@pytest.fixture
def bundle(model):
    """The model with a tokenizer and configs of the test's own."""
    import copy

    own = dataclasses.replace(model, tokenizer=tiny.tokenizer())
    saved = copy.deepcopy(model.module.config), copy.deepcopy(model.module.generation_config)
    yield own
    model.module.config, model.module.generation_config = saved


def test_every_place_may_name_ends_and_what_is_no_id_stops_nothing(bundle):
    bundle.module.config.eos_token_id = [1, 2, -1]
    bundle.module.generation_config.eos_token_id = [2, 3, 260, 10**9]
    assert sample.stop_ids(bundle) == {1, 2, 3, 257}
    bundle.module.config.eos_token_id, bundle.module.generation_config.eos_token_id = None, -1
    assert sample.stop_ids(bundle) == {257}
    bundle.tokenizer.eos_token = None
    assert sample.stop_ids(bundle) == frozenset()
    bundle.module.generation_config.eos_token_id = ["</s>", True, 4.0]
    assert sample.stop_ids(bundle) == frozenset()


def test_a_temperature_flattens_the_chances(bundle, monkeypatch):
    """Of two tokens with chances of 1 : 9 the second is three times as likely at temperature 2."""
    logits = torch.tensor([1.0, 9.0]).log()
    monkeypatch.setattr(sample, "stepper", lambda *sizes: lambda step: logits.expand(len(step), 2))
    drawn = next(sample.generate(bundle, torch.zeros(4000, 1, dtype=torch.long), 1, temperature=2.0))
    assert abs(float(drawn.float().mean()) - 0.75) < 0.03  # four standard errors


STRICT = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}{% endif %}
{{ m.role }}: {{ m.content }}{% endfor %}"""
ASKED = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "template, messages, said",
    [
        (STRICT, [{"role": "system", "content": "be kind"}, *ASKED], "System role not supported"),
        (STRICT, ASKED * 2, "must alternate"),
        ("{{ messages[9].content.x }}", ASKED, "UndefinedError"),
        ("{% if %}", ASKED, "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", ASKED, "ZeroDivision"),
        ({"rag": "{{ messages }}"}, ASKED, "default"),
        ("{{ messages[0].content.encode().nope() }}", ASKED, ""),
        (r"{{ '\ud83d' }}", ASKED, "UnicodeEncodeError"),
    ],
)
def test_a_template_that_refuses_is_told_in_its_words(bundle, template, messages, said):
    bundle.tokenizer.chat_template = template
    with pytest.raises(sample.PromptRefused) as error:
        sample.chat_ids(bundle, messages)
    assert (
        error.value.code == "chat_template"
        and said in str(error.value)
        and len(error.value.facts["reason"]) <= 300
    )


def test_a_teacher_whose_template_refuses_is_told_too(bundle):
    bundle.tokenizer.chat_template = "{{ raise_exception('no questions') }}"
    with pytest.raises(sample.PromptRefused, match="no questions"):
        replies.write(bundle, ["hello"])


def test_templates_that_serve(bundle):
    bundle.tokenizer.chat_template = STRICT
    assert "user: hello" in bundle.tokenizer.decode(sample.chat_ids(bundle, ASKED)[0])
    bundle.tokenizer.chat_template = {"default": "default {{ messages[0].content }}", "rag": "no"}
    assert bundle.tokenizer.decode(sample.chat_ids(bundle, ASKED)[0]) == "default hello"
    bundle.tokenizer.chat_template = None
    assert bundle.tokenizer.decode(sample.chat_ids(bundle, ASKED * 2)[0]) == "hello\nhello"


def test_prompts_without_words_or_room(bundle):
    for template in (None, "{{ '' }}"):
        bundle.tokenizer.chat_template = template
        with pytest.raises(sample.PromptRefused) as error:
            sample.chat_ids(bundle, [{"role": "user", "content": ""}])
        assert error.value.code == "empty_prompt"
    with pytest.raises(sample.PromptRefused, match="Shorten") as error:
        sample.complete(bundle, "a" * 256)
    assert error.value.code == "prompt_too_long" and error.value.facts == {"got": 256, "allowed": 256}
    with pytest.raises(sample.PromptRefused):
        sample.complete(bundle, "")
    assert sample.complete(bundle, "a" * 254, 9).startswith("a" * 254)


def test_a_continuation_keeps_its_spaces(bundle, monkeypatch):
    bundle.tokenizer.clean_up_tokenization_spaces = True
    bundle.tokenizer.eos_token = None
    monkeypatch.setattr(
        sample,
        "generate",
        lambda *a: (torch.tensor([i]) for i in bundle.tokenizer(" , don 't !")["input_ids"]),
    )
    assert sample.complete(bundle, "well") == "well , don 't !"
