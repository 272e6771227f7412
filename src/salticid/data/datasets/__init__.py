"""Readers of data sets, by the names that recipes use. Those below the line read published files; `docs/data.md` describes them."""

from __future__ import annotations

from salticid.data.datasets.captions import CcSbuAlign, CocoCaption, TextCaps
from salticid.data.datasets.coco import CocoObjects
from salticid.data.datasets.daquar import Daquar
from salticid.data.datasets.flickr8k import Flickr8k
from salticid.data.datasets.flickr8k_scenes import Flickr8kScenes
from salticid.data.datasets.grounding import FlickrCaptionToPhrase, FlickrGroundedCaption, FlickrObjectToPhrase
from salticid.data.datasets.instructions import CocoConversation, CocoInstruction, LlavaReason, MultitaskConversation, UnnaturalInstruction
from salticid.data.datasets.llava import Llava
from salticid.data.datasets.photo_tasks import PhotoTasks
from salticid.data.datasets.questions import AokVqa, Gqa, OcrVqa, OkVqa, Vqa
from salticid.data.datasets.refcoco import InvRefCoco, RefCoco
from salticid.data.datasets.visual_genome import VisualGenomeRegions
from salticid.data.streaming import WebDataset

SOURCES: dict[str, type] = {
    "flickr8k": Flickr8k,
    "daquar": Daquar,
    "coco": CocoObjects,
    "flickr8k_scenes": Flickr8kScenes,
    "photo_tasks": PhotoTasks,  # the tasks of TinyGPT-V over the first three
    # ---- published files; MoE-LLaVA and one's own data, then TinyGPT-V's stages in their order
    "llava": Llava,
    "webdataset": WebDataset,
    "cc_sbu_align": CcSbuAlign,
    "llava_conversation": CocoConversation,
    "llava_detail": CocoInstruction,
    "llava_reason": LlavaReason,
    "multitask_conversation": MultitaskConversation,
    "unnatural_instruction": UnnaturalInstruction,
    "refcoco": RefCoco,
    "invrefcoco": InvRefCoco,
    "refvg": VisualGenomeRegions,
    "flickr_grounded_caption": FlickrGroundedCaption,
    "flickr_caption_to_phrase": FlickrCaptionToPhrase,
    "flickr_object_to_phrase": FlickrObjectToPhrase,
    "coco_caption": CocoCaption,
    "textcaps_caption": TextCaps,
    "coco_vqa": Vqa,
    "ok_vqa": OkVqa,
    "aok_vqa": AokVqa,
    "gqa": Gqa,
    "ocrvqa": OcrVqa,
}
