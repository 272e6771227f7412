"""Mixture-of-experts layers for any language model: sparse upcycling, dropless and DeepSpeed routing, router losses."""

from salticid.models.moe.config import ExpertsConfig
from salticid.models.moe.experts import Experts, FeedForwardShape, experts_reference
from salticid.models.moe.layer import ExpertsLayer, collect_routing
from salticid.models.moe.losses import experts_loss, load_balancing_loss, router_z_loss
from salticid.models.moe.router import Router, Routing, expert_capacity, route_deepspeed, route_dropless
from salticid.models.moe.upcycle import upcycle_language_model

__all__ = [
    "Experts",
    "ExpertsConfig",
    "ExpertsLayer",
    "FeedForwardShape",
    "Router",
    "Routing",
    "collect_routing",
    "expert_capacity",
    "experts_loss",
    "experts_reference",
    "load_balancing_loss",
    "route_deepspeed",
    "route_dropless",
    "router_z_loss",
    "upcycle_language_model",
]
