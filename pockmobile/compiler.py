"""The stages of a compilation, in order: from a model to a program that trains."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pockmobile import passes as p
from pockmobile.artifact.manifest import Manifest
from pockmobile.artifact.program import write_program
from pockmobile.artifact.report import render
from pockmobile.capture import (
    Forward,
    capture_joint,
    capture_predict,
    check_loss,
    describe_layers,
    export_forward,
    index_limits,
    model_output,
    named_targets,
    split_forward,
    with_adapters,
)
from pockmobile.describe import Description, MethodDescription, describe
from pockmobile.errors import ModelError, UsageError
from pockmobile.fitting import fit
from pockmobile.graph import JointGraph, Role
from pockmobile.graph.columns import run_width
from pockmobile.loss import Loss, resolve_loss
from pockmobile.optim import SGD, Optimizer
from pockmobile.pipeline import arranging, chunk_width, pruning, rewriting, rounding
from pockmobile.plan import UpdatePlan, check_plan, resolve_plan
from pockmobile.targets import Target, lower_program, resolve_target


@final
@dataclass(frozen=True)
class Program:
    """A training program: the bytes of its `.pte`, and its manifest.

    That of a model on the meta device is a forecast: all of it but its weights.
    """

    buffer: bytes
    manifest: Manifest
    num_absent: int = 0

    @property
    def num_bytes(self) -> int:
        """The size of the `.pte`, weights included even where they are absent."""
        return len(self.buffer) + self.num_absent

    def save(self, path: str | Path) -> None:
        """Writes the `.pte`, whole or not at all.

        Raises:
            ArtifactError: the file cannot be written.
            UsageError: the model was on the meta device.
        """
        if self.num_absent:
            raise UsageError(
                "the model is on the meta device, so its program has no weights to be saved; "
                "compile the model itself"
            )
        write_program(path, self.buffer)

    def report(self) -> str:
        """Returns what is trained, what it costs and what is delegated, for people."""
        return render(self.manifest, self.num_bytes)


def compile(
    model: nn.Module | ExportedProgram,
    example_args: tuple[Any, ...],
    example_targets: tuple[Tensor, ...] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    loss: str | Loss | Callable[..., Tensor] = "cross_entropy",
    plan: str | Path | UpdatePlan = "full",
    optimizer: Optimizer | None = None,
    clip_norm: float | None = None,
    target: str | Target = "xnnpack",
    predict_batch_size: int = 1,
    split: bool = False,
    frozen_weights: str = "fp32",
    memory_budget: int | None = None,
    loss_chunk: int | None = None,
    name: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Program:
    """Compiles a model into a program that trains it on the stock ExecuTorch runtime.

    A model on the meta device, with its example inputs there, takes no memory for weights, and
    makes a forecast: a program without them, whose manifest and report are those of the real
    one but for the bytes of the file, which are estimated.

    Args:
        model: an ordinary module (its forward pass in evaluation mode is exported), or what
            `torch.export.export` returned.
        example_args: positional inputs of one batch; dimension 0 is the batch.
        example_targets: targets of that batch; made by the loss if left out.
        example_kwargs: keyword inputs, if any.
        loss: `cross_entropy`, `next_token`, `mse`, `bce`, `contrastive` (CLIP's),
            `sigmoid_contrastive` (SigLIP's), or a function (output, *targets) that returns one
            number.
        plan: a preset (`full`, `head`, `bias`, `last:N`, `sparse:B:W`, `lora:R`,
            `lora:R:B`), the path of a plan file, or a plan.
        optimizer: `SGD` (the default), `Momentum`, `AdamW` or `Lion`; the learning rate is
            an input of each step.
        clip_norm: the joint norm to which gradients are clipped, if any.
        target: `xnnpack`, `coreml`, `qnn` or `portable`, or a target with options of its own,
            like `CoreML(precision="fp16")` or `Qnn(soc="SM8550")`.
        predict_batch_size: the batch of `predict`; a model or an archive that takes the
            example's batch alone keeps that.
        split: adds a method `encode` for what comes before the first layer that learns, so
            that an example's latents can be kept and training starts there (latent replay).
        frozen_weights: `fp32`, or `int8` for products with large frozen weights on XNNPACK,
            forward and backward: each output channel has a scale, and what it multiplies is
            quantised as the program runs, row by row; but not the gradient of a choice among
            thousands, as of tokens. Losses then differ by about 1 %. Or `int4`: as `int8`, but
            for linear layers whose sizes are multiples of 32, and together 4096 at least. Each
            32 inputs of an output have a scale, and a weight that the gradient passes, too, is
            held once for each way. Losses then differ by about 2 %.
        memory_budget: the most bytes that a step may need beside the frozen weights; if more
            would be, values are computed again in the backward pass instead of kept, which
            takes time.
        loss_chunk: of the classes that a label is chosen among (`cross_entropy`,
            `next_token`), how many have logits in memory at once, 0 for all; chosen by default
            where the logits of a batch would take more than 12 MiB.
        name: the model's name in the manifest; by default its class.
        progress: told each stage as it begins.

    Raises:
        ModelError: the forward pass or the loss fails on the example batch.
        PlanError: the plan does not fit the model, or leaves nothing to split off.
        UsageError: a loss, a plan, a target or weights of an unknown name, or a budget that
            cannot be kept.
        UnsupportedOperatorError: the runtime lacks an operator.
        MissingLibraryError: a library that the target compiles with is missing.
    """
    chosen_loss = resolve_loss(loss)
    chosen_target = resolve_target(target, frozen_weights)
    chosen_target.check_ready()
    progress("export the forward pass")
    plain = export_forward(model, example_args, example_kwargs)
    resolved = resolve_plan(plan, describe_layers(plain))
    whole = with_adapters(plain, resolved.adapters)
    encoder, forward = split_forward(whole, resolved.update) if split else (None, whole)
    output = model_output(forward, forward.inputs)
    targets = named_targets(example_targets, chosen_loss, output)
    target_range = chosen_loss.target_range(output)
    for target_name, value in targets.items():
        if not value.is_meta:
            target_range.check(target_name, value)
    check_loss(chosen_loss, output, targets)
    progress("capture the joint graph")
    joint = capture_joint(
        forward,
        forward.inputs,
        targets,
        chosen_loss,
        gradient_scale=chosen_target.gradient_scale,
    )
    width = chunk_width(chosen_target, loss_chunk)
    progress("capture predict")
    small = _resized(model, whole, example_args, example_kwargs, predict_batch_size)
    others = {"predict": capture_predict(small, small.inputs)}
    if encoder is not None:
        others["encode"] = capture_predict(encoder, encoder.inputs, [*forward.inputs])
    recipe = _Recipe(
        plan=_checked(resolved, forward, joint),
        optimizer=optimizer or SGD(),
        clip_norm=clip_norm,
        target=chosen_target,
        memory_budget=memory_budget,
        chunk_width=width,
        runs=_runs(output, width),
    )
    rewritten = _rewrite(joint, others, recipe, progress)
    progress("lower")
    ready = chosen_target.calibrated(rewritten.graphs)
    lowered = ready.share(
        {
            method: ready.lower(graph, method=method)
            for method, graph in rewritten.graphs.items()
        }
    )
    description = Description(
        name=name or type(model).__name__,
        sha256=_weights_sha256(whole),
        target=chosen_target,
        frozen_weights=frozen_weights,
        methods={m: MethodDescription(g, lowered[m]) for m, g in rewritten.graphs.items()},
        input_limits=_input_limits([joint, *others.values()]),
        target_range=target_range,
        plan=recipe.plan,
        optimizer=recipe.optimizer,
        clip_norm=clip_norm,
        loss=chosen_loss,
        num_captured=joint.num_operators,
        num_pruned=rewritten.num_pruned,
        passes=rewritten.runs,
    )
    progress("emit the program")
    return _emit(description)


@final
@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What is to be trained, how, and for which target."""

    plan: UpdatePlan
    optimizer: Optimizer
    clip_norm: float | None
    target: Target
    memory_budget: int | None
    chunk_width: int | None
    runs: tuple[int, int]


@final
@dataclass(frozen=True)
class _Rewritten:
    """The graph of each method; for `train_step`, what its passes did."""

    graphs: Mapping[str, JointGraph]
    runs: Sequence[p.PassRun]
    num_pruned: int


def _rewrite(
    joint: JointGraph,
    others: Mapping[str, JointGraph],
    recipe: _Recipe,
    progress: Callable[[str], None],
) -> _Rewritten:
    progress("rewrite train_step")
    prune = pruning(recipe.plan)
    pruned, first = p.run_passes(joint, prune)
    train, rest = p.run_passes(
        pruned,
        [
            *rounding(recipe.target),
            p.AppendOptimizer(recipe.optimizer, recipe.clip_norm),
            p.Canonicalize(),
            p.RemoveNoops(),
            p.SplitOneHot(recipe.chunk_width),
            p.ChunkLoss(recipe.chunk_width),
            p.NarrowGradients(),
            *rewriting(recipe.target),
            *arranging(recipe.target),
        ],
    )
    if recipe.memory_budget is not None:
        progress("fit train_step into the memory budget")
        train, fitting = fit(train, recipe.target, recipe.memory_budget)
        rest = [*rest, *fitting]
    progress(f"rewrite evaluate, {', '.join(others)}")
    measured = joint.keep_outputs(lambda port: port.role in (Role.LOSS, Role.METRIC))
    graphs = {"train_step": train}
    # What is encoded is frozen: it takes no part of the state.
    pruning_of = {"encode": pruning(replace(recipe.plan, update={}))}
    cuts: Mapping[str, Sequence[p.Pass]] = {
        "evaluate": [p.ChunkLoss(recipe.chunk_width)],
        "predict": [p.CutHead(*recipe.runs)] if _is_chunked(rest) else [],
    }
    for method, graph in {"evaluate": measured, **others}.items():
        own = [*pruning_of.get(method, prune), *cuts.get(method, [])]
        own = [*own, *rewriting(recipe.target), *arranging(recipe.target, train)]
        graphs[method], _ = p.run_passes(graph, own)
    return _Rewritten(graphs, [*first, *rest], pruned.num_operators)


def _runs(output: Tensor, width: int | None) -> tuple[int, int]:
    """Returns the number of an output's columns, and of those that are computed at once."""
    num_columns = output.shape[-1] if output.dim() else 1
    num_rows = output.numel() // max(num_columns, 1)
    return num_columns, run_width(num_rows, num_columns, width)


def _is_chunked(passes: Sequence[p.PassRun]) -> bool:
    """Whether a training step computes its logits by runs."""
    runs = [run for run in passes if run.name == p.ChunkLoss.name]
    return any(run.num_before != run.num_after for run in runs)


def _input_limits(graphs: Sequence[JointGraph]) -> Mapping[str, int]:
    """Returns the least limit that a method has for each input that indexes a table."""
    limits: dict[str, int] = {}
    for graph in graphs:
        for name, limit in index_limits(graph).items():
            limits[name] = min(limit, limits.get(name, limit))
    return limits


def _emit(description: Description) -> Program:
    """Emits the program, with a manifest that tells the bytes it plans."""
    written: list[Manifest] = []

    def write_manifest(planned: Mapping[str, int]) -> str:
        written.append(describe(description, planned))
        return written[-1].to_json()

    methods = {name: (m.graph, m.lowered) for name, m in description.methods.items()}
    train = description.methods["train_step"].graph
    state = [torch.zeros(1)] if description.is_forecast else [*train.initial_state().values()]
    buffer = lower_program(methods, state, write_manifest)
    manifest = written[-1]
    absent = manifest.frozen_bytes + _parameter_bytes(train) if description.is_forecast else 0
    return Program(buffer, manifest, absent)


def _checked(plan: UpdatePlan, forward: Forward, joint: JointGraph) -> UpdatePlan:
    """Returns the plan, checked; a preset leaves out what does not influence the loss."""
    grads = joint.output_nodes(Role.GRADIENT)
    shapes = {
        name: tuple(value.shape)
        for name, value in forward.parameters.items()
        if f"grad.{name}" in grads
    }
    if plan.preset is not None:
        known = {name: part for name, part in plan.update.items() if name in shapes}
        plan = replace(plan, update=known)
    check_plan(plan, shapes)
    return plan


def _resized(
    model: nn.Module | ExportedProgram,
    forward: Forward,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    batch_size: int,
) -> Forward:
    """Returns the forward pass for another batch, or as it is where the batch is fixed."""
    if isinstance(model, ExportedProgram):
        if not forward.has_dynamic_batch:
            return forward
        inputs = {name: resize(value, batch_size) for name, value in forward.inputs.items()}
        return replace(forward, inputs=inputs)
    small_args = tuple(resize(leaf, batch_size) for leaf in args)
    small_kwargs = {name: resize(leaf, batch_size) for name, leaf in (kwargs or {}).items()}
    try:
        small = export_forward(model, small_args, small_kwargs)
    except ModelError:
        # It was exported for the example's batch: the model takes no other.
        return forward
    return with_adapters(small, forward.adapters)


def resize(value: Any, batch_size: int) -> Any:
    """Returns the first rows of a tensor, repeated if they are too few; else the leaf."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    repeats = -(-batch_size // value.shape[0])
    return value.repeat(repeats, *[1] * (value.dim() - 1))[:batch_size].contiguous()


def _parameter_bytes(train: JointGraph) -> int:
    return sum(value.numel() * value.element_size() for value in train.initial.values())


def _weights_sha256(forward: Forward) -> str:
    """Returns the hash of all weights; on the meta device, of their names and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted({**forward.parameters, **forward.buffers}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if not value.is_meta:
            digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
