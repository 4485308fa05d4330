"""A budget over a model whose work depends on what it sees.

A detector keeps the boxes that score well, so shapes alone do not tell what follows: its count comes from a
run on real tensors, and differs between images. Between machines it may differ by a little, where rounding
tips a box over a threshold. There are two ways to a steady budget:

* a tolerance, `flops_budget(rtol=0.001)`, for a model with its weights;
* heads that say the same of every box, as below: no rounding and no threshold decides anything, the number of
  boxes is part of the set-up, and the count is exact everywhere.
"""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn


@pytest.fixture
def detector():
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=128,  # images are resized to this
        rpn_pre_nms_top_n_test=100_000,  # all anchors
        rpn_post_nms_top_n_test=300,  # of which 300 are proposed,
        rpn_nms_thresh=1.0,  # for no box overlaps another by more than 100 %
        box_nms_thresh=1.0,
        box_detections_per_img=50,
    )
    head, predictor = model.rpn.head, model.roi_heads.box_predictor
    for layer in (head.cls_logits, head.bbox_pred, predictor.cls_score, predictor.bbox_pred):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        predictor.cls_score.bias[1] = 10.0  # every box is surely a person
    return model


def test_faster_rcnn(flops, detector):
    report = flops(detector, [torch.rand(3, 128, 160)])
    assert report.executed == "real"
