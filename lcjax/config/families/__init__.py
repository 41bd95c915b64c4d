"""The families of models, by the model_type of config.json.

parameters/  the tables: names, shapes and axes of all weights
family.py    what defines a family
llama.py     the first family; a new one needs a file like it and an entry in FAMILIES
windows.py   layers with a window among layers that see all tokens
experts.py   mixtures of experts
mistral.py   Mistral and Ministral: Llama without biases, with windows
qwen.py      Qwen2, Qwen2.5 and Qwen3, also with experts
olmo.py      OLMo 2: norms after attention and the MLP
gemma.py     Gemma 2 and 3: norms before and after them, and windows in some layers
smollm.py    SmolLM3: layers without RoPE
phi.py       Phi-3 to Phi-4: joint matrices
gpt_oss.py   gpt-oss: sinks and experts
"""

from __future__ import annotations

from lcjax.config.families.experts import Experts as Experts
from lcjax.config.families.family import AttentionView as AttentionView
from lcjax.config.families.family import Family as Family
from lcjax.config.families.family import Rotary as Rotary
from lcjax.config.families.gemma import GEMMA2 as GEMMA2
from lcjax.config.families.gemma import GEMMA3_TEXT as GEMMA3_TEXT
from lcjax.config.families.gpt_oss import GPT_OSS as GPT_OSS
from lcjax.config.families.llama import LLAMA as LLAMA
from lcjax.config.families.mistral import MINISTRAL as MINISTRAL
from lcjax.config.families.mistral import MISTRAL as MISTRAL
from lcjax.config.families.olmo import OLMO2 as OLMO2
from lcjax.config.families.parameters.common import linear as linear
from lcjax.config.families.parameters.common import norm as norm
from lcjax.config.families.parameters.norms import Norms as Norms
from lcjax.config.families.parameters.row import AXES as AXES
from lcjax.config.families.parameters.row import Parameter as Parameter
from lcjax.config.families.phi import PHI3 as PHI3
from lcjax.config.families.qwen import QWEN2 as QWEN2
from lcjax.config.families.qwen import QWEN3 as QWEN3
from lcjax.config.families.qwen import QWEN3_MOE as QWEN3_MOE
from lcjax.config.families.smollm import SMOLLM3 as SMOLLM3

DEFAULT_FAMILY = LLAMA
"""The family of a file that does not name one."""

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        MINISTRAL,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        OLMO2,
        GEMMA2,
        GEMMA3_TEXT,
        SMOLLM3,
        PHI3,
        GPT_OSS,
    )
}
