"""Form: single parts, each with the context it is called with, export and compile in one piece; the context is a pytree."""

import dataclasses
from collections.abc import Callable

import pytest
import test_form_branches
import test_form_dynamic_chunks
import test_form_lora
import test_form_mesh_edges
import test_form_prefix_tokens
import test_form_queries
import test_form_ragged_windows
import test_form_routed_experts
import test_form_stream
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anyformer import core
from anyformer.core import registry, serial
from anyformer.core.binding import axis_table
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.down.patch_down import PatchDown
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
