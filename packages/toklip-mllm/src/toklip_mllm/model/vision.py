"""Conversion of ids to the connector's input: codes, the semantic encoder's tokens, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from toklip_core.files import read_json
from toklip_core.model import FeatureStream, SemanticEncoder, join_features, model_spec
from toklip_core.weights import load_strict, read_tensors, weights_checksum
from torch import Tensor, nn

from toklip_mllm.model.config import TokLIPLMConfig

#: Beginning of the names of an encoder's weights in the file of a TokLIP.
_PREFIX = "encoder."


class PictureEncoder(nn.Module):
    """Module from ids to the connector's input; with features "codes" it has no semantic encoder."""

    def __init__(self, config: TokLIPLMConfig) -> None:
        super().__init__()
        sizes = config.encoder_config
        self.features = config.features
        self.tokens_per_picture = config.tokens_per_picture
        self.embedding = config.embedding_config.build()
        rows, columns = config.grid
        #: Shape (h, w, Q) of a picture's ids.
        self.ids_shape = (rows, columns, len(self.embedding.codebook_sizes))
        codes = (*self.embedding.map_grid((rows, columns)), self.embedding.codebook_dim)
        if codes != (*sizes.grid, sizes.codebook_dim):
            found, wanted = ("{} x {}, {} wide".format(*size) for size in (codes, (*sizes.grid, sizes.codebook_dim)))
            raise ValueError(
                f"ids on a grid of {rows} x {columns} become codes on {found}, but the encoder takes codes on {wanted}"
            )
        self.encoder = None if config.features == "codes" else SemanticEncoder(sizes)

    def forward(self, ids: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return codes and tokens, or one of them, (P, N, F), of ids (P, h, w, Q); ValueError if the shape differs.

        Args:
            ids: ids of the VQ tokenizer.
            tokens: (P, N, D), the encoder's tokens of these ids if they are known; the encoder does not run then.
        """
        if tuple(ids.shape[1:]) != self.ids_shape:
            raise ValueError(f"got ids {tuple(ids.shape)}; wanted (pictures, {', '.join(map(str, self.ids_shape))})")
        codes = self.embedding.code_map(ids)
        if self.encoder is None:
            return codes.flatten(1, 2)
        tokens = cast(Tensor, self.encoder(codes).tokens if tokens is None else tokens)
        return join_features(self.features, codes.flatten(1, 2), tokens)

    def stream(self, ids: Tensor) -> tuple[Tensor, FeatureStream]:
        """Return the connector's input (B, n, F) of the first n ids (B, n, Q), and a stream for those that follow."""
        return FeatureStream.begin(ids, self.features, embedding=self.embedding, encoder=self.encoder)

    @contextmanager
    def record_hidden_states(self) -> Iterator[list[Tensor]]:
        """Collect the semantic encoder's hidden states (P, N, D) while inside: before each block and after the last."""
        states: list[Tensor] = []
        places = self.tokens_per_picture  # a class token comes after them

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states.append(inputs[0][:, :places])

        # Hooks are on the first layer of each block, because not every path through the encoder calls the blocks.
        encoder, hooks = self.encoder, []
        if encoder is not None:
            norms = [*(f"blocks.{number}.norm1" for number in range(len(encoder.blocks))), "norm"]
            hooks = [encoder.get_submodule(norm).register_forward_pre_hook(keep) for norm in norms]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights in place; buffers, such as the frequencies of rotary positions, keep their dtype."""
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)


def encoder_checksum(encoder: nn.Module) -> str:
    """Return the sha256 of an encoder's weights in float32, in which `toklip encode` loads all models."""
    return weights_checksum(round_to(encoder.state_dict(), torch.float32))


def left_out_encoder(folder: Path) -> dict[str, Tensor] | None:
    """Return the weights of the encoder that the file of a model folder leaves out, from the TokLIP that has them.

    Return None if the file has them, or the folder's config names no TokLIP.

    Raises:
        LookupError: no TokLIP has the name.
        ValueError: the TokLIP has another encoder than the model was built with, or is not in a package.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    name = config.get("encoder_model") if isinstance(config, dict) else None
    if not isinstance(config, dict) or name is None:
        return None
    if any(key.startswith(f"vision.{_PREFIX}") for key in read_tensors(folder / "model.safetensors")):
        return None
    if not isinstance(name, str) or (place := model_spec(name).folder) is None:
        raise ValueError(f"{folder}/config.json has encoder_model = {name!r}; wanted the name of a TokLIP in a package")
    tensors = read_tensors(place / "model.safetensors").items()
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors if key.startswith(_PREFIX)}
    if weights_checksum(round_to(weights, torch.float32)) != config.get("encoder_checksum"):
        raise ValueError(
            f"{str(folder)!r} takes its encoder from {name!r}, and the one that is installed has another; install the "
            "releases of toklip-core and toklip-mllm that belong together"
        )
    return weights


def fill_encoder(vision: PictureEncoder, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into the encoder; ValueError if they do not fit, or accelerate has put the encoder elsewhere."""
    assert vision.encoder is not None
    hooks = [getattr(module, "_hf_hook", None) for module in vision.modules()]
    if any(weight.is_meta for weight in vision.parameters()) or any(getattr(hook, "offload", False) for hook in hooks):
        raise ValueError(f"{source!r} cannot be offloaded; save it with save_pretrained, and load that folder")
    load_strict(vision.encoder, weights, source=source)


def round_to(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights, rounded to a dtype; integers stay as they are."""
    return {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}
