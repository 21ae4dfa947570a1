"""A tiny published network, and its weights under the names of the published files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amsa.config import AMSAConfig
from amsa.model import AMSA

VGG = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1")


@pytest.fixture(scope="session")
def published_network() -> AMSA:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AMSA(AMSAConfig.published(8, 2, 4)).eval()


@pytest.fixture
def published_files(published_network: AMSA) -> dict[str, dict[str, Tensor]]:
    """The state dicts of the three files, by file, as the published code names and shapes them."""
    state = published_network.state_dict()
    files: dict[str, dict[str, Tensor]] = {"feature_extraction": {}, "net_map": {}, "restoration": {}}

    def add(file: str, theirs: str, ours: str) -> None:
        for kind in ("weight", "bias"):
            tensor = state[f"{ours}.{kind}"].clone()
            if kind == "weight" and ours.endswith((".warp", ".aggregate")):  # a 3x3 convolution, its nine taps in a row
                tensor = tensor.view(tensor.shape[0], 3, 3, -1).permute(0, 3, 1, 2).contiguous()
            files[file][f"{theirs}.{kind}"] = tensor

    for layer in VGG:
        add("feature_extraction", f"feature_extraction_image1.model.{layer}", f"encode_lr.keys.vgg.{layer}")
        add("feature_extraction", f"feature_extraction_image2.model.{layer}", f"encode_ref.keys.vgg.{layer}")
        add("net_map", f"vgg.vgg_net.{layer}", f"encode_ref.values.vgg.{layer}")
    blocks = [f"{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    for part in ("conv_first", *(f"body.{b}" for b in blocks)):
        add("restoration", f"content_extractor.{part}", f"encode_lr.content.{part}")
    for i, size in enumerate(("small", "medium", "large")):
        theirs, ours = "dyn_agg_restore.", f"restore.scales.{i}."
        add("restoration", f"{theirs}{size}_deform_conv", f"{ours}aggregation.warp")
        add("restoration", f"{theirs}{size}_deform_conv.conv_offset_mask", f"encode_ref.warp_masks.{i}")
        add("restoration", f"{theirs}{size}_offset_conv1", f"{ours}aggregation.offset_conv1")
        add("restoration", f"{theirs}{size}_offset_conv2", f"{ours}aggregation.offset_conv2")
        add("restoration", f"{theirs}{size}_dyn_agg", f"{ours}aggregation.aggregate")
        add("restoration", f"{theirs}{size}_dyn_agg.conv_offset_mask", f"{ours}aggregation.offset_mask")
        add("restoration", f"{theirs}head_{size}.0", f"{ours}head")
        for block in blocks:
            add("restoration", f"{theirs}body_{size}.{block}", f"{ours}body.{block}")
        if size != "large":
            add("restoration", f"{theirs}tail_{size}.0", f"{ours}up")
    add("restoration", "dyn_agg_restore.tail_large.0", "finish.conv1")
    add("restoration", "dyn_agg_restore.tail_large.2", "finish.conv2")
    # Constants that the published files hold too
    for prefix in ("feature_extraction_image1.", "feature_extraction_image2."):
        files["feature_extraction"] |= {f"{prefix}mean": torch.zeros(1, 3, 1, 1), f"{prefix}std": torch.ones(1, 3, 1, 1)}
    files["net_map"] |= {"vgg.mean": torch.zeros(1, 3, 1, 1), "feature_match_index.PatchMatch.dx": torch.zeros(9).long()}
    return files
