"""A plan handed to `salticid.quant.native.step`, which reads one token per call, where all of the plan is of kinds that it knows.

D width, L layers, G key-value heads, S tokens so far, K depth of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from salticid.engine.decoder.experts import ExpertsFeedForward
from salticid.engine.decoder.feed_forward import Activation, GatedFeedForward, PlainFeedForward
from salticid.engine.decoder.layer import Layer
from salticid.engine.decoder.norms import Layered, PerHead, Rms, Unchanged
from salticid.engine.decoder.plan import Plan
from salticid.quant import native
from salticid.quant.kernels import Int4Product, Int8Product, SideBySide
from salticid.quant.native import step as s


class _Unknown(Exception):
    """The plan has a part that `step.c` cannot compute."""


def read_step(plan: Plan) -> s.Step | None:
    """The plan for one token at a time; `None` where it holds weights in floats or a part that is not known there."""
    if not native.available() or not plan.cache.keys_by_channel:
        return None
    kept = s.Kept()
    try:
        layers = [_layer(layer, kept) for layer in plan.layers]
        head = _product(plan.head, kept)
        final = _norm(plan.final_norm, kept)
    except _Unknown:
        return None
    attention = plan.layers[0].attention
    networks = [layer.networks[index] for layer in layers for index in range(max(layer.experts, 1))]
    alike = all((each.attention.heads, each.attention.groups, each.attention.depth) == _heads(attention) for each in plan.layers)
    if not alike or any(network.down.outputs != head.width for network in networks):
        return None
    turned = plan.rotary.span(0, 1).cos.shape[-1]
    sizes = (*_heads(attention), turned, max(network.down.width for network in networks), head.outputs)
    return s.Step(s.Decoder(kept.array(s.Layer, layers), final, head, len(layers), head.width, *sizes), kept)


def _heads(attention: Any) -> tuple[int, int, int]:
    return attention.heads, attention.groups, attention.depth


def _layer(layer: Layer, kept: s.Kept) -> s.Layer:
    attention = layer.attention
    projections = _products(attention.project, kept)
    if len(layer.attention_norms) > 2:
        raise _Unknown
    attended = [_norm(norm, kept) for norm in layer.attention_norms]
    networks, routing = _networks(layer.feed_forward, kept)
    return s.Layer(
        input=_norm(layer.input_norm, kept),
        query=_norm(attention.query_norm, kept),
        key=_norm(attention.key_norm, kept),
        attended=(s.Norm * 2)(*attended),
        second=_norm(layer.feed_forward_norm, kept),
        output=_norm(layer.output_norm, kept),
        projections=(s.Product * 3)(*projections),
        out=_product(attention.output, kept),
        networks=kept.array(s.FeedForward, networks),
        scale=attention.scale,
        softcap=attention.softcap or 0.0,
        count=len(projections),
        parallel=layer.feed_forward_norm is None,
        window=attention.window or 0,
        **routing,
    )


def _networks(feed_forward: Any, kept: s.Kept) -> tuple[list[s.FeedForward], dict[str, Any]]:
    if isinstance(feed_forward, GatedFeedForward):
        return [_network(list(feed_forward.ups), feed_forward.down, feed_forward.activation, True, kept)], {}
    if isinstance(feed_forward, PlainFeedForward):
        return [_network([feed_forward.up], feed_forward.down, feed_forward.activation, False, kept)], {}
    if not isinstance(feed_forward, ExpertsFeedForward) or feed_forward.dense is not None or feed_forward.experts > s.MOST_EXPERTS:
        raise _Unknown
    products, config = feed_forward.products, feed_forward.router.config
    if config.second_choice_noise != "none":
        raise _Unknown
    pairs = zip(products.ups_E, products.downs_E, strict=True)
    networks = [_network([up], down, products.activation, products.gated, kept) for up, down in pairs]
    # One token finds room everywhere, so that DeepSpeed's rule differs from the other in one thing: a single choice keeps its probability.
    normalised = config.normalise and (config.routing == "dropless" or config.top_k > 1)
    router = kept.address(feed_forward.router.wg.weight, torch.float32)
    return networks, {"router": router, "experts": len(networks), "chosen": config.top_k, "normalised": normalised}


def _network(ups: Sequence[Any], down: Any, activation: Any, gated: bool, kept: s.Kept) -> s.FeedForward:
    if not isinstance(activation, Activation) or activation.kind is None:
        raise _Unknown
    made = [product for up in ups for product in _products(up, kept)]
    down_product = _product(down, kept)
    if len(made) > 2 or sum(product.outputs for product in made) != down_product.width * (1 + gated):
        raise _Unknown
    return s.FeedForward((s.Product * 2)(*made), down_product, len(made), gated, activation.kind)


def _products(multiply: Any, kept: s.Kept) -> list[s.Product]:
    return [_product(product, kept) for product in (multiply.products if isinstance(multiply, SideBySide) else [multiply])]


def _product(multiply: Any, kept: s.Kept) -> s.Product:
    made = multiply.native(kept) if isinstance(multiply, Int4Product | Int8Product) else None
    if made is None:
        raise _Unknown
    return made


def _norm(norm: Any, kept: s.Kept) -> s.Norm:
    if norm is None or isinstance(norm, Unchanged):
        return s.Norm()
    if isinstance(norm, Rms):
        return kept.norm(s.RMS_NORM, norm.weight, None, norm.eps)
    if isinstance(norm, Layered):
        return kept.norm(s.LAYER_NORM, norm.weight, norm.bias, norm.eps)
    if isinstance(norm, PerHead):
        return kept.norm(s.LAYER_NORM, norm.weight_HK, None, norm.eps, norm.weight_HK.shape[-1])
    raise _Unknown
