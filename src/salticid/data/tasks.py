"""What a model can be asked to do with a photo, and in which words. Source: the data sets of TinyGPT-V's stage 4 (MiniGPT-v2's).

A task starts with its identifier, such as `[refer]`, so that a small model need not guess it from the words. In training the words are
drawn from the task's pool; at run time one fixed form is used, upstream's evaluation's where it has one.
"""

from __future__ import annotations

import random

from salticid.errors import ConfigurationError

_QUESTIONS = ("{}", "Based on the image, respond to this question with a short answer: {}")

# Words after the identifier; {} is the question, the phrase, or the box.
POOLS: dict[str, tuple[str, ...]] = {
    "vqa": _QUESTIONS,
    "caption": (
        "Briefly describe this image.",
        "Provide a concise depiction of this image.",
        "Present a short description of this image.",
        "Summarize this image in a few words.",
        "A short image caption:",
        "A short image description:",
        "A photo of ",
        "An image that shows ",
        "Write a short description for the image. ",
        "Write a description for the photo.",
        "Provide a description of what is presented in the photo.",
        "Briefly describe the content of the image.",
        "Can you briefly explain what you see in the image?",
        "Could you use a few words to describe what you perceive in the photo?",
        "Please provide a short depiction of the picture.",
        "Using language, provide a short account of the image.",
        "Use a few words to illustrate what is happening in the picture.",
    ),
    "grounding": (
        "please describe this image in details",
        "describe this image as detailed as possible",
        "summarize this image in details",
        "give a thorough description of what you see in this image",
    ),
    "refer": (
        "{}",
        "give me the location of {}",
        "where is {} ?",
        "from this image, tell me the location of {}",
        "the location of {} is",
        "could you tell me the location for {} ?",
        "where can I locate the {} ?",
    ),
    "identify": (
        "{}",
        "what object is in this location {}",
        "identify the object present at this location {}",
        "what is it in {}",
        "describe this object in {}",
        "this {} is",
        "the object in {} is",
    ),
    "detection": ("{}",),
}

# A question for a given answer, which has no identifier (A-OKVQA's second data set).
QUESTION_POOL: tuple[str, ...] = (
    "Given the image, generate a question whose answer is: {}",
    "Based on the image, provide a question with the answer: {}",
    'Given the visual representation, create a question for which the answer is "{}"',
    "From the image provided, craft a question that leads to the reply: {}",
    "Considering the picture, come up with a question where the answer is: {}",
    "Taking the image into account, generate an question that has the answer: {}",
)

# How a task is asked for at run time.
ASKED: dict[str, str] = {
    "vqa": "Based on the image, respond to this question with a short answer: {}",
    "caption": "please describe this image?",
    "grounding": "please describe this image in details",
    "refer": "give me the location of {}",
    "identify": "what object is in this location {}",
    "detection": "{}",
}


def identifier(task: str) -> str:
    """The task's mark, such as `[refer]`; raises `ConfigurationError` that lists the known tasks."""
    if task not in POOLS:
        raise ConfigurationError(f"unknown task {task!r}; known: {', '.join(POOLS)}")
    return f"[{task}]"


def instruction(task: str, text: str = "", chance: random.Random | None = None) -> str:
    """The task's instruction about `text`: the fixed form, or with `chance` one of the pool as training draws it.

    Raises:
        ConfigurationError: an unknown task, or a task that needs a text and got none.
    """
    mark = identifier(task)
    form = ASKED[task] if chance is None else chance.choice(POOLS[task])
    if "{}" in form and not text:
        raise ConfigurationError(f"the task {task!r} needs a text, such as a question, a phrase or a box")
    return f"{mark} {form.replace('{}', text)}"
