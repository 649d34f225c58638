"""Hostile templates: none reaches Python, none runs on, none fills the memory; ordinary ones print as Jinja prints."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from refdiff import CheckpointError
from refdiff.generation.chat_template import sandbox
from refdiff.generation.chat_template.sandbox import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hello\n  there"}, {"role": "assistant", "content": "naïve 東京"}]


def run(text: str, **variables: Any) -> str:
    return ChatTemplate(text, "chat_template.jinja").render({"messages": MESSAGES, **variables})[0]


def grow(start: str, step: str, end: str, count: int = 100) -> str:
    return "{% set ns = namespace(x=" + start + ") %}{% for i in range(" + f"{count}) %}}{step}{{% endfor %}}{end}"


TWICE = "{% set ns.x = [ns.x, ns.x] %}"
TUPLES = "{% set ns.x = (ns.x, ns.x) %}"
BIG = "{% set a = 'a' * 100000 %}{% set b = 'a' * 100000 %}"
SLOW = "{% set a = 'a' * 290000 %}{% set b = 'a' * 140000 ~ 'baaaaa' %}"  # b in a takes 11 ms
LIST = "{% set l = range(30000) | list %}"
TUPLE = "{% set t = (nope,) * 30000 %}"  # its hash takes 2 ms
UNDEFINED = "{% set u = [nope] * 30000 %}{% set v = [nope2] * 30000 %}"
MANY = "{% for i in range(100000) %}BODY{% endfor %}"
STOPPED = {
    "nested loops": LIST + "{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
    "loops that take nothing": BIG + "{% for j in range(100000) if 'b' in a %}{% endfor %}" * 20,
    "recursive loop": "{% for i in [1] recursive %}{{ loop(range(9)) if loop.depth < 90 }}{% endfor %}",
    "macro calls itself twice": "{% macro f(n) %}{% if n %}"
    "{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "call blocks": "{% macro f(n) %}{% if n %}{% call f(n-1) %}{% endcall %}{% call f(n-1) %}{% endcall %}{% endif %}"
    "{{ caller() }}{% endmacro %}{% call f(60) %}x{% endcall %}",
    "block": MANY.replace("BODY", "{{ self.b() }}") + "{% block b %}{{ 'x' * 9999 }}{% endblock %}",
    "string times": "{{ 'a' * 9000000000 }}",
    "times string": "{{ 9000000000 * 'a' }}",
    "list times": "{{ [0] * 9000000000 }}",
    "repeated squares": grow("3", "{% set ns.x = ns.x * ns.x %}", "{{ ns.x }}"),
    "doubling by ~": grow("'ab'", "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}"),
    "doubling by +": grow("'ab'", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "doubling lists": grow("[1]", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "doubling by set": grow("'ab'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", "{{ ns.x }}"),
    "doubling by replace": grow("'ab'", "{% set ns.x = ns.x.replace('a', 'aa') %}", "{{ ns.x }}"),
    "doubling by macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + grow("'ab'", "{% set ns.x = f(ns.x) %}", "{{ ns.x }}"),
    "shared lists": grow("[1]", TWICE, "", 60),
    "shared tuples": grow("(1,)", TUPLES, "", 60),
    "shared dicts": grow("{}", "{% set ns.x = {1: ns.x, 2: ns.x} %}", "", 60),
    "shared arguments": "{% macro f(n) %}{% if n %}{{ f(n-1, varargs, varargs) }}{% else %}{{ {}[varargs] }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "many lines": "{{ ('\n' * 100000) | indent(100000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "json indent": "{{ [1] | tojson(indent=1000000000) }}",
    "json indent text": BIG + "{{ ([1] * 9) | tojson(indent=a) }}",
    "json separators": BIG + LIST + "{{ l | tojson(separators=(a, a)) }}",
    "long time": "{{ strftime_now('%Y' * 1000) }}",
    "numbers in a loop": "{% set a = '1' * 200000 %}" + MANY.replace("BODY", "{% set c = a | float %}"),
    "replace": BIG + "{{ a.replace('a', a) }}",
    "replace filter": BIG + "{{ a | replace('a', a) }}",
    "replace nothing": BIG + "{{ a.replace('', a) }}",
    "replace by name": BIG + "{{ a | replace(new=a, old='') }}",
    "long text in a loop": "{% for i in range(5000) %}" + "x" * 99_000 + "{% endfor %}",
    "maps of maps": grow(
        "range(100000)", "{% set ns.x = ns.x | map(attribute='x', default=1) %}", "{{ ns.x | list }}", 200
    ),
    "join filter": BIG + "{{ range(100000) | join(a) }}",
    "join attribute": "{{ range(100000) | map(attribute='z', default='a' * 100000) | join }}",
    "join by attribute": BIG + "{{ range(100000) | map(attribute='x', default={'z': a}) | join(attribute='z') }}",
    "split": "{% set a = '🎉 ' * 140000 %}{{ a.split() | length }}",
    "rsplit": SLOW + "{{ a.rsplit('ab' + a[:145000]) }}",
    "strip": BIG + "{{ a | trim('b' * 90000 ~ 'a') }}",
    "sort by a long path": "{{ (['a'] * 20000) | sort(attribute='0.' * 99999 + '0') }}",
    "from hex": "{{ ('f' * 200000) | int(base=16) }}",
    "keep lists": grow("[]", "{% set ns.x = ns.x + [range(9000) | list] %}", "", 100000),
    "keep slices": LIST + "".join(f"{{% set a{i} = l[:] %}}" for i in range(1000)),
    "keep what a method makes": BIG + "".join(f"{{% set a{i} = a.upper() %}}" for i in range(1000)),
    "keep what a filter makes": LIST + "".join(f"{{% set a{i} = l | list %}}" for i in range(1000)),
    "keep arguments": "{% set d = {" + ",".join(f"'a{i}':1" for i in range(4000)) + "} %}"
    + grow("none", "{% set ns.x = namespace(b=ns.x, **d) %}", "", 100000),
    "search": SLOW + "{% if b in a %}{% endif %}" * 3000,
    "search by a test": SLOW + "{% if b is in a %}{% endif %}" * 3000,
    "search by method": BIG + MANY.replace("BODY", "{{ a.count('b') }}"),
    "slice in a loop": BIG + MANY.replace("BODY", "{% set c = a[::-1] %}"),
    "upper in a loop": BIG + MANY.replace("BODY", "{% set c = a | upper %}"),
    "unique in a loop": LIST + MANY.replace("BODY", "{{ l | unique | list | length }}"),
    "items in a loop": "{% set d = dict(l=range(20000) | list) %}" + MANY.replace("BODY", "{{ d.items() | list }}"),
    "select none": UNDEFINED + "{{ ([0] * 2000) | select('in', u) | list | length }}",
    "reject all by a long path": "{{ (['a'] * 600) | rejectattr('0.' * 99999 ~ '0') | list | length }}",
    "keep the text of a list": "{% set l = ['\\x00' * 290000] %}{% set x %}"
    "{% for i in range(200) %}{{ l }}{% endfor %}{% endset %}",
    "text of a macro": "{% macro " + "A" * 45000 + "() %}{% endmacro %}{{ [" + "A" * 45000 + "] * 4000 }}",
    "text of ranges": "{% set b = " + "9" * 4000 + " %}{{ [range(b, b + 1)] * 30000 }}",
    "filter with many operands": UNDEFINED + "{{ 1 | tojson(" + "u, " * 500 + ") }}",
    "method with many operands": UNDEFINED + "{{ 'a'.strip(" + "u, " * 500 + ") }}",
    "hashes in a literal": TUPLE + "{% set d = {" + "t: 0, " * 3000 + "} %}",
    "hashes in look-ups": TUPLE + "{% set d = {1: 0} %}{{ [" + "d[t], " * 3000 + "] | length }}",
    "chain of comparisons": UNDEFINED + "{% if u" + " == v == u" * 1000 + " %}{% endif %}",
    "quotients": "{% set x = ('f' * 8700) | int(base=16) %}{% set y = ('f' * 4350) | int(base=16) %}"
    "{{ [" + "x // y, " * 6000 + "] | length }}",
}  # fmt: skip
REFUSED = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ namespace.__init__.__globals__['os'] }}",
    "function globals": "{{ raise_exception.__globals__['re'] }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "class by a filter": "{{ ([1] | map(attribute='__class__') | first).x }}",
    "class of a namespace": "{{ namespace(__class__=1).__class__.x }}",
    "namespace": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x.y }}{{ ns['_x'].y }}",
    "class of a dict": "{{ dict['x'].update(messages[0], {'role': 'system'}) }}",
    "change the messages": "{{ messages.append(1) }}",
    "change a message": "{% set messages.x = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "budget": "{{ pay(-1000) }}",
    **{text: f"{{{{ {text} }}}}" for text in (
        "'a'.encode()", "('<!---->' | safe).striptags()", "(1).to_bytes(1000000000, 'big')", "'a'.center(1000000000)",
        "'1'.zfill(1000000000)", "'\t'.expandtabs(1000000000)", "'{:1000000000}'.format(1)",
        "'{a}'.format_map({'a': 1})", "('{0}' | attr('format'))(1)", "'%1000000000d' % 1", "'%*d' % (9, 1)",
        "'%d' | format(1)", "'a' | center(9)", "1.5 | round(1000000000, 'ceil')", "[[1]] | sum(start=[])",
        "9 ** 9", "dict.fromkeys('ab')", "{}.keys() - []", "','.join(['a'])", "1 | pprint", "1 is strange",
        "joiner(',')", "cycler(1)", "lipsum()", "nothing.at.all", "1 + 'a'", "1 / 0",
    )},
    "kept method": "{% set f = 'a'.center %}{{ f(1000000000) }}",
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "syntax": "{% for %}",
    "open block": "{% if 1 %}",
    "unknown tag": "{% run %}{% endrun %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ 1" + "+1" * 20000 + " }}",
    "wide loops in deep ones": "{% for i in [1] %}" * 180 + "{{ 1 }}" * 9000 + "{% endfor %}" * 180,
    "deep loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless block": "{% block a %}{{ self.a() }}{% endblock %}",
    "long number": "{{ " + "9" * 5000 + " }}",
    "deep tuples": grow("(1,)", "{% set ns.x = (ns.x,) %}", "{{ {ns.x: 1} }}", 300),
    "shared namespaces": grow("1", "{% set ns.x = namespace(a=ns.x, b=ns.x) %}", "{{ {}[ns.x].y }}", 60),
    **{statement: "{% if false %}" + statement + "{% endif %}" for statement in (
        "{% include x %}", "{% import x as y with context %}", "{% from x import y with context %}",
        "{% block b scoped %}{% endblock %}",
    )},  # each compiles to all variables of the template
    "names at each if": "{% set " + ",".join(f"a{i}" for i in range(6000)) + " = b %}" + "{% if a %}{% endif %}" * 2500,
    "filter of the sandbox": "{{ 1 | made }}",
    "filter of the sandbox by map": "{{ [1] | map('made') | list }}",
    "filter of the sandbox by its name": "{{ [1] | map('<result>') | list }}",
    "too long": "x" * 100_001,
}  # fmt: skip


@pytest.mark.parametrize("name", list(STOPPED))
def test_endless_templates_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "keep" not in name:  # these take little time
        monkeypatch.setattr(sandbox, "SECONDS", sandbox.SECONDS / 40)
    start, before = time.process_time(), _peak_bytes()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template was stopped"):
        run(STOPPED[name])
    assert _peak_bytes() - before < 150e6
    assert time.process_time() - start < 3


@pytest.mark.slow
def test_time_is_bounded_as_shipped() -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"the chat template was stopped"):
        run(STOPPED["search"])
    assert 1 < time.process_time() - start < 5


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", list(REFUSED))
def test_forbidden_operations_fail(name: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template(:| failed| does not compile)"):
        run(REFUSED[name])
    assert time.process_time() - start < 5


def test_nothing_private_is_printed() -> None:
    assert run("{{ ''.__class__ }}{{ 'a'.format }}{{ raise_exception.__globals__ }}") == ""


@pytest.mark.parametrize("text", ["{{ 'a ' * 400000 }}", "{% for i in range(4000) %}" + "x" * 99 + "{% endfor %}"])
def test_the_output_is_bounded(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"was stopped: .* writes more, than a chat needs"):
        run(text)


@pytest.mark.parametrize(
    "expression",
    [
        "'' ~ range", "''.upper", "messages | map('upper')", "raise_exception(range)", "'a'.upper | string",
        "raise_exception([] | map('upper'))", "['a', range] | join", "'a' | replace('a', range)", "{'a': range}",
        "[dict]", "self.b", "['a'] | map(attribute='upper') | list", "range | upper", "[messages | map('upper')]",
    ],
)  # fmt: skip
def test_no_address_of_an_object_is_printed(expression: str) -> None:
    with pytest.raises(CheckpointError, match=r"TypeError: a \w+ is no data$"):
        run("{{ " + expression + " }}{% block b %}{% endblock %}")


def test_messages_of_templates_cannot_drive_a_terminal() -> None:
    for text in ("{{ raise_exception('\x1b[2J\u202e') }}", "{{ {}['\x1b[2J'].x }}", "{% \x1b[2J %}"):
        with pytest.raises(ValueError) as caught:
            run(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000


ORDINARY = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role }}: {{ m['content'] }}\n{% endfor %}",
    "{{ messages[0].content.split('\n') }}{{ messages[0].content.splitlines() }}{{ 'aab'.rsplit('a', 1) }}",
    "{{ 'a-b'.replace('-', '+') }}{{ 'a-b' | replace('-', '+') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ ' x '.strip() }}",
    "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent('> ', first=true) }}{{ 1 ~ 'a' ~ none ~ [1] }}",
    "{{ [3, 1, 2] | sort | join('-') }}{{ [3, 1] | max }}{{ [1, 1, 2] | unique | list }}",
    "{{ [{'n': 1}] | join(',', attribute='n') }}{{ ['b', 'a'] | map('upper') | sort | join }}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{% set m = messages | selectattr('role', 'in', ['user', 'x']) %}{{ (m | first).role }}{{ m | list }}",
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1}.items() | list }}{{ {'a': 1} | items | list }}",
    "{{ messages[1:] | length }}{{ 'abc'[::-1] }}{{ [1, 2, 3][-1] }}{{ messages | first is mapping }}",
    "{{ 1 < 2 < 3 }}{{ 1 in [1] }}{{ 'a' not in 'b' }}{{ none == false }}{{ 'x' is in ['x'] }}{{ 3 is divisibleby 3 }}",
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 7 / 2 }}{{ -3 | abs }}{{ 'ab' * 3 }}{{ [0] * 2 }}{{ 100000 * 100000 * 1.5 }}{{ 3 - 4 }}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) if i is odd %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}{{ caller is defined }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}",
    "{% macro f() %}<{{ caller(3) }}>{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
    "{% macro f(s) %}{% set s.n = s.n + 1 %}{% endmacro %}{% set n = namespace(n=1) %}{{ f(n) }}{{ n.n }}",
    "{% macro f(a) %}{{ a }}{{ varargs }}{% endmacro %}{% set l = [f] + [f] %}{{ l[1](*[3, 4]) }}{{ l | length }}",
    "{% set kwargs = 1 %}{{ kwargs }}{% macro f() %}{{ kwargs }}{% endmacro %}{{ f(a=2) }}",
    "{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{% filter upper %}abc{% endfilter %}{% set x %}y{{ 1 }}{% endset %}{{ x }}{% with z = 2 %}{{ z }}{% endwith %}",
    "{{ 'a b' | title }}{{ 'A' | lower }}{{ ' x ' | trim }}{{ '<' | e }}{{ '<' | safe }}{{ '3' | int + 1 }}",
    "{{ dict(a=1) }}{{ missing | default('d') }}{{ '' | default('e', true) }}{{ none | string }}{{ range is defined }}",
    "{% block b %}{{ 1 if messages else 2 }}{% endblock %}{{ (1, 2) | last }}{{ 'abc' | list }}{{ 'ab' | reverse }}",
    "  {%- if true %}\n  a\n  {% endif %}\n   {# note #}\n b  \n",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | length }};{% else %}none{% endfor %}",
    "{{ {1: 'a'}[1] }}{{ {(1, 2): 3}[(1, 2)] }}{{ {'a': 1}.get('b', 2) }}{{ 'ab'.find('b') }}{{ {}.items is defined }}",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_templates_print_what_jinja_prints(text: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    assert run(text) == plain.from_string(text).render(messages=MESSAGES)


def test_json_is_not_escaped_for_html() -> None:
    value = {"b": "<é>", "a": [1, None]}
    assert run("{{ v | tojson }}", v=value) == '{"b": "<é>", "a": [1, null]}'
    expected = '{\n "a": [\n  1,\n  null\n ],\n "b": "<\\u00e9>"\n}'
    assert run("{{ v | tojson(indent=1, ensure_ascii=true, sort_keys=true) }}", v=value) == expected
    assert run("{{ [1, 2] | tojson(separators=(',', ':')) }}") == "[1,2]"


def test_the_budget_grows_with_the_conversation() -> None:
    chat = [{"role": "user", "content": "word " * 20_000}] * 40
    text = (
        "{% for m in messages %}{{ m.content | trim ~ '\n' }}{% if m.content.startswith('w') %}!{% endif %}{% endfor %}"
    )
    assert len(ChatTemplate(text, "f").render({"messages": chat})[0]) == 40 * (99_999 + 2)


def test_long_parts_of_a_long_message_are_taken_out() -> None:
    thought = "a line\n" * 5_000
    chat = [{"role": "assistant", "reasoning": thought, "content": thought + "hello\n" * 5_000}]
    text = "{% set m = messages[0] %}{{ m.content.replace(m.reasoning, '') }}{{ m.content.removeprefix(m.reasoning) }}"
    assert ChatTemplate(text, "f").render({"messages": chat})[0] == "hello\n" * 10_000
