"""Passes over the joint graph; `compiler` orders them."""

from pockmobile.passes.append_optimizer import AppendOptimizer
from pockmobile.passes.apply_plan import ApplyPlan
from pockmobile.passes.base import Numerics, Pass, PassRun, run_passes
from pockmobile.passes.canonicalize import Canonicalize
from pockmobile.passes.chunk_loss import ChunkLoss
from pockmobile.passes.cut_head import CutHead
from pockmobile.passes.decompose import Decompose
from pockmobile.passes.eliminate_common import EliminateCommon
from pockmobile.passes.flatten_softmax import FlattenSoftmax
from pockmobile.passes.fold_constants import FoldConstants
from pockmobile.passes.fold_scale import FoldScale
from pockmobile.passes.fold_trained_scale import FoldTrainedScale
from pockmobile.passes.gather_log_softmax import GatherLogSoftmax
from pockmobile.passes.mask_from_output import MaskFromOutput
from pockmobile.passes.narrow_gradients import NarrowGradients
from pockmobile.passes.prune import Prune
from pockmobile.passes.recompute import Recompute
from pockmobile.passes.remove_noops import RemoveNoops
from pockmobile.passes.reorder_for_memory import ReorderForMemory
from pockmobile.passes.round_gradients import RoundGradients, computed_in_half, is_rounding
from pockmobile.passes.round_tables import RoundTables
from pockmobile.passes.scale_again import ScaleAgain
from pockmobile.passes.scale_factors import ScaleFactors
from pockmobile.passes.scatter_last import ScatterLast
from pockmobile.passes.split_batch import SplitBatch
from pockmobile.passes.split_one_hot import SplitOneHot
from pockmobile.passes.spread_powers import SpreadPowers
from pockmobile.passes.sum_rows import SumRows

__all__ = [
    "AppendOptimizer",
    "ApplyPlan",
    "Canonicalize",
    "ChunkLoss",
    "CutHead",
    "Decompose",
    "EliminateCommon",
    "FlattenSoftmax",
    "FoldConstants",
    "FoldScale",
    "FoldTrainedScale",
    "GatherLogSoftmax",
    "MaskFromOutput",
    "NarrowGradients",
    "Numerics",
    "Pass",
    "PassRun",
    "Prune",
    "Recompute",
    "RemoveNoops",
    "ReorderForMemory",
    "RoundGradients",
    "RoundTables",
    "ScaleAgain",
    "ScaleFactors",
    "ScatterLast",
    "SplitBatch",
    "SplitOneHot",
    "SpreadPowers",
    "SumRows",
    "computed_in_half",
    "is_rounding",
    "run_passes",
]
