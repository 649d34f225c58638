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
    return ChatTemplate(text, "chat_template.jinja").render({"messages": MESSAGES, **variables})


NS = "{% set ns = namespace(x=START) %}{% for i in range(COUNT) %}STEP{% endfor %}END"


def grow(start: str, step: str, end: str, count: int = 100) -> str:
    return NS.replace("START", start).replace("COUNT", str(count)).replace("STEP", step).replace("END", end)


NESTED = "{% set ns.x = [ns.x, ns.x] %}"
BIG = "{% set a = 'a' * 100000 %}{% set b = 'a' * 100000 %}"
LONG = "{% set l = range(100000) | list %}"
SHORT = "{% set l = range(30000) | list %}"
MANY = "{% for i in range(100000) %}BODY{% endfor %}"
STOPPED = {
    "nested loops": SHORT + "{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
    "loops that take nothing": BIG + "{% for j in range(100000) if 'b' in a %}{% endfor %}" * 20,
    "recursive loop": "{% for i in [1] recursive %}{{ loop(range(9)) if loop.depth < 90 }}{% endfor %}",
    "macro calls itself twice": "{% macro f(n) %}{% if n %}"
    "{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "call blocks": "{% macro f(n) %}{% if n %}{% call f(n-1) %}{% endcall %}{% call f(n-1) %}{% endcall %}{% endif %}"
    "{{ caller() }}{% endmacro %}{% call f(60) %}x{% endcall %}",
    "block": MANY.replace("BODY", "{{ self.b() }}") + "{% block b %}{{ 'x' * 9999 }}{% endblock %}",
    "string times": "{{ 'a' * 10**10 }}",
    "times string": "{{ 10**10 * 'a' }}",
    "list times": "{{ [0] * 10**10 }}",
    "power": "{{ 10 ** 10000 }}",
    "tower": "{{ 9 ** (9 ** 9) }}",
    "repeated squares": grow("3", "{% set ns.x = ns.x * ns.x %}", "{{ ns.x }}"),
    "doubling by ~": grow("'ab'", "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}"),
    "doubling by +": grow("'ab'", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "doubling lists": grow("[1]", "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}"),
    "doubling by set": grow("'ab'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", "{{ ns.x }}"),
    "doubling by replace": grow("'ab'", "{% set ns.x = ns.x.replace('a', 'aa') %}", "{{ ns.x }}"),
    "doubling by format": grow("'ab'", "{% set ns.x = '{0}{0}'.format(ns.x) %}", "{{ ns.x }}"),
    "doubling by format_map": grow("'ab'", "{% set ns.x = '{a}{a}'.format_map({'a': ns.x}) %}", "{{ ns.x }}"),
    "doubling by %": grow("'ab'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}", "{{ ns.x }}"),
    "doubling by macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + grow("'ab'", "{% set ns.x = f(ns.x) %}", "{{ ns.x }}"),
    "shared lists printed": grow("[1]", NESTED, "{{ ns.x }}", 60),
    "shared lists to json": grow("[1]", NESTED, "{{ ns.x | tojson }}", 60),
    "shared lists joined": grow("[1]", NESTED, "{{ [ns.x] | join }}", 60),
    "shared lists in ~": grow("[1]", NESTED, "{{ '' ~ ns.x }}", 60),
    "shared lists formatted": grow("[1]", NESTED, "{{ '%s' | format(ns.x) }}{{ '{}'.format(ns.x) }}", 60),
    "shared lists by repr": grow("[1]", NESTED, "{{ '{0!r:.1}'.format(ns.x) }}", 60),
    "shared lists sorted": grow("[1]", NESTED, "{{ [ns.x, ns.x] | sort | length }}", 60),
    "shared lists counted": grow("[1]", NESTED, "{{ [ns.x].count(ns.x) }}", 60),
    "shared lists compared": grow("[1]", NESTED, "{{ ns.x == [ns.x] }}", 60),
    "shared lists looked for": grow("[1]", NESTED, "{{ ns.x in [[ns.x]] }}{{ ns.x is in [1] }}", 60),
    "shared tuples hashed": grow("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1} }}", 60),
    "shared tuples as keys": grow("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ {1: 2}[ns.x] }}{{ {}.get(ns.x) }}", 60),
    "shared tuples in dict()": grow("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{{ dict([(ns.x, 1)]) }}", 60),
    "center filter": "{{ 'a' | center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "many tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "many lines": "{{ ('\n' * 100000) | indent(100000) }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "json indent text": BIG + "{{ [1] | tojson(indent=a) }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "format filter width": "{{ '%1000000000d' | format(1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format nested width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format by attr": "{{ ('{0:1000000000}' | attr('format'))(1) }}",
    "format kept": "{% set f = '{0:1000000000}'.format %}{{ f(1) }}",
    "center kept": "{% set f = 'a'.center %}{{ f(10**9) }}",
    "percent brackets": "{{ ('%(' * 1000000) % {} }}",
    "percent brackets and no operand": "{{ ('%(' * 100000) | format }}",
    "long time": "{{ strftime_now('%Y' * 1000) }}",
    "numbers in a loop": "{% set a = '1' * 1000000 %}" + MANY.replace("BODY", "{% set c = a | float %}"),
    "format in a loop": BIG + MANY.replace("BODY", "{% set c = a.format() %}"),
    "format many": BIG + "{{ ('{0}' * 10000).format(a) | length }}",
    "percent many": BIG + "{{ (('%(a)s' * 10000) % {'a': a}) | length }}",
    "replace": BIG + "{{ a.replace('a', a) }}",
    "replace filter": BIG + "{{ a | replace('a', a) }}",
    "replace nothing": BIG + "{{ a.replace('', a) }}",
    "replace by name": BIG + "{{ a | replace(new=a, old='') }}",
    "join": BIG + "{{ a.join(range(3000) | map('string')) }}",
    "long text in a loop": "{% for i in range(5000) %}" + "x" * 99_000 + "{% endfor %}",
    "maps of maps": grow(
        "range(100000)", "{% set ns.x = ns.x | map(attribute='x', default=1) %}", "{{ ns.x | list }}", 200
    ),
    "join filter": BIG + "{{ range(100000) | join(a) }}",
    "join attribute": "{{ range(100000) | map(attribute='z', default='a' * 100000) | join }}",
    "join by attribute": BIG + "{{ ([{'z': a}] * 100000) | join(attribute='z') }}",
    "split": "{% set a = 'a ' * 5000000 %}{{ a.split() | length }}",
    "split below the bound": "{% set a = '🎉 ' * 1990000 %}{{ a.split() | length }}",
    "list below the bound": "{% set a = '🎉' * 1900000 %}{{ a | list | length }}",
    "title in a loop": "{% set a = 'a ' * 900000 %}" + MANY.replace("BODY", "{{ (a | title)[:0] }}"),
    "from hex": BIG + "{{ ('f' * 1000000) | int(base=16) }}",
    "fromkeys": "{{ {}.fromkeys(range(100000), 'a' * 100000) }}",
    "keep lists": grow("[]", "{% set ns.x = ns.x + [range(100000) | list] %}", "", 100000),
    "keep differences of keys": "{% set k = dict.fromkeys(range(30000)).keys() %}"
    + "".join(f"{{% set a{i} = k - [] %}}" for i in range(200)),
    "keep slices": SHORT + "".join(f"{{% set a{i} = l[:] %}}" for i in range(1000)),
    "keep what a method makes": SHORT + "".join(f"{{% set a{i} = l.copy() %}}" for i in range(1000)),
    "keep what a filter makes": SHORT + "".join(f"{{% set a{i} = l | list %}}" for i in range(1000)),
    "keep arguments": SHORT + grow("none", "{% set ns.x = namespace(a=cycler(*l), b=ns.x) %}", "", 10),
    "compare in a loop": BIG + MANY.replace("BODY", "{% if a == b %}{% endif %}"),
    "search in a loop": BIG + MANY.replace("BODY", "{% if 'b' in a %}{% endif %}"),
    "search by method": BIG + MANY.replace("BODY", "{{ a.count('b') }}"),
    "long lists in lists": "{% set l = range(20000) | list %}{% set m = [(l[:-1] + [0])] * 1000 %}"
    + MANY.replace("BODY", "{{ l in m }}{{ m.count(l) }}"),
    "slice in a loop": BIG + MANY.replace("BODY", "{% set c = a[::-1] %}"),
    "upper in a loop": BIG + MANY.replace("BODY", "{% set c = a | upper %}"),
    "reverse in a loop": BIG + MANY.replace("BODY", "{% set c = a | reverse %}"),
    "test in a loop": BIG + MANY.replace("BODY", "{% if a is lower %}{% endif %}"),
    "count in a loop": LONG + MANY.replace("BODY", "{{ l.count(5) }}"),
    "unique in a loop": LONG + MANY.replace("BODY", "{{ l | unique | list | length }}"),
    "sum in a loop": LONG + MANY.replace("BODY", "{{ l | sum }}"),
    "items in a loop": LONG
    + "{% set d = dict.fromkeys(l) %}"
    + MANY.replace("BODY", "{{ d.items() | list | length }}"),
}  # fmt: skip
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__['os'] }}",
    "function globals": "{{ raise_exception.__globals__['re'] }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}x{{ ''.__class__.x }}",
    "attr": "{{ (''|attr('__class__')).x }}",
    "map": "{{ ([1]|map(attribute='__class__')|first).x }}",
    "namespace": "{{ namespace(__class__=1).__class__.x }}",
    "namespace later": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x.y }}{{ ns['_x'].y }}",
    "class of a dict": "{{ dict['x'].update(messages[0], {'role': 'system'}) }}",
    "change the messages": "{{ messages.append(1) }}",
    "change a message": "{% set messages.x = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "bytes": "{{ 'a'.encode() }}",
    "markup": "{{ ('<!---->' | safe).striptags() }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "budget": "{{ pay(-1000) }}",
}
BROKEN = {
    "syntax": "{% for %}",
    "open block": "{% if 1 %}",
    "open tag": "{{ 1",
    "unknown tag": "{% run %}{% endrun %}",
    "unknown filter": "{{ 1 | pprint }}",
    "unknown test": "{{ 1 is strange }}",
    "undefined": "{{ nothing.at.all }}",
    "types": "{{ 1 + 'a' }}",
    "division": "{{ 1 / 0 }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "sum of lists": "{{ [[1]] | sum(start=[]) }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ 1" + "+1" * 20000 + " }}",
    "deep ifs": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "wide loops in deep ones": "{% for i in [1] %}" * 180 + "{{ 1 }}" * 9000 + "{% endfor %}" * 180,
    "deep loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless block": "{% block a %}{{ self.a() }}{% endblock %}",
    "long number": "{{ " + "9" * 5000 + " }}",
    "deep tuples hashed": grow("(1,)", "{% set ns.x = (ns.x,) %}", "{{ {ns.x: 1} }}", 300),
    "deep tuples printed": grow("(1,)", "{% set ns.x = (ns.x,) %}", "{{ ns.x }}", 300),
    "too long": "x" * 100_001,
    "format_map": "{{ '{a}'.format_map() }}",
}


@pytest.mark.parametrize("name", list(STOPPED))
def test_what_would_not_end_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "keep" not in name:  # these take little time
        monkeypatch.setattr(sandbox, "SECONDS", sandbox.SECONDS / 20)
    start, before = time.process_time(), _peak_bytes()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template was stopped"):
        run(STOPPED[name])
    assert _peak_bytes() - before < 150e6
    assert time.process_time() - start < 3


@pytest.mark.slow
def test_time_is_bounded_as_shipped() -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"the chat template was stopped"):
        run(BIG + MANY.replace("BODY", "{% if 'b' in a %}{% endif %}" * 100))
    assert 1 < time.process_time() - start < 5


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("name", list(ESCAPES))
def test_no_way_out(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template failed"):
        run(ESCAPES[name])


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_templates(name: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template"):
        run(BROKEN[name])
    assert time.process_time() - start < 5


def test_nothing_private_is_printed() -> None:
    assert run("{{ ''.__class__ }}{{ '{0.__class__}'.format(1) }}{{ raise_exception.__globals__ }}") == ""


@pytest.mark.parametrize("text", ["{{ 'a ' * 400000 }}", "{% for i in range(4000) %}" + "x" * 99 + "{% endfor %}"])
def test_the_output_is_bounded(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"was stopped: .* writes more, than a chat needs"):
        run(text)


@pytest.mark.parametrize(
    "expression",
    [
        "joiner(',')", "cycler(1).next", "[joiner(',')]", "joiner(',') ~ ''", "'' ~ range", "''.join",
        "messages | map('upper')", "raise_exception(joiner(','))", "'%s' % joiner(',')", "'{}'.format(cycler)",
        "joiner(',') | string", "joiner(',') | safe",
        "['a', joiner(',')] | join", "{'a': joiner(',')}", "'%s' | format(dict)", "dict | upper", "self.b",
        "namespace(a=1)",
    ],
)  # fmt: skip
def test_no_address_of_an_object_is_printed(expression: str) -> None:
    with pytest.raises(CheckpointError, match=r"TypeError: a \w+ has no text$"):
        run("{{ " + expression + " }}{% block b %}{% endblock %}")


def test_messages_of_templates_cannot_drive_a_terminal() -> None:
    for text in ("{{ raise_exception('\x1b[2J\u202e') }}", "{{ {}['\x1b[2J'].x }}", "{% \x1b[2J %}"):
        with pytest.raises(ValueError) as caught:
            run(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000


ORDINARY = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role }}: {{ m['content'] }}\n{% endfor %}",
    "{{ messages[0].content.split('\n') }}{{ messages[0].content.splitlines() }}{{ ', '.join(['a', 'b']) }}",
    "{{ 'a-b'.replace('-', '+') }}{{ 'a-b' | replace('-', '+') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ ' x '.strip() }}",
    "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent('> ', first=true) }}{{ 'x' | center(9) }}{{ 'x'.ljust(4) }}|",
    "{{ '%s=%d %5.2f' | format('a', 3, 1.5) }}{{ '%(k)s' % {'k': 1} }}{{ '{:>5} {a!r}'.format(1, a='q') }}",
    "{{ '{a}'.format_map({'a': 3}) }}{{ '%s' % none }}{{ 1 ~ 'a' ~ none ~ [1] }}",
    "{{ [3, 1, 2] | sort | join('-') }}{{ [3, 1] | max }}{{ [1, 1, 2] | unique | list }}{{ [1, 2] | sum }}",
    "{{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }}{{ [{'n': 1}] | join(',', attribute='n') }}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ messages | groupby('role') | length }}{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1}.items() | list }}",
    "{{ messages[1:] | length }}{{ 'abc'[::-1] }}{{ [1, 2, 3][-1] }}{{ messages | first is mapping }}",
    "{{ 1 < 2 < 3 }}{{ 1 in [1] }}{{ 'a' not in 'b' }}{{ none == false }}{{ 'x' is in ['x'] }}{{ 3 is divisibleby 3 }}",
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 7 / 2 }}{{ -3 | abs }}{{ 2.567 | round(1) }}{{ 'ab' * 3 }}{{ [0] * 2 }}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) if i is odd %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}{{ caller is defined }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}",
    "{% macro f() %}<{{ caller(3) }}>{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}",
    "{% for i in [[1, [2]], 3] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{% filter upper %}abc{% endfilter %}{% set x %}y{{ 1 }}{% endset %}{{ x }}{% with z = 2 %}{{ z }}{% endwith %}",
    "{{ 'a b' | title }}{{ 'A' | lower }}{{ ' x ' | trim }}{{ 'abcdef' | truncate(4, true, '.') }}{{ '<' | e }}",
    "{{ dict(a=1) }}{{ missing | default('d') }}{{ '' | default('e', true) }}{{ none | string }}{{ '3' | int + 1 }}",
    "{% block b %}{{ 1 if messages else 2 }}{% endblock %}{{ (1, 2) | last }}{{ 'abc' | list }}{{ 'ab' | reverse }}",
    "  {%- if true %}\n  a\n  {% endif %}\n   {# note #}\n b  \n",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | length }};{% else %}none{% endfor %}",
    "{{ cycler('a', 'b').next() }}",
    "{{ '%d' % 1700000000 }}{{ '%d %s' | format(1700000000, 'a') }}{{ '{}'.format(1700000000) }}{{ 'ab'.find('b') }}",
    "{{ 10 ** 10 }}{{ 5 .bit_length() }}{{ (2.0).is_integer() }}{{ {1: 'a'}[1] }}{{ {(1, 2): 3}[(1, 2)] }}",
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
    assert len(ChatTemplate(text, "f").render({"messages": chat})) == 40 * (99_999 + 2)


def test_long_parts_of_a_long_message_are_taken_out() -> None:
    thought = "a line\n" * 5_000
    chat = [{"role": "assistant", "reasoning": thought, "content": thought + "hello\n" * 5_000}]
    text = "{% set m = messages[0] %}{{ m.content.replace(m.reasoning, '') }}{{ m.content.removeprefix(m.reasoning) }}"
    assert ChatTemplate(text, "f").render({"messages": chat}) == "hello\n" * 10_000


def test_globals() -> None:
    assert run("{{ lipsum is defined }}{{ namespace is defined }}{{ range(2) | list }}") == "FalseTrue[0, 1]"
    assert run("{{ dict({'a': 1}, b=2) }}{{ dict.fromkeys('ab', 0) }}") == "{'a': 1, 'b': 2}{'a': 0, 'b': 0}"
