"""Upstream tensor names to ours and back, by a table that a reader can check line by line.

A rule maps an upstream name to ours. Both are written with fields in braces (`FIELDS`), and what a field matched is put into the
other name. Four forms of the right side, all of which can be turned round:

* `"a.{L}.weight"`: another name.
* `("q.{kind}", "k.{kind}", "v.{kind}")`: one upstream tensor holds several of ours, in equal blocks of rows.
* `"experts.down_proj[{E}]"`: the upstream tensor is entry E of ours; `"experts.gate_up_proj[{E}, 0/2]"` is the first of two equal
  blocks of rows of that entry.
* `Drop(reason)`: not wanted here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from salticid.errors import CheckpointError

FIELDS = {"L": r"\d+", "N": r"\d+", "E": r"\d+", "kind": r"weight|bias", "rest": r".+"}
_SLOT = re.compile(r"(?P<name>.+)\[\{E\}(?:, (?P<block>\d+)/(?P<blocks>\d+))?\]")


@dataclass(frozen=True)
class Drop:
    """A rule for tensors that are left out."""

    reason: str


Target = str | tuple[str, ...] | Drop


@dataclass(frozen=True)
class Source:
    """One upstream tensor, or row block `part` of `parts` of it, and where it goes: block `block` of entry `expert` of ours."""

    key: str
    part: int = 0
    parts: int = 1
    expert: int | None = None
    block: int = 0
    blocks: int = 1

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor = tensors[self.key]
        if self.parts == 1:
            return tensor
        if tensor.shape[0] % self.parts:
            raise CheckpointError(f"{self.key} has {tensor.shape[0]} rows, which cannot be cut into {self.parts} equal blocks")
        return tensor.chunk(self.parts)[self.part]


@dataclass(frozen=True)
class _Rule:
    """One line of a table and one of its targets."""

    upstream: str
    name: str
    part: int
    parts: int
    stacked: bool
    block: int
    blocks: int


class KeyTable:
    """A table of rules; the first whose upstream name matches in full is taken.

    Args:
        rules: upstream names to ours, both with fields.
        aliases: further upstream names that are read, but never written by `invert`.
    """

    def __init__(self, rules: Mapping[str, Target], aliases: Mapping[str, Target] | None = None):
        self._targets = {**rules, **(aliases or {})}
        self._patterns = [(_pattern(upstream), upstream) for upstream in self._targets]
        self._back = [(_pattern(rule.name), rule) for upstream, target in rules.items() for rule in _rules(upstream, target)]

    def plan(self, keys: Mapping[str, object] | list[str]) -> dict[str, list[Source]]:
        """For each of our names, what it is made of.

        Raises:
            CheckpointError: some keys match no rule; they are listed.
        """
        plan: dict[str, list[Source]] = {}
        unknown = []
        for key in keys:
            for pattern, upstream in self._patterns:
                if match := pattern.fullmatch(key):
                    for rule in _rules(upstream, self._targets[upstream]):
                        expert = int(match["E"]) if rule.stacked else None
                        source = Source(key, rule.part, rule.parts, expert, rule.block, rule.blocks)
                        plan.setdefault(rule.name.format(**match.groupdict()), []).append(source)
                    break
            else:
                unknown.append(key)
        if unknown:
            raise CheckpointError(f"no rule for {listed(unknown)}; this is a checkpoint of another kind, or of a newer version")
        return plan

    def invert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under their upstream names.

        Raises:
            CheckpointError: some names match no rule, or a part of a joined tensor is missing.
        """
        joined: dict[str, dict[int, Tensor]] = {}
        parts: dict[str, int] = {}
        unknown = []
        for name, tensor in tensors.items():
            seen = set()
            for pattern, rule in self._back:
                match = pattern.fullmatch(name)
                if match is None or (rule.block, rule.blocks) in seen:
                    continue
                seen.add((rule.block, rule.blocks))
                for expert in range(tensor.shape[0]) if rule.stacked else (None,):
                    key = rule.upstream.format(**match.groupdict(), E=expert)
                    whole = tensor if expert is None else tensor[expert]
                    joined.setdefault(key, {})[rule.part] = whole.chunk(rule.blocks)[rule.block] if rule.blocks > 1 else whole
                    parts[key] = rule.parts
            if not seen:
                unknown.append(name)
        if incomplete := [key for key, found in joined.items() if len(found) != parts[key]]:
            unknown.extend(incomplete)
        if unknown:
            raise CheckpointError(f"no upstream name for {listed(unknown)}; this model has parts that upstream cannot hold")
        return {key: _join([found[part] for part in sorted(found)]) for key, found in joined.items()}


def build(name: str, sources: list[Source], tensors: Mapping[str, Tensor]) -> Tensor:
    """One of our tensors from its sources; a plain renaming shares memory.

    Raises:
        CheckpointError: an entry of a stack is missing, given twice, or of another shape than the others.
    """
    if sources[0].expert is None:
        if len(sources) > 1:
            raise CheckpointError(f"{name} is given twice, by {listed([source.key for source in sources])}")
        return sources[0].read(tensors)
    blocks = sources[0].blocks
    found = {(source.expert, source.block): source for source in sources}
    wanted = [(expert, block) for expert in range(len(sources) // blocks) for block in range(blocks)]
    if sorted(found, key=str) != sorted(wanted, key=str):
        raise CheckpointError(f"{name} needs every expert once, but the checkpoint has {listed(sorted(source.key for source in sources))}")
    pieces = [found[place].read(tensors) for place in wanted]
    if len({piece.shape for piece in pieces}) != 1:
        raise CheckpointError(f"the experts of {name} differ in shape: {sorted({tuple(piece.shape) for piece in pieces})}")
    return torch.stack([_join(pieces[start : start + blocks]) for start in range(0, len(pieces), blocks)])


def listed(names: list[str], most: int = 10) -> str:
    """Names on one line, with their number when some are left out."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rules(upstream: str, target: Target) -> Iterator[_Rule]:
    if isinstance(target, Drop):
        return
    targets = (target,) if isinstance(target, str) else target
    for part, form in enumerate(targets):
        slot = _SLOT.fullmatch(form)
        block, blocks = (int(slot["block"] or 0), int(slot["blocks"] or 1)) if slot else (0, 1)
        yield _Rule(upstream, slot["name"] if slot else form, part, len(targets), slot is not None, block, blocks)


def _pattern(form: str) -> re.Pattern[str]:
    """A name with fields as a regular expression with groups."""
    pieces = re.split(r"\{(\w+)\}", form)
    return re.compile("".join(f"(?P<{piece}>{FIELDS[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)))
