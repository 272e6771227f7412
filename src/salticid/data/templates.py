"""How a conversation is written down for a language model. Pure text: no tokenizer, no tensors.

A template turns turns into segments; a segment is either given to the model or learned by it. Photos are marked by `IMAGE_MARK`,
which the processor widens to one placeholder per image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from salticid.data.conversation import Turn
from salticid.errors import ConfigurationError

IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text; `learned` where loss is taken on it."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Template:
    """Fixed strings around questions and answers.

    system: stands once, before everything. image: stands for each photo, before the first question.
    The end of an answer, `answer_end`, is learned too: it is what makes the model stop.
    photo_question: start and end of the first question where photos stand before it; default, those of any other question.
    later_start: start of every question but the first; default, `question_start`.
    photos_start: stands before the photos, where there are any. answer_start: stands before every answer, and is learned with it.
    tasks: models of this template were trained with the task identifiers of `salticid.data.tasks`.
    """

    system: str
    image: str
    question_start: str
    question_end: str
    answer_end: str
    photo_question: tuple[str, str] | None = None
    later_start: str | None = None
    photos_start: str = ""
    answer_start: str = ""
    tasks: bool = False

    def prefix(self, images: int) -> str:
        """What all conversations about the same photos share."""
        return self.system + (self.photos_start + self.image * images if images else "")

    def segments(self, turns: Sequence[Turn], images: int = 0) -> list[Segment]:
        """The conversation after its prefix of `images` photos. A last turn whose answer is empty is left open, for the model to answer."""
        pieces: list[Segment] = []
        for index, turn in enumerate(turns):
            start, end = self.question_start, self.question_end
            if index > 0 and self.later_start is not None:
                start = self.later_start
            elif index == 0 and images and self.photo_question is not None:
                start, end = self.photo_question
            pieces.append(Segment(start + turn.question + end, learned=False))
            if turn.answer or index + 1 < len(turns):
                pieces.append(Segment(self.answer_start + turn.answer + self.answer_end, learned=True))
        return pieces

    def prompt(self, turns: Sequence[Turn], images: int = 0) -> str:
        """The whole text, photos marked; ends where the model is to answer when the last answer is empty."""
        return self.prefix(images) + "".join(segment.text for segment in self.segments(turns, images))


PHI_BOS = "<|endoftext|>"
PHOTO = " <Img>" + IMAGE_MARK + "</Img>"
TINYGPT_V_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
# Upstream trains behind a beginning-of-text token and asks without one, and has three prompts for stage 4. The first three are what the
# weights of each stage were trained with, token by token, and the default; the others reproduce upstream's demos and scorers.
TINYGPT_V_TEMPLATES: dict[str, Template] = {
    # Stages 1 and 2: a caption behind a photo, with no words between.
    "tinygpt_v_caption": Template(system=PHI_BOS, image=IMAGE_MARK, question_start="", question_end="", answer_end="\n"),
    "tinygpt_v_describe": Template(  # stage 3
        system=PHI_BOS + "###Human:",
        image=PHOTO,
        question_start=" ",
        question_end=" ###Assistant: ",
        answer_end="###",
        later_start="Human: ",
    ),
    "tinygpt_v_tasks": Template(  # stage 4
        system=PHI_BOS + "[INST]",
        image=PHOTO,
        question_start=" ",
        question_end=" [/INST]",
        answer_end="###",
        photo_question=(" ", "  [/INST]"),
        later_start="[INST] ",
        tasks=True,
    ),
    # As stage 4 trains conversations, but for upstream's accident of hiding this token from attention, for it is its padding too.
    "tinygpt_v_tasks_upstream": Template(
        system=PHI_BOS + "[INST]",
        image=PHOTO,
        question_start=" ",
        question_end=" [/INST]",
        answer_end="###",
        photo_question=(" ", "  [/INST]"),
        later_start=PHI_BOS + "[INST] ",
        tasks=True,
    ),
    "tinygpt_v_demo": Template(  # demo.py, stages 1 to 3
        system=TINYGPT_V_SYSTEM + "###Human:",
        image=PHOTO,
        question_start=" ",
        question_end="###Assistant: ",
        answer_end="###",
        later_start="Human: ",
    ),
    "tinygpt_v_eval": Template(  # eval_vqa.py and eval_ref.py, stage 4
        system="###Human:",
        image=PHOTO,
        question_start=" ",
        question_end="###Assistant: ",
        answer_end="###",
        later_start="Human: ",
        tasks=True,
    ),
    "tinygpt_v_demo_v2": Template(  # demo_v2.py, stage 4
        system="<s>[INST]",
        image=PHOTO,
        question_start=" ",
        question_end=" [/INST]",
        answer_end="",
        later_start="<s>[INST] ",
        tasks=True,
    ),
}


def _vicuna(answer_end: str) -> Template:
    """MoE-LLaVA's conversations (`moellava/conversation.py`, after Vicuna v1), which differ in the token that ends an answer."""
    return Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        image=IMAGE_MARK + "\n",
        question_start=" USER: ",
        question_end=" ASSISTANT:",
        answer_end=answer_end,
        photo_question=("", " ASSISTANT:"),
        later_start="USER: ",
        photos_start=" USER: ",
        answer_start=" ",
    )


MOE_LLAVA_TEMPLATES: dict[str, Template] = {
    "moe_llava": _vicuna("<|endoftext|>"),  # upstream's phi, stablelm and qwen
    "moe_llava_openchat": _vicuna("<|end_of_turn|>"),
    "moe_llava_mistral": _vicuna("</s>"),  # also upstream's v1
    # Stage 1: a caption behind a photo; its turns have no question.
    "moe_llava_pretrain": Template(system="", image=IMAGE_MARK, question_start="", question_end="", answer_end="\n"),
}

TEMPLATES: dict[str, Template] = {
    "plain": Template(system="", image=IMAGE_MARK, question_start="", question_end="\n", answer_end="\n"),
    # Two special tokens per turn instead of ChatML's eight: on a small machine, a third of each training step.
    "nano": Template(system="", image=IMAGE_MARK, question_start="", question_end="<|im_start|>", answer_end="<|im_end|>"),
    "chatml": Template(
        system="",
        image=IMAGE_MARK + "\n",
        question_start="<|im_start|>user\n",
        question_end="<|im_end|>\n<|im_start|>assistant\n",
        answer_end="<|im_end|>\n",
    ),
    **TINYGPT_V_TEMPLATES,
    **MOE_LLAVA_TEMPLATES,
}


def get_template(name: str) -> Template:
    """The template called `name`; raises `ConfigurationError` that lists the known ones."""
    if name not in TEMPLATES:
        raise ConfigurationError(f"unknown conversation template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
