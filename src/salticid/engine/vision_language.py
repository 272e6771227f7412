"""What users hold in their hands: ask a photo a question, get words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from salticid.data.conversation import Turn
from salticid.data.questions.captions import DESCRIBE
from salticid.data.templates import IMAGE_MARK, get_template
from salticid.data.tokenize import tokenize_turns
from salticid.engine.batch import generate_rows
from salticid.engine.decoder.decoder import make_decoder
from salticid.engine.generate import generate_tokens
from salticid.engine.locate import PixelBox, boxes_in, locating_question
from salticid.engine.messages import Message, read_messages
from salticid.engine.photo_features import PhotoFeatures
from salticid.engine.prefix_cache import PrefixCache
from salticid.engine.sampling import GenerationOptions
from salticid.engine.text import TextStream, plain_text
from salticid.errors import InputError
from salticid.models import VisionLanguageModel, VisionLanguageProcessor
from salticid.models.photos import ImageSource, read_photo

Images = ImageSource | Sequence[ImageSource] | None


class VisionLanguage:
    """A model and its processor, ready to answer.

    Answers are greedy unless options say otherwise; `**options` everywhere are the fields of `GenerationOptions`. Photos are any
    `ImageSource` (path, bytes, Pillow image, array, tensor), one or a list, or `None` for words alone. The latest photos' image
    tokens are kept and used again, and so are the keys and values of what was read (`PrefixCache`); so after changing the model's
    weights, device or dtype make a new `VisionLanguage`.
    """

    def __init__(self, model: VisionLanguageModel, processor: VisionLanguageProcessor):
        self.model, self.processor = model.eval(), processor
        self._template = get_template(model.config.template)
        self._features = PhotoFeatures(self.model, processor.image_processor)
        self._stop_ids, self._stop_texts = self._ends()
        self._decoder = make_decoder(self.model)
        self._prefixes = PrefixCache(self._decoder) if self._decoder.splits else None

    def ask(self, image: Images, question: str, **options: Any) -> str:
        """The whole answer.

        Raises:
            ImageError: a photo that cannot be read.
            InputError: an empty question, an unknown option, or more than the model can read.
        """
        return "".join(self.stream(image, question, **options))

    def stream(self, image: Images, question: str, **options: Any) -> Iterator[str]:
        """The answer in pieces of text as they are written; joined, they are what `ask` returns. Closing the iterator cancels."""
        if not isinstance(question, str):
            raise InputError(f"the question is {type(question).__name__}, not a string; photos come first: ask(photo, question)")
        return self._answer(*read_messages(question), _photos(image), GenerationOptions.of(options))

    def ask_many(self, questions: Iterable[tuple[Images, str]], batch_size: int = 16, **options: Any) -> list[str]:
        """The answers to (photo, question) pairs, each as `ask` gives it, written `batch_size` at a time; much faster than one by one.

        Raises:
            ImageError, InputError: see `ask`; or a batch size below one.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        asked, chosen = list(questions), GenerationOptions.of(options)
        batches = (asked[start : start + batch_size] for start in range(0, len(asked), batch_size))
        return [answer for batch in batches for answer in self._answer_together(batch, chosen)]

    def keep(self, photos: Sequence[ImageSource], image_features: Tensor) -> None:
        """Image tokens (I, N, D) of photos, where they are known already: questions about these photos look no more.

        Raises:
            InputError: not as many photos as features. ImageError: a photo cannot be read.
        """
        self._features.keep(photos, image_features)

    def caption(self, image: Images, **options: Any) -> str:
        """One sentence about the photo; a model with a phrase head (`models.phrases`) uses it here, and wherever this question is asked."""
        return self.ask(image, DESCRIBE, **options)

    def locate(self, image: ImageSource, phrase: str, **options: Any) -> list[PixelBox]:
        """Boxes around what the phrase names, in pixels of the upright photo, one at least.

        Raises:
            ImageError: a photo that cannot be read.
            InputError: an empty phrase, or a model that was not trained to locate: by its template, or by an answer without a box.
        """
        question = locating_question(self.model.config.template, phrase)
        photo = read_photo(image)
        return boxes_in(self.ask(photo, question, **options), *photo.size)

    def chat(self, messages: str | Sequence[Message], **options: Any) -> str:
        """The answer to a conversation; see `salticid.engine.messages.read_messages` for its form."""
        return "".join(self.chat_stream(messages, **options))

    def chat_stream(self, messages: str | Sequence[Message], **options: Any) -> Iterator[str]:
        """`chat` in pieces of text."""
        return self._answer(*read_messages(messages), [], GenerationOptions.of(options))

    def _answer(self, turns: list[Turn], shown: list[ImageSource], photos: list[ImageSource], options: GenerationOptions) -> Iterator[str]:
        inputs = self._inputs(turns, [*photos, *shown])
        return self._pieces(inputs, options)

    def _inputs(self, turns: Sequence[Turn], photos: Sequence[ImageSource]) -> dict[str, Tensor]:
        """Ids written down just as in training, and image tokens."""
        tokenizer = self.processor.tokenizer
        plain = [Turn(plain_text(turn.question, tokenizer), plain_text(turn.answer, tokenizer)) for turn in turns]
        prefix = self._template.prefix(len(photos)).replace(IMAGE_MARK, IMAGE_MARK * self.processor.image_tokens)
        ids = tokenizer(prefix, add_special_tokens=False)["input_ids"] + tokenize_turns(plain, tokenizer, self._template, len(photos))[0]
        inputs = {"input_ids": torch.tensor([ids], device=self.model.device)}
        if not photos:
            return inputs
        inputs["image_features"] = self._features(photos)
        if len(photos) == 1 and [turn.question for turn in turns] == [DESCRIBE]:
            scores_P = self._features.phrase_scores(photos[0])
            inputs |= {} if scores_P is None else {"phrase_scores": scores_P}
        return inputs

    def _pieces(self, inputs: dict[str, Tensor], options: GenerationOptions) -> Iterator[str]:
        text = self._text_stream(options)
        with closing(generate_tokens(self._decoder, inputs, options, self._stop_ids, self._prefixes)) as tokens:
            for token in tokens:
                if piece := text.add(token):
                    yield piece
                if text.stopped:
                    return
        if piece := text.finish():
            yield piece

    def _answer_together(self, questions: Sequence[tuple[Images, str]], options: GenerationOptions) -> list[str]:
        prompts = [self._inputs(read_messages(question)[0], _photos(image)) for image, question in questions]
        texts = [self._text_stream(options) for _ in prompts]
        pieces: list[list[str]] = [[] for _ in prompts]

        def wants_more(row: int, token: int) -> bool:
            pieces[row].append(texts[row].add(token))
            return not texts[row].stopped

        generate_rows(self._decoder, prompts, options, self._stop_ids, wants_more, self._prefixes)
        return ["".join([*written, text.finish()]) for written, text in zip(pieces, texts, strict=True)]

    def _text_stream(self, options: GenerationOptions) -> TextStream:
        return TextStream(self.processor.tokenizer, (*options.stop, *self._stop_texts))

    def _ends(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """What ends an answer: the model's own end tokens, and how the template ends one, a special token or some text."""
        tokenizer = self.processor.tokenizer
        eos = self.model.generation_config.eos_token_id
        ids = {token for token in (eos if isinstance(eos, list) else [eos, tokenizer.eos_token_id]) if token is not None}
        first = tokenizer(self._template.answer_end, add_special_tokens=False)["input_ids"][:1]
        if first and first[0] in tokenizer.all_special_ids:
            return frozenset({*ids, *first}), ()
        return frozenset(ids), (self._template.answer_end,)


def _photos(image: Images) -> list[ImageSource]:
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
