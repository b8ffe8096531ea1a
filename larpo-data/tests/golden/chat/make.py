"""Writes cases.json: chat templates and conversations as transformers renders them.

Run by hand where transformers and jinja2 are installed: `python make.py`. The templates are written for this test; each
uses what templates of published models use.
"""
import json
import pathlib

import transformers
from transformers.utils import chat_template_utils

TURNS = [
    {"role": "system", "content": "Be brief.  "},
    {"role": "user", "content": "What is 2 + 2?\nSay <b>it</b> & \"quote\" it's é"},
    {"role": "assistant", "content": " 4"},
    {"role": "user", "content": "Sure?"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]}]
CALLS = [
    {"role": "user", "content": "Weather in Graz?"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "c1", "function": {
        "name": "weather", "arguments": {"city": "Graz", "days": 2, "exact": 0.5, "wind": True, "more": None}}}]},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "{\"sky\": \"clear\"}"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the <weather> & wind",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1e-7,
          "maximum": 1e20}}, "required": ["city"]}}}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# What minijinja does in its own way: where `~` or `replace` take a list for a text it is in another notation, and none has no
# items instead of being an error.
KNOWN = {("system apart", "parts"), ("macro and filters", "parts"), ("parts", "calls")}

TEMPLATES = {
    "loop and trim": "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}{% endif %}\n"
    "    {{- m['role'] }}: {{ m.content | trim }}\n{% endfor %}\n{% if add_generation_prompt %}\nassistant:{% endif %}\n",
    "system apart": "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = none %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate, turn ' ~ loop.index0) }}"
    "{% endif %}{% if loop.index0 == 0 and system is not none %}{{ '<<SYS>>' + system.strip() + '<</SYS>>' }}{% endif %}"
    "{{ '[' ~ m.role ~ ']' ~ m.content ~ (eos_token if m.role == 'assistant' else '') }}{% endfor %}",
    "namespace": "{%- set ns = namespace(last=-1, seen=false) %}{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.last == -1 and m.role == 'user' and m.content is string and not(m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}"
    "{%- set ns.last = index %}{%- endif %}{%- endfor %}{{ ns.last }} {{ ns.seen }}",
    "tools": "{%- if tools %}{%- for tool in tools %}{{ tool | tojson }}\n{{ tool.function | tojson(indent=2) }}\n"
    "{{ tool['function']['parameters'].properties | tojson(separators=(',', ':'), sort_keys=True) }}{%- endfor %}{%- else %}none{%- endif %}"
    "{%- for m in messages %}{%- if m.tool_calls is defined and m.tool_calls %}{%- for call in m.tool_calls %}"
    "{{ call.function.name }}({% for k, v in call.function.arguments.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
    "{%- endfor %}{%- elif m.role == 'tool' %}<{{ m.get('name', 'x') }}|{{ m.get('absent', 'x') }}>{{ m.content | tojson }}{%- endif %}{%- endfor %}",
    "printed values": "{{ messages[0] }} {{ [1, 2.5, 1e-5, 1e16, true, none, \"it's\", 'a\nb'] }} {{ {'a': [1, 2]} }} {{ true }} {{ none }} {{ undefined_name }}."
    "{{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 3 }}",
    "parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text | trim }}{% elif part['type'] == 'image' %}<image>{% endif %}{% endfor %}{% endif %}"
    "{{ m.content is mapping }}{{ m.content is sequence }}{{ m.content is iterable }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ '|' if loop.nextitem is defined and loop.nextitem.role == 'user' }}{% endfor %}",
    "macro and filters": "{% macro turn(role, text='-') %}<{{ role | upper }}>{{ text }}{% endmacro %}{{ turn('a') }}{{ turn('b', text='c') }}"
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'equalto', 'system') | map(attribute='content') | first }} {{ 'x' | default('y') }}{{ absent | default('y') }}"
    "{{ messages[-1].content | replace('Sure', 'Really') }}{{ 'a,b'.split(',')[1] }}{{ '  a'.lstrip() }}{{ 'ab'[0] }}{{ 'A'.lower() }}"
    "{{ 'reason</think>answer'.split('</think>')[-1].lstrip('a') }}",
    "generation marks": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{%- else -%}{{ m.content }}{% endif %}{% endfor %}\n{%- generation -%}  x  {%- endgeneration %}",
    "whitespace": "a\n  {%- if true %}\n  b\n  {%- endif %}\n{# a comment #}\n  {{ 'c' }}  \n{% raw %}{{ no }}{% endraw %}\nd\n",
    "unicode": "{{ messages | tojson }}{{ messages | tojson(ensure_ascii=True) }}",
    "undefined attribute": "{{ messages[0].absent }}.{{ messages[0]['absent'] }}.{{ messages[0].absent is defined }}{{ messages[0].absent.deeper }}",
    "changes its input": "{{ messages.append(1) }}",
    "wrong call": "{{ no_such_function() }}",
    "no such filter": "{{ 'a' | no_such_filter }}",
    "not closed": "{% for m in messages %}{{ m.role }}",
    "calls and truth": "{{ 'content' in messages[0] }}{{ 'x' in 'xyz' }}{{ 'role' not in messages[0] }}{% if '' %}a{% endif %}{% if [] %}b{% endif %}{% if 0 %}c{% endif %}"
    "{% if not none %}d{% endif %}{{ 'e' if messages }}{{ ('a' ~ 1) * 2 }}{{ messages | length > 1 and 'f' or 'g' }}{{ range(3) | list }}",
}
CONVERSATIONS = {"turns": (TURNS, None), "alternating": (TURNS[1:], None), "parts": (PARTS, None), "calls": (CALLS, TOOLS)}


def main():
    cases = []
    for name, template in TEMPLATES.items():
        for conversation, (messages, tools) in CONVERSATIONS.items():
            if (name, conversation) in KNOWN:
                continue
            for prompt in (False, True):
                case = {"name": name, "template": template, "messages": messages, "tools": tools, "add_generation_prompt": prompt}
                try:
                    compiled = chat_template_utils._compile_jinja_template(template)
                    case["text"] = compiled.render(messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **TOKENS)
                except Exception as error:  # whatever a template may raise
                    case["error"] = f"{type(error).__name__}: {error}"
                cases.append(case)
                if "add_generation_prompt" not in template:
                    break
    golden = {"transformers": transformers.__version__, "special_tokens": TOKENS, "cases": cases}
    path = pathlib.Path(__file__).with_name("cases.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


main()
