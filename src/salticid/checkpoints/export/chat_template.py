"""Conversation templates as Jinja, which llama.cpp's server, llama-cpp-python and transformers' `apply_chat_template` render.

Photos stand before the first question, as `salticid.data.templates` puts them, wherever a message shows them. A photo is a content part
`{"type": "image"}`, written as `<image>`, or llama.cpp's media marker inside the text: `<__media__>`, in its server with letters of
chance in it.
"""

from __future__ import annotations

import json

from salticid.data.templates import IMAGE_MARK, Template

# First all messages are read for photos, then turns are written; messages of one side in a row are joined by line breaks.
JINJA = """\
{%- macro text_of(message) -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content if part.type != 'image' -%}
            {{- part.text -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set all = namespace(text='', photos=0, mark=$mark) -%}
{%- for message in messages -%}
    {%- set all.text = all.text + text_of(message) -%}
    {%- if message.content is not string -%}
        {%- for part in message.content if part.type == 'image' -%}{%- set all.photos = all.photos + 1 -%}{%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if '<__media' in all.text -%}
    {%- set all.mark = '<__media' + all.text.split('<__media')[1].split('__>')[0] + '__>' -%}
    {%- set all.photos = all.text.split(all.mark) | length - 1 -%}
{%- endif -%}
{{- $system -}}
{%- if all.photos -%}{{- $photos_start -}}{%- endif -%}
{%- for _ in range(all.photos) -%}{{- $image_start + all.mark + $image_end -}}{%- endfor -%}
{%- set turn = namespace(question='', asked=false, index=0) -%}
{%- macro asked(first, question) -%}
    {%- if not first -%}
        {{- $later_start + question + $question_end -}}
    {%- elif all.photos -%}
        {{- $photo_start + question + $photo_end -}}
    {%- else -%}
        {{- $question_start + question + $question_end -}}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set text = text_of(message).replace(all.mark, '').strip() -%}
    {%- if message.role == 'assistant' -%}
        {{- asked(turn.index == 0, turn.question) -}}
        {{- $answer_start + text + $answer_end -}}
        {%- set turn.question = '' -%}
        {%- set turn.asked = false -%}
        {%- set turn.index = turn.index + 1 -%}
    {%- else -%}
        {%- set turn.question = (turn.question + '\\n' + text).strip() -%}
        {%- set turn.asked = true -%}
    {%- endif -%}
{%- endfor -%}
{%- if turn.asked -%}{{- asked(turn.index == 0, turn.question) -}}{%- endif -%}
"""


def jinja_chat_template(template: Template) -> str:
    """Jinja that writes conversations as `template.prompt` does: the last question is left open for the model to answer."""
    image_start, image_end = template.image.split(IMAGE_MARK)
    photo_start, photo_end = template.photo_question or (template.question_start, template.question_end)
    strings = {
        "mark": IMAGE_MARK,
        "system": template.system,
        "photos_start": template.photos_start,
        "image_start": image_start,
        "image_end": image_end,
        "question_start": template.question_start,
        "question_end": template.question_end,
        "photo_start": photo_start,
        "photo_end": photo_end,
        "later_start": template.question_start if template.later_start is None else template.later_start,
        "answer_start": template.answer_start,
        "answer_end": template.answer_end,
    }
    jinja = JINJA
    for name in sorted(strings, key=len, reverse=True):
        jinja = jinja.replace(f"${name}", _quote(strings[name]))
    return jinja


def _quote(text: str) -> str:
    """A Jinja string; JSON's escapes are Jinja's too."""
    return json.dumps(text)
