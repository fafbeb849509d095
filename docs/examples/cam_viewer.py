"""Class activation maps of all classes and images at once, of any torch classifier, as one picture.

    python cam_viewer.py chest1.png chest2.png --out cams.png      (without images: drawn ones)

``class_activation_maps`` is the part to copy. It needs a layer that gives a feature map [N, D, H, W]
and the linear layer that classifies its mean. No gradients, no pass for each class: one matrix product.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from cxr_fast import ops

CELL = 160  # pixels of the picture for each map
MARGIN = 18  # for the words above each


@torch.inference_mode()
def class_activation_maps(
    model: nn.Module, images: Tensor, features: str, head: str
) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and CAMs [N, C, H, W] of images [N, channels, S, S], in one forward pass.

    ``features`` and ``head`` name layers of ``model`` (torchvision's ResNets: "layer4", "fc").
    """
    seen: list[Tensor] = []
    hook = model.get_submodule(features).register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        logits = model(images)
    finally:
        hook.remove()
    return logits, ops.cam(seen[-1], model.get_submodule(head).weight)


def draw_grid(images: np.ndarray, logits: Tensor, cams: Tensor, names: Sequence[str]) -> Image.Image:
    """A row for each image [N, S, S] in [0, 1], a column for each class, its CAM laid over in orange.

    All maps share one scale. Scaled one by one, the map of an absent class would look as strong as any.
    """
    probability = logits.sigmoid().float().cpu()
    positive = cams.float().clamp(min=0).cpu()
    scaled = positive / positive.amax().clamp(min=1e-6)
    sheet = Image.new("RGB", ((len(names) + 1) * CELL, len(images) * (CELL + MARGIN)), "#111418")
    pen = ImageDraw.Draw(sheet)
    for row, image in enumerate(images):
        top = row * (CELL + MARGIN)
        picture = Image.fromarray((image * 255).astype(np.uint8)).resize((CELL, CELL)).convert("RGB")
        sheet.paste(picture, (0, top + MARGIN))
        pen.text((4, top + 3), f"image {row + 1}", fill="#c8ced6")
        for column, name in enumerate(names):
            heat = Image.fromarray((scaled[row, column].numpy() * 255).astype(np.uint8))
            opacity = heat.resize((CELL, CELL), Image.Resampling.BILINEAR).point(lambda v: v * 3 // 4)
            place = ((column + 1) * CELL, top + MARGIN)
            orange = Image.new("RGB", picture.size, "#ff9500")
            sheet.paste(Image.composite(orange, picture, opacity), place)
            pen.text((place[0] + 4, top + 3), f"{name} {probability[row, column]:.2f}", fill="#c8ced6")
    return sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the maps of the bundled model: put your own model, layers and names in its place."""
    from cxr_fast.archive.images import read_image, to_input
    from cxr_fast.model_files import model_path
    from cxr_fast.models import load_checkpoint, normalise
    from cxr_fast.phantom import PhantomSettings, render

    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("cams.png"))
    asked = parser.parse_args(arguments)

    model, card = load_checkpoint(model_path("demo"))
    if asked.images:
        pictures = [read_image(path) for path in asked.images]
    else:
        pictures = [render(index, PhantomSettings(size=512)).image for index in (0, 8, 12, 14)]
    images = np.stack([to_input(picture, card.input_size) for picture in pictures])
    batch = normalise(torch.from_numpy(images)[:, None], card)
    logits, cams = class_activation_maps(model, batch, features="msa", head="fc")
    draw_grid(images, logits, cams, card.class_names).save(asked.out)
    print(f"{asked.out}: CAMs [N, C, H, W] = {list(cams.shape)}")


if __name__ == "__main__":
    main()
