"""Caption scorers in pure Python: BLEU-1..4, CIDEr-D, ROUGE-L and the share of distinct captions.

All take raw captions, one candidate and one or more references per photo, and agree with coco-caption (Chen et al. 2015,
"Microsoft COCO Captions"; packaged as pycocoevalcap 1.2), whose tokenizer needs Java and ours does not.

A candidate without any word scores 0; a reference without any word matches nothing. No candidates, unequal numbers of
candidates and references, or a photo without references raise `DataError`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from salticid.errors import DataError
from salticid.scorers.answers import check_paired

Ngram = tuple[str, ...]

MAX_N = 4
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
_END = "</s>"
# coco-caption's own guards against division by zero; they show in BLEU-4 of small sets, so they are part of the convention
_BLEU_TINY, _BLEU_SMALL = 1e-15, 1e-9

_ABBREVIATIONS = """
    Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri Mr Mrs Ms Messrs Dr Drs Prof Profs Rev Gen Col
    Maj Capt Lt Sgt Cpl Cmdr Gov Sen Rep Pres Hon Jr Sr Esq Bros St Ste Mt Ft Ave Blvd Rd Bldg Co Corp Inc Ltd Dept Univ Natl Intl
    Calif Colo Conn Fla Ga Ind Kan Ky Md Mich Minn Mo Mont Neb Nev Okla Penn Tenn Va Vt Wis Wyo Ala Ariz vs etc est cf ext tel
"""
_APOSTROPHE_WORD = r"(?:[DdLlOo]'\w\w+|\w+)"
# tried in this order at each place; what none of them matches (quotes, commas, dashes, single marks) is dropped
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+             # addresses
  | -[lr][rsc]b-                                                       # brackets that were already escaped
  | (?i:ph\.d|(?:[a-z]\.)+[a-z])\.(?!\w)                               # u.s.  a.m.
  | \b(?i:{"|".join(_ABBREVIATIONS.split())}|[a-z])\.(?!\w)             # mr.  p.
  | \b(?:Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash)\.(?!\w)          # words of their own when not capital
  | \b(?i:nos?|figs?|art|pp)\.(?=\s*\d)                               # no. 5
  | (?i:n't|'(?:s|m|d|re|ve|ll|em|til|cause))(?!\w) | '[nN]'           # is|n't  dog|'s  rock|'n'|roll
  | '[tT](?=(?i:is|was)\b) | '\d\ds?(?=\s|$)                          # 't|is  '90s
  | \b(?i:y'(?=all\b)|ol'(?!\w)|li'l\b|ma'am\b|nat'l\b)
  | \w+(?:[-./]\w+)*(?=(?i:n't)(?!\w))                                # is|n't
  | \d+(?:[.,:]\d+)+(?:-\w+)* | (?<![\w.])(?:[-+]\.?|\.)\d+          # 1,000-pound  12:30  -5  .5
  | [A-Z]+(?:&[A-Z]+)+                                                 # R&B
  | {_APOSTROPHE_WORD}(?:[-./]{_APOSTROPHE_WORD})*(?:\.(?=[,;:]))?     # dog  red-and-white  and/or  O'Brien
  | [?!][?!]+ | [#@][A-Za-z_]\w*                                       # !!  #tag
  | [^\s\w.,:;?!'"`-]                                                 # any other symbol is a token
    """,
    re.VERBOSE,
)
_SYMBOLS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¢": "cents"}
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": " ", "—": " ", "…": " "})
_FUSED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}


@dataclass(frozen=True)
class BleuResult:
    """Corpus BLEU, each in [0, 1]; `brevity_penalty` (at most 1) is already inside the four scores."""

    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    brevity_penalty: float


@dataclass(frozen=True)
class CiderResult:
    """CIDEr-D as coco-caption prints it, in [0, 10]; `score` is the mean of `per_item`, one value per photo."""

    score: float
    per_item: tuple[float, ...]


@dataclass(frozen=True)
class RougeResult:
    """ROUGE-L, in [0, 1]; `score` is the mean of `per_item`, one value per photo."""

    score: float
    per_item: tuple[float, ...]


def tokenize(caption: str) -> list[str]:
    """Lower-case words as coco-caption's PTBTokenizer (Stanford CoreNLP 3.4.1, `-lowerCase`) leaves them.

    Clitics are split ("isn't" -> "is n't", "dog's" -> "dog 's"), hyphenated words stay whole, common abbreviations and
    acronyms keep their dot, and quotes, commas, colons, dashes and single marks are dropped. Brackets become "-lrb-" and the
    like and stay, and so do runs such as "!!", because coco-caption compares its list of punctuation with the exact token.

    Not covered: smileys, HTML tags and entities, telephone numbers, feet and inches, a single letter that ends a sentence
    ("plan b. The" keeps "b."), rare abbreviations, and words with foreign apostrophes; there the tokens may differ from Java's.
    """
    words: list[str] = []
    for match in _TOKEN.finditer(caption.translate(_TYPOGRAPHY)):
        word = match.group().lower()
        if word in _FUSED:
            words.extend(_FUSED[word])
        else:
            words.append(_SYMBOLS.get(word, word))
    return words


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> BleuResult:
    """Corpus BLEU-1..4 (Papineni et al. 2002) with the reference length closest to each candidate, the shorter one on a tie."""
    candidate_words, reference_words = _tokenize_all(candidates, references)
    matched, proposed = [0] * MAX_N, [0] * MAX_N
    candidate_length = reference_length = 0
    for words, refs in zip(candidate_words, reference_words, strict=True):
        ceilings: Counter[Ngram] = Counter()
        for ref in refs:
            ceilings |= _ngrams(ref)
        for ngram, count in _ngrams(words).items():
            matched[len(ngram) - 1] += min(count, ceilings[ngram])
        for n in range(MAX_N):
            proposed[n] += max(0, len(words) - n)
        candidate_length += len(words)
        reference_length += min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]

    ratio = (candidate_length + _BLEU_TINY) / (reference_length + _BLEU_SMALL)
    brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precision_product, scores = 1.0, [0.0] * MAX_N
    for n in range(MAX_N):
        precision_product *= (matched[n] + _BLEU_TINY) / (proposed[n] + _BLEU_SMALL)
        scores[n] = brevity_penalty * precision_product ** (1 / (n + 1))
    bleu1, bleu2, bleu3, bleu4 = scores
    return BleuResult(bleu1, bleu2, bleu3, bleu4, brevity_penalty)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CiderResult:
    """CIDEr-D (Vedantam et al. 2015, section 7) in coco-caption's convention: ten times the mean clipped tf-idf cosine.

    n = 1..4, sigma 6, document frequency counted over the photos of `references` themselves. So 0.60 here is the 0.60 that
    papers print as 0.60 or as 60.0. The figure depends on the set: with a single photo every word is in every document and the
    score is 0.
    """
    check_paired(candidates, references)
    scorer = CiderD(references)
    per_item = tuple(scorer.score(candidate, refs) for candidate, refs in zip(candidates, references, strict=True))
    return CiderResult(score=sum(per_item) / len(per_item), per_item=per_item)


class CiderD:
    """CIDEr-D of single captions, with document frequencies counted once over a corpus: one list of captions for each photo.

    With `mark_end` the end of a caption counts as a word, so that a caption which breaks off ("a man in a") loses: needed where
    the score is a reward. coco-caption does without.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], mark_end: bool = False):
        self.mark_end = mark_end
        documents: Counter[Ngram] = Counter()
        for index, refs in enumerate(corpus):
            _check_references(index, refs)
            documents.update(set().union(*(self._count(ref) for ref in refs)))
        self._unseen_idf = math.log(len(corpus))
        self._idf = {ngram: self._unseen_idf - math.log(frequency) for ngram, frequency in documents.items()}

    def score(self, candidate: str, references: Sequence[str]) -> float:
        """In [0, 10]: ten times the mean clipped tf-idf cosine with each reference."""
        weighted = self.weigh(candidate)
        return 10.0 * sum(weighted.similarity(self.weigh(ref)) for ref in references) / len(references)

    def weigh(self, caption: str) -> TfIdf:
        """The caption's n-grams, n = 1..4, by their tf-idf."""
        return TfIdf.of(self._count(caption), self._idf, self._unseen_idf)

    def idf(self, ngram: Ngram) -> float:
        """Log of how few photos of the corpus have captions with these words, in nats."""
        return self._idf.get(ngram, self._unseen_idf)

    def _count(self, caption: str) -> Counter[Ngram]:
        return _ngrams([*tokenize(caption), _END] if self.mark_end else tokenize(caption))


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> RougeResult:
    """ROUGE-L (Lin 2004) with beta 1.2, from the best precision and the best recall over the references, as coco-caption does."""
    candidate_words, reference_words = _tokenize_all(candidates, references)
    per_item = []
    for words, refs in zip(candidate_words, reference_words, strict=True):
        common = [_longest_common_subsequence(words, ref) for ref in refs]
        precision = max(common) / max(1, len(words))
        recall = max(length / max(1, len(ref)) for length, ref in zip(common, refs, strict=True))
        weighted = recall + ROUGE_BETA**2 * precision
        per_item.append((1 + ROUGE_BETA**2) * precision * recall / weighted if weighted else 0.0)
    return RougeResult(score=sum(per_item) / len(per_item), per_item=tuple(per_item))


def distinct_share(captions: Sequence[str]) -> float:
    """Share of captions that differ from all earlier ones after tokenization, in (0, 1]; 1/len means one caption for everything."""
    if not captions:
        raise DataError("0 captions: there is no share of distinct captions; caption at least one photo")
    return len({tuple(tokenize(caption)) for caption in captions}) / len(captions)


@dataclass(frozen=True)
class TfIdf:
    """tf-idf weights of one caption, their norm for each n, and its length in words."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int

    @classmethod
    def of(cls, counts: Counter[Ngram], idf: dict[Ngram, float], unseen_idf: float) -> TfIdf:
        weights, squares, length = {}, [0.0] * MAX_N, 0
        for ngram, count in counts.items():
            weight = weights[ngram] = count * idf.get(ngram, unseen_idf)
            squares[len(ngram) - 1] += weight * weight
            if len(ngram) == 1:
                length += count
        return cls(weights, tuple(math.sqrt(square) for square in squares), length)

    def similarity(self, reference: TfIdf) -> float:
        """Mean over n of the cosine, clipped so that repeating a word gains nothing, times the Gaussian length penalty."""
        dots = [0.0] * MAX_N
        for ngram, weight in self.weights.items():
            other = reference.weights.get(ngram)
            if other is not None:
                dots[len(ngram) - 1] += min(weight, other) * other
        products = zip(dots, self.norms, reference.norms, strict=True)
        cosine = sum(dot / (own * other) for dot, own, other in products if own and other) / MAX_N
        return cosine * math.exp(-((self.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))


def _tokenize_all(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    check_paired(candidates, references)
    for index, refs in enumerate(references):
        _check_references(index, refs)
    return [tokenize(caption) for caption in candidates], [[tokenize(ref) for ref in refs] for refs in references]


def _check_references(index: int, references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise DataError(f"references[{index}] is {references!r}: give a list of at least one reference caption for each candidate")


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if word == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]
