"""Conversations as documents: whose words are learned, and the template that generation asks with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from emu.documents import CodeSegment, Segment, TokenDocument
from emu.lines import BadLine, shown
from emu.multimodal_tokenizer import MultimodalTokenizer

ROLES = ("system", "user", "assistant")


def check_messages(messages: Any) -> list[tuple[str, list[Any]]]:
    """(role, items) of each message.

    Raises:
        BadLine: a message is of another form, or the last one is not the assistant's.
    """
    if not isinstance(messages, list) or not messages:
        raise BadLine("wrong value", f"messages is {shown(messages)}; expected a list with one message or more")
    turns: list[tuple[str, list[Any]]] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadLine(
                "wrong value", f'message {number} is {shown(message)}; expected {{"role": ..., "content": ...}}'
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise BadLine("wrong value", f"message {number} has role {shown(role)}; expected system, user or assistant")
        if not isinstance(content, str | list) or not content:
            raise BadLine(
                "wrong value", f"message {number} has content {shown(content)}; expected text or a list of items"
            )
        turns.append((role, [content] if isinstance(content, str) else content))
    if turns[-1][0] != "assistant":
        raise BadLine(
            "wrong value", f"the last message is the {turns[-1][0]}'s; expected the assistant's, which is learned"
        )
    return turns


def weighted(segment: Segment, role: str, loss_on: str) -> Segment:
    """A segment with its weight where its role is learned, and with 0 where it is not."""
    return segment if loss_on in (role, "all") else replace(segment, weight=0.0)


def templated(
    turns: Sequence[tuple[str, list[Segment]]], tokenizer: MultimodalTokenizer, loss_on: str
) -> TokenDocument:
    """One question in the model's template, as generation asks it, and its answer.

    Raises:
        BadLine: there is more than one question, or the question is not a user's.
    """
    if [role for role, _ in turns if role != "system"] != ["user", "assistant"]:
        raise BadLine(
            "wrong value",
            "the template of this tokenizer holds one question and one answer; split the conversation",
        )
    layout, controls = tokenizer.layout, tokenizer.vocabulary.controls

    def plain(segment: Segment) -> Any:
        # Templates take text as words, which are tokenized together with the words around them.
        return segment if isinstance(segment, CodeSegment) else layout.decode_text(segment.ids.tolist())

    question = tokenizer.question([plain(one) for _, segments in turns[:-1] for one in segments])
    answer = layout.build(turns[-1][1], add_special=False)
    begun = layout.begin_answer is not None and int(question[-1]) == layout.begin_answer
    end = [layout.end_answer] if begun and layout.end_answer is not None else []
    ids = torch.cat([question, answer.ids, torch.tensor([*end, controls["eos"]])])
    asked = torch.full((len(question),), 1.0 if loss_on == "all" else 0.0)
    asked[0] = 0.0  # nothing predicts BOS
    weights = torch.cat([asked, answer.weights, torch.ones(len(end) + 1)])
    return TokenDocument(ids, weights, layout.spans(ids))
